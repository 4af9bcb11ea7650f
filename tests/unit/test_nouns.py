"""Each noun of the architecture stands in one table: no name of it is written as a string anywhere else."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

from dfqkit_export.backends import all_backends, all_targets
from dfqkit_export.measure.kinds import KINDS
from dfqkit_export.tasks import task_names

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "dfqkit", ROOT / "export" / "dfqkit_export")


def offenders(names: Collection[str], *tables: str) -> Iterator[str]:
    """Places outside the tables where a string constant is equal to one of the names; modules to import may be."""
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            place = path.relative_to(package.parent).as_posix()
            if place.startswith(tables):
                continue
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            imported = {argument for node in nodes if isinstance(node, ast.Call) for argument in _modules(node)}
            for node in (node for node in nodes if node not in imported):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
                    yield f"{place}:{node.lineno}: {node.value!r}"


def _modules(call: ast.Call) -> list[ast.expr]:
    return call.args[:1] if ast.unparse(call.func).endswith(("import_module", "find_spec")) else []


def test_metrics_are_named_by_their_kinds_alone() -> None:
    found = list(offenders(KINDS, "dfqkit_export/measure/kinds.py", "dfqkit_export/tasks/"))
    assert not found, "name them through dfqkit_export.measure.kinds:\n" + "\n".join(found)


def test_runtimes_and_targets_are_named_by_their_table_alone() -> None:
    found = list(offenders({*all_backends(), *all_targets()}, "dfqkit_export/backends/"))
    assert not found, "name them through dfqkit_export.backends:\n" + "\n".join(found)


def test_tasks_are_named_by_their_table_alone() -> None:
    of_coco = "dfqkit_export/images/label_kinds.py"  # a field of these files is called like a task
    found = list(offenders(task_names(), "dfqkit_export/tasks/", "dfqkit/tasks/", of_coco))
    assert not found, "name them through dfqkit_export.tasks:\n" + "\n".join(found)


def test_the_largest_of_outputs_is_asked_of_the_task() -> None:
    """Elsewhere a class is the largest number only where the mathematics is about classes, or nothing is a class."""
    about_classes = ("dfqkit/tasks/", "dfqkit_export/tasks/", "dfqkit/losses/", "dfqkit/synthesis/",
                     "dfqkit/bench/imagestats.py", "dfqkit_export/estimate/")  # fmt: skip
    no_outputs = {
        "dfqkit/records/recording.py": "the sign of an eigenvector",
        "dfqkit_export/gate/signature.py": "the scale that changed most",
        "dfqkit_export/gate/diagnosis.py": "the group that most images of another went to",
    }
    found = [
        f"{place}:{number}"
        for package in PACKAGES
        for path in sorted(package.rglob("*.py"))
        for place in [path.relative_to(package.parent).as_posix()]
        if not place.startswith(about_classes) and place not in no_outputs
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if ".argmax(" in line
    ]
    assert not found, "ask Task.same_answer, Task.margins or Task.groups:\n" + "\n".join(found)
