"""The pytest plugin, as a project that uses it sees it: every run is a process of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import dfqkit_export
from dfqkit_export.gate import Baseline, Case, Expected, Recorded, read_baseline, write_baseline
from tests._gate_toy import make_bundle

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[3]
Run = Callable[..., pytest.RunResult]

EVERY_VERDICT = """
    import pytest
    from dfqkit_export import Metric, Report

    def test_fine(accuracy_check):
        assert accuracy_check("fine", {"top1": 90.1}).verdict() == "ok"

    def test_worse(accuracy_check):
        accuracy_check("worse", {"top1": 80.0})
        raise AssertionError("never reached")

    def test_much_worse(accuracy_check):
        accuracy_check("much worse", {"top1": 20.0})

    def test_unknown(accuracy_check):
        accuracy_check("unknown", {"top1": 90.0})

    def test_known_fault(accuracy_check):
        accuracy_check("known fault", {"top1": 50.0})

    def test_repaired(accuracy_check):
        accuracy_check("repaired", {"top1": 90.0})

    @pytest.mark.dfqkit(case="marked")
    def test_marked(accuracy_check):
        accuracy_check({"top1": 90.0})

    def test_report(accuracy_check):
        row = Metric(name="top1", subject="onnxruntime", data="x", value=91.0, unit="%", n=9, higher_is_better=True)
        time = Metric(name="latency", subject="onnxruntime", data="x", value=3.0, unit="ms", n=9)
        accuracy_check("reported", Report(title="t", metrics=[row, time]))

    def test_misused(accuracy_check):
        accuracy_check("fine", {"word_error_rate": 3.0})

    def test_nameless(accuracy_check):
        accuracy_check({"top1": 3.0})
"""


def recorded(value: float = 90.0, metric: str = "top1", **more: Any) -> Case:
    entry = Recorded(value=value, stderr=None, n=0, tolerance=0.3, higher_is_better=True)
    return Case(metrics={metric: entry}, **more)


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest with this plugin, and nothing else of the environment's; warnings are errors."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(dfqkit_export.__file__).parents[1]))
    for name in ("CI", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)

    def start(*arguments: str, workers: bool = False) -> pytest.RunResult:
        loaded = ["-p", "dfqkit_export.pytest_plugin", *(["-p", "xdist", "-n", "2"] if workers else [])]
        return pytester.runpytest_subprocess(
            *loaded, "-p", "no:cacheprovider", "-W", "error", "--strict-markers", *arguments
        )

    return start


@pytest.fixture
def baseline(pytester: pytest.Pytester) -> Callable[..., Path]:
    def write(**cases: Case) -> Path:
        path = pytester.path / "dfqkit-baseline.json"
        write_baseline(path, Baseline(cases={name.replace("_", " "): case for name, case in cases.items()}))
        return path

    return write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("toy") / "toy")


def section(done: pytest.RunResult) -> list[str]:
    """The lines of the plugin's section."""
    text = done.stdout.str().partition("= dfqkit accuracy =")[2]
    return re.split(r"\n=+ ", text)[0].splitlines()[1:]


