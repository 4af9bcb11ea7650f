"""All pages in a real browser and as they are printed: they render, sort, complain of nothing, and nothing is cut."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dfqkit.bench.page import page as render_bench
from dfqkit.bench.table import document
from dfqkit_export.comparison.side_by_side import render_side_by_side
from dfqkit_export.gate.history import keep_history
from dfqkit_export.gate.verdicts import CaseOutcome, Outcome, Row
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report import Finding, Floor, LayerRow, Report
from dfqkit_export.report.page import render_html
from tests.unit.test_bench import PROVENANCE, REAL, trial

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))),
    None,
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (looked for chromium, google-chrome)"),
]
HOSTILE = "<img src=x onerror=\"document.title='broken into'\"><script>document.title='broken into'</script>"
WIDTHS = (1280, 768, 390)
#: A4 without its margins of 1.5 cm, at 96 pixels an inch.
PAPER = 680


def _report(title: str, drop: float) -> Report:
    def metric(name: str, subject: str, value: float, unit: str, better: bool) -> Metric:
        return Metric(
            name=name,
            subject=subject,
            data="real:a_rather_long_name_of_a_data_set",
            value=value,
            unit=unit,
            n=10000,
            stderr=0.07,
            higher_is_better=better,
        )

    return Report(
        title=title,
        verdict="failed",
        metrics=[
            metric("top1", "teacher", 91.73, "%", True),
            metric("top1", "student", 91.73 - drop, "%", True),
            metric("top1", "onnxruntime", 91.73 - drop, "%", True),
            metric("top1_drop", "onnxruntime", drop, "points", False),
        ],
        findings=[Finding(metric="top1_drop", subject="onnxruntime", value=drop, floor=0.1, message=f"bad {HOSTILE}")],
        floors=[Floor(metric="top1_drop", subject="onnxruntime", value=0.1)],
        layers=[
            LayerRow(
                name=f"stage{index}.{HOSTILE if index == 3 else 'a_very_long_layer_name' * 3}",
                op="Conv",
                sqnr_student_db=float((index * 7) % 20) + drop,
                precision="int8" if index % 3 else "float",
                executed_as="QLinearConv",
                detail="because " * 30,
            )
            for index in range(20)
        ],
        precision={"integer": 13, "float": 7, "integer_ops": 0.65, "float_ops": [], "nodes": {"QLinearConv": 13}},
        latency={
            "timings": {"teacher": dict.fromkeys(("median", "min", "max", "p10", "p90", "ratio"), 1.0)},
            "reference": "teacher",
            "repeats": 5,
            "warmup": 1,
            "batch": 1,
        },
        provenance={"command": f"dfqkit run {'x' * 300}", "seed": 0, "weights": HOSTILE, "sha256": "0a" * 32},
        synthesis={
            "losses": [{"round": i, "terms": {"bn": 1.0 / (i + 1), "kl": 0.5 * i}} for i in range(30)],
            "cost": {"passes": 64000},
            "data_free": True,
        },
        estimate={
            "value": drop,
            "low": -0.1,
            "high": 1.0,
            "confidence": 0.9,
            "n": 512,
            "features": {"agreement": 91.0},
        },
        recipe=f"schema: 1\nname: {HOSTILE}\n",
        warnings=[f"Beware of {HOSTILE}"],
    )


def _pages(folder: Path) -> dict[str, str]:
    first, second = _report("one", 0.31), _report(HOSTILE, 0.07)
    measured = {"agreement": 99.1319, "kl": 0.0005355, "top1_drop": -0.28}
    for commit in ("0123456789ab", "ba9876543210"):
        rows = [Row(metric=name, verdict="ok", now=value, stderr=0.1) for name, value in measured.items()]
        keep_history(folder / "history.csv", Outcome(cases=[CaseOutcome(name=HOSTILE, rows=rows)]), commit)
    keep_history(folder / "once.csv", Outcome(cases=[CaseOutcome(name="net", rows=rows)]), "")
    sources = ("dfq", "<b>noise</b>", "deepinversion-adaptive-mine")
    trials = [
        trial(name, bits, seed, 20.0 * place + seed)
        for bits in ("w8a8", "w4a4") for seed in (0, 1) for place, name in enumerate(sources)
    ]  # fmt: skip
    data = document(
        trials, real=REAL, provenance=PROVENANCE | {"command": f"dfqkit bench {'x' * 300}"}, warnings={"dfq": [HOSTILE]}
    )
    return {
        "report": render_html(first),
        "side by side": render_side_by_side(first, second),
        "bench": render_bench(data, {}),
        "history": (folder / "history.html").read_text(encoding="utf-8"),
        "first check": (folder / "once.html").read_text(encoding="utf-8"),
    }


def _printed(page: str) -> str:
    """The page with the rules that hold on paper, and without those of screens."""
    assert "@media print" in page
    return page.replace("@media screen and", "@media not all and").replace("@media print", "@media all")


def _observe(page: str, width: int, folder: Path, *more: str) -> dict[str, Any]:
    """Show a page in a frame of that width, click on the layers' SQNR, and return what a script sees of it."""
    script = r"""
      const frame = document.querySelector("iframe"), seen = {errors: []};
      frame.addEventListener("load", () => {
        const inner = frame.contentDocument, root = inner.documentElement;
        frame.contentWindow.addEventListener("error", event => seen.errors.push(event.message));
        seen.title = inner.title;
        seen.overflow = root.scrollWidth - root.clientWidth;
        seen.cut = [...inner.querySelectorAll(".scroll, td, th, dd, p, figure")]
          .filter(box => box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).display !== "none")
          .map(box => box.textContent.slice(0, 80));
        for (const text of inner.querySelectorAll("svg text")) {
          const [mark, plot] = [text, text.closest("svg")].map(part => part.getBoundingClientRect());
          if (mark.left < plot.left - 1 || mark.right > plot.right + 1 || mark.bottom > plot.bottom + 1)
            seen.cut.push(text.textContent);
        }
        seen.broken = [];
        const texts = inner.createTreeWalker(inner.body, NodeFilter.SHOW_TEXT), range = inner.createRange();
        while (texts.nextNode()) {
          const node = texts.currentNode;
          if (node.parentElement.closest("pre, script, .mono")) continue;
          for (const found of node.data.matchAll(/(?<![\w.-])[-+\u00b1]?\d[\d.,]*(e[-+]?\d+)?%?x?(?!\w)/g)) {
            range.setStart(node, found.index);
            range.setEnd(node, found.index + found[0].length);
            const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
            if (lines.size > 1) seen.broken.push(found[0]);
          }
        }
        seen.letters = [...inner.querySelectorAll("svg .tick")].filter(text => text.getBoundingClientRect().width)
          .map(text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a);
        seen.closed = [...inner.querySelectorAll("details > :not(summary)")].filter(part => !part.clientHeight).length;
        const style = getComputedStyle(inner.body);
        const light = colour => colour.match(/\d+/g).reduce((sum, part) => sum + Number(part), 0);
        seen.dark = light(style.backgroundColor) < light(style.color);
        seen.headings = [...inner.querySelectorAll("h2")].map(h => h.textContent);
        const sortable = [...inner.querySelectorAll("table.sortable")];
        const named = cell => cell.textContent.includes("dB");
        const columns = sortable.map(table => [...table.tHead.rows[0].cells].findIndex(named));
        const place = columns.findIndex(column => column >= 0);
        if (place >= 0) {
          const table = sortable[place], head = table.tHead.rows[0].cells[columns[place]];
          const values = () => [...table.tBodies[0].rows].map(row => row.cells[columns[place]].dataset.v);
          seen.before = values();
          head.querySelector("button").click();
          seen.ascending = values();
          head.querySelector("button").click();
          seen.descending = values();
          seen.sorted = head.getAttribute("aria-sort");
        }
        document.querySelector("pre").textContent = JSON.stringify(seen);
      });
      frame.srcdoc = JSON.parse(
        document.querySelector("#page").textContent);
    """
    safe = json.dumps(page).replace("<", "\\u003c")
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        '<!doctype html><meta charset="utf-8"><pre></pre>'
        f'<script type="application/json" id="page">{safe}</script>'
        f'<iframe style="width:{width}px;height:900px;border:0"></iframe><script>{script}</script>',
        encoding="utf-8",
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--enable-logging=stderr"]
    done = subprocess.run(
        [str(BROWSER), *options, *more, f"--user-data-dir={folder / 'profile'}", "--dump-dom", wrapper.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<pre>(.*?)</pre>", done.stdout, re.S)
    assert found, done.stderr[-2000:]
    assert found[1], done.stderr[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    seen["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return seen


@pytest.mark.parametrize("width", [*WIDTHS, None])
@pytest.mark.parametrize("name", ["report", "side by side", "bench", "history", "first check"])
def test_a_page_renders_sorts_and_fits(name: str, width: int | None, tmp_path: Path) -> None:
    page = _pages(tmp_path)[name]
    seen = _observe(page, width, tmp_path) if width else _observe(_printed(page), PAPER, tmp_path)
    assert seen["errors"] == []
    assert seen["console"] == []
    assert seen["overflow"] == 0
    assert seen["cut"] == []  # no column of a table lies beyond its box, no text beyond its plot
    assert seen["broken"] == []  # no number stands on two lines
    assert all(7.5 <= height <= 16 for height in seen["letters"]), seen["letters"]  # as large as the text, or nearly
    assert width or seen["closed"] == 0
    assert seen["title"] != "broken into"
    assert ("Layers" in seen["headings"]) == ("before" in seen) == (name in ("report", "side by side"))
    if "before" in seen:
        numbers = [float(value) for value in seen["before"]]
        assert [float(value) for value in seen["ascending"]] == sorted(numbers) != numbers
        assert [float(value) for value in seen["descending"]] == sorted(numbers, reverse=True)
        assert seen["sorted"] == "descending"


@pytest.mark.parametrize("dark", [True, False])
def test_a_page_is_as_dark_as_its_reader_wants(dark: bool, tmp_path: Path) -> None:
    for page in _pages(tmp_path).values():
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        assert _observe(page, 390, tmp_path, scheme)["dark"] == dark
    assert not _observe(_printed(page), PAPER, tmp_path, scheme)["dark"]


def test_without_script_the_page_is_complete(tmp_path: Path) -> None:
    page = re.sub(r"<script>.*?</script>", "", _pages(tmp_path)["report"], flags=re.S)
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [str(BROWSER), *options, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    for heading in ("Reproduce", "Metrics", "Findings", "Estimated drop", "Realised precision", "Layers", "Recipe"):
        assert f"<h2>{heading}</h2>" in done.stdout
    assert "stage19" in done.stdout
