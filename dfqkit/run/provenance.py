"""What a report says beside its numbers: warnings, what made the file, how images and the kept state came about.

What belongs here: facts that are read off the recipe and off what the stages noted; nothing is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from dfqkit.config.synthesis import UNKNOWN
from dfqkit.run import distill, quantize, synthesize, train
from dfqkit.run.disclosure import resolved, warnings_of
from dfqkit_export.backends import DEFAULT, DEFAULT_TARGET, backend_of
from dfqkit_export.backends.target import Target
from dfqkit_export.env import environment
from dfqkit_export.images.stored import StoredBank
from dfqkit_export.measure.breakdown import Breakdown
from dfqkit_export.tasks.answering import grouped

if TYPE_CHECKING:
    from dfqkit.run.context import Context


def provenance(context: Context, until: str) -> dict[str, Any]:
    """Return what made the file, the stages before ``until``, and where: `Report.provenance`."""
    recipe, teacher = context.recipe, context.teacher
    warned = warnings_of(recipe)
    halved = [name for name in ("synthesis", "student", "distill") if getattr(getattr(recipe, name), "bf16", False)]
    section = recipe.student
    student = {"float_student": section.factory, "float_student_args": section.args} if section else {}
    made_by = [stage.name for stage in takewhile(lambda s: s.name != until, context.stages) if stage.applies(recipe)]
    return {
        **({"warnings": list(warned)} if warned else {}),
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest(),
        "command": context.folder.run_facts().get("command", ""),
        "seed": recipe.seed,
        "teacher": teacher.name,
        "teacher_sha256": teacher.sha256,
        "weights": teacher.weights_source,
        **({"image taken from": recipe.image.filled_from} if recipe.image.filled_from else {}),
        **student,
        "target": recipe.target,
        "measured in": _measured_in(context.target),
        "synthesizer": recipe.synthesis.method,
        "device": str(context.device),
        **({"in bfloat16": halved} if halved else {}),
        "threads": torch.get_num_threads(),
        "seconds": {name: context.folder.seconds(name) for name in made_by},
        "environment": environment(),
    }


def kept_in_float(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Return a warning where tensors stay in float that the target would compute in integers."""
    if not reasons:
        return ()
    listed = "; ".join(f"'{name}': {reason}" for name, reason in reasons.items())
    told = "Kept in float, and with it the layers that read it, which the usual floor for integer layers does not count"
    return (f"{told}: {listed}.",)


def in_float(reasons: Mapping[str, str]) -> dict[str, Any]:
    """Return the entry about tensors in float, where there are any."""
    return {"kept in float": dict(reasons)} if reasons else {}


def _measured_in(target: Target) -> str:
    backend = backend_of(target)
    if backend is DEFAULT:
        itself = target is DEFAULT_TARGET
        return (
            f"ONNX Runtime{', the target itself' if itself else f' on this machine; {target.title} has other kernels'}"
        )
    if not backend.missing():
        return f"{target.title} itself, and ONNX Runtime on CPU, which computes what the file says"
    return (
        f"ONNX Runtime on CPU, which computes what the file says; {target.title} itself has not run it, so nothing "
        "here is about its speed"
    )


def synthesis(context: Context) -> dict[str, Any]:
    """Loss curves, cost and disagreement of the stages: `Report.synthesis`."""
    made, trained, played = (context.facts(stage.STAGE.name) for stage in (synthesize, train, distill))
    curve: list[dict[str, Any]] = []
    for facts in (made, trained, played):
        offset = curve[-1]["round"] if curve else 0
        curve += [
            {
                "round": offset + int(entry.get("round", entry.get("step", 0))),
                "terms": {key: value for key, value in entry.items() if key not in ("round", "step")},
            }
            for entry in facts.get("curve", [])
        ]
    cost = {"synthesis_image_passes": made.get("cost", 0), "game_image_passes": played.get("cost", 0)}
    if trained:
        cost["train_image_passes"] = trained["cost"]
    config = resolved(context.recipe)
    real, origin = config.real_data(), config.made_from()
    return {
        "losses": curve,
        "cost": cost,
        "disagreement": played.get("disagreement"),
        "data_free": None if real == UNKNOWN else real is None,
        "real_data": real,
        **({"made_from": origin} if origin else {}),
    }


def selection(context: Context) -> dict[str, Any]:
    """Return how the kept state was chosen: `Report.selection`."""
    trained, played = (context.facts(stage.STAGE.name) for stage in (train, distill))
    held_out = grouped(StoredBank.open(context.folder.path / "images" / "held_out.safetensors"))
    student = {"float_student_kept": trained["kept"], "float_student_judged": trained["judged"]} if trained else {}
    return {
        **student,
        "rule": f"lowest {context.teacher.torch_task.rule} on held-out synthetic images, calibration alone being a "
        "candidate",
        "kept": played.get("kept"),
        "judged": played.get("judged"),
        **({f"held_out_{held_out.many}": held_out.counts.tolist()} if held_out.one else {}),
    }


def candidates(context: Context) -> list[Breakdown]:
    """Return the table of all candidates of the recipe's ladder, in the order in which they are tried; none without."""
    ladder = context.recipe.ladder
    if ladder is None:
        return []
    facts = context.facts(quantize.STAGE.name)
    tried = {row["name"]: row for row in facts["tried"]}
    rows = []
    for each in ladder.candidates:
        sets = ", ".join(f"{key}: {value}" for key, value in each.sets.items())
        row = tried.get(each.name, {"distance": None, "kept": None, "seconds": None})
        distance = None if row["distance"] is None else f"{row['distance']:.4g}"
        said = "chosen" if each.name == facts["chosen"] else "" if each.name in tried else "not tried"
        said += f"{', ' * bool(said)}as {row['as']}" if "as" in row else ""
        said += f"{', ' * bool(said)}too large" if row.get("over") else ""
        size = f"{row['bytes'] / 1e6:.4g}" if "bytes" in row else None
        rows.append([each.name, sets or "nothing", distance, row["kept"], size, row.get("call"), row["seconds"], said])
    stopped = f" Others were not tried: {facts['stopped']}." if facts["stopped"] else ""
    rule = context.teacher.torch_task.rule
    return [
        Breakdown(
            title="Candidates",
            note="What each sets otherwise than the recipe's quant section, and how its student answered images of "
            f"another kind than those it was fitted on: {rule}, answers kept. The nearest one is the file. Size and "
            f"time of a call (in the first one's) are known where `ladder.max_size` asks for files.{stopped}",
            subject="student",
            data=facts["judged_on"],
            header=["candidate", "sets", "distance", "answers kept, %", "size, MB", "time of a call", "seconds", ""],
            rows=rows,
            plot=("size, MB", "time of a call", "seconds", "distance"),
        )
    ]
