from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dfqkit.run.folder import RunFolder
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import sealed
from tests._messages import raises_naming

RECIPE = "schema: 1\nname: toy\nseed: 0\ndistill:\n  steps: 10\n"
DIGEST = hashlib.sha256(RECIPE.encode()).hexdigest()
ROOT = Path(__file__).parents[2]


def make(path: Path) -> RunFolder:
    return RunFolder.create(path, recipe_text=RECIPE, digest=DIGEST, facts={"device": "cpu", "threads": 1})


def complete(folder: RunFolder, stage: str, content: bytes = b"content", **facts: object) -> None:
    folder.begin(stage)
    (folder.path / f"{stage}.bin").write_bytes(content)
    folder.finish(stage, [f"{stage}.bin"], facts)


def child(program: str, *, expect: int | None) -> str:
    """Run a program in another process and return its output."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert expect is None or done.returncode == expect, done.stderr
    return done.stdout


class TestCreate:
    def test_a_new_folder_holds_recipe_and_manifest(self, tmp_path: Path) -> None:
        folder = make(tmp_path / "a" / "b")
        assert sorted(path.name for path in folder.path.iterdir()) == ["manifest.json", "recipe.yaml"]
        assert folder.recipe_text() == RECIPE
        manifest = json.loads((folder.path / "manifest.json").read_text())
        assert len(manifest.pop("seal")) == 64
        assert manifest == {
            "schema": 1, "digest": DIGEST, "facts": {"device": "cpu", "threads": 1}, "stages": {}
        }  # fmt: skip
        assert folder.run_facts() == {"device": "cpu", "threads": 1}

    def test_an_empty_folder_is_used(self, tmp_path: Path) -> None:
        assert make(tmp_path).path == tmp_path

    def test_the_same_run_continues(self, tmp_path: Path) -> None:
        complete(make(tmp_path), "synthesize")
        again = RunFolder.create(tmp_path, recipe_text=RECIPE, digest=DIGEST, facts={"device": "cuda"})
        assert again.done("synthesize")
        assert again.run_facts()["device"] == "cpu"

    def test_another_run_is_refused_and_says_what_differs(self, tmp_path: Path) -> None:
        make(tmp_path)
        other = RECIPE.replace("steps: 10", "steps: 20")
        with raises_naming(ArtefactError, "another run", "distill.steps 10 there, 20 here", "--out", "--resume"):
            RunFolder.create(tmp_path, recipe_text=other, digest="0" * 64, facts={})
        assert (tmp_path / "recipe.yaml").read_text() == RECIPE

    @pytest.mark.parametrize("name", ["thesis.tex", "recipe.yaml"])
    def test_foreign_files_are_refused_and_left(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("mine")
        with pytest.raises(ArtefactError, match=f"{name}.*--out"):
            make(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == "mine"

    def test_a_file_in_the_way_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("")
        with pytest.raises(ArtefactError, match=r"Cannot use .*out.*--out"):
            make(tmp_path / "out")

    def test_what_a_kill_left_before_the_manifest_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.yaml").write_text(RECIPE)
        (tmp_path / ".manifest.json.part").write_text('{"sch')
        (tmp_path / ".lock").touch()
        make(tmp_path)
        assert RunFolder.open(tmp_path).digest == DIGEST


class TestOpen:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "Cannot read"),
            ("[]", "schema None"),
            ('{"schema": 99}', "schema 99.*reads 1"),
            ('{"schema": 1, "digest": "x", "facts": {}}', "lacks"),
            ('{"schema": 1, "digest": "x", "facts": {}, "stages": {"export": {"status": "complete"}}}', "lacks"),
        ],
    )
    def test_a_bad_manifest_is_a_clear_error(self, tmp_path: Path, text: str, message: str) -> None:
        make(tmp_path)
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ArtefactError, match=message):
            RunFolder.open(tmp_path)

    def test_no_entry_of_a_manifest_may_differ(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        complete(folder, "export")
        document = json.loads((tmp_path / "manifest.json").read_text())
        for name in ("digest", "facts", "stages"):
            other = {**document, name: f"{document[name]}x" if name == "digest" else {}}
            (tmp_path / "manifest.json").write_text(json.dumps(other))
            with raises_naming(ArtefactError, str(tmp_path / "manifest.json"), "seal", "Put the original back"):
                RunFolder.open(tmp_path)
        del document["seal"]  # what older versions wrote
        (tmp_path / "manifest.json").write_text(json.dumps(document))
        assert RunFolder.open(tmp_path).done("export")

    def test_no_run_is_a_clear_error(self, tmp_path: Path) -> None:
        with pytest.raises(ArtefactError, match=r"no manifest\.json.*dfqkit run RECIPE"):
            RunFolder.open(tmp_path)
        with pytest.raises(ArtefactError, match="no such folder"):
            RunFolder.open(tmp_path / "nowhere")

    def test_a_missing_recipe_is_named(self, tmp_path: Path) -> None:
        make(tmp_path).path.joinpath("recipe.yaml").unlink()
        with pytest.raises(ArtefactError, match=r"recipe\.yaml"):
            RunFolder.open(tmp_path).recipe_text()


class TestStages:
    def test_listed_means_complete(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        assert not folder.done("synthesize")
        folder.begin("synthesize")
        assert not RunFolder.open(tmp_path).done("synthesize")
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "0.bin").write_bytes(b"abc")
        folder.finish("synthesize", ["images/0.bin"], {"rounds": 3, "terms": (1.5, 2)})
        again = RunFolder.open(tmp_path)
        assert again.done("synthesize")
        # A resumed run must see what this one sees: a tuple has become a list in both.
        assert again.facts("synthesize") == folder.facts("synthesize") == {"rounds": 3, "terms": [1.5, 2]}
        listed = json.loads((tmp_path / "manifest.json").read_text())["stages"]["synthesize"]["files"]
        assert listed == {"images/0.bin": {"sha256": hashlib.sha256(b"abc").hexdigest(), "size": 3}}
        assert 0 <= again.seconds("synthesize") < 5

    def test_a_changed_file_names_both_hashes(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        complete(folder, "export", b"good")
        (tmp_path / "export.bin").write_bytes(b"evil")
        before, after = (hashlib.sha256(text).hexdigest() for text in (b"good", b"evil"))
        with pytest.raises(ArtefactError, match=f"export.bin.*{before}.*{after}.*delete the file"):
            folder.done("export")

    def test_a_file_that_is_gone_makes_the_stage_undone(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        complete(folder, "export")
        (tmp_path / "export.bin").unlink()
        assert not folder.done("export")

    def test_making_the_same_file_again_keeps_later_stages(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        complete(folder, "export")
        complete(folder, "validate")
        (tmp_path / "export.bin").unlink()
        complete(folder, "export")
        assert RunFolder.open(tmp_path).done("validate")

    def test_making_another_file_drops_later_stages_and_their_state(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        complete(folder, "quantize")
        folder.begin("distill")
        folder.save_state("distill", {}, {"step": 3})
        complete(folder, "quantize", b"other")
        again = RunFolder.open(tmp_path)
        assert again.done("quantize")
        assert again.load_state("distill") is None
        assert list(json.loads((tmp_path / "manifest.json").read_text())["stages"]) == ["quantize"]

    def test_finishing_without_the_file_is_refused(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        folder.begin("export")
        with pytest.raises(ArtefactError, match=r"model\.onnx"):
            folder.finish("export", ["model.onnx"], {})
        assert not RunFolder.open(tmp_path).done("export")

    def test_facts_of_an_open_stage_are_refused(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        folder.begin("export")
        with pytest.raises(ArtefactError, match=r"not complete.*--resume"):
            folder.facts("export")

    def test_finishing_drops_the_state(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        folder.begin("distill")
        folder.save_state("distill", {"x": torch.ones(2)}, {})
        folder.finish("distill", [], {})
        assert folder.load_state("distill") is None

    def test_a_rendering_can_be_rewritten(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        complete(folder, "validate", seconds=3)
        folder.rewrite("validate", "validate.bin", b"new look")
        again = RunFolder.open(tmp_path)
        assert again.done("validate")
        assert again.facts("validate") == {"seconds": 3}
        assert (tmp_path / "validate.bin").read_bytes() == b"new look"

    def test_too_little_space_says_how_much(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        folder.require_space(1)
        with pytest.raises(ArtefactError, match=r"MB free.*MB are needed.*--out"):
            folder.require_space(shutil.disk_usage(tmp_path).free * 2)


def tensors() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 4, generator=rng)
    return {
        "scalar": torch.tensor(3.25),
        "empty": torch.empty(0, 3),
        "double": torch.randn(2, dtype=torch.float64, generator=rng),
        "bfloat16": torch.randn(5, generator=rng).bfloat16(),
        "bool": torch.tensor([True, False]),
        "int64": torch.tensor([2**62 + 1, -1]),
        "rng": rng.get_state(),
        "transposed": matrix.t(),
        "strided": matrix[:, ::2],
        "shared": matrix,
        "channels_last": torch.randn(2, 3, 4, 4, generator=rng).to(memory_format=torch.channels_last),
        "special": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


class TestState:
    def test_tensors_and_scalars_come_back_bit_for_bit(self, tmp_path: Path) -> None:
        folder, saved = make(tmp_path), tensors()
        scalars = {"step": 17, "best": float("inf"), "rate": 0.1 + 0.2, "curve": [{"kl": 1e-300}], "none": None}
        folder.save_state("distill", saved, scalars)
        loaded = RunFolder.open(tmp_path).load_state("distill")
        assert loaded is not None
        assert loaded[1] == scalars
        assert set(loaded[0]) == set(saved)
        for name, tensor in saved.items():
            assert loaded[0][name].dtype == tensor.dtype, name
            assert loaded[0][name].shape == tensor.shape, name
            assert bits(loaded[0][name]) == bits(tensor), name

    def test_it_is_a_plain_safetensors_file(self, tmp_path: Path) -> None:
        make(tmp_path).save_state("distill", {"x": torch.arange(3)}, {})
        assert load_file(tmp_path / "state" / "distill.safetensors")["x"].tolist() == [0, 1, 2]

    def test_equal_states_are_equal_files(self, tmp_path: Path) -> None:
        # In other processes, because safetensors orders its metadata by a hash that every process seeds anew.
        folder = make(tmp_path)
        program = (
            "import torch\nfrom dfqkit.run.folder import RunFolder\n"
            f"RunFolder.open({str(tmp_path)!r}).save_state('distill', {{'x': torch.arange(3)}}, {{'b': 1, 'a': 2}})"
        )
        folder.save_state("distill", {"x": torch.arange(3)}, {"b": 1, "a": 2})
        path = tmp_path / "state" / "distill.safetensors"
        mine = path.read_bytes()
        child(program, expect=0)
        assert path.read_bytes() == mine

    def test_loaded_tensors_outlive_the_file(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        folder.save_state("distill", {"x": torch.arange(4)}, {})
        loaded = folder.load_state("distill")
        assert loaded is not None
        with (tmp_path / "state" / "distill.safetensors").open("r+b") as file:
            file.truncate(0)
        loaded[0]["x"].add_(1)
        assert loaded[0]["x"].tolist() == [1, 2, 3, 4]

    def test_there_is_none_before_and_after(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        assert folder.load_state("distill") is None
        folder.save_state("distill", {}, {"step": 1})
        assert folder.load_state("distill") == ({}, {"step": 1})
        folder.clear_state("distill")
        folder.clear_state("distill")
        assert folder.load_state("distill") is None

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-5],
            lambda data: data[:4],
            lambda data: b"",
            lambda data: data[:-1] + bytes([data[-1] ^ 1]),
            lambda data: struct.pack("<Q", 2) + b"{}",
        ],
        ids=["cut", "header cut", "empty", "one bit flipped", "not ours"],
    )
    def test_a_damaged_file_says_what_to_do(self, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
        folder = make(tmp_path)
        folder.save_state("distill", {"x": torch.arange(100)}, {"step": 1})
        path = tmp_path / "state" / "distill.safetensors"
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ArtefactError, match=r"distill\.safetensors.*delete it and resume.*nothing else is lost"):
            folder.load_state("distill")

    def test_no_bit_of_it_may_differ(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        folder.save_state("distill", {"x": torch.arange(3)}, {"step": 1, "score": 0.5})
        path = tmp_path / "state" / "distill.safetensors"
        data = path.read_bytes()
        for place in range(len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
            with pytest.raises(ArtefactError, match=r"distill\.safetensors.*delete it and resume"):
                folder.load_state("distill")

    def test_that_of_another_stage_run_or_teacher_is_refused_by_name(self, tmp_path: Path) -> None:
        mine = make(tmp_path / "mine")
        other = RunFolder.create(tmp_path / "other", recipe_text=RECIPE, digest="0" * 64, facts={})
        state = mine.path / "state" / "distill.safetensors"
        for folder, stage, told in ((mine, "train", "stage train there, distill here"), (other, "distill", "run 0000")):
            folder.save_state(stage, {}, {"step": 1})
            state.write_bytes((folder.path / "state" / f"{stage}.safetensors").read_bytes())
            with raises_naming(ArtefactError, str(state), told, "delete it and resume"):
                mine.load_state("distill")
        mine.save_state("distill", {}, {})
        mine.bind("teacher", {"sha256": "f" * 64}, "")
        with raises_naming(ArtefactError, "teacher", "f" * 40):
            mine.load_state("distill")

    def test_one_that_is_taken_over_may_be_of_another_run(self, tmp_path: Path) -> None:
        source = RunFolder.create(tmp_path / "source", recipe_text=RECIPE, digest="0" * 64, facts={})
        source.begin("synthesize")
        source.save_state("synthesizer", {}, {"step": 1})
        source.finish("synthesize", ["state/synthesizer.safetensors"], {})
        mine = make(tmp_path / "mine")
        mine.adopt("synthesize", source)
        assert mine.load_state("synthesizer") == ({}, {"step": 1})

    def test_seconds_of_a_killed_process_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr("dfqkit.run.folder.time.monotonic", lambda: now[0])
        folder = make(tmp_path)
        folder.begin("distill")
        now[0] += 30
        folder.save_state("distill", {}, {})
        now[0] += 7  # lost with the process
        again = RunFolder.open(tmp_path)
        again.begin("distill")
        again.load_state("distill")
        now[0] += 12
        again.finish("distill", [], {})
        assert again.seconds("distill") == 42


# Ends the process, as a kill would, between the writing of a file and its renaming.
DIE_BEFORE_RENAMING = """
import os, pathlib
rename = pathlib.Path.replace
def die(self, target):
    if target.name == {name!r}:
        os._exit(9)
    return rename(self, target)
