"""What came out of a comparison, as one document: JSON, and the Markdown of its tables.

What belongs here: means and spreads over seeds, the order of the rows, and their text. The page with plots is `page`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dfqkit_export.backends import DEFAULT
from dfqkit_export.measure.kinds import TOP1_DROP, MetricKind, known_kinds

SCHEMA = 1

#: Columns of the image table: key of `imagestats.image_statistics`, heading, digits.
IMAGE_COLUMNS = (
    ("class_coverage", "classes seen", 2),
    ("class_evenness", "evenness", 2),
    ("confidence", "confidence", 2),
    ("bn_distance", "BN distance", 3),
    ("diversity", "diversity", 2),
)


def document(
    trials: Sequence[Mapping[str, Any]],
    *,
    real: Mapping[str, float | None],
    provenance: Mapping[str, Any],
    warnings: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Return all that `trials.Bench.do` measured, beside image statistics of real images and warnings by contestant."""
    found = rows(trials)
    budget = provenance["passes"]
    over = [] if budget is None else [row["contestant"] for row in found if row["synthesis_passes"]["mean"] > budget]
    dear = "" if budget is None else f"its smallest unit costs more than the {budget:,} passes"
    spent = dict.fromkeys(over, dear)
    said = [f"{name}: {text}" for name, texts in warnings.items() for text in texts]
    return {
        "schema": SCHEMA,
        "provenance": dict(provenance),
        "teacher_top1": trials[0]["teacher_top1"],
        "warnings": [*said, *(f"{name}: {text}" for name, text in spent.items())],
        "rows": found,
        "images": image_rows(trials, real),
        "cells": [dict(trial) for trial in trials],
    }


def rows(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a contestant, scheme and mode, the smallest drop first within a scheme and mode."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for trial in trials:
        groups.setdefault((trial["bits"], trial["mode"], trial["contestant"]), []).append(trial)
    found = []
    for (bits, mode, contestant), members in groups.items():
        row: dict[str, Any] = {"contestant": contestant, "method": members[0]["method"], "bits": bits, "mode": mode}
        row["n"] = len(members)
        row["seeds"] = [trial["seed"] for trial in members]
        for name in dict.fromkeys(metric["name"] for metric in members[0]["metrics"]):
            row[name] = spread([_metric(trial, name)["value"] for trial in members])
        row["drop_stderr"] = statistics.mean(_metric(trial, TOP1_DROP.name)["stderr"] or 0.0 for trial in members)
        for name in ("synthesis", "game"):
            row[f"{name}_passes"] = spread([trial["cost"][name] for trial in members])
            row[f"{name}_seconds"] = spread([trial["seconds"][name] for trial in members])
        found.append(row)
    order = {bits: index for index, bits in enumerate(dict.fromkeys(row["bits"] for row in found))}
    return sorted(found, key=lambda row: (row["mode"], order[row["bits"]], row[TOP1_DROP.name]["mean"]))


def image_rows(trials: Sequence[Mapping[str, Any]], real: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Return image statistics, one row a contestant over its seeds, and real images last."""
    groups: dict[str, dict[int, Mapping[str, Any]]] = {}
    for trial in trials:
        groups.setdefault(trial["contestant"], {})[trial["seed"]] = trial["images"]
    found = [
        {"contestant": name, **{key: spread([s[key] for s in by_seed.values()]) for key, _, _ in IMAGE_COLUMNS}}
        for name, by_seed in groups.items()
    ]
    return [*found, {"contestant": "real images", **{key: spread([real[key]]) for key, _, _ in IMAGE_COLUMNS}}]


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for one value) and the values."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.mean(known) if known else None,
        "stdev": statistics.stdev(known) if len(known) > 1 else None,
        "values": list(values),
    }


def text_of(entry: Mapping[str, Any], digits: int = 2) -> str:
    """Return the mean ± standard deviation, as far as there are values that do not round to nothing."""
    if entry["mean"] is None:
        return "-"
    mean = f"{entry['mean']:,.{digits}f}"
    spread_ = round(entry["stdev"] or 0.0, digits)
    return f"{mean} ± {spread_:,.{digits}f}" if spread_ else mean


def sections(rows_: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Return rows by (bits, mode), in order."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows_:
        found.setdefault((row["bits"], row["mode"]), []).append(row)
    return found


def columns(rows_: Sequence[Mapping[str, Any]]) -> list[MetricKind]:
    """Return the metrics that tables show, as far as there are rows with them."""
    return [kind for kind in known_kinds() if kind.short and all(kind.name in row for row in rows_)]


def markdown(data: Mapping[str, Any]) -> str:
    """Return the document's tables."""
    provenance = data["provenance"]
    lines = [f"# {provenance['title']}", "", *_facts(data), "", *(f"- {text}" for text in data["warnings"]), ""]
    for (bits, mode), members in sections(data["rows"]).items():
        kinds = [kind for kind in columns(members) if kind.about != "file"]
        heads = ["source", *(kind.short for kind in kinds), "n", "passes", "seconds"]
        lines += [f"## {bits}, {mode}", "", f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
        for row in members:
            passes, seconds = _total(row, "passes"), _total(row, "seconds")
            means = [text_of(row[kind.name]) for kind in kinds]
            cells = [row["contestant"], *means, str(row["n"]), f"{passes:,.0f}", f"{seconds:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    headings = " | ".join(heading for _, heading, _ in IMAGE_COLUMNS)
    lines += ["## The images", "", f"| source | {headings} |", "| --- |" + " --- |" * len(IMAGE_COLUMNS)]
    for row in data["images"]:
        values = " | ".join(text_of(row[key], digits) for key, _, digits in IMAGE_COLUMNS)
        lines.append(f"| {row['contestant']} | {values} |")
    return "\n".join([*lines, "", *NOTES, ""])


NOTES = (
    "Top-1 is measured in ONNX Runtime on the exported file; drop is in points against the float teacher on the same "
    "images; ± is the standard deviation over seeds. Passes are teacher forward+backward image passes, those of images "
    "that fill up a last batch included. What is not counted: passes through a student, which deepinversion-adaptive "
    "and zskt spend on every image (the others in a game only), and what making a stored set took (bank). Seconds are "
    "wall time of synthesis (and of the game, where a student was trained or distilled), on the machine named above.",
    "",
    "Images: classes seen is the share of classes that the teacher sees at least once, evenness the entropy of its "
    "predictions over that of an even spread, confidence its mean largest probability, BN distance the mean KL "
    "divergence of the BatchNorm inputs from the running statistics, diversity the mean cosine distance of two images' "
    "features.",
)


def _facts(data: Mapping[str, Any]) -> list[str]:
    provenance = data["provenance"]
    packages = provenance["environment"]["packages"]
    return [
        f"Teacher {provenance['teacher']} ({data['teacher_top1']:.2f} % on {provenance['data']}), target "
        f"{provenance['target']}, {provenance['images']} images for calibration, "
        + (f"{provenance['passes']:,} passes a synthesis." if provenance["passes"] else "each recipe's own budget."),
        "",
        f"    {provenance['command']}",
        "",
        f"{provenance['environment']['cpu']['model']}, {provenance['threads']} thread(s); "
        + ", ".join(f"{name} {packages[name]}" for name in ("torch", "brevitas", DEFAULT.package) if name in packages)
        + ".",
    ]


def _metric(trial: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(metric for metric in trial["metrics"] if metric["name"] == name)
    return found


def _total(row: Mapping[str, Any], what: str) -> float:
    return float(row[f"synthesis_{what}"]["mean"] + row[f"game_{what}"]["mean"])
