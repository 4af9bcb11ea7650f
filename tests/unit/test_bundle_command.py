"""`dfqkit bundle` and `dfqkit sentinel`, as a user gives them, and what a run writes by itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfqkit.cli import main
from dfqkit.run.sentinel import write_run_sentinel
from dfqkit_export.bundle import open_bundle
from dfqkit_export.sentinel import read_sentinel
from tests.unit.export._bundles import TEACHER, codes, write_run, write_set
from tests.unit.export.conftest import QdqBuilder

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", QdqBuilder)


class TestBundle:
    def test_it_goes_beside_the_run(self, run: Path, capsys: Output) -> None:
        assert main(["bundle", str(run)]) == 0
        out, err = capsys.readouterr()
        assert "sentinel.safetensors" in out
        assert str(run.with_name("run-bundle")) in err
        with open_bundle(run.with_name("run-bundle")) as found:
            assert found.damaged() == []

    def test_a_zip_with_labels(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "names").write_text("\n".join("abcdefghij"))
        words = ["bundle", str(run), "--out", str(tmp_path / "b.zip"), "--labels", str(tmp_path / "names")]
        assert main(words) == 0
        with open_bundle(tmp_path / "b.zip") as found:
            assert found.labels == tuple("abcdefghij")

    def test_what_cannot_be_bundled_is_the_users_to_mend(self, run: Path, tmp_path: Path, capsys: Output) -> None:
        (tmp_path / "mine").write_text("x")
        assert main(["bundle", str(tmp_path)]) == 2
        assert main(["bundle", str(run), "--out", str(tmp_path / "mine")]) == 2
        assert "Traceback" not in capsys.readouterr().err
        assert (tmp_path / "mine").read_text() == "x"


class TestSentinel:
    def words(self, run: Path, *more: str) -> list[str]:
        images = str(run / "images" / "grading.safetensors")
        files = ["--model", str(run / "model.onnx"), "--teacher", str(run / "teacher.onnx"), "--images", images]
        return ["sentinel", *files, *more]

    def test_any_file_gets_one(self, run: Path, tmp_path: Path, capsys: Output) -> None:
        assert main(self.words(run, "--out", str(tmp_path / "s.safetensors"))) == 0
        out, err = capsys.readouterr()
        found = read_sentinel(tmp_path / "s.safetensors")
        assert f"{int(found.sensitive.sum())} sensitive, {int(found.plain.sum())} at random" in out
        assert "least that shows" in out
        assert "s.safetensors" in err
        assert main(self.words(run, "--out", str(tmp_path / "t.safetensors"), "--limit", "12000")) == 0
        assert (tmp_path / "t.safetensors").stat().st_size <= 12000

    def test_images_that_made_the_student_are_refused(self, run: Path, tmp_path: Path, capsys: Output) -> None:
        words = [*self.words(run, "--out", str(tmp_path / "s")), str(run / "images" / "calibration.safetensors")]
        words[words.index("--images") + 1 : words.index("--images") + 2] = [words.pop()]
        assert main(words) == 2
        assert "they made or selected a student" in capsys.readouterr().err
        assert main(self.words(run, "--exclude", str(run / "images" / "grading.safetensors"), "--out", "x")) == 2
        assert "Only 0 different images" in capsys.readouterr().err

    def test_a_missing_file(self, run: Path, tmp_path: Path, capsys: Output) -> None:
        words = self.words(run)
        words[words.index("--teacher") + 1] = str(tmp_path / "none.onnx")
        assert main(words) == 2
        assert "none.onnx" in capsys.readouterr().err


def context(path: Path, *, grading: int = 96, seed: int = 0) -> Any:
    recipe = SimpleNamespace(bank=SimpleNamespace(grading=grading), seed=seed)
    teacher = SimpleNamespace(name="toy", sha256=TEACHER)
    return SimpleNamespace(folder=SimpleNamespace(path=path), file=path.joinpath, recipe=recipe, teacher=teacher)


class TestRun:
    def test_a_run_chooses_from_its_grading_images_less_those_that_trained(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", QdqBuilder)
        used = codes(96)[:40]
        write_set(run / "images" / "calibration.safetensors", used, run / "teacher.onnx", "dfq:calibration")
        assert write_run_sentinel(context(run)) == ["sentinel.safetensors"]
        found = read_sentinel(run / "sentinel.safetensors")
        assert (found.teacher_name, found.teacher_sha256) == ("toy", TEACHER)
        assert not {image.tobytes() for image in found.images} & {image.tobytes() for image in used}
        first = (run / "sentinel.safetensors").read_bytes()
        write_run_sentinel(context(run))
        assert (run / "sentinel.safetensors").read_bytes() == first

    def test_none_without_images_to_choose_from(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "run", QdqBuilder, n=5)
        assert write_run_sentinel(context(run)) == []
        assert write_run_sentinel(context(run, grading=0)) == []
        assert not (run / "sentinel.safetensors").exists()
