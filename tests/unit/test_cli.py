from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dfqkit import cli
from dfqkit.cli import main
from dfqkit.run import execution
from dfqkit.run.folder import RunFolder
from dfqkit.run.forecast import Forecast
from dfqkit.run.stages import STAGES
from dfqkit_export._version import __version__
from dfqkit_export.errors import RuntimeUnavailableError
from dfqkit_export.report import Finding, Report
from tests._messages import names
from tests._parsers import parsers

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
RECIPE = "digits/dfq-w8a8-ort"

Output = pytest.CaptureFixture[str]


@dataclass
class StandIn:
    """Takes the place of `execution.execute`: notes how it is called and leaves what the real one leaves.

    The stages themselves have tests of their own; here they would take minutes.
    """

    verdict: str = "ok"
    calls: list[tuple[list[str], dict[str, Any]]] = field(default_factory=list)
    before: dict[str, Callable[[], object]] = field(default_factory=dict)

    def __call__(self, folder: RunFolder, recipe: Any, wanted: list[str], **settings: Any) -> None:
        self.calls.append((list(wanted), {**settings, "threads": torch.get_num_threads()}))
        for stage in wanted:
            if folder.done(stage):
                continue
            folder.begin(stage)
            self.before.get(stage, int)()
            name = f"{stage}.bin"
            if stage == "validate":
                name = "report.json"
                bad = Finding(metric="top1", subject="onnxruntime", value=1.0, floor=2.0, message="It is too low.")
                failed = self.verdict == "failed"
                report = Report(
                    title=recipe.name, verdict="failed" if failed else "ok", findings=[bad] if failed else []
                )
                (folder.path / name).write_text(report.to_json())
            else:
                (folder.path / name).write_text(stage)
            folder.finish(stage, [name], {})


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    monkeypatch.chdir(tmp_path)
    fake, threads = StandIn(), torch.get_num_threads()
    monkeypatch.setattr(execution, "execute", fake)
    monkeypatch.setattr("dfqkit.run.forecast.forecast", lambda *_: Forecast(seconds={}, rounds={}, memory=0, disk=0))
    yield fake
    torch.set_num_threads(threads)


def dfqkit(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dfqkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, **settings)


class TestHelp:
    @pytest.mark.parametrize(
        "words", ["--help", "--version", "run --help", "recipe show --help", "list recipes", "list targets", "env"]
    )
    def test_light_commands_import_no_torch(self, words: str) -> None:
        program = (
            "import sys; from dfqkit.cli import main\n"
            f"code = main({words.split()!r})\n"
            "heavy = {'torch', 'brevitas', 'onnxruntime'} & set(sys.modules)\n"
            "sys.exit(code or str(heavy or ''))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, check=False
        )
        assert done.returncode == 0 or done.stderr.strip() == "", done.stderr
        assert done.stdout
        assert done.stderr.strip() == ""

    def test_help_answers_at_once(self) -> None:
        def seconds() -> float:
            # The processor's time, so that whatever else runs on the machine does not count.
            started = os.times()
            assert dfqkit("--help").returncode == 0
            ended = os.times()
            return sum(ended[2:4]) - sum(started[2:4])

        assert min(seconds() for _ in range(3)) < 0.5

    def test_help_documents_every_exit_code(self, capsys: Output) -> None:
        assert main(["--help"]) == 0
        text = capsys.readouterr().out
        assert [line.split()[0] for line in text.split("exit codes:")[1].splitlines()[1:7]] == [
            "0", "1", "2", "3", "4", "130"
        ]  # fmt: skip

    def test_every_argument_of_every_command_is_explained(self) -> None:
        found = list(parsers(cli.command_line()))
        assert len(found) == 28
        for parser in found:
            assert parser.description, parser.prog
            assert not parser.allow_abbrev
            for action in parser._actions:
                if not isinstance(action, argparse._SubParsersAction):
                    assert action.help, (parser.prog, action.dest)

    def test_version(self, capsys: Output) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"dfqkit {__version__}\n"


