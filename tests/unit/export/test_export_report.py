from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from dfqkit_export.backends.precision import LayerPrecision
from dfqkit_export.comparison.reports import compare_reports
from dfqkit_export.comparison.side_by_side import render_side_by_side
from dfqkit_export.comparison.text import render_differences
from dfqkit_export.errors import ArtefactError
from dfqkit_export.measure.breakdown import Breakdown
from dfqkit_export.measure.kinds import Metric, known_kinds
from dfqkit_export.report import Finding, Floor, LayerRow, Report, check_floors, layer_rows
from dfqkit_export.report.charts import loss_charts
from dfqkit_export.report.page import render_head, render_html
from dfqkit_export.report.rows import figure, metric_groups, verdict_sentence
from dfqkit_export.report.summary import summary
from dfqkit_export.report.text import render_markdown, render_text

EVIL = "<script>alert(1)</script>\"'&|`"
PNG = b"\x89PNG\r\n\x1a\n" + b"rest"


def metric(name: str, subject: str, value: float | None, unit: str = "%", **changes: Any) -> Metric:
    better = name not in {"top1_drop", "kl", "latency", "size"}
    values: dict[str, Any] = {"data": "real:test", "n": 1000, "higher_is_better": better, **changes}
    return Metric(name=name, subject=subject, value=value, unit=unit, **values)


METRICS = (
    metric("top1", "teacher", 91.73, stderr=0.87),
    metric("top1", "student", 91.5, stderr=0.88),
    metric("top1", "onnxruntime", 91.65, stderr=0.875),
    metric("top1_drop", "onnxruntime", 0.08, "points", stderr=0.05),
    metric("latency", "teacher", 3.0, "ms", n=50),
    metric("latency", "onnxruntime", 1.0, "ms", n=50),
    metric("size", "teacher", 1_094_400.0, "bytes", n=1),
    metric("size", "onnxruntime", 312_000.0, "bytes", n=1),
    metric("logit_sqnr_db", "onnxruntime", None, "dB"),
)
LAYERS = (
    LayerRow(
        name="conv1",
        op="Conv",
        sqnr_student_db=30.25,
        sqnr_runtime_db=None,
        precision="int8",
        executed_as="QLinearConv",
    ),
    LayerRow(name="conv2", op="Conv", sqnr_student_db=-3.5, precision="float", executed_as="Conv", detail="because"),
)
REPORT = Report(
    title="digits/dfq-w8a8-ort",
    metrics=METRICS,
    layers=LAYERS,
    precision={
        "integer": 1,
        "float": 1,
        "integer_ops": 0.5,
        "float_ops": [{"op": "Conv", "name": "conv2"}],
        "nodes": {"Conv": 1},
    },
    latency={
        "timings": {"teacher": {"median": 3.0, "min": 2.5, "max": 9.0, "p10": 2.6, "p90": 4.0, "ratio": 1.0}},
        "reference": "teacher",
        "repeats": 50,
        "warmup": 5,
        "batch": 1,
    },
    provenance={"command": "dfqkit run digits/dfq-w8a8-ort --seed 3", "seed": 3, "environment": {"python": "3.11"}},
    synthesis={"losses": [{"round": r, "terms": {"bn": 1.0 / (r + 1)}} for r in range(4)], "cost": {"seconds": 12.5}}
    | {"data_free": True},
    selection={"kept": "round 3"},
    recipe="schema: 1\n",
)


