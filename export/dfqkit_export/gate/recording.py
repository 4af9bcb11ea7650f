"""Recording: what was measured becomes a case of the baseline, and what that changes is said.

What belongs here: what is kept of a measurement, and putting it into the file. Floors, expected failures and tolerances
that people set stay.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from dfqkit_export.backends import DEFAULT
from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate.baseline import Baseline, Case, Recorded, read_baseline, require_tolerance, write_baseline
from dfqkit_export.gate.deployed import DEPLOYED, deployed_facts
from dfqkit_export.gate.diagnosis import layer_sketches
from dfqkit_export.gate.filerows import file_metrics, origin_of
from dfqkit_export.gate.measurement import Measurement
from dfqkit_export.gate.signature import pack_sketches
from dfqkit_export.gate.significance import default_tolerance, expected_flips
from dfqkit_export.gate.verdicts import Options
from dfqkit_export.measure.kinds import Metric, MetricKind, find_kind
from dfqkit_export.report.verdict import OK


def record(
    measured: Measurement, before: Case | None, options: Options, keep: Collection[str], verdict: str = OK
) -> Case:
    """Make a case of what was measured, and of the verdict on it.

    What people set until now stays: tolerances, floors, and unless another is stated the reason why it is allowed. The
    value of metrics to `keep` stays, too: those of an expected failure, which else would be gone.

    Raises:
        ArtefactError: A floor to add is there already, with another value.
    """
    of_file = file_metrics(measured, None, ())  # recorded as 0, whatever they are: nothing of them is to be wrong
    metrics = dict(measured.metrics) | {name: replace(metric, value=0.0) for name, metric in of_file.items()}
    before = before or Case(metrics={})
    old, stated = before.metrics, options.tolerances
    flips = expected_flips(measured.subject.sentinel.power) if measured.subject is not None else 0.0
    recorded = {
        name: Recorded(
            value=metric.value,
            stderr=metric.stderr,
            n=metric.n,
            tolerance=_tolerance(metric, old.get(name), stated.get(name, stated.get(metric.name)), flips),
            higher_is_better=bool(metric.higher_is_better),
        )
        for name, metric in metrics.items()
    }
    # What could not be measured today is not forgotten.
    recorded |= {name: old[name] for name in (*measured.unmeasured, *keep) if name in old}
    return Case(
        metrics=recorded,
        floors=_floors(measured, before, options.floors),
        expected_failure=before.expected_failure,
        allowed=options.allow or before.allowed,
        verdict=verdict,
        reason="" if verdict == OK else options.reason or before.reason,
        facts=_facts(measured),
        images=measured.images.to_dict() if measured.images is not None else {},
        sketches=pack_sketches(layer_sketches(measured)),
        files=dict(measured.files),
    )


def save_cases(path: str | Path, cases: Mapping[str, Case], environment: Mapping[str, Any]) -> None:
    """Put cases into a baseline's file, new or not, and leave the others that stand there by now.

    Where two processes record in one file, neither loses what the other wrote.

    Raises:
        ArtefactError: The file there cannot be read, or not be written.
    """
    path = Path(path)
    with _locked(path):
        before = read_baseline(path).cases if path.exists() else {}
        write_baseline(path, Baseline(cases={**before, **cases}, environment=environment))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with contextlib.suppress(OSError):  # of a folder that cannot be written, the writing says so
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()  # while it is held: whoever waits for it notices and makes another
        lock.release()


def changes_of(name: str, before: Case | None, now: Case) -> Iterator[str]:
    """Yield what recording changed of one case, a line each."""
    if before is None:
        yield f"{name}: new, with {len(now.metrics)} metrics"
        return
    for metric in dict.fromkeys([*now.metrics, *before.metrics]):
        old, new = before.metrics.get(metric), now.metrics.get(metric)
        if old is None or new is None:
            yield f"{name}: {metric} {'is new' if old is None else 'is gone'}"
        elif _shown(old.value) != _shown(new.value):
            yield f"{name}: {metric} {_shown(old.value)} -> {_shown(new.value)}"
    for what in ("model", "sentinel", "teacher"):
        was, sha256 = (case.files.get(what) or "none" for case in (before, now))
        if was != sha256:
            yield f"{name}: {what} {was[:12]} -> {sha256[:12]}"


def _tolerance(metric: Metric, old: Recorded | None, stated: float | None, flips: float) -> float:
    """Return the stated tolerance; else one that somebody wrote into the baseline; else today's default."""
    if stated is not None:
        try:
            require_tolerance(metric.name, stated, metric.value, metric.n)
        except ValueError as error:
            message = f"The tolerance is not recorded: {error}. Give another with --tolerance."
            raise ArtefactError(message) from None
        return stated
    if old is not None and not math.isclose(
        old.tolerance, default_tolerance(metric.name, old.value, old.n, flips), rel_tol=0.02, abs_tol=1e-9
    ):
        return old.tolerance
    return default_tolerance(metric.name, metric.value, metric.n, flips)


def _floors(measured: Measurement, before: Case, added: Mapping[str, float]) -> dict[str, float]:
    """Return the floors that are there or that the recipe has, and those that are added; the first stay."""
    standing = {**_recipe_floors(measured), **before.floors}
    for name, value in added.items():
        if standing.get(name, value) != value:
            message = (
                f"Case {measured.name!r} has a floor of {standing[name]:g} for {name}, which --floor {name}={value:g} "
                "does not change. Leave it out, or change the number in the baseline's file, where a review sees it."
            )
            raise ArtefactError(message)
    return {**added, **standing}


def _recipe_floors(measured: Measurement) -> dict[str, float]:
    """Return the recipe's floors that mean the same on sentinel images: those of the file itself, about no images."""
    subject = measured.subject
    if subject is None or subject.as_written or not subject.bundle.recipe:
        return {}
    import yaml

    try:
        return {
            str(floor["metric"]): float(floor["value"])
            for floor in yaml.safe_load(subject.bundle.recipe).get("floors") or []
            if (kind := find_kind(str(floor["metric"]))) is not None
            and (kind.about == "file" and kind.gated and floor.get("subject") == DEFAULT.name)
            and not (floor.get("unless_kept") and _below(measured, kind, float(floor["value"])))
        }
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return {}  # a recipe that cannot be read has no say; the baseline's own floors have


def _below(measured: Measurement, kind: MetricKind, value: float) -> bool:
    """Whether a floor would not hold today: one that what stays in float for a reason does not break is no promise."""
    metric = measured.metrics.get(kind.name)
    return metric is not None and metric.value is not None and metric.value < value


def _facts(measured: Measurement) -> dict[str, Any]:
    signature, subject = measured.signature, measured.subject
    if signature is None or subject is None:
        return {}
    return {
        "layers": {name: layer.to_dict() for name, layer in signature.layers.items()},
        "order": list(signature.layers),
        "opset": signature.opset,
        "before": signature.before,
        "graph": signature.graph.to_dict() if signature.graph is not None else None,
        "image": subject.sentinel.spec.to_dict(),
        "origin": origin_of(measured),
        DEPLOYED: deployed_facts(subject),
    }


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
