"""Trying the schemes of a recipe's ladder one after the other: the one whose student is nearest to the teacher is kept.

What belongs here: who judges, and the choice. Candidates are told apart by their distance on images of another kind
than those that they were fitted on, since what fits one kind of made images best is not what fits others best. Each is
stored once it is measured, so that a run that was killed goes on with the next one and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import fx

from dfqkit.config.ladder import LadderConfig
from dfqkit.config.quant import QuantConfig
from dfqkit.config.synthesis import Demand, SynthesizerConfig
from dfqkit.run.context import QUANTIZE, Context
from dfqkit.run.disclosure import file_metadata
from dfqkit.run.parts import Tell
from dfqkit.run.shared import context_of, spread
from dfqkit.students.folding import WEIGHTED
from dfqkit.students.nodes import tensor_at
from dfqkit.students.onnx_file import write_qdq
from dfqkit.students.sensitivity import Imitated
from dfqkit.students.student import calibrate_student, rounded_layers, save_student
from dfqkit.synthesis.build import build_synthesizer
from dfqkit.synthesis.methods.procedural import ProceduralConfig
from dfqkit.synthesis.methods.zeroq import ZeroQConfig, ZeroQWeights
from dfqkit.teacher.structure import provides
from dfqkit_export.backends import DEFAULT, backend_of
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import RecipeError
from dfqkit_export.files import write_bytes
from dfqkit_export.measure.latency import measure_latency

if TYPE_CHECKING:
    from dfqkit.synthesis.base import Synthesizer

#: Drawn images, pulled by few steps to what BatchNorm layers saw.
PULLED = ZeroQConfig(
    start="procedural", batch=32, steps=30, lr=0.03, decay="cosine", bn="normals", weights=ZeroQWeights(input=0)
)
#: Images drawn by other rules than the usual ones: fewer and plainer things, smoother and of more contrast.
_OTHER = ProceduralConfig(leaves=(5, 40), amplitude=(0.05, 0.3), spectrum=(1.0, 2.0), strokes=0, fractals=0)
#: Times that a candidate with layers in float must be nearer than one without.
_SLOWER = 2.0


def usual_judge(source: SynthesizerConfig, offered: frozenset[str]) -> SynthesizerConfig:
    """Return the source of judging images beside a recipe's own, where it names none (see `LadderConfig.judge`)."""
    if PULLED.needed <= offered and not isinstance(source, ZeroQConfig):
        return PULLED
    return _OTHER if isinstance(source, ProceduralConfig) else ProceduralConfig()


def judge_of(context: Context) -> SynthesizerConfig:
    """Return the source of the judging images of a run that has a ladder."""
    assert context.recipe.ladder is not None
    return context.recipe.ladder.judge or usual_judge(context.synthesis, provides(context.teacher))


def new_judge(context: Context, images: int) -> Synthesizer:
    """Return what makes so many images that judge."""
    demand = Demand(training=0, fresh=images)
    return build_synthesizer(judge_of(context), context.teacher, context.rng("judging"), demand)


