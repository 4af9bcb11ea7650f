"""The gate where it demands the same bits in the kernels of other processors, and what a report shows of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfqkit.cli import main
from dfqkit_export.bundle import Order, write_bundle
from dfqkit_export.comparison.portability import EQUAL, FAMILIES, PARTS, PROVEN, UNSEEN, Portability, own_family
from dfqkit_export.comparison.portability.proving import Place, Row
from dfqkit_export.errors import TargetError
from dfqkit_export.gate import Baseline, Options, check, check_path, conclude, portable, render_text
from dfqkit_export.report import Report
from tests.unit.export._bundles import write_run

ROWS = (
    Row(family="sse", title="SSE", verdict=EQUAL, version="1.32", how="qemu", n=8, bits=1.0, largest=0.0, flips=0),
    Row(family="avx-vnni", title="VNNI", verdict=PROVEN, why=("no emulator",)),
    Row(
        family="avx2", title="AVX2", verdict=PARTS, version="1.32", how="qemu", n=8, bits=0.5, largest=2.0, flips=3,
        first=Place(name="stem", op="Conv", codes=6, share=0.1),
    ),
    Row(family="neon", title="NEON", verdict=UNSEEN, why=("not prepared",)),
)  # fmt: skip


@pytest.fixture
def case(tmp_path: Path, qdq: Any) -> Path:
    write_bundle(Order(run=write_run(tmp_path / "run", qdq), out=tmp_path / "b"))
    return tmp_path / "b"


def recorded(case: Path, **options: Any) -> tuple[Baseline, bool]:
    outcome = conclude(
        [check_path(case, Baseline(), Options(update=True, **options))], Baseline(), Options(update=True)
    )
    assert outcome.baseline is not None
    return outcome.baseline, outcome.failed


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is found is `ROWS`; the numbers of images that were asked about."""
    asked = []

    def prove(path: Path, images: Any, names: Sequence[str], **_: Any) -> Portability:
        asked.append(len(images.images))
        assert np.isfinite(images.images).all()
        rows = tuple(row for row in ROWS if row.family in names)
        return Portability(file=path.name, sha256="", images="", n=8, reference="here", rows=rows)

    monkeypatch.setattr(portable, "prove", prove)
    return asked


def test_what_parts_and_what_nobody_saw_fail_with_their_cause(case: Path, told: list[int]) -> None:
    baseline, _ = recorded(case)
    assert not told  # nothing runs that nobody demands
    named = tuple(row.family for row in ROWS)
    found = check_path(case, baseline, Options(prove=named))
    verdicts = {row.metric.split()[-1]: row.verdict for row in found.rows if row.metric.startswith("same bits")}
    assert verdicts == {"sse": "ok", "avx-vnni": "ok", "avx2": "failed", "neon": "missing"}
    assert found.failed()
    text = render_text(conclude([found], baseline))
    for part in (
        "Parts at stem by 6 codes, flips 3 of 8", "Not looked at, beside here: not prepared", "Proven equal, beside",
        "Equal on these 8 images, in ONNX Runtime 1.32 (qemu)",
    ):  # fmt: skip
        assert part in text
    assert told[0] > 8
    assert not check_path(case, baseline, Options(prove=("sse", "avx-vnni"))).failed()


def test_an_update_records_nothing_that_parts(case: Path, told: list[int]) -> None:
    baseline, failed = recorded(case, prove=("avx2",))
    assert failed
    assert not baseline.cases


def test_a_report_cannot_be_run(case: Path) -> None:
    from dfqkit_export.measure.kinds import AGREEMENT

    row = AGREEMENT.metric(subject="onnxruntime", data="real:t", value=99.0, n=9)
    file = case.parent / "other.json"
    file.write_text(Report(title="toy", metrics=[row]).to_json())
    baseline, _ = recorded(file)
    assert check_path(file, baseline, Options(prove=("sse",))).failed()


def test_an_unknown_family_is_refused_before_anything_runs(case: Path) -> None:
    with pytest.raises(TargetError, match="Did you mean 'avx2'"):
        check([case], Baseline(), Options(prove=("avx22",)))


@pytest.mark.skipif(own_family() is None, reason="the family of this processor is not in the table")
def test_a_proof_is_shown_by_check_and_by_the_report(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = own_family()
    assert own is not None
    base = ["--baseline", str(case.parent / "base.json")]
    assert main(["check", str(case), *base, "--update-in-ci"]) == 0
    capsys.readouterr()
    code = main(["check", str(case), *base, "--prove", own.name])
    out = capsys.readouterr().out
    assert f"same bits on {own.name}" in out
    assert main(["prove", str(case), "--on", own.name]) == code
    assert not (case / "portability.json").exists()  # a bundle is what its manifest lists
    case = case.parent / "run"
    assert main(["prove", str(case), "--on", own.name]) == code
    table = json.loads((case / "portability.json").read_text())["table"]
    assert table["rows"][0][0] == FAMILIES[own.name].title
    capsys.readouterr()
    again = ["report", str(case), "--out", str(case.parent / "page.html")]
    assert main(again) == 0
    assert "Kernels of other processors" in capsys.readouterr().out
    assert FAMILIES[own.name].title in (case.parent / "page.html").read_text()
    kept = json.loads((case / "portability.json").read_text())
    (case / "portability.json").write_text(json.dumps({**kept, "sha256": "of another file"}))
    assert main(again) == 0
    assert "Kernels of other processors" not in capsys.readouterr().out
    (case / "portability.json").write_text("{}")
    assert main(again) == 2
