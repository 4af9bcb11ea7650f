"""The study of the drop estimate as a Markdown page: figures, constants, other synthesizers, every file.

What belongs here: wording and layout of what `estimate_study` found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
        f"Each teacher's files were estimated with constants fitted on the other teachers'. Over the {total['cases']} "
        f"files with a true drop up to {judged_to:g} points, {total['trusted']} of them trusted:",
        "",
        "| figure | all | " + " | ".join(f"{name} left out" for name in found["left_out"]) + " | bar |",
        "| --- |" + " --- |" * (len(found["left_out"]) + 2),
    ]
    for key in [key for key in total if key not in ("cases", "trusted")]:
        must = "{1} {0:g}".format(*bar[key]) if key in bar else ""
        values = [total, *found["left_out"].values()]
        texts = [_text(value.get(key)) for value in values]
        lines.append(f"| {key.replace('_', ' ')} | " + " | ".join(texts) + f" | {must} |")
    lines += [
        "",
        f"Shipped constants, of all files: scale {constants['scale']:g}, power {constants['power']:g}, interval of "
        f"{constants['multiplier']:g} standard deviations (floor {constants['floor']:g} points, share "
        f"{constants['relative']:g} of the drop).",
        "",
        "The same files seen through other synthesizers' images, with the shipped constants. Here only the features "
        f"decide about trust; in use, images of others than {', '.join(constants['synthesizers'])} are refused by "
        "name, because the error on them can be smaller or larger although they look alike:",
        "",
        "| teacher | images | trusted | mean abs error under 3 | rank correlation | coverage | refused for |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["other_graders"]:
        reason = row["reason"].partition(". ")[0]
        keys = ("mean_abs_error_under_3", "rank_correlation", "coverage")
        texts = " | ".join(_text(row.get(key)) for key in keys)
        lines.append(
            f"| {row['teacher']} | {row['grader']} | {row['trusted']} of {row['cases']} | {texts} | {reason} |"
        )
    lines += [
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