def climb(context: Context, ladder: LadderConfig, stage: str, file: Path, first: Path) -> dict[str, Any]:
    """Try the candidates, leave the student of the nearest one in ``file``, and return what was found out.

    Where workers make them, those behind the one that ends the ladder are begun for nothing: what is found out, the
    time that it took included, is told in order and of no more candidates than one process would have made.

    Args:
        context: Of the stage's part.
        ladder: The recipe's section.
        stage: What the state is stored as.
        file: Where the kept one goes, as `save_student` writes it.
        first: Where the first one goes, as the QDQ file that a run in a hurry can do with.

    Returns:
        ``chosen``, a name; ``tried``, a row for each with its name, distance (None where it is not finite), percent of
        the answers kept and seconds; ``judged_on``, the images; ``stopped``, why others were not tried, or "".
    """
    schemes = ladder.schemes(context.recipe.quant)
    names, bank = list(schemes), context.bank("judging")
    rows: list[dict[str, Any]] = []
    _require_room(context, ladder)
    found = context.folder.load_state(stage)
    if found is not None:
        rows += found[1]["tried"]
        write_bytes(file, found[0]["student"].numpy().tobytes())
    sizes = [1 + rounded_layers(context.graph, scheme) for scheme in schemes.values()]
    given, early = {"state": stage, "hurried": str(first.resolve())}, dict[int, dict[str, Any]]()
    with (
        context.progress.stage(f"{len(names)} candidates", total=sum(sizes), start=sum(sizes[: len(rows)])) as bar,
        contextlib.closing(spread(context, QUANTIZE, candidate_part, sizes, bar, first=len(rows), **given)) as parts,
    ):
        while not _stopped(ladder, rows) and (at := len(rows)) < len(names):
            while at not in early:
                index, early[index] = next(parts)
            row = {"name": names[at], **early[at]}
            if "as" in row:
                rows.append({**next(each for each in rows if each["name"] == row["as"]), **row})
                continue
            rows.append(row)
            if nearest(rows) is row:
                _stored(context, stage, at).replace(file)
            kept = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
            context.folder.save_state(stage, {"student": kept}, {"tried": rows})
            bar.advance(0, **{key: math.nan if row[key] is None else row[key] for key in ("distance", "kept")})
            if at == 0:
                kept_now = f"it keeps {row['kept']:.1f} % of the teacher's answers on the {len(bank)} images that judge"
                context.progress.note(f"{first} is a first int8 file: {kept_now}. Further candidates are tried.")
    if nearest(rows).get("over"):
        sizes_told = ", ".join(f"'{row['name']}' {row['bytes'] / 1e6:.3f} MB" for row in rows)
        _too_large(ladder, f"no candidate's file is as small: {sizes_told}")
    judged_on = f"{len(bank)} images of {bank.source}"
    return {"chosen": nearest(rows)["name"], "tried": rows, "judged_on": judged_on, "stopped": _stopped(ladder, rows)}


def calibrated(context: Context, scheme: QuantConfig, advance: Callable[[], None], index: int = 0) -> fx.GraphModule:
    """Return a member of the ensemble calibrated; ``advance`` is told of every layer whose weights are rounded.

    Ranges and biases are found on the calibration set; the held-out one shows which tensors stay in float.
    """
    batches = [images for images, _ in context.batches("calibration")]
    # Every member sees the batches in another order and its own half of them once more: another calibration.
    own = batches if index == 0 else [*batches[index % 2 :: 2], *batches[::-1]]
    student = context.new_student(scheme)
    calibrate_student(
        student,
        own,
        scheme,
        context.teacher.image,
        held_out=[images for images, _ in context.batches("held_out")],
        replan=context.replan(scheme),
        imitated=Imitated(graph=context.graph, task=context.teacher.torch_task),
        reference=context.reference(scheme),
        advance=advance,
    )
    return student


def candidate_part(common: Mapping[str, Any], index: int, tell: Tell) -> dict[str, Any]:
    """Make and store one candidate, and return its row; of one that is an earlier one again, its name."""
    context = context_of(common)
    ladder = context.recipe.ladder
    assert ladder is not None
    schemes = ladder.schemes(context.recipe.quant)
    scheme = list(schemes.values())[index]
    again = _again(context, schemes, index)
    if again is not None:
        return {"seconds": 0.0, "as": again}
    start, done, steps = time.monotonic(), itertools.count(1), 1 + rounded_layers(context.graph, scheme)
    student = calibrated(context, scheme, lambda: tell(next(done) / steps))
    if index == 0:
        write_qdq(student, context.target, Path(common["hurried"]), metadata=file_metadata(context, scheme))
    batches = [images for images, _ in context.bank("judging").batches(context.recipe.bank.batch, context.device)]
    told = _measured(student, batches, Imitated(graph=context.graph, task=context.teacher.torch_task))
    slower = {"slower": True} if ladder.candidates[index].slower else {}
    filed = _filed(context, student, scheme, ladder.max_size, Path(common["hurried"]), batches[0][:1])
    save_student(student, _stored(context, common["state"], index))
    return {**told, **slower, **filed, "seconds": round(time.monotonic() - start, 3)}


def _stored(context: Context, stage: str, index: int) -> Path:
    """Return where a candidate's student lies until it is known whether it is the nearest; gone with the state."""
    return context.folder.path / "state" / f"{stage}.{index}.safetensors"


