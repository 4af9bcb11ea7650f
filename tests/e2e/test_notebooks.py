"""The notebooks of the documentation: they run from an empty folder, hold no outputs, and the site leads to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
#: What the last lines of each must tell.
TOLD = {"first-int8-file": ("by ONNX Runtime alone", " dB, int"), "compare-synthesizers": ("noise", "zeroq", "loses")}


def cells(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def code(path: Path) -> list[str]:
    """Cells of code, whose last expression is shown as a notebook shows it."""
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]  # type: ignore[arg-type]


def test_all_are_known() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(TOLD)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped_and_the_site_leads_there(path: Path) -> None:
    assert [cell for cell in cells(path) if cell.get("outputs") or cell.get("execution_count")] == []
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    assert f"notebooks/{path.name})" in pages
    for text in code(path):
        compile(text, str(path), "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    program = tmp_path / "notebook.py"
    program.write_text("\n".join(code(path)), encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")]),
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", program], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert [text for text in TOLD[path.stem] if text not in ended.stdout] == [], ended.stdout
