"""Files of known drop, good and broken: what `verdicts` judges.

What belongs here: making them. Images come from recipes with few steps, one set for every scheme of bits; what is
broken is broken in the recipe, in the images that calibrate, or in the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from dfqkit.config.quant import QuantConfig
from dfqkit.config.reading import load_recipe, recipe_from
from dfqkit.config.recipe import Recipe
from dfqkit.images import ImageBank
from dfqkit.progress import silent
from dfqkit.run.answering import real_images
from dfqkit.run.context import teacher_of
from dfqkit.run.execution import execute, run_facts
from dfqkit.run.folder import RunFolder
from dfqkit.students.capture import float_graph
from dfqkit.students.freezing import freeze
from dfqkit.students.onnx_file import write_float, write_qdq
from dfqkit.students.student import build_student, calibrate_student, equalized_graph
from dfqkit.teacher.load import Teacher
from dfqkit_export.backends import DEFAULT_TARGET
from dfqkit_export.images.labelled import LabelledImages
from tests._faults import IN_MODEL, VARIANTS
from tests._qdqfile import File as Editor
from tests.benchmarks.estimate_faults import FAULTS, File

SETTINGS = ("bank.calibration=128", "bank.held_out=16", "bank.grading=128", "distill=null", "floors=[]")
#: How much of each method is enough for ranges that fit.
FEW = {"zeroq": ("synthesis.steps=40",), "metadata": ("synthesis.steps=60",), "dfq": ("synthesis.warmup=60",)}
FD_MOBILENET: dict[str, Any] = {
    "schema": 1,
    "name": "imagenet-fdmobilenet/images",
    "why": "a network of depthwise convolutions",
    "teacher": {"factory": "dfqkit.models:fd_mobilenet_05", "weights": "imagenet_fdmobilenet_0.5x.safetensors"},
    "image": {
        "shape": [3, 224, 224], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "classes": 1000,
    },
    "target": "onnxruntime",
    "synthesis": {"method": "zeroq", "batch": 16, "steps": 30},
    "bank": {"batch": 32},
    "validate": {"data": "imagenet_val1300_227.zip", "resize": 256, "crop": 224},
}  # fmt: skip
FEW_BITS = ("w8a8", "w6a8", "w8a6", "w7a7")
#: Ranges that need no search, for networks that take long.
FAST = {"weight_range": "max", "activation_range": "percentile"}
ALL_BITS = ("w8a8", "w6a8", "w5a8", "w4a8", "w8a6", "w8a5", "w6a6")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is made of a teacher: methods and seeds of images, bits, and how many test images tell the truth."""

    methods: Sequence[str]
    seeds: Sequence[int] = (0,)
    bits: Sequence[str] = ALL_BITS
    limit: int = 1000
    faults: int = 2
    fast: bool = False


