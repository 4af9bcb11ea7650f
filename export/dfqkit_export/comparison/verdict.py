"""A file judged against its float teacher, whoever made the two.

What belongs here: what a comparison lets one say. The rules are `report.judging`'s, the same as for a run.
"""

from __future__ import annotations

from dfqkit_export.comparison.files import Comparison
from dfqkit_export.measure.kinds import AGREEMENT, DROPS, TOP1
from dfqkit_export.report import Finding, LayerRow
from dfqkit_export.report.evidence import nothing_lost
from dfqkit_export.report.judging import Evidence, Judgement, judge


def judge_comparison(found: Comparison) -> Judgement:
    """Judge B, of which A is the float teacher."""
    if found.shown is None:
        message = f"'{found.b.path}' or its teacher gives values that are NaN or infinite."
        return judge(
            Evidence(),
            [Finding(metric=AGREEMENT.name, subject=found.b.runtime, value=None, floor=0.0, message=message)],
        )
    random = ["The images are random numbers, which no network was made for. Give others with --images."]
    drops = [metric for metric in found.labelled if metric.name in DROPS]
    doubts = (random if found.random else []) + ([nothing_lost(found.images)] if found.labelled and not drops else [])
    return judge(
        Evidence(
            drops=drops,
            teacher=[metric for metric in found.labelled if metric.name == TOP1.name],
            classes=found.shown.count,
            seen=[found.shown],
            layers=[LayerRow(name=layer.name, op="", sqnr_student_db=layer.sqnr_db) for layer in found.layers],
            doubts=doubts,
        )
    )
