"""`dfqkit bank` and `dfqkit synthesize --n`, as a user gives them."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from dfqkit.cli import main
from dfqkit.images import ImageBank
from dfqkit.images.sheet import contact_sheet
from dfqkit.run import bank_making
from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.images.stored import StoredBank
from tests._messages import names

ROOT = Path(__file__).parents[2]
RECIPE = "digits/dfq-w8a8-ort"
TINY = ["synthesis.warmup=2", "synthesis.batch=8", "synthesis.width=4", "synthesis.latent=4", "bank.batch=8"]

Output = pytest.CaptureFixture[str]


def synthesize(out: Path, *more: str, n: int = 24) -> int:
    settings = [part for item in TINY for part in ("--set", item)]
    words = ["synthesize", RECIPE, "--n", str(n), "--shard", "10", "--out", str(out), "-q", "--device", "cpu"]
    return main([*words, *settings, *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "set"
    assert synthesize(out, "--threads", str(torch.get_num_threads())) == 0
    return out


class TestSynthesize:
    def test_the_set_says_what_makes_it_again(self, folder: Path, tmp_path: Path) -> None:
        images = StoredBank.open(folder)
        assert [shard.n for shard in images.shards] == [10, 10, 4]
        assert images.facts["threads"] == torch.get_num_threads()
        words = shlex.split(images.facts["command"])
        assert words[:4] == ["dfqkit", "synthesize", RECIPE, "--n"]
        assert main([*words[1:], "--out", str(tmp_path / "again"), "-q"]) == 0
        again = StoredBank.open(tmp_path / "again")
        assert again.facts == images.facts
        assert again.digest == images.digest

    def test_its_end_says_what_to_do_next(self, tmp_path: Path, capsys: Output) -> None:
        assert synthesize(tmp_path / "set") == 0
        out, err = capsys.readouterr()
        assert out == ""
        assert f"The set has 24 images in 3 file(s). Look into it: dfqkit bank info {tmp_path / 'set'}\n" in err
        assert err.splitlines()[-1].startswith("ok | ")

    @pytest.mark.parametrize("there", [10, 0])
    def test_an_interrupt_names_the_command_that_continues(
        self, there: int, folder: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, calls = tmp_path / "a set", []
        real = ImageBank.collect

        def collect(*given: Any) -> ImageBank:
            calls.append(1)
            if len(calls) == 1 + (there > 0):
                raise KeyboardInterrupt
            return real(*given)

        monkeypatch.setattr(bank_making.ImageBank, "collect", collect)
        assert synthesize(out) == 130
        assert len(StoredBank.open(out)) == there
        command = capsys.readouterr().err.strip().splitlines()[-1].removeprefix("Interrupted. Continue with: ")
        for words in (["export", str(out), "--npz"], ["sheet", str(out), "--out"]):
            assert main(["bank", *words, str(tmp_path / "taken")]) == (0 if there else 2)
            names(capsys.readouterr().err, f"unfinished: {there} of 24 images", f"--out {shlex.quote(str(out))}`")
        words = shlex.split(command)
        assert words[0] == "dfqkit"
        assert main([*words[1:], "-q"]) == 0
        assert StoredBank.open(out).digest == StoredBank.open(folder).digest

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([RECIPE, "--n", "4"], "required: --out"),
            ([".", "--n", "4", "--out", "x"], "takes a recipe, not a folder"),
            ([RECIPE, "--out", "x"], "required: --n"),
            ([RECIPE, "--n", "0", "--out", "x"], "at least 1, found '0'"),
            ([RECIPE, "--n", "4", "--shard", "0", "--out", "x"], "at least 1, found '0'"),
        ],
    )
    def test_usage(self, words: list[str], message: str, capsys: Output) -> None:
        assert main(["synthesize", *words]) == 2
        assert message in capsys.readouterr().err

    def test_what_cannot_be_made_leaves_no_folder(self, tmp_path: Path, capsys: Output) -> None:
        assert synthesize(tmp_path / "set", "--set", "synthesis={method: bank, path: nowhere}") == 2
        assert "nowhere" in capsys.readouterr().err
        assert not (tmp_path / "set").exists()


class TestInfo:
    def test_info_says_what_is_in_it(self, folder: Path, capsys: Output) -> None:
        assert main(["bank", "info", str(folder)]) == 0
        rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
        found = {name: value.strip() for name, value in rows.items()}
        assert (found["images"], found["shape"], found["source"], found["files"]) == ("24", "1x16x16", "dfq", "3")
        assert found["cost in teacher passes"] == "16"
        assert "unfinished" not in found

    def test_as_json(self, folder: Path, capsys: Output) -> None:
        assert main(["bank", "info", str(folder), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        images = StoredBank.open(folder)
        counts = np.bincount(images.answers["logits"].argmax(1), minlength=10)
        assert facts["images_a_class"] == {"least": counts.min(), "mean": 2.4, "most": counts.max()}
        assert facts["empty_classes"] == (counts == 0).sum()
        assert facts["teacher_sha256"] == images.teacher
        assert facts["schema"] == 1
        assert facts["real_data"] is None

    def test_a_lone_file(self, folder: Path, capsys: Output) -> None:
        assert main(["bank", "info", str(folder / "shard-00002.safetensors")]) == 0
        shown = capsys.readouterr().out
        assert "images              4" in shown
        assert "real data           unknown" in shown

    def test_without_torch(self, folder: Path, tmp_path: Path) -> None:
        program = (
            "import sys; from dfqkit.cli import main\n"
            f"main(['bank', 'info', {str(folder)!r}]); main(['bank', 'verify', {str(folder)!r}])\n"
            f"main(['bank', 'export', {str(folder)!r}, '--npz', {str(tmp_path / 'a.npz')!r}])\n"
            f"main(['bank', 'sheet', {str(folder)!r}, '--out', {str(tmp_path / 'a.png')!r}])\n"
            "sys.exit(str({'torch', 'brevitas', 'onnxruntime'} & set(sys.modules) or ''))"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
        )
        assert done.stderr.splitlines()[-1].strip() in ("", f"Wrote {tmp_path / 'a.png'}")


class TestVerify:
    def test_a_whole_set(self, folder: Path, capsys: Output) -> None:
        assert main(["bank", "verify", str(folder)]) == 0
        assert capsys.readouterr().out == "ok: 24 images in 3 file(s), as they were written\n"
        assert main(["bank", "verify", str(folder / "shard-00000.safetensors")]) == 0
        assert "a lone file has no list" in capsys.readouterr().out

    def test_a_changed_set(self, tmp_path: Path, capsys: Output) -> None:
        assert synthesize(tmp_path / "set") == 0
        file = tmp_path / "set" / "shard-00001.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        assert main(["bank", "verify", str(tmp_path / "set")]) == 2
        assert "shard-00001.safetensors' was changed" in capsys.readouterr().err

    def test_what_is_no_set(self, tmp_path: Path, capsys: Output) -> None:
        assert main(["bank", "verify", str(tmp_path)]) == 2
        assert "is not an image set" in capsys.readouterr().err


def colourful(path: Path, labels: list[int], classes: int = 12) -> StoredBank:
    spec = ImageSpec(shape=(3, 8, 6), mean=(0.5,) * 3, std=(0.5,) * 3, classes=classes)
    codes = torch.randint(0, 256, (len(labels), *spec.shape), generator=torch.Generator().manual_seed(0))
    answers = {"logits": torch.nn.functional.one_hot(torch.tensor(labels), classes).float()}
    ImageBank(images=codes.to(torch.uint8), answers=answers, image=spec, teacher="0" * 64, source="x").save(path)
    return StoredBank.open(path)


class TestExport:
    def test_npz_is_read_as_labelled_images(self, folder: Path, tmp_path: Path, capsys: Output) -> None:
        file = tmp_path / "new" / "images.npz"
        assert main(["bank", "export", str(folder), "--npz", str(file)]) == 0
        assert capsys.readouterr().err == f"Wrote 24 images to {file}\n"
        images = StoredBank.open(folder)
        codes, answers = images.take(range(24))
        logits = answers["logits"]
        with np.load(file) as found:
            assert (found["images"].dtype, found["logits"].dtype, found["labels"].dtype) == ("u1", "f4", "i8")
            assert np.array_equal(found["images"], codes.transpose(0, 2, 3, 1))
            assert np.array_equal(found["logits"], logits)
            assert np.array_equal(found["labels"], logits.argmax(1))
        read = load_images(file, images.spec)
        assert np.array_equal(next(read.batches(images.spec, 24)), next(images.batches(24)))

    def test_png_is_read_as_class_folders(self, tmp_path: Path) -> None:
        labels = [11, 0, 3, 11, 1, 2, 4, 5, 6, 7, 8, 9, 10]
        images = colourful(tmp_path / "x.safetensors", labels)
        folder = tmp_path / "png"
        assert main(["bank", "export", str(images.path), "--png", str(folder)]) == 0
        assert sorted(path.relative_to(folder).as_posix() for path in folder.glob("11/*")) == ["11/00.png", "11/03.png"]
        codes = images.take(range(13))[0].transpose(0, 2, 3, 1)
        for index, label in enumerate(labels):
            assert np.array_equal(np.asarray(Image.open(folder / f"{label:02d}" / f"{index:02d}.png")), codes[index])
        read = load_images(folder, images.spec)
        order = sorted(range(13), key=lambda index: (labels[index], index))
        assert read.labels is not None
        assert read.labels.tolist() == sorted(labels)
        assert np.array_equal(read.images, codes[order])
        assert [label for _, label in ImageFolder(folder).samples] == sorted(labels)

    def test_empty_classes_are_said(self, tmp_path: Path, capsys: Output) -> None:
        images = colourful(tmp_path / "x.safetensors", [2, 4], classes=5)
        assert main(["bank", "export", str(images.path), "--png", str(tmp_path / "png")]) == 0
        names(capsys.readouterr().err, "3 of 5 classes")
        read = load_images(tmp_path / "png", images.spec)
        assert read.labels is not None
        assert read.labels.tolist() == [2, 4]

    def test_grey_images(self, folder: Path, tmp_path: Path) -> None:
        assert main(["bank", "export", str(folder), "--png", str(tmp_path / "png")]) == 0
        images = StoredBank.open(folder)
        read = load_images(tmp_path / "png", images.spec)
        assert sorted(image.tobytes() for image in read.images) == sorted(
            code.tobytes() for code in images.take(range(24))[0]
        )

    def test_a_folder_with_files_is_left_alone(self, folder: Path, tmp_path: Path, capsys: Output) -> None:
        (tmp_path / "mine").write_text("x")
        assert main(["bank", "export", str(folder), "--png", str(tmp_path)]) == 2
        names(capsys.readouterr().err, "new or empty folder")
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_where_nothing_can_be_written(self, folder: Path, tmp_path: Path, capsys: Output) -> None:
        (tmp_path / "file").write_text("x")
        for option in ("--npz", "--png"):
            assert main(["bank", "export", str(folder), option, str(tmp_path / "file" / "a")]) == 2
            assert "Cannot write" in capsys.readouterr().err

    def test_one_form_is_chosen(self, folder: Path, capsys: Output) -> None:
        assert main(["bank", "export", str(folder)]) == 2
        assert "--npz --png" in capsys.readouterr().err


def test_sheet(folder: Path, tmp_path: Path, capsys: Output) -> None:
    assert main(["bank", "sheet", str(folder), "--out", str(tmp_path / "s.png")]) == 0
    assert capsys.readouterr().err == f"Wrote {tmp_path / 's.png'}\n"
    data = (tmp_path / "s.png").read_bytes()
    assert data == contact_sheet(StoredBank.open(folder))
    assert Image.open(io.BytesIO(data)).format == "PNG"


def test_images_that_are_no_pictures_cannot_be_png(tmp_path: Path) -> None:
    from dfqkit.images.exports import write_class_folders

    spec = ImageSpec(shape=(2, 4, 4), mean=(0.5,) * 2, std=(0.5,) * 2, classes=2)
    bank = ImageBank(
        images=torch.zeros((1, 2, 4, 4), dtype=torch.uint8), answers={"logits": torch.zeros((1, 2))}, image=spec,
        teacher="0" * 64, source="x",
    )  # fmt: skip
    bank.save(tmp_path / "x.safetensors")
    with pytest.raises(ArtefactError, match=r"1 or 3 channels, these images 2"):
        write_class_folders(StoredBank.open(tmp_path / "x.safetensors"), tmp_path / "png")
