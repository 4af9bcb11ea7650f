"""The report's pages in a real browser: they render, sort, complain of nothing and never scroll sideways."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dfqkit_export.comparison.side_by_side import render_side_by_side
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report import Finding, Floor, LayerRow, Report
from dfqkit_export.report.page import render_html

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
        provenance={"command": f"dfqkit run {'x' * 300}", "seed": 0, "weights": HOSTILE, "sha256": "0" * 64},
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


def _pages() -> dict[str, str]:
    first, second = _report("one", 0.31), _report(HOSTILE, 0.07)
    return {"report": render_html(first), "side by side": render_side_by_side(first, second)}


def _observe(page: str, width: int, folder: Path) -> dict[str, object]:
    """Show a page in a frame of that width, click on the layers' SQNR, and return what a script sees of it."""
    script = """
      const frame = document.querySelector("iframe"), seen = {errors: []};
      frame.addEventListener("load", () => {
        const inner = frame.contentDocument, root = inner.documentElement;
        frame.contentWindow.addEventListener("error", event => seen.errors.push(event.message));
        seen.title = inner.title;
        seen.overflow = root.scrollWidth - root.clientWidth;
        seen.cut = Math.max(...[...inner.querySelectorAll(".scroll")].map(box => box.scrollWidth - box.clientWidth));
        seen.headings = [...inner.querySelectorAll("h2")].map(h => h.textContent);
        seen.images = [...inner.images].length;
        const table = inner.querySelector("table.sortable"), head = [...table.tHead.rows[0].cells];
        const column = head.findIndex(cell => cell.textContent.includes("dB"));
        const values = () => [...table.tBodies[0].rows].map(row => row.cells[column].dataset.v);
        seen.before = values();
        head[column].querySelector("button").click();
        seen.ascending = values();
        head[column].querySelector("button").click();
        seen.descending = values();
        seen.sorted = head[column].getAttribute("aria-sort");
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
        [str(BROWSER), *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", wrapper.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r"<pre>(.*?)</pre>", done.stdout, re.S)
    assert found, done.stderr[-2000:]
    assert found[1], done.stderr[-2000:]
    seen: dict[str, object] = json.loads(html.unescape(found[1]))
    seen["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return seen


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "side by side"])
def test_a_page_renders_sorts_and_fits(name: str, width: int, tmp_path: Path) -> None:
    seen = _observe(_pages()[name], width, tmp_path)
    assert seen["errors"] == []
    assert seen["console"] == []
    assert seen["overflow"] == 0
    assert seen["cut"] == 0  # no column of a table lies beyond its box
    assert seen["title"] != "broken into"
    assert "Layers" in str(seen["headings"])
    numbers = [float(value) for value in seen["before"]]  # type: ignore[attr-defined]
    assert [float(value) for value in seen["ascending"]] == sorted(numbers) != numbers  # type: ignore[attr-defined]
    assert [float(value) for value in seen["descending"]] == sorted(numbers, reverse=True)  # type: ignore[attr-defined]
    assert seen["sorted"] == "descending"


def test_without_script_the_page_is_complete(tmp_path: Path) -> None:
    page = re.sub(r"<script>.*?</script>", "", _pages()["report"], flags=re.S)
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [str(BROWSER), *options, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    for heading in ("Reproduce", "Metrics", "Findings", "Estimated drop", "Realised precision", "Layers", "Recipe"):
        assert f"<h2>{heading}</h2>" in done.stdout
    assert "stage19" in done.stdout