class Page(HTMLParser):
    """Collect tags, attributes and text; every tag must be closed in order."""

    VOID = frozenset({"meta", "img", "br", "line", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)


def test_json_round_trip() -> None:
    text = REPORT.to_json()
    assert Report.from_json(text) == REPORT
    document = json.loads(text)
    assert (document["schema"], document["verdict"]) == (2, "ok")
    assert set(document["metrics"][0]) == {
        "name", "subject", "data", "value", "unit", "n", "stderr", "higher_is_better", "low", "high",
    }  # fmt: skip


def test_a_report_of_the_first_schema_is_read() -> None:
    document = json.loads(REPORT.to_json()) | {"schema": 1}
    del document["reasons"]
    for row in document["metrics"]:
        del row["low"], row["high"]
    assert Report.from_json(json.dumps(document)) == REPORT


def test_a_failed_report_round_trips() -> None:
    findings = check_floors(METRICS, [Floor(metric="top1_drop", subject="onnxruntime", value=0.05)])
    failed = replace(REPORT, verdict="failed", findings=findings)
    assert Report.from_json(failed.to_json()) == failed


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"latency": {"a": [1.0, math.nan]}}, r"report\.latency\.a\[1\] is nan"),
        ({"provenance": {"x": math.inf}}, r"report\.provenance\.x is inf"),
        ({"provenance": {"x": np.float32(1)}}, "float32"),
        ({"selection": {1: "x"}}, "key 1"),
    ],
)
def test_what_json_cannot_hold_is_refused_and_located(part: dict[str, Any], where: str) -> None:
    with pytest.raises(ArtefactError, match=where):
        replace(REPORT, **part).to_json()


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(REPORT.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        (REPORT.to_json()[:200], "not valid JSON"),
        ("[1]", "schema 'list'"),
        (changed(schema=3), "schema 3; this version reads 1, 2"),
        (changed(extra=1), "exactly the fields"),
        (changed(metrics={}), "must be a list"),
        (changed(metrics=[{"name": "top1"}]), "exactly the fields"),
        (changed(title=5), r"report\.title is 5"),
        (changed(precision=[]), r"report\.precision"),
        (changed(verdict="great"), r"report\.verdict"),
        (changed(verdict="failed"), "0 finding"),
        (changed(latency={"a": math.nan}), "holds NaN"),
        (changed(latency={"a": 1}).replace('{"a": 1}', '{"a": 1e999}'), "is inf"),
        (REPORT.to_json().replace('"value": 91.73', '"value": "<b>"'), r"metrics\.value is '<b>'"),
        (REPORT.to_json().replace('"n": 1000', '"n": true'), r"metrics\.n is True"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_foreign_reports_are_refused(text: str, words: str) -> None:
    with pytest.raises(ArtefactError, match=words):
        Report.from_json(text)


def test_verdict_and_findings_must_agree() -> None:
    finding = Finding(metric="top1", subject="s", value=1.0, floor=2.0, message="m")
    for verdict in ("ok", "not judged"):
        with pytest.raises(ArtefactError, match=f"'{verdict}' with 1 finding"):
            Report(title="t", verdict=verdict, findings=[finding], reasons=["r"])


NOT_JUDGED = replace(REPORT, verdict="not judged", reasons=["No image graded it."])


def test_what_was_not_judged_says_why_everywhere_and_never_that_it_is_ok() -> None:
    with pytest.raises(ArtefactError, match="without a reason"):
        Report(title="t", verdict="not judged")
    assert Report.from_json(NOT_JUDGED.to_json()) == NOT_JUDGED
    for text in (render_text(NOT_JUDGED), render_markdown(NOT_JUDGED), render_html(NOT_JUDGED)):
        assert "not judged" in text.lower()
        assert "No image graded it." in text
        assert not re.search(r"\bOK\b|✅|badge ok|All checks hold", text)


@pytest.mark.parametrize(
    ("name", "floor", "holds"),
    [("top1", 91.65, True), ("top1", 91.66, False), ("top1_drop", 0.08, True), ("top1_drop", 0.07, False)],
)
def test_floors_follow_the_direction(name: str, floor: float, holds: bool) -> None:
    findings = check_floors(METRICS, [Floor(metric=name, subject="onnxruntime", value=floor)])
    assert (findings == []) is holds


def test_a_finding_says_what_was_measured() -> None:
    (finding,) = check_floors(METRICS, [Floor(metric="top1_drop", subject="onnxruntime", value=0.05)])
    assert (finding.value, finding.floor) == (0.08, 0.05)
    for words in ("0.08 ± 0.05 points", "real:test", "n = 1000", "above its floor of 0.05"):
        assert words in finding.message


def test_what_was_not_measured_does_not_pass() -> None:
    floors = [
        Floor(metric="agreement", subject="onnxruntime", value=99),
        Floor(metric="logit_sqnr_db", subject="onnxruntime", value=1),
    ]
    findings = check_floors(METRICS, floors)
    assert [finding.value for finding in findings] == [None, None]
    assert all("was not measured" in finding.message for finding in findings)


def test_each_measurement_of_a_metric_must_hold() -> None:
    both = [metric("top1", "s", 90.0), metric("top1", "s", 50.0, data="other")]
    (finding,) = check_floors(both, [Floor(metric="top1", subject="s", value=60)])
    assert finding.value == 50.0


def test_floors_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ArtefactError, match="neither good nor bad"):
        check_floors([metric("size", "s", 1.0, higher_is_better=None)], [Floor(metric="size", subject="s", value=1)])
    with pytest.raises(ArtefactError, match="finite"):
        check_floors([], [Floor(metric="size", subject="s", value=math.nan)])


def test_layer_rows_join_by_name() -> None:
    layers = [LayerPrecision(name="a", op="Conv", precision="int8", executed_as="QLinearConv", detail="")]
    (row,) = layer_rows(layers, student_db={"a": 30.0, "b": 1.0})
    assert row == LayerRow(name="a", op="Conv", sqnr_student_db=30.0, precision="int8", executed_as="QLinearConv")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (91.734, "%", "91.73 %"),
        (-0.5, "points", "-0.50 points"),
        (1_094_400, "bytes", "1.09 MB"),
        (12, "bytes", "12 bytes"),
        (3.0666, "x", "3.07x"),
        (0.002134567, "nats", "0.00213 nats"),
        (7, "", "7"),
        (None, "%", "-"),
        (True, "%", "-"),
        ("<b>", "%", "-"),
    ],
)
def test_figures(value: Any, unit: str, text: str) -> None:
    assert figure(value, unit) == text