@pytest.mark.parametrize("workers", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "xdist"])
def test_every_verdict_ends_the_test_that_measured_it(
    run: Run, pytester: pytest.Pytester, baseline: Callable[..., Path], workers: bool
) -> None:
    fault = Expected(metric="top1", reason="calibrated in haste")
    path = baseline(
        fine=recorded(),
        worse=recorded(),
        much_worse=recorded(),
        marked=recorded(),
        known_fault=recorded(expected_failure=fault),
        repaired=recorded(expected_failure=fault),
        reported=recorded(91.0, "top1 of onnxruntime on x"),
        forgotten=recorded(),
    )
    before = path.read_bytes()
    pytester.makepyfile(test_all=EVERY_VERDICT)
    done = run("-rx", "--junit-xml=out.xml", "--dfqkit-report=out/report.md", workers=workers)
    assert done.ret == 1
    done.assert_outcomes(passed=3, failed=6, xfailed=1)
    assert path.read_bytes() == before

    text = done.stdout.str()
    assert re.search(r"E +Failed: worse: regressed\n", text)
    assert re.search(r"E +metric +baseline +now +tolerance +verdict\n", text)
    assert re.search(r"E +top1 +90 +80 +0\.3 \(stated\) +regressed\n", text)
    assert "10 worse than the baseline; the tolerance is 0.3 (stated)." in text
    assert "pytest_plugin.py:" not in text  # the failure shows the test, not the plugin
    assert "pytest test_all.py::test_unknown --dfqkit-update" in text
    assert "calibrated in haste" in text
    assert "[XPASS(strict)] top1 was expected to fail." in text
    assert "more or less of 'word_error_rate' is better" in text
    assert "Metrics have no name of their own" in text

    lines = section(done)
    assert lines[0].split() == ["case", "metric", "baseline", "now", "tolerance", "verdict"]
    verdicts = [line.split("  ")[-1].strip() for line in lines[1:10]]
    assert verdicts == ["regressed", "regressed", "missing", "new", "expected", "improved", "ok", "ok", "ok"]
    assert [line.split("  ")[0] for line in lines[1:4]] == ["much worse", "worse", "unknown"]
    assert "forgotten: in the baseline" not in text  # two tests ended before their check
    assert (pytester.path / "out" / "report.md").read_text().startswith("### dfqkit check: FAILED: 3 of 8 cases")

    tests = {case.get("name"): case for case in ElementTree.parse(pytester.path / "out.xml").iter("testcase")}
    assert {name for name, case in tests.items() if case.find("failure") is not None} == {
        "test_worse", "test_much_worse", "test_unknown", "test_repaired", "test_misused", "test_nameless"
    }  # fmt: skip
    values = {p.get("name"): p.get("value") for p in tests["test_worse"].iter("property")}
    assert values == {"dfqkit.worse": "regressed", "dfqkit.worse.top1": "80.0"}
    assert {p.get("name") for p in tests["test_known_fault"].iter("property")} == {
        "dfqkit.known fault", "dfqkit.known fault.top1"
    }  # fmt: skip


@pytest.mark.parametrize("workers", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "xdist"])
def test_an_update_records_and_passes_and_a_worse_bundle_fails_then(
    run: Run, pytester: pytest.Pytester, bundle: Path, workers: bool
) -> None:
    shutil.copytree(bundle, pytester.path / "toy")
    pytester.makepyfile(
        test_files="""
        from pathlib import Path
        import numpy as np
        from dfqkit_export import Metric

        def test_bundle(accuracy_check):
            accuracy_check("toy/w8a8", Path(__file__).parent / "toy")

        def test_numbers(accuracy_check):
            own = dict(name="map", subject="s", data="d", unit="", n=np.int64(7), higher_is_better=np.bool_(True))
            metrics = {"top1": np.float32(90), "kl": 0.1, "map": Metric(value=np.float64(0.5), **own)}
            accuracy_check("numbers", metrics, tolerances={"top1": 2})
        """
    )
    done = run("--dfqkit-update", workers=workers)
    done.assert_outcomes(passed=2)
    assert done.ret == 0
    assert {"recorded: toy/w8a8: new, with 8 metrics", "recorded: numbers: new, with 3 metrics"} <= set(section(done))
    written = read_baseline(pytester.path / "dfqkit-baseline.json")
    assert sorted(written.cases) == ["numbers", "toy/w8a8"]
    assert written.cases["numbers"].metrics["top1"].tolerance == 2
    assert "onnxruntime" in written.environment["packages"]

    (pytester.path / "toy" / "model.onnx").write_bytes(b"damaged")
    file = pytester.path / "test_files.py"
    file.write_text(file.read_text().replace("float32(90)", "float32(91)"))
    done = run("--dfqkit-update", workers=workers)  # what cannot be measured is not recorded
    done.assert_outcomes(passed=1, failed=1)
    assert "recorded: numbers: top1 90 -> 91" in section(done)
    again = read_baseline(pytester.path / "dfqkit-baseline.json").cases
    assert again["toy/w8a8"].to_dict() == written.cases["toy/w8a8"].to_dict()
    assert again["numbers"].metrics["top1"].value == 91