pathlib.Path.replace = die
"""


class TestKilled:
    def program(self, tmp_path: Path, name: str, action: str) -> str:
        return (
            "import torch\nfrom dfqkit.run.folder import RunFolder\n"
            f"folder = RunFolder.open({str(tmp_path)!r})\n" + DIE_BEFORE_RENAMING.format(name=name) + action
        )

    def test_in_finish_the_stage_is_not_complete_and_its_state_is_kept(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        complete(folder, "synthesize")
        folder.begin("quantize")
        folder.save_state("quantize", {"x": torch.ones(1)}, {"step": 5})
        (tmp_path / "student.bin").write_bytes(b"whole")
        child(self.program(tmp_path, "manifest.json", "folder.finish('quantize', ['student.bin'], {})"), expect=9)
        again = RunFolder.open(tmp_path)
        assert again.done("synthesize")
        assert not again.done("quantize")
        state = again.load_state("quantize")
        assert state is not None
        assert state[1] == {"step": 5}
        again.begin("quantize")
        again.finish("quantize", ["student.bin"], {})
        assert RunFolder.open(tmp_path).done("quantize")

    def test_in_save_state_the_last_state_is_kept(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        folder.save_state("distill", {"x": torch.full((50,), 1.0)}, {"step": 1})
        action = "folder.save_state('distill', {'x': torch.full((50,), 2.0)}, {'step': 2})"
        child(self.program(tmp_path, "distill.safetensors", action), expect=9)
        state = RunFolder.open(tmp_path).load_state("distill")
        assert state is not None
        assert state[1] == {"step": 1}
        assert state[0]["x"].unique().tolist() == [1.0]
        folder.save_state("distill", {}, {"step": 3})  # over what the kill left
        assert RunFolder.open(tmp_path).load_state("distill") == ({}, {"step": 3})

    def test_in_create_the_same_command_works_again(self, tmp_path: Path) -> None:
        program = (
            "from dfqkit.run.folder import RunFolder\n" + DIE_BEFORE_RENAMING.format(name="manifest.json") +
            f"RunFolder.create({str(tmp_path)!r}, recipe_text={RECIPE!r}, digest={DIGEST!r}, facts={{}})"
        )  # fmt: skip
        child(program, expect=9)
        assert not (tmp_path / "manifest.json").exists()
        make(tmp_path)
        assert RunFolder.open(tmp_path).digest == DIGEST

    def test_in_rewrite_nothing_counts_as_damaged(self, tmp_path: Path) -> None:
        complete(make(tmp_path), "validate")
        child(self.program(tmp_path, "validate.bin", "folder.rewrite('validate', 'validate.bin', b'new')"), expect=9)
        assert RunFolder.open(tmp_path).done("validate")


class TestLock:
    def test_a_second_process_is_kept_out_until_the_first_is_killed(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        program = (
            "import time\nfrom dfqkit.run.folder import RunFolder\n"
            f"with RunFolder.open({str(tmp_path)!r}):\n    print('in', flush=True)\n    time.sleep(60)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"in\n"
            with pytest.raises(ArtefactError, match=rf"pid {holder.pid}\).*--out"), folder:
                pass
            holder.send_signal(signal.SIGKILL)
            holder.wait()
        with folder:
            assert (tmp_path / ".lock.pid").read_text() == f"{os.getpid()}\n"

    def test_it_is_given_back(self, tmp_path: Path) -> None:
        folder = make(tmp_path)
        with folder, pytest.raises(ArtefactError, match=f"pid {os.getpid()}"), RunFolder.open(tmp_path):
            pass
        with folder, pytest.raises(ArtefactError, match="pid"), RunFolder.open(tmp_path):
            pass

    def test_entering_sees_what_others_did_meanwhile(self, tmp_path: Path) -> None:
        mine, other = make(tmp_path), RunFolder.open(tmp_path)
        complete(other, "synthesize")
        with mine:
            assert mine.done("synthesize")

    def test_entering_refuses_a_run_that_took_the_folder_meanwhile(self, tmp_path: Path) -> None:
        mine = make(tmp_path)
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        (tmp_path / "manifest.json").write_text(json.dumps(sealed({**manifest, "digest": "other"})))
        with pytest.raises(ArtefactError, match="at the same time"), mine:
            pass
        with pytest.raises(ArtefactError, match="at the same time"), mine:
            pass  # and not "another process": the lock was given back
