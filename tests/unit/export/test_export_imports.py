from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dfqkit_export

PACKAGE = Path(dfqkit_export.__file__).parent
# Modules whose name starts so need torch, and are imported only inside functions.
TORCH_ONLY = "_torch"
MODULES = sorted(
    ".".join(("dfqkit_export", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if not path.name.startswith(TORCH_ONLY)
)


def test_importing_every_module_imports_neither_torch_nor_dfqkit() -> None:
    program = (
        "import importlib, sys\n"
        f"for name in {MODULES!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'brevitas', 'torchvision', 'dfqkit'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_alone_is_light() -> None:
    program = (
        "import sys; before = set(sys.modules); import dfqkit_export\n"
        "assert not {'numpy', 'onnx', 'onnxruntime'} & (set(sys.modules) - before)\n"
        "from dfqkit_export import Report, render_html\n"
        "assert 'onnx' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", dfqkit_export.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(dfqkit_export, name).__name__ == name
    assert name in dir(dfqkit_export)


def test_unknown_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nope"):
        _ = dfqkit_export.nope


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_no_module_names_dfqkit_and_none_is_too_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for alias in (node.names if isinstance(node, ast.Import) else [])
    }
    imported |= {
        (node.module or "").split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.level == 0
    }
    assert "dfqkit" not in imported
    assert len(text.splitlines()) <= 400