class TestUsage:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("", "COMMAND"),
            ("rum", "invalid choice: 'rum'"),
            ("run", "--resume DIR"),
            (f"run {RECIPE} --dry", "unrecognized arguments: --dry"),
            (f"run {RECIPE} --device tpu", "'cpu'"),
            (f"run {RECIPE} --threads 0", "at least 1, found '0'"),
            (f"run {RECIPE} --seed -1", "argument --seed"),
            (f"run {RECIPE} --resume x --seed 0 --out y", "leave out RECIPE, --out, --seed"),
            ("run --only synthesize . --seed 0", "leave out --seed"),
            ("run --only export . --out x", "leave out --out"),
            ("run --only exprt .", "'export'"),
            ("inspect", "either a RECIPE or --factory"),
            ("inspect --factory tests._task_nets:Depth --shape 3,32,32 --task dens", "Did you mean 'dense'?"),
            (f"inspect {RECIPE} --task dense", "leave out --task"),
            (
                "inspect --factory dfqkit.models:digits_cnn",
                "Give --shape C,H,W, as it was trained, and, of a classifier, --classes N",
            ),
            (f"inspect {RECIPE} --classes 3", "leave out --classes"),
            ("inspect --factory a:b --shape 3x8", "such as 3,224,224; found '3x8'"),
            ("list models", "'recipes'"),
        ],
    )
    def test_wrong_usage_is_2_and_says_how_to_get_help(self, words: str, message: str, capsys: Output) -> None:
        assert main(words.split()) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert "--help`" in err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("run digits/dfq-w8a8-rot", f"Did you mean '{RECIPE}'?"),
            (f"run {RECIPE} --set quant.bitz=w8a8", "Did you mean 'bits'?"),
            (f"run {RECIPE} --set synthesis.method=dfk", "Did you mean 'dfq'?"),
            (f"run {RECIPE} --set target=onnxruntim", "Did you mean 'onnxruntime'?"),
            (f"run {RECIPE} --set seed", "section.key=value"),
            ("recipe show digits/dfq-w8a8-rot", f"Did you mean '{RECIPE}'?"),
            ("run --resume nowhere", "no such folder"),
            ("run --only quantize .", "no manifest.json"),
            ("report .", "report.json"),
            ("inspect --factory torchvision:resnet81 --shape 3,8,8 --classes 3", "resnet18"),
            ("inspect --factory torchvision:resnet18 --shape 3,8 --classes 3", "(3, 8)"),
        ],
    )
    def test_what_the_user_can_fix_is_2_without_a_traceback(
        self, words: str, message: str, capsys: Output, stand_in: StandIn
    ) -> None:
        assert main(words.split()) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ") or "\nerror: " in err  # behind the line that says what begins
        assert message in err
        assert "Traceback" not in err
        assert list(Path().iterdir()) == []
        assert stand_in.calls == []