PLANS = {
    "digits": Plan(methods=("images", "zeroq", "metadata", "dfq", "noise"), seeds=(0, 1)),
    "cifar10-resnet20": Plan(methods=("images", "zeroq", "noise"), bits=FEW_BITS, fast=True),
    "cifar10-resnet32": Plan(methods=("images", "zeroq"), bits=FEW_BITS, faults=1, fast=True),
    "imagenet-fdmobilenet": Plan(methods=("images",), bits=FEW_BITS, limit=300, faults=0, fast=True),
}
#: Schemes that must lose, each some fields of `QuantConfig`.
WRECKS: dict[str, dict[str, Any]] = {
    "w2a2": {"bits": "w2a2"},
    "w2a8": {"bits": "w2a8"},
    "w3a3": {"bits": "w3a3"},
    "w3a8": {"bits": "w3a8"},
    "w4a3": {"bits": "w4a3"},
    "w4a4": {"bits": "w4a4"},
    "w8a3": {"bits": "w8a3"},
    "w8a4": {"bits": "w8a4"},
    "w2a2, edges too": {"bits": "w2a2", "first_last": None, "elementwise": None},
    "w3a4, edges too": {"bits": "w3a4", "first_last": None, "elementwise": None},
    "half of the values clipped": {"activation_range": "percentile", "percentile": 51},
    "a fifth of the values clipped": {"activation_range": "percentile", "percentile": 80},
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A file: what it is, "good", "wreck" or "fault", and the images that grade it."""

    teacher: str
    method: str
    seed: int
    kind: str
    name: str
    model: Path

    @property
    def key(self) -> str:
        """Its name among all."""
        return f"{self.teacher} {self.method} s{self.seed} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Maker:
    """A teacher, and what is made of it, in a folder."""

    name: str
    out: Path
    plan: Plan
    _banks: dict[tuple[str, int], tuple[ImageBank, ImageBank]] = field(default_factory=dict)

    @cached_property
    def teacher(self) -> Teacher:
        """The float network."""
        return teacher_of(self.recipe(self.plan.methods[0]))

    @cached_property
    def test(self) -> LabelledImages:
        """The images that tell the truth."""
        found = real_images(self.recipe(self.plan.methods[0]), limit=self.plan.limit)
        if found is None:
            message = f"{self.name} has no labelled images."
            raise ValueError(message)
        return found

    @cached_property
    def float_file(self) -> Path:
        """The teacher as a file."""
        path = self.out / self.name / "teacher.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        graph = float_graph(self.teacher.model, self.teacher.image, self.teacher.task)
        write_float(graph, path, metadata={}, opset=DEFAULT_TARGET.opset)
        return path

    def recipe(self, method: str, seed: int = 0) -> Recipe:
        """The recipe whose synthesis makes the images."""
        settings = [*SETTINGS, f"seed={seed}", *FEW.get(method, ())]
        if self.name != "imagenet-fdmobilenet":
            return load_recipe(f"{self.name}/{method}-w8a8-ort", settings)
        section = FD_MOBILENET["synthesis"]
        if method == "images":
            section = {"method": "images", "path": "imagenet_val1300_227.zip", "resize": 256, "crop": 224}
        settings = [setting for setting in settings if "steps" not in setting]
        return recipe_from({**FD_MOBILENET, "synthesis": section}, "the benchmark", settings)

    def banks(self, method: str, seed: int) -> tuple[ImageBank, ImageBank]:
        """The images that calibrate and those that grade, made once."""
        if (method, seed) not in self._banks:
            recipe, path = self.recipe(method, seed), self.out / self.name / f"{method}-{seed}"
            folder = RunFolder.create(
                path, recipe_text=recipe.to_yaml(), digest=recipe.digest(), facts=run_facts(recipe)
            )
            with folder:
                execute(folder, recipe, ["synthesize"], device="cpu", progress=silent(), teacher=self.teacher)
            sets = (ImageBank.load(path / "images" / f"{part}.safetensors") for part in ("calibration", "grading"))
            self._banks[method, seed] = next(sets), next(sets)
        return self._banks[method, seed]

    def files(self) -> Iterator[Made]:
        """Make everything; what is there already is not made again."""
        for method in self.plan.methods:
            for seed in self.plan.seeds if method != "noise" else (0,):
                for bits in self.plan.bits:
                    yield self._quantized(method, seed, "good", bits, {"bits": bits})
        first = self.plan.methods[0]
        for name, scheme in WRECKS.items():
            yield self._quantized(first, 0, "wreck", name, scheme)
        for name, change in SPOILED.items():
            yield self._quantized(first, 0, "wreck", name, {"bits": "w8a8"}, change)
        for method in self.plan.methods[: self.plan.faults]:
            yield from self._faults(method)

    def _quantized(
        self,
        method: str,
        seed: int,
        kind: str,
        name: str,
        scheme: dict[str, Any],
        change: Callable[[Tensor], Tensor] = lambda codes: codes,
    ) -> Made:
        slug = name.replace(", ", "-").replace(" ", "-")
        path = self.out / self.name / f"{method}-{seed}" / f"{slug}.onnx"
        if not path.exists():
            config, image = QuantConfig(**(FAST if self.plan.fast else {}) | scheme), self.teacher.image
            graph = float_graph(self.teacher.model, image, self.teacher.task)
            student = build_student(equalized_graph(graph, config), config, DEFAULT_TARGET, image)
            codes = change(self.banks(method, seed)[0].images)
            batches = [image.normalize(part.float() / 255) for part in codes.split(64)]
            calibrate_student(student, batches, config, image)
            freeze(student)
            write_qdq(student, DEFAULT_TARGET, path.with_suffix(".part"), metadata={})
            path.with_suffix(".part").rename(path)
        return Made(teacher=self.name, method=method, seed=seed, kind=kind, name=name, model=path)

    def _faults(self, method: str) -> Iterator[Made]:
        good = self.out / self.name / f"{method}-0" / "w8a8.onnx"
        for name, put in faults().items():
            path = good.with_name(f"fault-{name.replace(' ', '-')}.onnx")
            if not path.exists():
                model = put(onnx.load(good), f"{self.name} {method} {name}")
                onnx.save(model, path)
            yield Made(teacher=self.name, method=method, seed=0, kind="fault", name=name, model=path)


def _noise(codes: Tensor) -> Tensor:
    return torch.randint(0, 256, codes.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


#: What may be wrong with the images that calibrate.
SPOILED: dict[str, Callable[[Tensor], Tensor]] = {
    "calibrated on dark images": lambda codes: (codes.float() * 0.1).to(torch.uint8),
    "calibrated on one grey": lambda codes: torch.full_like(codes, 110),
    "calibrated on one image": lambda codes: codes[:1].expand_as(codes).contiguous(),
    "calibrated on uniform noise": _noise,
    "calibrated on inverted images": lambda codes: 255 - codes,
}


def faults() -> dict[str, Callable[[onnx.ModelProto, str], onnx.ModelProto]]:
    """What may be wrong with a file, by name: each takes one, and a text to draw a layer by."""
    found: dict[str, Callable[[onnx.ModelProto, str], onnx.ModelProto]] = {}
    for name, inject in (IN_MODEL | VARIANTS).items():
        if name != "noise_calibration":  # the same as unmarked, but that it says so

            def edited(model: onnx.ModelProto, _: str, inject: Any = inject) -> onnx.ModelProto:
                file = Editor(model)
                inject(file)
                return file.model

            found[name] = edited
    for name, (apply, strengths) in FAULTS.items():
        for strength in strengths:

            def weakened(
                model: onnx.ModelProto, text: str, apply: Any = apply, strength: float = strength
            ) -> onnx.ModelProto:
                seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
                rng, file = np.random.default_rng(seed), File(model)
                apply(file, int(rng.integers(1 << 16)), strength, rng)
                return file.model

            found[f"{name} {strength:g}"] = weakened
    found |= {name: _everywhere(change) for name, change in EVERYWHERE.items()}
    return found


def _everywhere(change: Callable[[Editor], None]) -> Callable[[onnx.ModelProto, str], onnx.ModelProto]:
    def edited(model: onnx.ModelProto, _: str) -> onnx.ModelProto:
        file = Editor(model)
        change(file)
        return file.model

    return edited


def _biases_lost(file: Editor) -> None:
    for layer in file.layers[:-1]:
        bias = file.bias(layer)
        if bias is not None:
            file.put(bias, 0, np.zeros_like(file.value(bias.input[0])))


def _zeroed(file: Editor) -> None:
    layer = file.middle
    codes, scale = file.codes_scale(layer)
    file.reweigh(layer, np.zeros_like(codes), scale)


def _saturated(file: Editor) -> None:
    for layer in file.layers:
        pair = file.pair_after(layer)
        if pair:
            file.put_scale(pair, float(file.value(pair[0].input[1])) / 6)


def _input_scale(factor: float) -> Callable[[Editor], None]:
    def change(file: Editor) -> None:
        first = next(node for node in file.graph.node if node.op_type == "QuantizeLinear")
        file.put_scale([first, *file.dequantizers(first)], float(file.value(first.input[1])) * factor)

    return change


def _permuted(file: Editor) -> None:
    layer = file.layers[-2]
    codes, scale = file.codes_scale(layer)
    order = np.random.default_rng(5).permutation(len(codes))
    file.reweigh(layer, codes[order], scale[order] if scale.size > 1 else scale)


def _sign_lost(file: Editor) -> None:
    layer = file.middle
    codes, scale = file.codes_scale(layer)
    file.reweigh(layer, np.abs(codes), scale)


def _head_scaled(file: Editor) -> None:
    layer = file.layers[-1]
    codes, scale = file.codes_scale(layer)
    factors = np.exp(np.random.default_rng(6).normal(0, 0.5, scale.shape))
    file.reweigh(layer, codes, scale * factors)


EVERYWHERE: dict[str, Callable[[Editor], None]] = {
    "biases lost everywhere": _biases_lost,
    "a layer of zeros": _zeroed,
    "activations saturated": _saturated,
    "input scale times 4": _input_scale(4.0),
    "input scale by 4": _input_scale(0.25),
    "rows of a layer permuted": _permuted,
    "signs of weights lost": _sign_lost,
    "classes scaled apart": _head_scaled,
}