def test_gaps_are_differences_or_ratios() -> None:
    gaps = {group.name: group.cells["onnxruntime"].gap for group in metric_groups(REPORT)}
    assert gaps == {
        "top1": "-0.08 points",
        "top1_drop": "",
        "latency": "",
        "size": "3.51x smaller",
        "logit_sqnr_db": "",
    }
    larger = replace(REPORT, metrics=(metric("size", "teacher", 1.0, "bytes"), metric("size", "a", 2.0, "bytes")))
    assert metric_groups(larger)[0].cells["a"].gap == "2.00x larger"


def renderings(report: Report) -> list[str]:
    """Everything that is made of a report for people to read."""
    pages = (render_html(report), render_head(report), render_side_by_side(report, report))
    compared = render_differences(compare_reports(report, REPORT))
    texts = (re.sub(r"<[^>]+>", " ", page) for page in pages)
    return [*texts, render_text(report), render_markdown(report), "\n".join(summary(report)), compared]


def test_nothing_shows_two_speed_ups_of_the_same() -> None:
    sped = metric("speedup", "onnxruntime", 2.9, "x", n=50, low=2.7, high=3.1)
    ratio = {"ratio": 2.9, "ratio_low": 2.7, "ratio_high": 3.1}  # in turns; that of the medians is 3
    times = {
        name: dict.fromkeys(("median", "min", "max", "p10", "p90"), ms)
        for name, ms in (("teacher", 3.0), ("onnxruntime", 1.0))
    }
    times["onnxruntime"] |= ratio
    timed = {"timings": times, "reference": "teacher", "repeats": 50, "warmup": 5, "batch": 1}
    report = replace(REPORT, metrics=(*METRICS, sped), latency=timed)
    same = "0.00"  # of a report beside itself
    for text in renderings(report)[:-1]:
        assert set(re.findall(r"([\d.]+)(?:x(?! (?:smaller|larger))| times)", text)) <= {"2.90", "2.70", "3.10", same}
        assert "2.90x" in text
        assert not re.search(r"x faster|x slower|ratio against", text)
    assert "[2.70x, 3.10x]" in render_text(report)


@pytest.mark.parametrize("stderr", [0.0, 1e-9, 0.004])
def test_no_standard_error_is_shown_as_nothing(stderr: float) -> None:
    units = {kind.name: kind.unit for kind in known_kinds()}
    rows = [
        metric(name, who, 0.0, unit, stderr=stderr)
        for name, unit in units.items()
        for who in ("teacher", "onnxruntime")
    ]
    report = replace(REPORT, metrics=rows)
    findings = check_floors(
        [replace(rows[0], value=1.0, higher_is_better=False)],
        [Floor(metric=rows[0].name, subject="teacher", value=0.5)],
    )
    for text in (*renderings(report), findings[0].message):
        assert not re.search(r"(?:±|standard error) [0.]+(?![\de.])", text), text