class TestRun:
    def test_report_on_stdout_and_verdict_last_on_stderr(self, capsys: Output, stand_in: StandIn) -> None:
        assert main(["run", RECIPE, "--out", "here", "--device", "cpu"]) == 0
        out, err = capsys.readouterr()
        assert out.startswith(f"OK      {RECIPE}: ")
        assert out.splitlines()[-1].startswith("files   here: ")
        assert re.fullmatch(r"ok \| \d+ s \| here", err.splitlines()[-1])
        wanted, settings = stand_in.calls[0]
        assert wanted == list(STAGES)
        assert settings["device"] == "cpu"
        assert RunFolder.open("here").run_facts()["command"] == f"dfqkit run {RECIPE}"

    def test_a_failed_verdict_is_1(self, capsys: Output, stand_in: StandIn) -> None:
        stand_in.verdict = "failed"
        assert main(["run", RECIPE, "--out", "here"]) == 1
        out, err = capsys.readouterr()
        assert "It is too low." in out
        assert re.fullmatch(r"failed \| \d+ s \| here", err.splitlines()[-1])

    def test_the_default_folder_is_named_after_recipe_time_and_hash(self, capsys: Output, stand_in: StandIn) -> None:
        assert main(["run", RECIPE, "--seed", "5"]) == 0
        (path,) = Path("runs").glob("digits/dfq-w8a8-ort/*")
        folder = RunFolder.open(path)
        assert path.name.endswith(f"-{folder.digest[:8]}")
        assert yaml.safe_load(folder.recipe_text())["seed"] == 5
        assert folder.run_facts()["command"] == f"dfqkit run {RECIPE} --seed 5"
        assert capsys.readouterr().err.splitlines()[-1].endswith(f"| {path}")

    def test_a_floor_of_no_metric_ends_before_there_is_a_folder(self, capsys: Output, stand_in: StandIn) -> None:
        floors = "floors=[{metric: student_agrement, value: 99}]"
        assert main(["run", RECIPE, "--out", "here", "--set", floors]) == 2
        names(capsys.readouterr().err, "student_agrement", "Did you mean 'student_agreement'?")
        assert not stand_in.calls
        assert not Path("here").exists()

    def test_a_name_cannot_lead_out_of_the_runs(self, stand_in: StandIn) -> None:
        assert main(["run", RECIPE, "--set", "name=/../../a b/../c"]) == 0
        assert [path.parent.as_posix() for path in Path().rglob("recipe.yaml")] == [
            path.as_posix() for path in Path().glob("runs/a-b/c/*")
        ]

    def test_dry_run_prints_the_plan_and_writes_nothing(self, capsys: Output, stand_in: StandIn) -> None:
        assert main(["run", RECIPE, "--dry-run", "--out", "here"]) == 0
        out, err = capsys.readouterr()
        assert "synthesize" in out
        assert f"name: {RECIPE}" in out
        assert "This takes about" in err
        assert list(Path().iterdir()) == []
        assert stand_in.calls == []

    def test_the_same_command_continues_and_another_recipe_is_refused(self, capsys: Output, stand_in: StandIn) -> None:
        assert main(["run", RECIPE, "--out", "here"]) == 0
        assert main(["run", RECIPE, "--out", "here"]) == 0
        capsys.readouterr()
        assert main(["run", RECIPE, "--out", "here", "--seed", "1"]) == 2
        assert "(seed 0 there, 1 here)" in capsys.readouterr().err

    def test_a_folder_with_foreign_files_is_refused(self, capsys: Output, stand_in: StandIn) -> None:
        Path("here").mkdir()
        Path("here/thesis.tex").touch()
        assert main(["run", RECIPE, "--out", "here"]) == 2
        assert "thesis.tex" in capsys.readouterr().err
        assert stand_in.calls == []

    def test_a_changed_recipe_is_not_resumed(self, capsys: Output, stand_in: StandIn) -> None:
        main(["run", RECIPE, "--out", "here"])
        path = Path("here/recipe.yaml")
        path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
        assert main(["run", "--resume", "here"]) == 2
        names(capsys.readouterr().err, "this run began with")

    def test_threads_of_the_run_are_kept_when_it_continues(self, capsys: Output, stand_in: StandIn) -> None:
        assert main(["run", RECIPE, "--out", "here", "--threads", "2"]) == 0
        torch.set_num_threads(1)
        assert main(["run", "--resume", "here"]) == 0
        assert "differ" not in capsys.readouterr().err
        assert main(["run", "--resume", "here", "--threads", "3"]) == 0
        assert "began with threads 2, not 3" in capsys.readouterr().err
        assert [settings["threads"] for _, settings in stand_in.calls] == [2, 2, 3]

    def test_quiet(self, stand_in: StandIn) -> None:
        main(["run", RECIPE, "--out", "here", "-q"])
        assert stand_in.calls[0][1]["progress"].quiet


class TestStages:
    def test_one_by_one_they_make_the_run(self, capsys: Output, stand_in: StandIn) -> None:
        words = f"run --only synthesize {RECIPE} --out here"
        wanted = []
        while words:
            assert main(words.split()) == 0
            out, err = capsys.readouterr()
            wanted.append(words.split()[2])
            words = err.partition("Next: dfqkit ")[2].partition("\n")[0]
            assert (out == "") == bool(words)
        assert out.startswith(f"OK      {RECIPE}: ")
        assert wanted == [name for name in STAGES if name != "train"]  # its recipe trains no smaller student
        assert [name for stages, _ in stand_in.calls for name in stages] == wanted

    def test_a_missing_predecessor_names_the_command_that_comes_first(self, capsys: Output, stand_in: StandIn) -> None:
        main(["run", "--only", "synthesize", RECIPE, "--out", "here"])
        capsys.readouterr()
        assert main(["run", "--only", "export", "here"]) == 2
        error = capsys.readouterr().err
        assert "needs 'quantize', which is not complete. Run `dfqkit run --only quantize here` first" in error
        assert len(stand_in.calls) == 1

    def test_a_changed_file_of_an_earlier_stage_is_not_validated(self, capsys: Output, stand_in: StandIn) -> None:
        main(["run", RECIPE, "--out", "here"])
        Path("here/export.bin").write_text("another network")
        assert main(["run", "--only", "validate", "here"]) == 2
        assert "export.bin" in capsys.readouterr().err

    def test_the_first_stage_continues_in_a_run_folder(self, capsys: Output, stand_in: StandIn) -> None:
        stand_in.before["synthesize"] = interrupt
        assert main(["run", "--only", "synthesize", RECIPE, "--out", "here"]) == 130
        command = capsys.readouterr().err.splitlines()[-1].partition("Continue with: ")[2]
        assert command == "dfqkit run --only synthesize here"
        del stand_in.before["synthesize"]
        assert main(shlex.split(command)[1:]) == 0


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)  # the signal ends it


