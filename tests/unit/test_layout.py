"""What holds for the whole source: size, docstrings, packaging, the direction of imports, and what is never called."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # the standard library has no TOML reader before
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PACKAGES = {"dfqkit": ROOT / "dfqkit", "dfqkit_export": ROOT / "export" / "dfqkit_export"}
MODULES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]

LONGEST = 400


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Absolute imports as (module, names)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", [alias.name for alias in node.names]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_belongs_in_it_and_is_a_room(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= LONGEST


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_that_could_run_foreign_code_is_called(path: Path) -> None:
    forbidden = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "pickle.load", "pickle.loads"}
    for function, call in calls(path):
        assert function not in forbidden
        if function == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("weights_only") == "True"
        if function in ("np.load", "numpy.load"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("allow_pickle", "False") == "False"
    for module, names in imports(path):
        # The name of what torch.load raises is all that may come from there.
        assert module.split(".")[0] not in ("pickle", "dill", "cloudpickle", "joblib") or names == ["UnpicklingError"]


@pytest.mark.parametrize("path", [path for path in MODULES if "export" in path.parts], ids=name_of)
def test_the_deployment_half_knows_nothing_of_the_other(path: Path) -> None:
    assert not [module for module, _ in imports(path) if module.split(".")[0] == "dfqkit"]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            depth = len(path.relative_to(PACKAGES["dfqkit_export"]).parts)
            assert node.level <= depth, "leaves the package"


def test_every_package_on_disk_is_shipped() -> None:
    found = {
        ".".join((name, *folder.relative_to(root).parts))
        for name, root in PACKAGES.items()
        for folder in (root, *root.rglob("*"))
        if folder.is_dir() and any(folder.glob("*.py"))
    }
    assert {*found, "dfqkit.recipes"} == set(SETUP["packages"])
    assert len(SETUP["packages"]) == len(set(SETUP["packages"]))
    assert SETUP["package-dir"] == {"dfqkit_export": "export/dfqkit_export", "dfqkit.recipes": "recipes"}
    for root in PACKAGES.values():
        assert all((path.parent / "__init__.py").is_file() for path in root.rglob("*.py"))


def test_types_and_recipes_are_shipped() -> None:
    for name, root in PACKAGES.items():
        assert (root / "py.typed").is_file()
        assert "py.typed" in SETUP["package-data"][name]
    shipped = {path for pattern in SETUP["package-data"]["dfqkit.recipes"] for path in (ROOT / "recipes").glob(pattern)}
    needed = [path for path in (ROOT / "recipes").rglob("*") if path.suffix in (".yaml", ".safetensors", ".npz")]
    assert needed
    assert set(needed) <= shipped


@pytest.mark.parametrize(
    "program",
    [
        "import dfqkit",
        "import dfqkit; dir(dfqkit); dfqkit.__version__; dfqkit.ImageSpec; dfqkit.DfqkitError",
        "from dfqkit.config.recipe import list_recipes; assert list_recipes()",
        "from dfqkit.config.registry import synthesizer_names; assert synthesizer_names()",
        "import dfqkit.cli",
    ],
)
def test_importing_is_light(program: str) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "export")])
    ending = "; import sys; print(sorted({'torch', 'brevitas', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program + ending],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    import dfqkit

    for name in dfqkit.__all__:
        assert getattr(dfqkit, name) is not None
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'"):
        _ = dfqkit.nothing


def test_names_of_test_modules_are_unique() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_the_library_does_not_print() -> None:
    allowed = re.compile(r"dfqkit/cli/|dfqkit/progress\.py")
    for path in MODULES:
        if not allowed.search(name_of(path)):
            assert "print" not in {function for function, _ in calls(path)}, name_of(path)
