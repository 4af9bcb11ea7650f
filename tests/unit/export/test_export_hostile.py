"""Files that crash, hang or flood what reads them, and names in them that terminals and CI jobs obey."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from dfqkit.cli import main
from dfqkit_export.backends import get_backend
from dfqkit_export.backends.isolation import Limits, UnforeseenError, call_isolated
from dfqkit_export.bundle import Order, write_bundle
from dfqkit_export.errors import ArtefactError, RuntimeCrashedError
from dfqkit_export.gate import compare
from dfqkit_export.gate.measurement import open_subject
from dfqkit_export.words import clean
from tests._messages import names, raises_naming
from tests.unit.export._bundles import write_run
from tests.unit.export.conftest import QdqBuilder

ASK = {"runtime": "Vendor", "doing": "trying"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="the limits are the kernel's")


def die() -> None:
    os.kill(os.getpid(), signal.SIGFPE)


def sleep() -> None:
    time.sleep(60)


def flood() -> None:
    np.ones(2**30, np.uint8)


def divide() -> float:
    return 1 / 0


def shout() -> str:
    os.write(2, b"\x1b]0;title\x07 and then\n")
    os.abort()


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Return what calls a function of this module in a copy of this process."""

    def call(function: Callable[[], object], **limits: float) -> object:
        monkeypatch.setattr("dfqkit_export.backends.isolation.under_test", function, raising=False)
        return call_isolated("backends.isolation:under_test", {}, **ASK, limits=Limits(**limits), fresh=False)

    return call


@linux
class TestChild:
    def test_a_signal_names_itself(self, ask: Callable[..., object]) -> None:
        with pytest.raises(RuntimeCrashedError, match=r"Vendor crashed while trying.*SIGFPE"):
            ask(die)

    def test_a_hang_ends_in_time(self, ask: Callable[..., object]) -> None:
        begun = time.monotonic()
        with pytest.raises(RuntimeCrashedError, match=r"stopped after 0\.2 seconds"):
            ask(sleep, seconds=0.2)
        assert time.monotonic() - begun < 10

    def test_a_flood_is_refused(self, ask: Callable[..., object]) -> None:
        with pytest.raises(ArtefactError, match=r"more memory.*DFQKIT_CHILD_GIB"):
            ask(flood, gib=0.5)

    def test_a_bug_keeps_its_traceback(self, ask: Callable[..., object]) -> None:
        with pytest.raises(UnforeseenError, match=r"(?s)in divide.*ZeroDivisionError"):
            ask(divide)

    def test_last_words_are_made_harmless(self, ask: Callable[..., object]) -> None:
        with pytest.raises(RuntimeCrashedError) as caught:
            ask(shout)
        assert "SIGABRT" in str(caught.value)
        assert "]0;title? and then" in str(caught.value)
        assert "\x1b" not in str(caught.value)


@pytest.fixture
def bundles(tmp_path: Path) -> list[Path]:
    """Three bundles of different names."""
    made = []
    for name in ("one", "two", "three"):
        run = write_run(tmp_path / f"run-{name}", QdqBuilder, name=name)
        write_bundle(Order(run=run, out=tmp_path / name))
        made.append(tmp_path / name)
    return made


@linux
@pytest.mark.parametrize("end", [die, divide, sleep])
def test_one_bad_bundle_costs_no_other_its_result(
    bundles: list[Path], end: Callable[[], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ["check", *map(str, bundles), "--baseline", str(tmp_path / "base.json"), "--allow", "toys"]
    main([*command, "--update"])
    real = compare.measure_subject

    def crashing(subject: compare.Subject, **options: object) -> object:
        return end() if subject.bundle.name == "two" else real(subject, **options)

    monkeypatch.setattr(compare, "measure_subject", crashing)
    if end is sleep:
        monkeypatch.setenv("DFQKIT_CHILD_SECONDS", "6")
    assert main([*command, "--junit-xml", str(tmp_path / "junit.xml")]) == (4 if end is divide else 3)
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()[0]
    errors = suite.findall("*/error")
    assert len(errors) == 1
    assert {case.get("classname") for case in suite} >= {"one", "three"}
    names(
        errors[0].get("message") or "",
        *{die: ("SIGFPE",), divide: ("bug", "ZeroDivisionError"), sleep: ("6 sec",)}[end],
    )


def test_a_file_whose_layers_cannot_be_read_is_refused_by_name_like_any_other(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", QdqBuilder)
    write_bundle(Order(run=run, out=tmp_path / "whole"))
    path = tmp_path / "whole" / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.dims[:] = [tensor.dims[0], int(np.prod(tensor.dims[1:]))]
    onnx.save(model, path)
    with open_subject(path.parent) as subject, raises_naming(ArtefactError, path, "onnxruntime"):
        compare.measure_subject(subject)


def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DFQKIT_CHILD_SECONDS", "soon")
    assert main(["inspect", "model.onnx"]) == 2
    names(capsys.readouterr().err, "DFQKIT_CHILD_SECONDS", "'soon'")


EVIL = "evil\x1b[2J\n::error::all is well\n##[error]no\u202eflow\x00"


def poisoned(path: Path, out: Path) -> Path:
    """Write a model again with such a text in every name that it has."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name += EVIL
    for node in model.graph.node:
        node.name += EVIL
        for names_ in (node.input, node.output):
            names_[:] = [f"{name}{EVIL}" if name else "" for name in names_]
    model.producer_name = EVIL
    for entry in model.metadata_props:
        if entry.key in ("dfqkit.recipe", "dfqkit.teacher", "dfqkit.synthesizer"):
            entry.value = EVIL
    onnx.save(model, out)
    return out


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("inspect {evil} --runtime onnxruntime", 1),
        ("inspect {evil} --runtime openvino --target openvino", 0),
        ("inspect {evil} --target tensorrt", 1),
        ("compare {evil} {evil} --runtime-b onnxruntime-unoptimized", 0),
        ("compare {evil} {model}", 0),
        ("profile {evil} --repeats 1", 0),
        ("compare {evil} --images {evil} --runtime-b openvino", 2),
        ("check {run} --baseline {run}/base.json", 2),
        ("check {run} --baseline {run}/base.json --update", 2),
        ("bundle {run}", 2),
        ("report {run}", 2),
    ],
)
def test_no_byte_of_a_file_reaches_a_terminal_raw(
    command: str, code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", QdqBuilder)
    model = write_run(tmp_path / "other", QdqBuilder) / "model.onnx"
    evil = poisoned(run / "model.onnx", run / "model.onnx")
    absent = code == 0 and "openvino" in command and get_backend("openvino").missing()
    assert main(command.format(evil=evil, model=model, run=run).split()) == (3 if absent else code)
    said = capfd.readouterr()
    for line in (said.out + said.err).split("\n"):
        assert line == clean(line)
        assert not line.startswith((": :error", "# #[error"))


def test_clean_text_stays_as_it_is() -> None:
    text = "Größe ± 3\n  conv::weight  12 dB\n\ttab ## heading"
    assert clean(text) == text