def divide() -> None:
    _ = 1 / 0


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "model.onnx")


def lack_a_runtime() -> None:
    message = "No onnxruntime here. Install it."
    raise RuntimeUnavailableError(message)


class TestEndings:
    @pytest.mark.parametrize("stop", [interrupt, terminate])
    def test_an_interrupt_is_130_and_its_command_resumes(
        self, stop: Callable[[], None], capsys: Output, stand_in: StandIn
    ) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        stand_in.before["distill"] = stop
        assert main(["run", RECIPE, "--out", "with blank"]) == 130
        assert signal.getsignal(signal.SIGTERM) is handler
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        command = err.splitlines()[-1].partition("Continue with: ")[2]
        assert command == "dfqkit run --resume 'with blank'"
        stand_in.before.clear()
        assert main(shlex.split(command)[1:]) == 0
        assert re.fullmatch(r"ok \| \d+ s \| with blank", capsys.readouterr().err.splitlines()[-1])

    def test_a_bug_is_4_with_a_traceback(self, capsys: Output, stand_in: StandIn) -> None:
        stand_in.before["quantize"] = divide
        assert main(["run", RECIPE, "--out", "here"]) == 4
        out, err = capsys.readouterr()
        assert out == ""
        assert "ZeroDivisionError" in err
        assert "This is a bug in dfqkit" in err.splitlines()[-1]
        names(err.splitlines()[-1], "the same command again", "--resume")

    def test_a_full_disk_is_2(self, capsys: Output, stand_in: StandIn) -> None:
        stand_in.before["export"] = fill_the_disk
        assert main(["run", RECIPE, "--out", "here"]) == 2
        err = capsys.readouterr().err
        assert "No space left" in err
        names(err, "the same command again", "--resume")
        assert "Traceback" not in err

    def test_a_missing_runtime_is_3(self, capsys: Output, stand_in: StandIn) -> None:
        stand_in.before["validate"] = lack_a_runtime
        assert main(["run", RECIPE, "--out", "here"]) == 3
        assert capsys.readouterr().err.splitlines()[-1] == "error: No onnxruntime here. Install it."

    @pytest.mark.parametrize("words", [["list", "targets"], ["--help"], ["env", "--json"]])
    def test_a_reader_that_leaves_is_no_error(self, words: list[str]) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "dfqkit", *words],
            stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False,
        )  # fmt: skip
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, "")