def test_standard_errors_have_the_values_decimals() -> None:
    report = replace(REPORT, metrics=(metric("top1", "s", 91.7341, "%", stderr=0.2753),))
    assert str(metric_groups(report)[0].cells["s"]) == "91.73 ± 0.28 %"
    report = replace(REPORT, metrics=(metric("kl", "s", 0.00213, "nats", stderr=0.000041),))
    assert str(metric_groups(report)[0].cells["s"]) == "0.00213 ± 4.1e-05 nats"


def test_an_interval_takes_the_place_of_a_standard_error() -> None:
    drop = metric("top1_drop", "onnxruntime", 0.0, "points", stderr=0.0, low=-0.556, high=0.556)
    report = replace(REPORT, metrics=(metric("top1", "onnxruntime", 91.65), drop))
    for text in (render_text(report), render_markdown(report), render_html(report)):
        assert "[-0.56, 0.56]" in text
        assert "± 0.00" not in text
    assert "between losing 0.56 and gaining 0.56" in verdict_sentence(report)
    (finding,) = check_floors([replace(drop, value=1.0)], [Floor(metric="top1_drop", subject="onnxruntime", value=0.5)])
    assert "[-0.556, 0.556]" in finding.message


def test_the_sentence_names_accuracy_and_integer_layers() -> None:
    sentence = verdict_sentence(REPORT)
    for words in ("All checks hold", "91.65 % top-1", "loses 0.08 points (standard error 0.05)", "1 of 2 layers"):
        assert words in sentence
    unlabelled = replace(REPORT, metrics=(metric("agreement", "onnxruntime", 99.3),))
    assert "agrees with the teacher on 99.30 % of 1000 images" in verdict_sentence(unlabelled)
    assert verdict_sentence(Report(title="t")) == "All checks hold."


def test_text_is_a_fixed_width_table() -> None:
    text = render_text(REPORT)
    lines = text.splitlines()
    assert lines[0] == "digits/dfq-w8a8-ort"
    header = next(line for line in lines if line.startswith("metric"))
    row = next(line for line in lines if line.startswith("Top-1 accuracy"))
    assert row.index("91.65 ± 0.88 %") == header.index("onnxruntime")
    assert "conv2: because" in text
    assert text.endswith("\n")


def test_text_cannot_move_the_cursor() -> None:
    assert "\x1b" not in render_text(replace(REPORT, title="\x1b[2Jgone"))


def test_markdown_shows_metrics_and_escapes() -> None:
    text = render_markdown(replace(REPORT, title=EVIL))
    assert "✅ ok" in text
    assert "<script>" not in text
    table = [line for line in text.splitlines() if line.startswith("| Top-1 accuracy")]
    assert table == ["| Top-1 accuracy | 91.73 ± 0.87 % | 91.50 ± 0.88 % | 91.65 ± 0.88 % | 1000 | real:test |"]
    assert "`dfqkit run digits/dfq-w8a8-ort --seed 3`" in text


def test_html_has_every_section_in_order_and_is_well_formed() -> None:
    page = Page(render_html(REPORT, sheets={"generator 0": PNG}))
    assert page.open == []
    titles = [
        "Reproduce",
        "Metrics",
        "Realised precision",
        "Layers",
        "Latency",
        "Synthesis",
        "Synthetic images",
        "Recipe",
    ]
    assert page.headings == titles
    assert page.count("h1") == 1
    assert page.count("table") == 4
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")


def test_html_needs_no_network() -> None:
    page = Page(render_html(REPORT, sheets={"generator 0": PNG}))
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/png;base64,")
    assert page.count("link") == 0
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy


