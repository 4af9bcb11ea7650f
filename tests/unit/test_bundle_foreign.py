"""A quantized file of another tool becomes a bundle that the gate checks: no run, no metadata, no torch."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from dfqkit.cli import main
from tests._messages import names
from tests._shared import finished_run

IMAGES = Path(__file__).parents[2] / "recipes" / "digits" / "test.npz"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized and a float file without a word of dfqkit in them."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, other in {"model": "int8", "teacher": "float"}.items():
        proto = onnx.load(finished_run(tmp_path_factory) / f"{name}.onnx")
        del proto.metadata_props[:]
        onnx.save(proto, folder / f"{other}.onnx")
    return folder


def test_it_is_bundled_and_checked(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    words = ["bundle", str(files / "int8.onnx"), "--teacher", str(files / "float.onnx"), "--images", str(IMAGES)]
    assert main([*words, "--mean", "0.3", "--std", "0.35", "--out", str(bundle)]) == 0
    assert (bundle / "samples" / "python").is_dir()
    check = ["check", str(bundle), "--baseline", str(tmp_path / "baseline.json")]
    more = ["--update-in-ci", "--allow", "quantize_static on our own images", "--reason", "a first record"]
    assert main([*check, *more, "--allow-not-judged"]) == 0
    capsys.readouterr()
    assert main([*check, "--allow-not-judged"]) == 0
    assert "agreement" in capsys.readouterr().out


def test_what_it_lacks_is_asked_for(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bundle", str(files / "int8.onnx")]
    assert main(words) == 2
    names(capsys.readouterr().err, "--teacher", "--images")
    more = ["--teacher", str(files / "float.onnx"), "--images", str(IMAGES)]
    assert main([*words, *more, "--out", str(tmp_path / "b")]) == 2
    names(capsys.readouterr().err, "--mean", "--std")
