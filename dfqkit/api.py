"""The Python way in: a module goes in, an int8 ONNX file and its report come out.

What belongs here: one function over the same stages that the command line runs.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from dfqkit.config.distill import DistillConfig, DistillWeights
from dfqkit.config.files import find_file
from dfqkit.config.image_of_model import require_values, spec_values, validation_sizes
from dfqkit.config.ladder import FEW_BITS, USUAL, Candidate, LadderConfig
from dfqkit.config.reading import overridden, parse_recipe, recipe_from
from dfqkit.config.recipe import FloorSection, Recipe, TeacherSection
from dfqkit.config.synthesis import SynthesizerConfig
from dfqkit.progress import Progress, silent
from dfqkit.run.answering import real_images, require_labels
from dfqkit.run.execution import execute, run_facts
from dfqkit.run.export import MODEL
from dfqkit.run.folder import RunFolder
from dfqkit.run.ladder import PULLED
from dfqkit.run.stages import STAGES
from dfqkit.run.validate import REPORT, require_floors
from dfqkit.synthesis.methods.dfq import DFQConfig
from dfqkit.synthesis.methods.images import ImagesConfig
from dfqkit.synthesis.methods.procedural import ProceduralConfig
from dfqkit.synthesis.methods.zeroq import ZeroQConfig
from dfqkit.teacher.load import Teacher, load_teacher
from dfqkit.teacher.sources import is_stored, located
from dfqkit.teacher.structure import provides
from dfqkit_export.backends import DEFAULT, DEFAULT_TARGET, backend_of, get_target
from dfqkit_export.errors import RecipeError, TeacherError
from dfqkit_export.images.labelled import load_images
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.measure.kinds import INTEGER_OPS, STUDENT_AGREEMENT
from dfqkit_export.report import Report
from dfqkit_export.report.page import render_head
from dfqkit_export.report.summary import summary
from dfqkit_export.report.verdict import OK, Verdict
from dfqkit_export.tasks import DEFAULT_TASK, Task, entry_of, task_of

_LOG = logging.getLogger(__name__)
#: Sections that the teacher is made of, which is loaded before there is a recipe.
_TEACHERS = ("teacher", "image", "task")

#: Labelled images that are tried before anything is computed.
_TRIED = 4
#: The bits for which calibration alone is enough.
_ENOUGH_BITS = "w8a8"

#: Side of the largest images (pixels) of which generators make a set in a minute.
_SMALL = 64
#: What suits larger ones: drawn images, of which some dozens give ranges as good as those of real ones,
#: and the scheme that is nearest on others, since which one is best differs from network to network.
_LARGE: dict[str, Any] = {
    "synthesis": ProceduralConfig(),
    "quant": {"scales": "float"},
    "bank": {"calibration": 64, "held_out": 32, "grading": 64, "batch": 16},
}
#: What suits them where weights have fewer bits, or one scale a layer: their codes are chosen together, for which
#: images must be good ones, drawn and pulled to what BatchNorm layers saw.
_LARGE_FEW_BITS: dict[str, Any] = {
    "synthesis": PULLED.model_copy(update={"steps": 50}),
    "quant": {"scales": "float", "activation_range": "percentile", "weight_rounding": "gptq"},
    "bank": {"calibration": 64, "held_out": 32, "grading": 32, "batch": 16},
    "distill": None,
}

#: What fewer bits need beyond calibration; after the shipped W4A4 recipe, without a partner.
_DISTILL = DistillConfig(steps=500, lr=5e-4, weights=DistillWeights(response=0.1, feature=10.0), average=0.98)

#: What suits tasks that find objects. Most of what ranges must hold are the rare peaks that objects are, of which drawn
#: images have too few: some are pulled until the teacher sees objects, channels are made alike, and what is cut, or
#: stays in float, is chosen by what that does to the teacher's answers.
_OBJECTS: dict[str, Any] = {
    "synthesis": {
        "method": "mixture",
        "sources": [
            {"method": "procedural", "share": 0.7},
            {
                "method": "zeroq", "share": 0.3, "start": "procedural", "batch": 8, "steps": 50, "lr": 0.05,
                "decay": "constant", "jitter": 8, "weights": {"bn": 0, "input": 0, "objects": 1},
            },
        ],
    },
    "quant": {"scales": "float", "activation_range": "outputs", "equalize_values": 0.5, "costly_in_float": 0.1},
    "bank": {"calibration": 64, "held_out": 16, "grading": 32, "batch": 16},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """What `quantize` made.

    Attributes:
        folder: The run's folder; calling `quantize` again with the same arguments and this folder continues it.
        model: The int8 ONNX file.
        report: What was measured.
    """

    folder: Path
    model: Path
    report: Report

    def __repr__(self) -> str:
        """Return the report in five lines (`report.summary`)."""
        return "\n".join(summary(self.report, str(self.folder)))

    def _repr_html_(self) -> str:
        """Return the head of the report's page, for notebooks."""
        return render_head(self.report)

    @property
    def ok(self) -> bool:
        """Whether the file was judged and nothing speaks against it; `verdict` tells "failed" from "not judged"."""
        return self.verdict == OK

    @property
    def verdict(self) -> Verdict:
        """The report's verdict; its reasons are `report.reasons`, what does not hold is `report.findings`."""
        return self.report.verdict


