from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from dfqkit_export.backends.processor import cpu_of, saturates
from dfqkit_export.env import environment
from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure import latency

IMAGES = np.zeros((2, 1, 4, 4), np.float32)


class FakeClock:
    """A clock that only sessions move, so that timings are exact."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def session(self, name: str, durations: list[float]) -> Any:
        clock, left = self, iter(durations)

        class Session:
            def run(self, images: Any) -> Any:
                clock.calls.append(name)
                clock.now += next(left) / 1000.0
                return images

        return Session()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(latency.time, "perf_counter", fake.perf_counter)
    return fake


def test_sessions_take_turns_and_statistics_are_numpys(clock: FakeClock) -> None:
    slow, fast = [9.0, 3.0, 4.0, 8.0, 5.0], [7.0, 1.0, 2.0, 2.0, 1.0]
    sessions = {"float": clock.session("float", slow), "int8": clock.session("int8", fast)}
    result = latency.measure_latency(sessions, IMAGES, repeats=4, warmup=1, reference="float")
    assert clock.calls == ["float", "int8"] * 5
    timing = result.timings["int8"]
    assert (timing.median, timing.min, timing.max) == pytest.approx((1.5, 1.0, 2.0))
    assert (timing.p10, timing.p90) == pytest.approx(tuple(np.percentile(fast[1:], [10, 90])))
    assert timing.ratio == pytest.approx(np.median(np.array(slow[1:]) / fast[1:]))
    assert result.timings["float"].ratio == pytest.approx(1.0)
    assert (result.batch, result.repeats, result.warmup) == (2, 4, 1)


def test_metrics_name_latency_and_speedup(clock: FakeClock) -> None:
    sessions = {"teacher": clock.session("a", [4.0]), "onnxruntime": clock.session("b", [2.0])}
    result = latency.measure_latency(sessions, IMAGES, repeats=1, warmup=0, reference="teacher")
    found = {(m.name, m.subject): (m.value, m.unit) for m in result.metrics(data="2x1x4x4")}
    assert found == {
        ("latency", "teacher"): (pytest.approx(4.0), "ms"),
        ("latency", "onnxruntime"): (pytest.approx(2.0), "ms"),
        ("speedup", "onnxruntime"): (pytest.approx(2.0), "x"),
    }


def test_without_reference_there_is_no_ratio(clock: FakeClock) -> None:
    result = latency.measure_latency({"a": clock.session("a", [1.0, 1.0])}, IMAGES, repeats=2, warmup=0)
    assert result.timings["a"].ratio is None
    assert result.to_dict()["timings"]["a"]["median"] == pytest.approx(1.0)


def test_real_time_is_measured_in_milliseconds() -> None:
    class Sleeper:
        def run(self, images: Any) -> Any:
            time.sleep(0.01)
            return images

    result = latency.measure_latency({"sleep": Sleeper()}, IMAGES, repeats=3, warmup=0)
    assert 10.0 <= result.timings["sleep"].min < 1000.0


@pytest.mark.parametrize(
    ("options", "words"),
    [({"repeats": 0}, "repeats of at least 1"), ({"warmup": -1}, "warmup"), ({"reference": "x"}, "not among")],
)
def test_options_are_checked(clock: FakeClock, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtefactError, match=words):
        latency.measure_latency({"a": clock.session("a", [])}, IMAGES, **{"repeats": 1, "warmup": 0, **options})
    with pytest.raises(ArtefactError, match="at least one session"):
        latency.measure_latency({}, IMAGES)


def test_environment_names_versions_and_processor() -> None:
    facts = environment()
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["cpu"]["count"] >= 1
    assert facts["cpu"]["model"]


def test_flags_come_from_the_first_processor() -> None:
    cpuinfo = (
        "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: sse avx2 avx512_vnni\n\nprocessor\t: 1\nflags\t: avx_vnni\n"
    )
    assert cpu_of(cpuinfo) == {"model": "Some CPU", "flags": ["avx2", "avx512_vnni"]}
    assert cpu_of("")["flags"] == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["avx2"], True), (["avx2", "avx512f"], True), (["avx2", "avx_vnni"], False), (["asimddp", "i8mm"], False)],
)
def test_x86_without_vnni_saturates(flags: list[str], expected: bool) -> None:
    assert saturates({"flags": flags}) is expected