def nearest(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the row of the least distance, the first of several; one that is not finite comes last.

    That of a slower one counts `_SLOWER` times, and none that is too large comes before one that is not.
    """

    def counted(row: Mapping[str, Any]) -> tuple[bool, float]:
        found: float | None = row["distance"]
        far = math.inf if found is None else found * (_SLOWER if row.get("slower") else 1.0)
        return bool(row.get("over")), far

    return min(rows, key=counted)


def _stopped(ladder: LadderConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return why no more are tried, by what is stored of those that were: a run that goes on decides as it did."""
    if not rows or len(rows) == len(ladder.candidates):
        return ""
    best = nearest(rows)
    if best["kept"] >= ladder.kept and not best.get("over"):
        return f"'{best['name']}' keeps enough of the answers, {best['kept']:.1f} of {ladder.kept:g} %"
    if ladder.max_time is not None and sum(row["seconds"] for row in rows) >= 60 * ladder.max_time:
        return f"{ladder.max_time:g} minutes were over"
    return ""


def _again(context: Context, schemes: Mapping[str, QuantConfig], index: int) -> str | None:
    """Return the first one before it that is the same student, where nothing could be made alike; or None."""
    name = list(schemes)[index]

    def rest(scheme: QuantConfig) -> QuantConfig:
        return scheme.model_copy(update={"equalize": 0, "equalize_values": 0.0})

    def same(other: QuantConfig) -> bool:
        one, two = context.reference(other), context.reference(schemes[name])
        ours, theirs = one.state_dict(), two.state_dict()
        alike = one.code == two.code and ours.keys() == theirs.keys()
        return alike and all(torch.equal(ours[key], theirs[key]) for key in ours)

    before = (each for each in list(schemes)[:index] if rest(schemes[each]) == rest(schemes[name]))
    return next((each for each in before if same(schemes[each])), None)


def _require_room(context: Context, ladder: LadderConfig) -> None:
    """Refuse a size that the weights alone exceed before anything is calibrated: files store 8 bits of each or more."""
    least = sum(tensor_at(each, "weight").numel() for each in context.graph.modules() if isinstance(each, WEIGHTED))
    if ladder.max_size is not None and least > 1e6 * ladder.max_size:
        _too_large(ladder, f"{least / 1e6:.3f} million weights take a byte each in a QDQ file, whatever their bits")


def _too_large(ladder: LadderConfig, why: str) -> NoReturn:
    message = f"ladder.max_size is {ladder.max_size:g} MB, but {why}. Allow more, or quantize a smaller network."
    raise RecipeError(message)


def _filed(
    context: Context, student: fx.GraphModule, scheme: QuantConfig, most: float | None, first: Path, image: torch.Tensor
) -> dict[str, Any]:
    """Return the bytes of a candidate's file, whether these are too many, and how it is timed.

    ``call`` is how long one takes, in those of the first candidate's file, timed in turns: what else the machine does
    meets both; a worker that is ahead of the first has nothing beside it. Files cost an export each, so that they are
    written only where a size is asked for.
    """
    if most is None:
        return {}
    with TemporaryDirectory(prefix="dfqkit-") as folder:
        file = Path(folder) / "candidate.onnx"
        write_qdq(student, context.target, file, metadata=file_metadata(context, scheme))
        found: dict[str, Any] = {
            "bytes": (size := file.stat().st_size),
            **({"over": True} if size > 1e6 * most else {}),
        }
        repeats = context.recipe.validation.latency_repeats
        if repeats and first.is_file() and backend_of(context.target) is DEFAULT:
            sessions = {"first": OrtSession(first), "this": OrtSession(file)}
            timed = measure_latency(sessions, image.cpu().numpy(), repeats=repeats, reference="first")
            if ratio := timed.timings["this"].ratio:
                found["call"] = round(1 / ratio, 4)
    return found


def _measured(student: fx.GraphModule, batches: Sequence[torch.Tensor], imitated: Imitated) -> dict[str, float | None]:
    """Return how far a student is from what it imitates, and what it keeps of its answers: means over the images."""
    distance = kept = 0.0
    with torch.no_grad():
        for images in batches:
            answer = student(images)
            distance += len(images) * float(imitated.distance(images, answer))
            kept += len(images) * imitated.kept(images, answer)
    count = sum(map(len, batches))
    return {"distance": distance / count if math.isfinite(distance) else None, "kept": kept / count}
