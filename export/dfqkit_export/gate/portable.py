"""Whether a case computes the same bits in kernels of other processors, where a check demands that.

What belongs here: the rows. What is run, and what is proven, is `comparison.portability`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dfqkit_export.comparison.portability import FAMILIES, PARTS, UNSEEN, families, prove, said
from dfqkit_export.gate.measurement import Measurement
from dfqkit_export.gate.verdicts import Row, Verdict
from dfqkit_export.images.inputs import Inputs
from dfqkit_export.report.verdict import FAILED
from dfqkit_export.sentinel import normalized

#: What the row of each family is called.
ROWS = {name: f"same bits on {name}" for name in FAMILIES}


def portability_rows(measured: Measurement, names: Sequence[str]) -> list[Row]:
    """Return a row for each family named: ok, failed, or missing where nobody looked, on the sentinel images."""
    if not names or measured.subject is None:
        reason = "A report cannot be run. Give the bundle or the run's folder."
        return [Row(metric=ROWS[family.name], verdict="missing", reason=reason) for family in families(names)]
    sentinel, bundle = measured.subject.sentinel, measured.subject.bundle
    images = Inputs(images=normalized(sentinel.images, bundle.image), source="the sentinel set")
    found = prove(bundle.model, images, names, task=sentinel.task)
    rows = []
    for row in found.rows:
        told = f"{said(row)}{f', in ONNX Runtime {row.version} ({row.how})' if row.n else ''}"
        why = f": {'; '.join(row.why)}" if row.verdict == UNSEEN else ""
        reason = f"{told[:1].upper()}{told[1:]}, beside {found.reference}{why}."
        verdict: Verdict = FAILED if row.verdict == PARTS else "missing" if row.verdict == UNSEEN else "ok"
        one = Row(metric=ROWS[row.family], verdict=verdict, reason=reason, now=row.flips, n=row.n)
        rows.append(replace(one, unit="images flip", higher_is_better=False))
    return rows