class TestLooking:
    def test_list_recipes_gives_every_one_with_its_reason(self, capsys: Output) -> None:
        assert main(["list", "recipes"]) == 0
        out = capsys.readouterr().out
        for path in (ROOT / "recipes").glob("*/*.yaml"):
            data = yaml.safe_load(path.read_text())
            assert any(line.startswith(data["name"]) and line.endswith(data["why"]) for line in out.splitlines())

    def test_list_synthesizers_says_what_each_needs(self, capsys: Output) -> None:
        assert main(["list", "synthesizers"]) == 0
        assert re.search(r"^dfq +needs batchnorm, classes  ", capsys.readouterr().out, re.M)

    def test_list_targets(self, capsys: Output) -> None:
        assert main(["list", "targets"]) == 0
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert {"onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"} <= set(listed)

    def test_recipe_show_is_a_recipe(self, capsys: Output, tmp_path: Path) -> None:
        assert main(["recipe", "show", RECIPE, "--set", "bank.held_out=7", "--seed", "3"]) == 0
        shown = capsys.readouterr().out
        data = yaml.safe_load(shown)
        assert (data["seed"], data["bank"]["held_out"]) == (3, 7)
        (tmp_path / "mine.yaml").write_text(shown)
        assert main(["recipe", "show", str(tmp_path / "mine.yaml")]) == 0
        assert capsys.readouterr().out == shown

    @pytest.mark.parametrize("words", [[], [RECIPE]])
    def test_recipe_schema_describes_every_section(self, words: list[str], capsys: Output) -> None:
        assert main(["recipe", "schema", *words]) == 0
        schema = json.loads(capsys.readouterr().out)
        text = json.dumps(schema)
        assert "DFQConfig" in text
        for section in ("quant", "synthesis", "student", "distill"):
            assert "$ref" in json.dumps(schema["properties"][section]), section
        for reference in {part.split('"')[0] for part in text.split("#/$defs/")[1:]}:
            definition = schema["$defs"][reference]
            assert "enum" in definition or definition["additionalProperties"] is False

    def test_env_is_one_json_document(self, capsys: Output) -> None:
        assert main(["env", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["schema"], facts["dfqkit"]) == (1, __version__)
        assert facts["packages"]["torch"] == torch.__version__.partition("+")[0]

    def test_inspect_a_factory_as_json(self, capsys: Output) -> None:
        words = "inspect --factory dfqkit.models:digits_cnn --shape 1,16,16 --classes 10 --json"
        assert main(words.split()) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["schema"] == 1
        assert facts["batchnorm"] == "statistics"
        assert facts["synthesizers"]["dfq"] == []

    def test_inspect_a_recipe(self, capsys: Output) -> None:
        assert main(["inspect", RECIPE]) == 0
        assert capsys.readouterr().out.startswith("Teacher digits_cnn (weights sha256")


class TestReport:
    def test_rendering_again_keeps_the_run_whole(self, capsys: Output, stand_in: StandIn) -> None:
        main(["run", RECIPE, "--out", "here"])
        capsys.readouterr()
        assert main(["report", "here"]) == 0
        out, err = capsys.readouterr()
        assert out.startswith(f"{RECIPE}\nOK")
        assert err == "Wrote here/report.html\n"
        assert Path("here/report.html").read_text().startswith("<!doctype html>")
        assert RunFolder.open("here").done("validate")

    def test_a_report_without_its_run_will_do(self, capsys: Output, tmp_path: Path) -> None:
        (tmp_path / "report.json").write_text(Report(title="from elsewhere").to_json())
        assert main(["report", str(tmp_path)]) == 0
        assert capsys.readouterr().out.startswith("from elsewhere\nOK")
        assert (tmp_path / "report.html").exists()

    def test_run_for_several_targets_has_its_files_named(self, capsys: Output, tmp_path: Path) -> None:
        for name in ("report.json", "report.openvino.json"):
            (tmp_path / name).write_text(Report(title=name).to_json())
        assert main(["report", str(tmp_path)]) == 2
        names(capsys.readouterr().err, "report.json, report.openvino.json", "one of these files")
        assert main(["report", str(tmp_path / "report.openvino.json")]) == 0
        assert "report.openvino.json" in (tmp_path / "report.openvino.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_real_stages_one_by_one_give_the_same_file_as_a_run_that_was_terminated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (
        "synthesis.warmup=4", "bank.calibration=64", "bank.held_out=64", "bank.grading=64", "validate.limit=64",
        "validate.latency_repeats=0", "floors=[]",
    )  # fmt: skip
    recipe = [RECIPE, *(word for change in changes for word in ("--set", change)), "--threads", "1"]
    monkeypatch.chdir(tmp_path)
    first, *others = STAGES
    assert main(["run", "--only", first, *recipe, "--out", "steps"]) == 0
    for stage in others:
        assert main(["run", "--only", stage, "steps"]) == 0
    command = [sys.executable, "-m", "dfqkit", "run", *recipe, "--out", "whole"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr is not None
        while "synthesize 50 %" not in process.stderr.readline():
            assert process.poll() is None
        process.terminate()
        error = process.stderr.read()
    assert process.returncode == 130
    assert error.splitlines()[-1].endswith("Continue with: dfqkit run --resume whole")
    assert main(["run", "--resume", "whole"]) == 0
    assert Path("whole/model.onnx").read_bytes() == Path("steps/model.onnx").read_bytes()
    for name in ("student.safetensors", "images/calibration.safetensors"):
        whole, steps = load_file(Path("whole", name)), load_file(Path("steps", name))
        assert all(torch.equal(whole[key], steps[key]) for key in whole | steps), name