def quantize(  # noqa: PLR0913 - all but the first are named, and have defaults
    model: nn.Module | Teacher | str,
    *,
    image: ImageSpec | None = None,
    bits: str = "w8a8",
    target: str | Sequence[str] = DEFAULT_TARGET.name,
    task: str | Mapping[str, Any] | None = None,
    method: str | None = None,
    images: str | Path | None = None,
    validate: str | Path | Mapping[str, Any] | None = None,
    seed: int | None = None,
    device: str = "auto",
    progress: bool = False,
    out: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    max_time: float | None = None,
    max_drop: float | None = None,
    max_size: float | None = None,
    min_speedup: float | None = None,
) -> Result:
    """Quantize a trained network without data and measure the result in the runtime.

    Args:
        model: A trained network, which is copied and left as it is; a `Teacher`; or what a recipe calls
            ``teacher.factory``: ``onnx:FILE``, ``timm:NAME``, ``torchvision:NAME``, ``FILE.py:factory``, with its
            weights as ``options={"teacher": {"weights": FILE}}`` where no file holds them already
            (None: it stays as the factory makes it).
        image: What images it takes; not needed with a `Teacher`, or what says it itself: timm's and torchvision's
            networks. An ONNX file says its shape alone.
        bits: Weight and activation bits, e.g. ``w8a8``, ``w4a8``, ``w4a4``.
        target: One of `dfqkit list targets`, such as ``onnxruntime``, ``openvino`` or ``tensorrt``; or several, of
            which each gets a file and a report, made of one synthesis.
        task: What its outputs mean, such as ``"segmentation"`` or ``{"name": "detection", "nms": 0.6}``; by default
            what they are recognised as.
        method: Where images come from: one of `dfqkit list synthesizers`; by default the first of dfq, zeroq and
            procedural for which the network has what is needed. Where a task finds objects, procedural images
            of which some were pulled until the network sees objects. For w8a8 of any other of more than 64 pixels,
            procedural images, and several schemes are tried of which the nearest is kept (``ladder``, for
            20 minutes); for weights of fewer bits, w4a8, a classifier's are pulled to BatchNorm statistics, and codes
            of a layer are chosen together (``quant.weight_rounding``).
        images: Unlabelled pictures like those that the network is for, which calibrate it: a folder, ``.npz`` or
            ``.zip``. Where there are fewer than a run needs, drawn images fill up. The result is then not data-free.
        validate: Labelled images, which only measure, as ``validate.data`` of a recipe, or that section.
        seed: Of the run; 0 by default.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: Whether to show it.
        out: Folder for the result; a new temporary one by default. A folder that holds the same run continues it.
        options: Further or other recipe sections, e.g. ``{"distill": {"steps": 600}}``; what an argument says, too,
            may stand here.
        max_time: Minutes after which no further scheme is tried; this and the next two are the ``ladder`` section's.
        max_drop: Points that may be lost: once that holds no further scheme is tried, and the report says whether.
        max_size: MB (10^6 bytes) that the file may have.
        min_speedup: Times that the file must be as fast as in float, ``validate.min_speedup``.

    Returns:
        The file, the report and the folder of both.

    Raises:
        DfqkitError: Anything the caller can mend, in one sentence or two.

    Example:
        >>> import dfqkit
        >>> mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        >>> image = dfqkit.ImageSpec(shape=(3, 224, 224), mean=mean, std=std, classes=1000)
        >>> result = dfqkit.quantize(my_model, image=image, bits="w8a8", target="onnxruntime")  # doctest: +SKIP
        >>> result.model, result.report.verdict  # doctest: +SKIP
    """
    chosen = dict(options or {})
    device, shown = str(chosen.pop("device", device)), bool(chosen.pop("progress", progress))
    if seed is not None:
        chosen["seed"] = seed
    if validate is not None:
        chosen["validate"] = dict(validate) if isinstance(validate, Mapping) else {"data": str(validate)}
    bounds = {"ladder.max_time": max_time, "ladder.max_drop": max_drop, "ladder.max_size": max_size}
    bounds["validate.min_speedup"] = min_speedup
    steering = [f"{key}={value}" for key, value in bounds.items() if value is not None]
    telling = Progress() if shown else silent()
    with telling.alive("dfqkit.quantize: loading the network"):
        recipe, teacher = prepare(
            model, image=image, bits=bits, target=target, task=task, method=method, images=images, options=chosen,
            overrides=steering,
        )  # fmt: skip
        require_floors(recipe)
        require_labels(teacher, real_images(recipe, limit=_TRIED))
        path = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="dfqkit-"))
        subject = repr(model) if isinstance(model, str) else "model"
        command = f"dfqkit.quantize({subject}, image=..., bits={bits!r}, target={target!r})"
        facts = run_facts(recipe, command)
        folder = RunFolder.create(path, recipe_text=recipe.to_yaml(), digest=recipe.digest(), facts=facts)
        with folder:
            execute(folder, recipe, STAGES, device=device, progress=telling, teacher=teacher)
    report = Report.from_json((path / REPORT).read_text(encoding="utf-8"))
    return Result(folder=path, model=path / MODEL, report=report)


