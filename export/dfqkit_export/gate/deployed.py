"""What users deploy beside the model: names of classes, programs, what the file and its manifest say of themselves.

What belongs here: what a baseline keeps of it, and where it is another. The normalisation is `diagnosis`' question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from dfqkit_export.bundle.entries import parse_json
from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate.baseline import Case
from dfqkit_export.gate.measurement import Subject
from dfqkit_export.tasks import Task, task_in
from dfqkit_export.tasks.base import SAMPLES
from dfqkit_export.tasks.lookup import METADATA
from dfqkit_export.words import some

#: The facts of a case under this name.
DEPLOYED = "deployed"
_PROGRAMS = "samples/"
#: What lies among the programs and is no code: what they read, and what depends on the run.
_NO_CODE = (".bin", ".md")
_SHOWN = 3
#: Statements of the ONNX metadata, and what the manifest calls them.
_STATED = {"dfqkit.target": "target", "dfqkit.quant": "quant"}


def deployed_facts(subject: Subject) -> dict[str, Any]:
    """Return what a baseline keeps: the labels, the programs' hashes, target and task."""
    labels, _ = _labels(subject)
    return {
        "labels": list(labels) if labels is not None else None,
        "programs": _programs(subject),
        "unlisted": list(subject.unlisted),
        "target": subject.bundle.target,
        "task": subject.sentinel.task.name,
        "parameters": _parameters(subject.sentinel.task),
    }


def deployment_changes(subject: Subject | None, case: Case | None) -> list[str]:
    """Return what is wrong beside the model, a clause each: against itself, and against the baseline.

    Without a baseline there is nothing: what is recorded is looked at in its review.
    """
    if subject is None or case is None:
        return []
    kept = case.facts.get(DEPLOYED)
    before: Mapping[str, Any] = kept if isinstance(kept, Mapping) else {}
    return [
        *_labels_changed(subject, before),
        *_programs_changed(subject, before.get("programs")),
        *_unlisted(subject, before.get("unlisted")),
        *_contradictions(subject),
        *_task_changed(subject, before.get("parameters")),
        *(
            f"the {key} was {before[key]} and is {now}"
            for key, now in (("target", subject.bundle.target), ("task", subject.sentinel.task.name))
            if key in before and before[key] != now
        ),
    ]


def _parameters(task: Task) -> dict[str, Any]:
    """Return a task's parameters as JSON has them."""
    parameters: dict[str, Any] = json.loads(json.dumps(task.to_dict()))
    return {name: value for name, value in parameters.items() if name != "name"}


def _task_changed(subject: Subject, before: Any) -> Iterator[str]:
    """Yield where the file says that its outputs are read otherwise than they were measured, or were recorded."""
    own = subject.sentinel.task
    now = _parameters(own)
    try:
        said = task_in(subject.metadata) if METADATA in subject.metadata else own
    except ArtefactError as error:
        yield f"metadata state no task: {str(error).rstrip('.')}"
        return
    for stated, where in ((_parameters(said), "the metadata state"), (before, "the baseline has")):
        if said.name != own.name or not isinstance(stated, Mapping):
            continue
        other = [
            f"{key} {now.get(key)!s:.60}, {where} {stated[key]!s:.60}" for key in stated if stated[key] != now.get(key)
        ]
        if other:
            yield f"the task was measured with {some(other, _SHOWN, '; ')}"
    if said.name != own.name:
        yield f"metadata state another task ({said.name}) than was measured ({own.name})"


def _labels(subject: Subject) -> tuple[tuple[str, ...] | None, str]:
    try:
        return subject.bundle.labels, ""
    except ArtefactError as error:
        return None, str(error)


def _labels_changed(subject: Subject, before: Mapping[str, Any]) -> Iterator[str]:
    labels, problem = _labels(subject)
    if problem:
        yield f"labels: {problem.rstrip('.')}"
        return
    if labels is not None and (twice := sorted({label for label in labels if labels.count(label) > 1})):
        yield f"labels name more than one class {some(twice, _SHOWN)}"
    old = before.get("labels")
    if not isinstance(old, list):
        return
    if labels is None:
        yield f"labels of {len(old)} classes are gone"
    elif len(old) != len(labels):
        yield f"labels were {len(old)} and are {len(labels)}"
    else:
        pairs = [(k, was, now) for k, (was, now) in enumerate(zip(old, labels, strict=True)) if was != now]
        told = [f"class {k} was {was!r} and is {now!r}" for k, was, now in pairs]
        if told:
            yield f"labels differ in {len(told)} of {len(old)} classes: {some(told, _SHOWN, '; ')}"


def _unlisted(subject: Subject, before: Any) -> Iterator[str]:
    strange = [name for name in subject.unlisted if not (isinstance(before, list) and name in before)]
    if strange:
        yield f"files that the manifest does not list: {some(strange, _SHOWN)}; take them out, or make the bundle again"


def _programs(subject: Subject) -> dict[str, str]:
    listed = subject.bundle.files.items()
    return {name: sha for name, sha in listed if name.startswith(_PROGRAMS) and not name.endswith(_NO_CODE)}


def _programs_changed(subject: Subject, before: Any) -> Iterator[str]:
    """Yield programs that are neither this version's nor the recorded ones."""
    programs, kept = _programs(subject), before if isinstance(before, Mapping) else {}
    known = {**SAMPLES.programs, **subject.sentinel.task.samples.programs}
    own = {f"{_PROGRAMS}{name}": _digest(text) for name, text in known.items()}
    strange = [name for name, sha256 in programs.items() if sha256 not in (own.get(name), kept.get(name))]
    gone = sorted(kept.keys() - programs.keys())
    if strange:
        yield f"sample code is neither the recorded one nor this version's: {some(strange, _SHOWN)}"
    if gone:
        yield f"sample code is gone: {some(gone, _SHOWN)}"


def _digest(resource: str) -> str:
    package, _, path = resource.partition(":")
    return hashlib.sha256(resources.files(package).joinpath(path).read_bytes()).hexdigest()


def _contradictions(subject: Subject) -> Iterator[str]:
    """Yield what the ONNX metadata say otherwise than the manifest; a statement that a tool took away is none."""
    for key, name in _STATED.items():
        text, stated = subject.metadata.get(key), getattr(subject.bundle, name)
        if text is None or not stated:
            continue
        try:
            said = text if isinstance(stated, str) else parse_json(text)
        except (ValueError, RecursionError):
            said = text
        if said != (stated if isinstance(stated, str) else dict(stated)):
            yield f"metadata state another {name} ({text:.80}) than the manifest"
