"""The table of metrics: a kind that another package offers shows wherever ours do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfqkit_export.bundle.writing import Order, write_bundle
from dfqkit_export.comparison import compare_reports, render_differences
from dfqkit_export.comparison.side_by_side import render_side_by_side
from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate import (
    Baseline,
    CaseOutcome,
    Options,
    check_case,
    check_metrics,
    conclude,
    measure_report,
    read_baseline,
    write_baseline,
)
from dfqkit_export.gate import render_text as render_verdicts
from dfqkit_export.gate.significance import ImageValues, difference_stderr, image_values
from dfqkit_export.measure import kinds
from dfqkit_export.measure.kinds import KINDS, Metric, MetricKind, find_kind, known_kinds, register
from dfqkit_export.report import Floor, Report, check_floors
from dfqkit_export.report.page import render_html
from dfqkit_export.report.text import render_markdown, render_text
from tests.unit.export._bundles import list_run, write_run
from tests.unit.export.conftest import QdqBuilder

PLUGIN = """
from dfqkit_export.measure.kinds import MetricKind, PerImage, Tolerance

RING = MetricKind(
    name="ring_error", title="Error of the rings", unit="px", decimals=3, higher_is_better=False,
    tolerance=Tolerance(absolute=0.25, relative=0.1), per_image=PerImage(key="ring_errors"),
    headline=True, on_card=True, short="rings px",
)
OTHER = MetricKind(name="top1", title="Mine", higher_is_better=True)
NOT_ONE = 3
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Leave a distribution with a plugin as pip would have."""
    (folder / "rings.py").write_text(PLUGIN)
    info = folder / "rings-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rings\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{kinds.GROUP}]", *lines]) + "\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "rings", raising=False)


@pytest.fixture(autouse=True)
def own_table() -> Iterator[None]:
    """Leave the table as it was found."""
    before = dict(KINDS)
    kinds.load_plugins.cache_clear()
    yield
    KINDS.clear()
    KINDS.update(before)
    kinds.load_plugins.cache_clear()


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MetricKind:
    """A metric that a plugin offers."""
    install(tmp_path, monkeypatch, ring_error="rings:RING")
    kind = find_kind("ring_error")
    assert kind is not None
    return kind


def measured(kind: MetricKind, value: float, subject: str = "onnxruntime") -> Metric:
    return kind.metric(subject=subject, data="real:rings", value=value, n=50, stderr=0.01)


def report(kind: MetricKind, value: float) -> Report:
    return Report(title="rings", metrics=[measured(kind, 1.0, "teacher"), measured(kind, value)])


def test_reports_show_its_title_unit_decimals_and_direction(ring: MetricKind) -> None:
    found = report(ring, 1.23456)
    assert "1.235 ± 0.010 px" in render_text(found)
    assert "+0.235 px" in render_text(found)
    for text in (render_text(found), render_markdown(found), render_html(found)):
        assert "Error of the rings" in text
        assert "1.235" in text
    page = render_html(found)
    assert "lower is better" in page
    assert "<dt>Error of the rings</dt>" in page, "it is a key figure"
    assert Report.from_json(found.to_json()) == found


def test_two_reports_beside_each_other_say_which_is_better(ring: MetricKind) -> None:
    first, second = report(ring, 1.2), report(ring, 1.7)
    page = render_side_by_side(first, second)
    assert "Error of the rings" in page
    assert "+0.500 px ± 0.014" in page
    assert "worse" in page
    (change, _) = compare_reports(first, second).metrics
    assert change.change == "worse"
    assert "ring_error" in render_differences(compare_reports(first, second))


def test_floors_hold_it_by_its_direction(ring: MetricKind) -> None:
    floor = Floor(metric=ring.name, subject="onnxruntime", value=1.5)
    assert check_floors([measured(ring, 1.4)], [floor]) == []
    (finding,) = check_floors([measured(ring, 1.6)], [floor])
    assert "1.6 ± 0.01 px" in finding.message
    assert "above its floor" in finding.message


class TestGate:
    """What the gate records of it, and how it judges it later."""

    @staticmethod
    def check(kind: MetricKind, value: float, baseline: Baseline, **options: Any) -> CaseOutcome:
        return check_metrics("rings", {kind.name: measured(kind, value)}, baseline, Options(**options))

    @pytest.fixture
    def baseline(self, ring: MetricKind, tmp_path: Path) -> Baseline:
        outcome = conclude([self.check(ring, 2.0, Baseline(), update=True)], Baseline(), Options(update=True))
        assert outcome.baseline is not None
        path = tmp_path / "dfqkit-baseline.json"
        write_baseline(path, outcome.baseline)
        entry = json.loads(path.read_text())["cases"]["rings"]["metrics"]["ring_error"]
        assert (entry["value"], entry["tolerance"], entry["higher_is_better"]) == (2.0, 0.45, False)
        return read_baseline(path)

    @pytest.mark.parametrize(("value", "verdict"), [(1.5, "improved"), (2.4, "ok"), (2.5, "regressed")])
    def test_its_rows_have_its_tolerance_and_direction(
        self, ring: MetricKind, baseline: Baseline, value: float, verdict: str
    ) -> None:
        outcome = self.check(ring, value, baseline)
        (row,) = outcome.rows
        assert (row.verdict, row.unit, row.tolerance, row.higher_is_better) == (verdict, "px", 0.45, False)
        assert "ring_error" in render_verdicts(conclude([outcome], baseline))

    def test_its_values_of_each_image_give_a_paired_error(self, ring: MetricKind) -> None:
        rng = np.random.default_rng(0)
        errors = rng.uniform(1, 2, 200)
        base, now = (
            image_values([ring], {"ring_errors": values}, np.zeros(200, bool))
            for values in (errors, errors + rng.normal(0.1, 0.01, 200))
        )
        kept = ImageValues.from_dict(json.loads(json.dumps(base.to_dict())))
        np.testing.assert_allclose(kept.values["ring_errors"], errors, rtol=0.05)
        paired = difference_stderr(ring.name, base, now)
        assert paired is not None
        assert 0 < paired < 0.01 * errors.std(), "images on which both err alike say nothing"

    def test_it_is_read_from_reports_too(self, ring: MetricKind) -> None:
        outcome = check_case(measure_report(report(ring, 2.0)), None, Options(update=True))
        assert {row.metric for row in outcome.rows} == {
            f"ring_error of {subject} on real:rings" for subject in ("teacher", "onnxruntime")
        }


def test_model_cards_show_it(ring: MetricKind, tmp_path: Path, qdq: type[QdqBuilder]) -> None:
    run = write_run(tmp_path / "run", qdq)
    (run / "report.json").write_text(report(ring, 1.25).to_json())
    list_run(run)
    write_bundle(Order(run=run, out=tmp_path / "bundle"))
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert "| ring\\_error | this file | real:rings | 1.25 px | 0.01 | 50 |" in card


def test_a_metric_that_nobody_knows_is_told_as_the_file_tells_it() -> None:
    unknown = Metric(
        name="area", subject="onnxruntime", data="x", value=1.25, unit="ms", n=3, stderr=0.5, higher_is_better=True
    )
    found = Report(title="old", metrics=[unknown])
    assert "1.250 ± 0.500 ms" in render_text(found), "written like other numbers in its unit"
    assert "area" in render_html(found)
    assert check_floors([unknown], [Floor(metric="area", subject="onnxruntime", value=2.0)])


def test_a_plugin_that_cannot_be_used_is_named_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, a="rings:GONE", b="rings:NOT_ONE", c="rings:OTHER", d="rings:RING")
    with pytest.warns(RuntimeWarning, match="cannot be used") as caught:
        names = [kind.name for kind in known_kinds()]
    assert names[-1] == "ring_error"
    assert [str(warning.message).split("'")[1] for warning in caught] == ["a", "b", "c"]


def test_two_kinds_cannot_have_one_name() -> None:
    with pytest.raises(ArtefactError, match="top1"):
        register(MetricKind(name="top1", title="Mine", higher_is_better=True))


def test_every_kind_says_how_it_is_shown_and_judged() -> None:
    for kind in KINDS.values():
        assert kind.title
        assert kind.title != kind.name
        assert kind.higher_is_better is not None
        assert kind.tolerance_at(50.0, 100) >= 0
