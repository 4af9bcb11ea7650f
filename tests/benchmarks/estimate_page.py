"""The study of the drop estimate as a Markdown page: figures, constants, every teacher left out, every file.

What belongs here: wording and layout of what `estimate_study` found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES = {
    "cases": "estimates asked for",
    "trusted": "given, not refused",
    "under_3": "of these with a true drop below 3",
    "mean_abs_error_under_3": "mean error there, points",
    "bias_under_3": "mean of estimate minus truth there",
    "truth_stderr_under_3": "mean standard error of the truth itself there",
    "mean_abs_error_3_to_10": "mean error from 3 to 10",
    "coverage": "90 % intervals that hold the truth",
    "mean_half_width_under_3": "mean half width of the interval below 3",
    "rank_correlation": "rank correlation",
}
COLUMNS = ("trusted", "mean_abs_error_under_3", "bias_under_3", "truth_stderr_under_3", "coverage",
           "mean_half_width_under_3", "mean_abs_error_3_to_10")  # fmt: skip


def page(found: dict[str, Any], bar: Mapping[str, tuple[float, str]], judged_to: float) -> str:
    """The study as Markdown.

    Args:
        found: What `estimate_study.study` gives.
        bar: Value and side that a figure must have, by its name.
        judged_to: Largest true drop that was judged, in points.
    """
    total, constants = found["figures"], found["constants"]
    lines = [
        "# Drop of top-1, estimated without a label",
        "",
        "![estimate against truth](estimate.svg)",
        "",
        f"Each teacher's files were estimated with constants of the other {len(found['left_out']) - 1}, once for "
        f"each synthesizer whose images graded them; true drops up to {judged_to:g} points:",
        "",
        "| figure | value | bar |",
        "| --- | --- | --- |",
    ]
    for key in total:
        must = "{1} {0:g}".format(*bar[key]) if key in bar else ""
        lines.append(f"| {TITLES[key]} | {_text(total[key])} | {must} |")
    for title, group in (("teacher left out", "left_out"), ("images", "by_grader"), ("files", "by_kind")):
        lines += ["", f"| {title} | " + " | ".join(TITLES[key] for key in COLUMNS) + " |"]
        lines.append("| ---" * (len(COLUMNS) + 1) + " |")
        for name, row in found[group].items():
            cells = [f"{row['trusted']} of {row['cases']}", *(_text(row.get(key)) for key in COLUMNS[1:])]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Shipped constants, of all teachers: the drop is {constants['scale']:g} points times the divergence (KL, in "
        f"nats) to the power {constants['power']:g} times a tenth of the classes to the power "
        f"{constants['by_classes']:g}. The interval reaches {constants['multiplier']:g} standard deviations: a floor "
        f"of {constants['floor']:g} points, {constants['relative']:g} of the drop, the divergence's own error, and, as "
        f"the chance of a test set, a variance of {constants['measured']:g} times the root of the divergence and the "
        "classes' same power.",
        "",
        "| teacher | file | images | true drop | estimate | interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        ends = f"{row['low']:.2f} to {row['high']:.2f}" if "value" in row else row["reason"]
        lines.append(
            f"| {row['teacher']} | {row['name']} | {row['grader']} | {row['truth']:.2f} ± {row['stderr']:.2f} | "
            f"{_text(row.get('value'))} | {ends} |"
        )
    return "\n".join([*lines, "", f"`{constants['provenance']['command']}`", ""])


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