def prepare(  # noqa: PLR0913 - those of `quantize`
    model: nn.Module | Teacher | str,
    *,
    image: ImageSpec | Mapping[str, Any] | None,
    bits: str,
    target: str | Sequence[str],
    task: str | Mapping[str, Any] | None = None,
    method: str | None = None,
    images: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Recipe, Teacher]:
    """Return the recipe that `quantize` runs, and the teacher, and compute nothing else.

    Args are those of `quantize`, but that of a model which a string names ``image`` may say a part, whose rest the
    model's library says, and that ``overrides``, each ``section.key=value``, change what the recipe would have.

    Raises:
        DfqkitError: As of `quantize`.
    """
    chosen = dict(options or {})
    early = overridden({}, [override for override in overrides if _root(override) in _TEACHERS])
    if "teacher" in early:
        chosen["teacher"] = {**chosen.get("teacher", {}), **early["teacher"]}
    if not isinstance(image, ImageSpec):
        image = {**(image or {}), **early.get("image", {})} or None
    named = chosen.pop("task", None) if task is None else task
    named = early.get("task", named)
    if isinstance(model, Teacher):
        teacher = model
    elif isinstance(model, str):
        teacher = _loaded(model, image, chosen, _task(named))
    else:
        known = spec_values(model) if image is None else None
        if known is not None:
            image = ImageSpec(**known)
            _LOG.warning("The module carries what images it takes, and they are taken so: %s.", image)
        if not isinstance(image, ImageSpec):
            message = "quantize needs image=ImageSpec(shape=..., mean=..., std=..., classes=...) beside a module."
            raise TypeError(message)
        teacher = Teacher.from_module(model, image, task=_task(named))
    later = [override for override in overrides if _root(override) not in _TEACHERS]
    asked = overridden({}, [override for override in later if _root(override) in ("quant", "synthesis")])
    if method is not None:
        chosen["synthesis"] = {**chosen.get("synthesis", {}), "method": method} | (asked.get("synthesis") or {})
    chosen = _with_pictures(chosen, images, teacher)
    targets = [target] if isinstance(target, str) else list(target)
    recipe = _recipe(teacher, bits, targets, chosen, asked.get("quant"))
    if later:
        recipe = parse_recipe(recipe.to_yaml(), recipe.name, later)
    return recipe.found_in(Path.cwd()), teacher