@pytest.mark.slow
def test_a_bundle_that_computes_something_else_fails_with_the_cause(
    run: Run, pytester: pytest.Pytester, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tests._faults import inject

    pytester.makepyfile("def test_it(accuracy_check): accuracy_check('toy')")
    shutil.copytree(bundle, pytester.path / "toy")
    run("--dfqkit-update").assert_outcomes(passed=1)
    run("--dfqkit-strict").assert_outcomes(passed=1)
    shutil.rmtree(pytester.path / "toy")
    inject("scale_doubled", bundle, pytester.path / "toy")
    done = run("--dfqkit-strict")
    done.assert_outcomes(failed=1)
    assert re.search(r"E +cause: .*conv", done.stdout.str())


def test_ci_cannot_approve_its_own_change(run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile("def test_it(accuracy_check): accuracy_check('a', {'top1': 90.0})")
    monkeypatch.setenv("CI", "true")
    done = run("--dfqkit-update")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "refused where CI is set" in done.stderr.str()
    assert not (pytester.path / "dfqkit-baseline.json").exists()
    run("--dfqkit-update=force", "--dfqkit-baseline=given.json").assert_outcomes(passed=1)
    assert sorted(read_baseline(pytester.path / "given.json").cases) == ["a"]


@pytest.mark.parametrize("workers", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "xdist"])
def test_strict_fails_on_unused_cases_though_every_test_passes(
    run: Run, pytester: pytest.Pytester, baseline: Callable[..., Path], workers: bool
) -> None:
    baseline(a=recorded(), gone=recorded())
    pytester.makepyfile(
        """
        def test_a(accuracy_check): accuracy_check("a", {"top1": 90.0})
        def test_other(): pass
        """
    )
    unused = "gone: in the baseline, but no test checked it"
    done = run(workers=workers)
    assert (done.ret, unused in section(done)) == (0, True)
    done = run("--dfqkit-strict", workers=workers)
    done.assert_outcomes(passed=2)
    assert (done.ret, unused in section(done)) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["-k", "test_a"], ["test_it.py::test_a"], ["-k", "test_a", "-p", "xdist", "-n", "2"], ["-x", "--maxfail=1"]],
    ids=["-k", "node", "xdist -k", "-x"],
)
def test_a_case_is_not_unused_where_only_a_part_ran(
    run: Run, pytester: pytest.Pytester, baseline: Callable[..., Path], arguments: list[str]
) -> None:
    baseline(a=recorded(), b=recorded())
    fails = "; raise AssertionError" if "-x" in arguments else ""
    pytester.makepyfile(
        test_it=f"""
        def test_a(accuracy_check): accuracy_check("a", {{"top1": 90.0}}){fails}
        def test_b(accuracy_check): accuracy_check("b", {{"top1": 90.0}})
        """
    )
    done = run("--dfqkit-strict", *arguments)
    assert "no test checked it" not in done.stdout.str()
    assert done.ret == int(bool(fails))


def test_strict_fails_on_what_is_better_than_recorded(
    run: Run, pytester: pytest.Pytester, baseline: Callable[..., Path]
) -> None:
    baseline(a=recorded(80.0))
    pytester.makepyfile("def test_it(accuracy_check): accuracy_check('a', {'top1': 90.0, 'kl': 0.1})")
    pytester.makeini("[pytest]\ndfqkit_strict = true\ndfqkit_report = out.json\n")
    done = run()
    done.assert_outcomes(failed=1)
    document = json.loads((pytester.path / "out.json").read_text())
    found = {row["metric"]: row["verdict"] for row in document["cases"][0]["metrics"]}
    assert found == {"top1": "improved", "kl": "new"}


NO_RUNTIME = """
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "onnxruntime":
                raise ModuleNotFoundError(name, name=name)

    sys.meta_path.insert(0, Absent())
"""


def test_without_the_runtime_a_check_is_skipped_with_the_reason(
    run: Run, pytester: pytest.Pytester, baseline: Callable[..., Path], bundle: Path
) -> None:
    baseline(toy=recorded(), numbers=recorded())
    pytester.makeconftest(NO_RUNTIME)
    pytester.makepyfile(
        f"""
        def test_bundle(accuracy_check): accuracy_check({str(bundle)!r})
        def test_numbers(accuracy_check): accuracy_check("numbers", {{"top1": 90.0}})
        """
    )
    done = run("-rs")
    done.assert_outcomes(passed=1, skipped=1)
    assert re.search(r"SKIPPED .*onnxruntime.*pip install onnxruntime", done.stdout.str())
    assert "no test checked it" not in done.stdout.str()
    run("--dfqkit-strict").assert_outcomes(passed=1, failed=1)


