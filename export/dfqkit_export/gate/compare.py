"""The gate itself: files in, verdicts out, and the baseline that an update makes.

What belongs here: `check` and its parts, which the command line and the pytest plugin call. What they return is
`verdicts`'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfqkit_export.comparison.portability import families
from dfqkit_export.env import environment
from dfqkit_export.errors import ArtefactError, DfqkitError, RuntimeUnavailableError
from dfqkit_export.gate.apart import check_apart
from dfqkit_export.gate.baseline import (
    Baseline,
    Case,
    environment_changes,
    recorded_environment,
    require_comparing,
)
from dfqkit_export.gate.change import Change
from dfqkit_export.gate.diagnosis import causes_of
from dfqkit_export.gate.filerows import STANDING, file_metrics, file_rows, with_reasons
from dfqkit_export.gate.graph_diff import compare_signatures
from dfqkit_export.gate.judged import VERDICT, estimated, verdict_rows
from dfqkit_export.gate.measurement import Measurement, measure_report, measure_subject, open_subject
from dfqkit_export.gate.portable import portability_rows
from dfqkit_export.gate.recording import changes_of, record
from dfqkit_export.gate.speed import speed_rows
from dfqkit_export.gate.verdicts import FAILING, CaseOutcome, Options, Outcome, judge, order
from dfqkit_export.measure.kinds import Metric
from dfqkit_export.report.rows import estimate_sentence
from dfqkit_export.report.verdict import OK
from dfqkit_export.words import did_you_mean


def check(paths: Sequence[str | Path], baseline: Baseline, options: Options | None = None) -> Outcome:
    """Check files against a baseline, each in a process of its own.

    Args:
        paths: Bundles (folder or .zip), folders of runs, and reports (.json).
        baseline: What was recorded; an empty one before the first update.
        options: How to check.

    Returns:
        The verdicts. With `options.update`, a case that is no worse than its floors and not refused is recorded in
        `Outcome.baseline`, and its verdicts are those after that.

    Raises:
        ArtefactError: Two files are of the same case, or a tolerance is of no metric.
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    options = options or Options()
    families(options.prove)  # an unknown one, before anything runs
    outcomes = [check_apart(path, baseline, options) for path in paths]
    names = [outcome.name for outcome in outcomes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        message = f"More than one file is of the case {twice[0]!r}. Check them with a baseline each, or rename one."
        raise ArtefactError(message)
    _require_known(options.tolerances, outcomes)
    return conclude(outcomes, baseline, options)


def _require_known(tolerances: Mapping[str, float], outcomes: Sequence[CaseOutcome]) -> None:
    """Refuse a tolerance of nothing, which is a misspelt one, and one that no difference can have."""
    odd = sorted(name for name, value in tolerances.items() if not 0 <= value < math.inf)
    if odd:
        message = f"The tolerance {odd[0]}={tolerances[odd[0]]:g} is no distance: give a number of at least 0."
        raise ArtefactError(message)
    names = {row.metric for outcome in outcomes for row in outcome.rows}
    names |= {name.partition(" of ")[0] for name in names}  # one for all of a report's rows of its metric
    unknown = sorted(set(tolerances) - names)
    if unknown and not any(outcome.error for outcome in outcomes):
        message = (
            f"There is no metric {unknown[0]!r} to tolerate anything of.{did_you_mean(unknown[0], names)} Known: "
            f"{', '.join(sorted(names))}."
        )
        raise ArtefactError(message)


def conclude(outcomes: Sequence[CaseOutcome], baseline: Baseline, options: Options | None = None) -> Outcome:
    """Put what came of single cases together, and make the new baseline where one is wanted."""
    options = options or Options()
    # Whatever it was recorded with, the same machine measures alike; elsewhere the last digits may differ.
    here = environment()
    unused = set(baseline.cases) - {case.name for case in outcomes}
    result = Outcome(
        cases=tuple(sorted(outcomes, key=lambda case: (not case.failed(strict=options.strict), case.name))),
        unused=() if any(case.error for case in outcomes) else tuple(sorted(unused)),
        environment=tuple(environment_changes(baseline.environment, here)),
        strict=options.strict,
    )
    if not options.update:
        return result
    entries = {case.name: case.entry for case in result.cases if case.entry is not None}
    made = Baseline(cases={**baseline.cases, **entries}, environment=recorded_environment(here))
    lines = [line for name, entry in entries.items() for line in changes_of(name, baseline.cases.get(name), entry)]
    moved = [f"environment: {text}" for text in result.environment] if entries else []
    return replace(result, baseline=made, changes=(*lines, *moved), environment=())


def check_case(measured: Measurement, case: Case | None, options: Options | None = None) -> CaseOutcome:
    """Judge what was measured of one file against what was recorded, if anything was.

    Raises:
        ArtefactError: It was recorded with another sentinel set or teacher, so that nothing can be compared.
    """
    options = options or Options()
    if case is not None and options.update:
        case = case.readable()
    elif case is not None:
        _require_same_images(measured, case)
    changes = compare_signatures(case.signature() if case is not None else None, measured.signature)
    found = dict(measured.metrics) | file_metrics(measured, case, changes)
    rows = judge(found, case, images=measured.images, tolerances=options.tolerances, unmeasured=measured.unmeasured)
    rows = [
        *file_rows(measured, case, recording=options.update, allow=options.allow),
        *portability_rows(measured, options.prove),
        *speed_rows(measured, options),
        *verdict_rows(measured, case, options),
        *with_reasons(rows, changes, measured, case),
    ]
    causes = causes_of(rows, measured, case, changes)
    outcome = CaseOutcome(
        name=measured.name,
        rows=tuple(order(rows)),
        causes=tuple(causes),
        notes=tuple(_notes(measured, case, changes)),
    )
    return _recorded(outcome, measured, case, options) if options.update else outcome


def check_metrics(
    name: str, metrics: Mapping[str, Metric], baseline: Baseline, options: Options | None = None
) -> CaseOutcome:
    """Judge metrics that were measured elsewhere, as a test does."""
    return check_case(Measurement(name=name, metrics=metrics), baseline.cases.get(name), options)


def check_path(path: str | Path, baseline: Baseline, options: Options | None = None, *, name: str = "") -> CaseOutcome:
    """Check one file, as `check` does, but in this process, under a case's name or, where that is "", its own.

    Raises:
        RuntimeUnavailableError: onnxruntime is not installed.
    """
    options = options or Options()
    try:
        if Path(path).suffix == ".json":
            measured = measure_report(path)
            measured = replace(measured, name=name or measured.name)
            if not measured.metrics:
                message = (
                    f"Report {str(path)!r} has no metrics, so nothing could be compared. Write it with its metrics."
                )
                raise ArtefactError(message)
            return check_case(measured, _comparing(measured.name, baseline, options), options)
        with open_subject(path) as subject:
            name = name or subject.bundle.name
            measured = measure_subject(subject, threads=options.threads, optimized=options.optimized)
            return check_case(replace(measured, name=name), _comparing(name, baseline, options), options)
    except RuntimeUnavailableError:
        raise
    except DfqkitError as error:
        return CaseOutcome(name=name or str(path), error=str(error), exit_code=error.exit_code)


def _comparing(name: str, baseline: Baseline, options: Options) -> Case | None:
    case = baseline.cases.get(name)
    if case is not None and not options.update:
        require_comparing(name, case)
    return case


def answer(path: str, cases: dict[str, Any], options: dict[str, Any], name: str) -> dict[str, Any]:
    """Check one file for `check_apart`, as JSON can hold it; called in a child process."""
    baseline = Baseline(cases={key: Case.from_dict(case) for key, case in cases.items()})
    outcome = check_path(path, baseline, Options(**options), name=name)
    entry = outcome.entry
    return {**vars(outcome), "rows": [vars(row) for row in outcome.rows], "entry": entry and entry.to_dict()}


def _require_same_images(measured: Measurement, case: Case) -> None:
    for name, what in (("teacher", "teacher's answers"), ("sentinel", "sentinel set")):
        old, new = case.files.get(name), measured.files.get(name)
        if old and new and old != new:
            message = (
                f"The {what} of case {measured.name!r} changed since the baseline was recorded ({old[:12]} then, "
                f"{new[:12]} now), so nothing can be compared. Use the sentinel set of the baseline; or, if the change "
                "is meant, look at the new numbers and record them with --update."
            )
            raise ArtefactError(message)


def _notes(measured: Measurement, case: Case | None, changes: Sequence[Change]) -> Iterator[str]:
    if measured.subject is not None and measured.subject.as_written:
        yield (
            f"Made for {measured.subject.bundle.target}: run as written, without ONNX Runtime's optimizations, which "
            "would change its float biases; integer_ops is not measured."
        )
    yield from filter(None, [estimate_sentence(estimated(measured))])
    if case is None:
        return
    if case.reason:
        yield f"Recorded although its verdict was {case.verdict!r}: {case.reason}"
    if case.allowed:
        yield f"Taken although it is refused by default: {case.allowed}"
    if measured.signature is not None and "graph" not in case.facts:
        yield "The baseline is of before the whole graph was kept: layers alone are compared. Record it with --update."
    if measured.files and case.files.get("model") != measured.files.get("model"):
        told = {change.layer for change in changes if change.layer}
        what = f"{len(told)} layers differ" if told else "no layer does"  # or operator, where the graph is known
        yield f"The model file is another one than the recorded ({what})."
    yield from (f"Note: {change.text}." for change in changes if not change.layer and not change.wrong)


def _recorded(outcome: CaseOutcome, measured: Measurement, case: Case | None, options: Options) -> CaseOutcome:
    """Take what was measured as the new truth, where neither a floor nor a refusal stands against it."""
    same = case is not None and case.files.get("sentinel") == measured.files.get("sentinel")
    keep = [row.metric for row in outcome.rows if row.verdict == "expected"] if same else []
    verdict = next((row.verdict for row in outcome.rows if row.metric == VERDICT), OK)
    entry = record(measured, case, options, keep, verdict)
    stands = [row for row in outcome.rows if row.metric in STANDING and row.verdict in FAILING]
    refused = any(row.fails(strict=False) for row in stands)
    values = dict(measured.metrics) | file_metrics(measured, None, ())
    judged = judge(values, entry, images=measured.images, unmeasured=measured.unmeasured)
    rows = [row for row in judged if row.metric not in {s.metric for s in stands}]
    beyond = any(row.verdict in FAILING for row in rows)  # a floor, or one of a metric that there is not
    return replace(
        outcome,
        rows=tuple(order([*stands, *rows])),
        causes=(),
        notes=tuple(_notes(measured, None, ())),
        entry=None if refused or beyond else entry,
    )