def _root(override: str) -> str:
    """Return the section that an override is about."""
    return override.partition("=")[0].partition(".")[0]


def _usual_source(teacher: Teacher) -> SynthesizerConfig:
    """Return the first of the usual synthesizers that a teacher has what it takes for; the last takes any."""
    offered, usual = provides(teacher), (DFQConfig, ZeroQConfig, ProceduralConfig)
    return next((kind() for kind in usual if kind.needs <= offered), ProceduralConfig())


def _with_pictures(chosen: dict[str, Any], images: str | Path | None, teacher: Teacher) -> dict[str, Any]:
    """Return sections by which a user's pictures are a run's images, and drawn ones where these are too few."""
    if images is None:
        return chosen
    if "synthesis" in chosen:
        message = "The pictures given are the images: leave out the method, and the synthesis section."
        raise RecipeError(message)
    bank = _LARGE["bank"]
    wanted = bank["calibration"] + bank["held_out"] + bank["grading"]
    height, width = teacher.image.shape[1:]
    place = str(Path(images).resolve()) if Path(images).exists() else str(images)
    cut: dict[str, Any] = {"resize": height, "crop": height} if height == width else {}
    found = len(load_images(place, replace(teacher.image, classes=2**31), limit=wanted, **cut))  # labels do not count
    pictures = {"method": ImagesConfig.model_fields["method"].default, "path": place, **cut}
    share = min(1.0, found / wanted)
    drawn = {"method": ProceduralConfig().method, "share": 1.0 - share}
    mixed = {"sources": [{**pictures, "share": share}, drawn]}
    return {"synthesis": pictures if share == 1.0 else mixed, "bank": dict(bank), **chosen}


def _task(named: str | Mapping[str, Any] | None) -> Task | None:
    """Return the task that a caller names; None where the outputs are to tell it."""
    return None if not named else task_of({"name": named} if isinstance(named, str) else named)