def test_options_are_keys_of_the_configuration_too(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(accuracy_check): accuracy_check('a', {'top1': 90.0})")
    pytester.makeini("[pytest]\ndfqkit_baseline = sub/base.json\ndfqkit_update = yes\n")
    run().assert_outcomes(passed=1)
    assert (pytester.path / "sub" / "base.json").exists()
    pytester.makeini("[pytest]\ndfqkit_skip = true\n")
    done = run("-rs")
    done.assert_outcomes(skipped=1)
    assert "--dfqkit-skip" in done.stdout.str()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dfqkit-report=out.pdf"], "ends in .json or .md; found 'out.pdf'"),
        (["--dfqkit-update", "test_it.py"], "takes nothing or '=force'; found 'test_it.py'"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr.str()


def test_a_damaged_baseline_and_a_floor_fail_without_being_written_over(
    run: Run, pytester: pytest.Pytester, baseline: Callable[..., Path]
) -> None:
    pytester.makepyfile("def test_it(accuracy_check): accuracy_check('a', {'top1': 84.0})")
    path = baseline(a=recorded(floors={"top1": 85.0}))
    before = path.read_bytes()
    done = run("--dfqkit-update")
    done.assert_outcomes(failed=1)
    assert "below its floor of 85" in done.stdout.str()
    assert path.read_bytes() == before
    path.write_text("{")
    done = run()
    done.assert_outcomes(failed=1)
    assert re.search(r"E +Failed: Baseline '.*dfqkit-baseline.json' .*JSON", done.stdout.str())
    assert "Traceback" not in done.stdout.str() + done.stderr.str()


@pytest.mark.parametrize("workers", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "xdist"])
def test_two_tests_that_would_record_one_case_differently_record_nothing(
    run: Run, pytester: pytest.Pytester, workers: bool
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("value", [90.0, 91.0])
        def test_it(accuracy_check, value): accuracy_check("a", {"top1": value})

        def test_same(accuracy_check): accuracy_check("b", {"top1": 90.0})
        """
    )
    done = run("--dfqkit-update", workers=workers)
    assert done.ret == 1
    assert "a: not recorded, because several tests measured it differently; rename one" in section(done)
    assert sorted(read_baseline(pytester.path / "dfqkit-baseline.json").cases) == ["b"]


LIGHT = """
    import sys

    def test_light(pytestconfig):
        assert pytestconfig.pluginmanager.hasplugin("dfqkit-results")
        heavy = {"numpy", "onnx", "onnxruntime", "torch", "dfqkit", "dfqkit_export.gate"}
        assert not heavy & set(sys.modules)
"""


def test_loading_it_imports_nothing_heavy(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(LIGHT)
    done = run()
    done.assert_outcomes(passed=1)
    assert "dfqkit accuracy" not in done.stdout.str()


def test_the_entry_point_loads_it_and_can_be_switched_off(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = re.search(r"\[project\.entry-points\.pytest11\]\n(.+)\n", (ROOT / "pyproject.toml").read_text())
    assert stated is not None
    metadata = pytester.mkdir("installed") / "probe-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: probe\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[pytest11]\n" + stated[1].replace('"', ""))
    path = f"{metadata.parent}:{Path(dfqkit_export.__file__).parents[1]}"
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    pytester.makepyfile(LIGHT)
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)
    pytester.makepyfile("def test_it(accuracy_check): pass")
    done = pytester.runpytest_subprocess("-W", "error", "-p", "no:dfqkit")
    done.assert_outcomes(errors=1)
    assert "fixture 'accuracy_check' not found" in done.stdout.str()


def test_help_and_markers_say_what_there_is(run: Run) -> None:
    text = run("--help").stdout.str()
    assert re.search(r"--dfqkit-update\[?=?", text)
    for name in ("baseline", "update", "strict", "report", "skip"):
        assert f"--dfqkit-{name}" in text
        assert f"dfqkit_{name}" in text
    assert "@pytest.mark.dfqkit(case)" in run("--markers").stdout.str()


def test_the_module_can_be_imported_without_pytest_running() -> None:
    program = "import dfqkit_export.pytest_plugin, sys; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_not_judged_fails_or_skips_its_test_and_never_passes_it(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from dfqkit_export.report import Report

        def test_it(accuracy_check):
            accuracy_check("mine", Report(title="t", verdict="not judged", reasons=["No image graded it."]))
        """
    )
    run("--dfqkit-update").assert_outcomes(failed=1)
    run("--dfqkit-update", "--dfqkit-allow-not-judged").assert_outcomes(passed=1)
    done = run("-rs", "--dfqkit-allow-not-judged")
    done.assert_outcomes(skipped=1)
    assert "No image graded it." in done.stdout.str()
    run("--dfqkit-reason=r").assert_outcomes(failed=1)
    run("--dfqkit-update", "--dfqkit-reason=to show it").assert_outcomes(passed=1)
    done = run("-rs")
    done.assert_outcomes(skipped=1)
    assert "to show it" in done.stdout.str()