def test_html_escapes_everything_that_is_interpolated() -> None:
    evil_layer = LayerRow(name=EVIL, op=EVIL, precision="float", executed_as=EVIL, detail=EVIL)
    evil = Report(
        title=EVIL,
        verdict="failed",
        findings=[Finding(metric=EVIL, subject=EVIL, value=1.0, floor=2.0, message=EVIL)],
        metrics=[metric(EVIL, EVIL, 1.0, EVIL, data=EVIL)],
        layers=[evil_layer, replace(evil_layer, precision=EVIL)],
        precision={"integer": 1, "float": 1, "float_ops": [{"op": EVIL, "name": EVIL}], "nodes": {EVIL: 1}},
        latency={"timings": {EVIL: {"median": EVIL}}, "reference": EVIL, "repeats": EVIL},
        provenance={"command": EVIL, EVIL: EVIL, "list": [EVIL], "environment": {EVIL: {EVIL: EVIL}}},
        synthesis={
            "losses": [{"round": 0, "member": m, "terms": {EVIL: 1.0}} for m in (EVIL, EVIL + "2")],
            "cost": {EVIL: EVIL},
        },
        selection={EVIL: EVIL},
        recipe=EVIL,
    )
    text = render_html(evil, sheets={EVIL: PNG})
    page = Page(text)
    assert page.count("script") == 1
    assert text.count("alert(1)") == text.count("alert(1)&lt;/script&gt;") > 20
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "<script>" not in render_markdown(evil)


def test_html_says_the_verdict_in_words() -> None:
    findings = check_floors(METRICS, [Floor(metric="top1_drop", subject="onnxruntime", value=0.05)])
    text = render_html(replace(REPORT, verdict="failed", findings=findings))
    assert '<span class="badge failed">' in text
    assert "1 check does not hold" in text
    assert "Findings" in Page(text).text


def test_html_sort_keys_are_numbers_or_empty() -> None:
    page = Page(render_html(REPORT))
    keys = [attrs["data-v"] for tag, attrs in page.tags if tag == "td" and "data-v" in attrs]
    assert keys == ["1", "30.25", "", "2", "-3.5", ""]


def test_an_empty_report_still_renders() -> None:
    report = Report(title="empty")
    assert Page(render_html(report)).count("table") == 0
    assert render_text(report) == "empty\nOK  All checks hold.\n"
    assert render_markdown(report).startswith("### empty")


def test_sheets_must_be_png() -> None:
    with pytest.raises(ArtefactError, match="not a PNG"):
        render_html(REPORT, sheets={"x": b"GIF89a"})


def test_charts_place_points_and_skip_what_is_not_a_number() -> None:
    losses = [
        {"round": 0, "terms": {"bn": 2.0, "bad": "x"}},
        {"round": 1, "terms": {"bn": math.nan}},
        {"round": 10, "terms": {"bn": 1.0}},
        "noise",
    ]
    (chart,) = loss_charts(losses)
    # Highest value top left, lowest bottom right of the plotting area.
    assert 'points="46.0,12.0 310.0,128.0"' in chart
    assert "from 2 to 1" in chart
    assert loss_charts(None) == loss_charts([]) == []


def test_long_curves_are_thinned_but_keep_their_ends() -> None:
    (chart,) = loss_charts([{"round": r, "terms": {"bn": float(r)}} for r in range(5000)])
    points = chart.split('points="')[1].split('"')[0].split()
    assert len(points) == 240
    assert (points[0], points[-1]) == ("46.0,128.0", "310.0,12.0")


def test_constant_curves_and_members_are_drawn() -> None:
    (chart,) = loss_charts([{"round": 0, "member": m, "terms": {"bn": 1.0}} for m in ("a", "b")])
    assert chart.count("<polyline") == 2
    assert '<ul class="legend">' in chart


WARNED = replace(REPORT, warnings=[f"All of it is noise. {EVIL}", "And more."])


def test_warnings_round_trip_and_reports_from_before_have_none() -> None:
    assert Report.from_json(WARNED.to_json()) == WARNED
    document = json.loads(REPORT.to_json())
    assert document.pop("warnings") == []
    assert Report.from_json(json.dumps(document)) == REPORT


@pytest.mark.parametrize("warnings", ["noise", [1], [None], {"a": 1}, 3])
def test_warnings_must_be_a_list_of_texts(warnings: Any) -> None:
    with pytest.raises(ArtefactError, match="warnings"):
        Report.from_json(changed(warnings=warnings))


def test_warnings_come_first_in_every_rendering() -> None:
    text = render_text(WARNED)
    assert text.startswith("WARNING  All of it is noise.")
    assert text.index("WARNING  And more.") < text.index(REPORT.title)
    markdown = render_markdown(WARNED)
    assert markdown.startswith("> ⚠️ **Warning.** All of it is noise. &lt;script")
    assert markdown.index("And more.") < markdown.index(REPORT.title)
    page = render_html(WARNED)
    body = page[page.index("<main>") :]
    assert body.index("All of it is noise. &lt;script") < body.index("<h1>")
    assert page.count("<strong>Warning.</strong>") == 2
    assert "<script>alert" not in page
    Page(page)


