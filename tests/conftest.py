"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import fx

from dfqkit.teacher.load import Teacher

Case = tuple[fx.GraphModule, Path]

# In a job the gate refuses to approve its own change and writes a job summary, and a screen has a width, which parallel
# tests inherit. Tests that mean that set these themselves; all others, and the commands that they start, behave as on a
# desk whose output goes into a file.
for _name in ("CI", "GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS", "COLUMNS"):
    os.environ.pop(_name, None)
# A child that is a copy starts at once and has what a test has replaced; nothing of torch is used in it.
os.environ["DFQKIT_CHILD"] = "fork"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two threads that fight for cores make torch several times slower, and sums depend on their number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real teachers and images, from DFQKIT_ASSETS or beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DFQKIT_ASSETS", beside))
    if not folder.is_dir():
        pytest.skip(f"real teachers and images are absent: set DFQKIT_ASSETS (looked in {folder})")
    return folder


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """A toy with BatchNorm and residual additions, of each module its own."""
    from tests._toys import toy_teacher

    return toy_teacher("residual")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Return a function that gives a toy's frozen student and its file, which is written once for all processes."""
    from dfqkit.students.onnx_file import write_qdq
    from dfqkit_export.backends import get_target
    from tests._shared import once
    from tests._toys import student

    def export(name: str, bits: str, target: str = "onnxruntime", scales: str = "power_of_two") -> Case:
        key = f"{name}-{bits}-{target}-{scales}"
        if key not in made:
            graph = student(name, bits, target, scales=scales)

            def write(path: Path) -> None:
                write_qdq(graph, get_target(target), path, metadata={"recipe": key})

            made[key] = graph, once(tmp_path_factory, f"{key}.onnx", write)
        return made[key]

    made: dict[str, Case] = {}
    return export