def _loaded(
    factory: str, image: ImageSpec | Mapping[str, Any] | None, chosen: dict[str, Any], task: Task | None
) -> Teacher:
    """Load the teacher that a string names; its section of the recipe goes to the others in ``chosen``."""
    try:
        section = TeacherSection(**{**chosen.get("teacher", {}), "factory": factory})
    except ValidationError as error:
        lines = "; ".join(f"teacher.{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise RecipeError(lines) from error
    if not is_stored(factory) and "weights" not in section.model_fields_set:
        message = (
            f"Nothing says which weights '{factory}' has, and nothing is downloaded: they would be random. Give their "
            f"file: `dfqkit quantize FILE --factory {factory}`, in Python options={{'teacher': {{'weights': FILE}}}}. "
            "Where the factory loads them itself, or random ones are meant, say so: --no-weights, or None as the file."
        )
        raise TeacherError(message)
    weights = None if section.weights is None else find_file(section.weights, Path.cwd()).resolve()
    factory = located(factory, lambda name: find_file(name, Path.cwd()).resolve())
    if not isinstance(image, ImageSpec):
        given = {key: value for key, value in (image or {}).items() if value is not None}
        image = ImageSpec.from_dict(require_values(factory, given, section.args, section.weights))
        if not {"shape", "mean", "std"} <= given.keys():
            _LOG.warning("What images '%s' takes is taken from it, where it was not said: %s.", factory, image)
    if "validate" in chosen:
        validation = chosen["validate"]
        sizes = validation_sizes(factory, section.args, section.weights, image.shape, validation)
        chosen["validate"] = {**validation, **sizes}
    stored = section.model_copy(update={"factory": factory, "weights": None if weights is None else str(weights)})
    chosen["teacher"] = stored.model_dump(exclude_defaults=True)
    more: dict[str, Any] = {"factory_args": section.args, "weights_key": section.weights_key}
    return load_teacher(factory, image, weights, task=task, **more)


def _ladder(usual: Sequence[Candidate], given: Mapping[str, Any], minutes: float) -> LadderConfig | None:
    """Return a ladder without what would set otherwise than the caller's ``quant`` section does."""
    left = tuple(each for each in usual if not each.sets.keys() & given.keys())
    return LadderConfig(candidates=left, max_time=minutes) if left else None


def _large(teacher: Teacher, bits: str, quant: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections that suit networks of large images; none where activations have fewer than 8 bits."""
    if bits == _ENOUGH_BITS and quant.get("weight_granularity") != "per_tensor":
        return _LARGE | {"ladder": _ladder(USUAL, quant, 20)}
    if not bits.endswith(_ENOUGH_BITS[2:]):
        return {}
    source = _LARGE_FEW_BITS["synthesis"]
    pulls = teacher.task.name == DEFAULT_TASK.name and source.needed <= provides(teacher)
    drawn = {} if pulls else {"synthesis": ProceduralConfig()}
    return _LARGE_FEW_BITS | drawn | {"ladder": _ladder(FEW_BITS, quant, 10)}


def _recipe(
    teacher: Teacher, bits: str, targets: list[str], sections: Mapping[str, Any], asked: Mapping[str, Any] | None = None
) -> Recipe:
    """Return a recipe for a teacher that is at hand; its weights' fingerprint stands in for a file name.

    ``asked`` is what the scheme must have beyond its section, whatever suits the network.
    """
    of_task = _OBJECTS if teacher.task.name != DEFAULT_TASK.name and "objects" in provides(teacher) else {}
    small = max(teacher.image.shape[1:]) <= _SMALL
    if not of_task and not small and "synthesis" not in sections:
        of_task = _large(teacher, bits, {**sections.get("quant", {}), **(asked or {})})
    floors = (
        [] if of_task is _OBJECTS else [FloorSection(metric=STUDENT_AGREEMENT.name, value=99.5)]
    )  # behind float operators a tie moves a code
    if all(backend_of(get_target(target)) is DEFAULT for target in targets):
        floors.append(FloorSection(metric=INTEGER_OPS.name, value=100.0, unless_kept=True))
    factory = teacher.factory or f"module:{teacher.name}"
    source = sections.get("synthesis") or of_task.get("synthesis") or _usual_source(teacher)
    method = source.get("method") if isinstance(source, Mapping) else source.method
    usual = {
        "distill": None if bits == _ENOUGH_BITS else _DISTILL,
        **of_task,
        "name": f"{teacher.name}/{method or DFQConfig().method}-{bits}",
        "why": "made by dfqkit.quantize",
        "teacher": TeacherSection(factory=factory, weights=f"sha256:{teacher.sha256}"),
        "image": teacher.image.to_dict(),
        **entry_of(teacher.task),
        "target": targets[0] if len(targets) == 1 else targets,
        "synthesis": source,
        "floors": floors,
    }
    scheme = {"bits": bits, **of_task.get("quant", {}), **sections.get("quant", {})}
    return recipe_from({**usual, **sections, "quant": scheme}, "the arguments of dfqkit.quantize")