def test_without_warnings_nothing_is_added() -> None:
    assert "WARNING" not in render_text(REPORT)
    assert "arning" not in render_markdown(REPORT)
    assert "<aside" not in render_html(REPORT)


@pytest.mark.parametrize(
    ("synthesis", "note"),
    [
        ({"data_free": True, "real_data": None}, "no real image was involved"),
        ({"data_free": False, "real_data": "records <of>"}, "Not data-free: records &lt;of&gt; took part"),
        ({"data_free": False}, "Not data-free: real images took part"),
        ({"data_free": None, "real_data": "unknown"}, "Whether real data took part in making the images is not known"),
        ({}, ""),
    ],
)
def test_every_rendering_says_whether_real_data_took_part(synthesis: dict[str, Any], note: str) -> None:
    report = replace(REPORT, synthesis=synthesis)
    page = render_html(report, sheets={"a": PNG})
    free = synthesis.get("data_free") is True
    assert note in page
    assert ("no real image was involved" in page) == free == ("<h2>Synthetic images</h2>" in page)
    for text in (render_text(report).replace("<of>", "&lt;of&gt;"), render_markdown(report)):
        assert "no real image" not in text  # what one expects is not said
        assert (note in text) == (not free)
        assert ("took part" in text) == ("data_free" in synthesis and not free)


def test_images_from_no_network_are_named_at_the_head() -> None:
    synthesis = {"data_free": True, "real_data": None, "made_from": "rules <of> drawing"}
    report = replace(REPORT, synthesis=synthesis)
    note = "made from rules &lt;of&gt; drawing; no real image was involved."
    page = render_html(report)
    assert note in page[page.index("<h1>") : page.index("</header>")]
    for text in (render_text(report).replace("<of>", "&lt;of&gt;"), render_markdown(report)):
        assert text.index(report.title) < text.index(note) < text.index("metric ")


def _floored(value: float, floor: float) -> Report:
    metric = Metric(
        name="top1_drop",
        subject="onnxruntime",
        data="real:x",
        value=value,
        unit="points",
        n=10,
        stderr=0.1,
        higher_is_better=False,
    )
    floors = [Floor(metric="top1_drop", subject="onnxruntime", value=floor, data="real")]
    findings = check_floors([metric], floors)
    return Report(title="t", verdict="failed" if findings else "ok", metrics=[metric], findings=findings, floors=floors)


@pytest.mark.parametrize(("value", "word"), [(0.2, "holds"), (0.6, "does not hold")])
def test_a_floor_stands_beside_its_metric_whether_it_holds_or_not(value: float, word: str) -> None:
    report = _floored(value, 0.5)
    assert metric_groups(report)[0].cells["onnxruntime"].floor == f"at most 0.5 promised: {word}"
    assert f"at most 0.5 promised: {word}" in render_html(report)
    assert Report.from_json(report.to_json()) == report


def test_the_strictest_of_several_floors_is_the_one_shown() -> None:
    report = _floored(0.2, 0.5)
    both = dataclasses.replace(
        report, floors=(*report.floors, Floor(metric="top1_drop", subject="onnxruntime", value=0.3))
    )
    assert metric_groups(both)[0].cells["onnxruntime"].floor.startswith("at most 0.3 ")


def test_reports_from_before_floors_and_estimates_can_be_read() -> None:
    document = json.loads(_floored(0.2, 0.5).to_json())
    del document["floors"], document["estimate"]
    report = Report.from_json(json.dumps(document))
    assert (report.floors, report.estimate) == ((), {})


def test_a_metric_taken_apart_is_in_the_json_and_its_worst_rows_on_the_page() -> None:
    assert '"breakdowns": []' in REPORT.to_json()
    rows = [(f"class {place}", place, 99.96 - place if place else None) for place in range(18)]
    part = Breakdown(
        title="Boxes", note=EVIL, subject="onnxruntime", data="real:test", header=("part", "boxes", "AP50, %"),
        rows=[[EVIL, 1, None], *rows],
    )  # fmt: skip
    report = replace(REPORT, breakdowns=[part])
    assert Report.from_json(report.to_json()) == report
    page = render_html(report)
    assert "<script>alert" not in page
    assert ">99.0<" in page
    assert ("class 13<" in page, "class 14<" in page, "and 4 more, in report.json" in page) == (True, False, True)
    document = json.loads(REPORT.to_json())
    del document["breakdowns"]
    assert Report.from_json(json.dumps(document)).breakdowns == ()
    document = json.loads(report.to_json())
    document["breakdowns"][0]["rows"][1] = ["class 0"]
    with pytest.raises(ArtefactError, match="no table"):
        Report.from_json(json.dumps(document))


def test_an_estimate_is_a_sentence_and_a_chart_and_a_refusal_says_why() -> None:
    estimate = {"value": 0.4, "low": -0.1, "high": 1.2, "confidence": 0.9, "n": 300, "features": {"kl": 0.01}}
    given = dataclasses.replace(_floored(0.2, 0.5), estimate=estimate)
    for rendered in (render_html(given), render_text(given), render_markdown(given)):
        assert "falls by 0.40 points [-0.10, 1.20], an interval that holds in 90 % of cases" in rendered
    told = "Drop in points: estimated 0.40 [-0.10, 1.20]; measured 0.20; at most 0.5 promised"
    assert f'aria-label="{told}"' in render_html(given)
    refused = dataclasses.replace(given, estimate={"value": None, "low": None, "high": None, "reason": "too <few>"})
    page = render_html(refused)
    assert "No estimate of the drop on real images: too &lt;few&gt;" in page
    assert 'aria-label="Drop in points: measured 0.20; at most 0.5 promised"' in page
    assert "Estimated drop" not in render_html(_floored(0.2, 0.5))


def test_time_of_layers_stands_as_bars_where_it_was_asked_and_parts_are_drawn_by_each_column_that_is_named() -> None:
    assert "time, ms" not in render_html(REPORT)
    timed = replace(REPORT, layers=[replace(REPORT.layers[0], ms=0.5), replace(REPORT.layers[1], ms=0.125)])
    assert Report.from_json(timed.to_json()) == timed
    page = render_html(timed)
    assert '<i style="width:25%"></i></span>0.125</td>' in page
    document = json.loads(REPORT.to_json())
    for layer in document["layers"]:
        del layer["ms"]
    assert Report.from_json(json.dumps(document)) == REPORT
    rows = [["<first>", "0.5", 1.0, 3.0], ["second", "0.25", None, 2.0], ["third", None, 2.0, None]]
    header = ["name", "MB", "latency", "distance"]
    part = Breakdown(
        title="Candidates", note="", subject="student", data="x", header=header, rows=rows, plot=header[1:],
    )  # fmt: skip
    page = render_html(replace(REPORT, breakdowns=[part]))
    assert 'aria-label="Candidates: distance by MB"' in page
    assert "distance by latency" not in page, "of one point there is nothing to see"
    assert ">&lt;first&gt;</text>" in page


def test_side_by_side_pairs_metrics_and_layers_and_says_which_is_better() -> None:
    first, second = _floored(0.2, 0.5), _floored(0.9, 2.0)
    layers = [LayerRow(name="conv", op="Conv", sqnr_student_db=20.0, precision="int8")]
    first = dataclasses.replace(first, layers=layers, recipe="seed: 0\n", provenance={"seed": 0, "target": "same"})
    layers = [LayerRow(name="conv", op="Conv", sqnr_student_db=17.5, precision="float"), LayerRow(name="fc", op="Gemm")]
    second = dataclasses.replace(
        second, title="<b>", layers=layers, recipe="seed: 1\n", provenance={"seed": 1, "target": "same"}
    )
    page = render_side_by_side(first, second)
    assert '+0.70 points ± 0.14</td><td class="wrap">worse</td>' in page
    assert "int8 → float" in page
    assert 'data-v="-2.5"' in page
    assert "-seed: 0" in page
    assert "+seed: 1" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert ">same<" not in page  # provenance that does not differ is left out
    assert "within two standard errors" in render_side_by_side(first, _floored(0.3, 0.5))
    alone = render_side_by_side(first, dataclasses.replace(first, metrics=()))
    assert "only in A" in alone
