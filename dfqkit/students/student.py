"""A student from start to file: built from a teacher, calibrated, stored, loaded again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from brevitas import config as brevitas_config
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as Layer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.agreeing import agree
from dfqkit.students.calibration import calibrate, correct_bias, settle
from dfqkit.students.equalizing import equalize, equalize_values
from dfqkit.students.layerwise import round_by_layers
from dfqkit.students.measured import collapsing, leave_in_float, unlike
from dfqkit.students.nodes import called
from dfqkit.students.placement import Plan, quantized_graph
from dfqkit.students.placement_rules import WEIGHTED
from dfqkit.students.reconstruction import reconstruct
from dfqkit.students.sensitivity import Imitated, choose_ranges, costly
from dfqkit.students.weight_scales import round_weight_scales
from dfqkit.students.wider_layers import WIDE, LayerBits, layer_bits, widen, wider_layers
from dfqkit_export.backends.target import Target
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes
from dfqkit_export.images.spec import ImageSpec

#: Gives the plan of a student, once some of its tensors (by name, with their reasons) stay in float.
Replan = Callable[[Mapping[str, str]], Plan]
#: Why a tensor stays in float.
COLLAPSED = "8 bits of it alone leave {:.1f} dB of the outputs"
COSTLY = "its 8 bits do {:.0%} of what those of all tensors do to the outputs"
BESIDE = "what computes it or reads it stays in float"
#: Times that it is asked which tensors cost most.
ROUNDS = 3
_KEPT, _BITS = "dfqkit.kept_in_float", "dfqkit.layer_bits"
#: Under which a student's ``meta`` holds the `LayerBits` of the layers that could have more bits, if any did.
LAYER_BITS = "layer_bits"


def build_student(graph: fx.GraphModule, config: QuantConfig, target: Target, image: ImageSpec) -> fx.GraphModule:
    """Return a fake-quantized copy of a float graph, equalized where the scheme asks for it, not calibrated."""
    return quantized_graph(equalized_graph(graph, config), config, target, image)


def equalized_graph(graph: fx.GraphModule, config: QuantConfig, batches: Sequence[Tensor] = ()) -> fx.GraphModule:
    """Return the float graph that a scheme quantizes, with its students' features: ``graph`` itself, or a copy.

    Equalization (`equalizing`) scales layers against each other without changing the function; that of values needs
    images (n, C, H, W), and is left out without any.
    """
    if config.equalize:
        graph = equalize(graph, config.equalize, batches)
    return equalize_values(graph, config.equalize_values, batches) if config.equalize_values and batches else graph


def calibrate_student(  # noqa: PLR0913 - what is measured beside is named, and has defaults
    student: fx.GraphModule,
    batches: Sequence[Tensor],
    config: QuantConfig,
    image: ImageSpec,
    *,
    held_out: Sequence[Tensor] = (),
    replan: Replan | None = None,
    imitated: Imitated | None = None,
    reference: fx.GraphModule | None = None,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Find ranges, round weight scales and, where the scheme asks for it, correct biases on images (n, C, H, W).

    Schemes that choose codes of weights together (`layerwise`), or learn them (`reconstruction`), need the float
    ``reference`` that the student was built from (`equalized_graph`) and, for layers of more bits, images held out;
    without it weights are rounded to nearest.
    ``advance`` is called behind each of those layers, as often as `rounded_layers` says.

    With images ``held_out``, tensors whose 8 bits cost a collapse on them go back to float (`measured.collapsing`), so
    do joined ones of unlike parts (`measured.unlike`), and with them what ``replan``, the student's `placement.plan`
    given such tensors, then leaves in float. They are ``meta["kept"]``, with their reasons. Schemes that choose by the
    outputs ask what is ``imitated``; without it they choose nothing.
    """
    calibrate(student, batches, image, learnable=config.scales == "float")
    agree(student)
    if held_out and replan is not None:
        wanted = {name: COLLAPSED.format(left) for name, left in collapsing(student, held_out).items()}
        _leave(student, wanted | unlike(student, held_out), replan)
    round_weight_scales(student, batches)
    if config.weight_rounding != "nearest" and reference is not None:
        _round_weights(student, reference, batches, config, held_out, imitated, advance)
    elif config.bias_correction:
        correct_bias(student, batches)
    if imitated is not None and config.activation_range == "outputs":
        choose_ranges(student, batches, imitated)
    if imitated is not None and config.costly_in_float < 1 and held_out and replan is not None:
        for _ in range(ROUNDS):  # without the worst the others weigh otherwise
            shares = costly(student, held_out, imitated, config.costly_in_float)
            if not shares:
                break
            _leave(student, {name: COSTLY.format(share) for name, share in shares.items()}, replan)
    if config.reconstruct and reference is not None:
        reconstruct(student, reference, batches, config.reconstruct, advance=advance)


def rounded_layers(graph: fx.GraphModule, config: QuantConfig) -> int:
    """Return how many layers are gone through when the weights of a student of a graph are rounded."""
    modules = dict(graph.named_modules())
    calls = sum(isinstance(called(node, modules), WEIGHTED) for node in graph.graph.nodes)
    solved = 0 if config.weight_rounding == "nearest" else 2 if _widens(config) else 1
    return calls * (solved + bool(config.reconstruct))


def _widens(config: QuantConfig) -> bool:
    return config.eight_bit_share > 0 and config.weight_bits < WIDE


def _round_weights(  # noqa: PLR0913 - those of `calibrate_student`
    student: fx.GraphModule,
    reference: fx.GraphModule,
    batches: Sequence[Tensor],
    config: QuantConfig,
    held_out: Sequence[Tensor],
    imitated: Imitated | None,
    advance: Callable[[], None],
) -> None:
    """Choose the codes of all layers and, where some get more bits for what is seen then, choose them once more."""
    before = snapshot(student)
    again = partial(round_by_layers, student, reference, batches, scales=config.scales == "float", advance=advance)
    errors = {name: error for name, error in again().items() if layer_bits(student, name) == config.weight_bits}
    if not _widens(config) or not errors or imitated is None or not held_out:
        return
    layers = wider_layers(reference, held_out, imitated, errors, config.weight_bits, config.eight_bit_share)
    restore(student, before, config)
    _widen(student, layers)
    again()


def _widen(student: fx.GraphModule, layers: Sequence[LayerBits]) -> None:
    widen(student, [each.layer for each in layers if each.bits == WIDE])
    student.meta[LAYER_BITS] = tuple(layers)


def _leave(student: fx.GraphModule, wanted: Mapping[str, str], replan: Replan) -> None:
    """Leave tensors in float, with what ``replan`` leaves there with them, and note why."""
    if not wanted:
        return
    decided = replan({**student.meta["kept"], **wanted})
    dropped = [name for name, _ in student.get_submodule("quant").named_children() if name not in decided.activations]
    leave_in_float(student, dropped)
    kept = decided.kept | {name: wanted.get(name, BESIDE) for name in dropped}
    student.meta |= {"floats": decided.floats, "kept": kept, "dropped": [*student.meta.get("dropped", ()), *dropped]}


def save_student(student: nn.Module, path: Path) -> None:
    """Write the tensors of a student, quantized or float; there whole or not at all.

    Tensors that a measurement left in float are noted beside them, with their reasons, and layers that got more bits.
    """
    meta = getattr(student, "meta", {})
    noted = {name: meta["kept"][name] for name in meta.get("dropped", ())}
    metadata = {_KEPT: json.dumps(noted, sort_keys=True)} if noted else {}
    if LAYER_BITS in meta:
        metadata[_BITS] = json.dumps([asdict(each) for each in meta[LAYER_BITS]])
    write_bytes(
        path, save({name: value.contiguous().cpu() for name, value in snapshot(student).items()}, metadata or None)
    )


def load_student(student: fx.GraphModule, path: Path, config: QuantConfig) -> None:
    """Load tensors that `save_student` wrote into a student just built with the same scheme.

    Raises:
        ArtefactError: When the file is damaged or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
        noted = _noted(student, found.get(_KEPT, "{}"))
        if _BITS in found:
            _widen(student, _layer_bits(student, found[_BITS]))
        leave_in_float(student, list(noted))
        restore(student, load_file(path), config)
        student.meta |= {"kept": student.meta.get("kept", {}) | noted, "dropped": list(noted)} if noted else {}
    except (OSError, SafetensorError, ValueError) as error:
        message = (
            f"Cannot read the student '{path}': {error}. Delete it and continue the run with `dfqkit run --resume`."
        )
        raise ArtefactError(message) from error
    except RuntimeError as error:
        wrong = [line.strip() for line in str(error).splitlines()[1:3]]
        message = (
            f"The student '{path}' is of another model or scheme: {' '.join(wrong)[:300]} Delete it and continue "
            "the run with `dfqkit run --resume`."
        )
        raise ArtefactError(message) from error


def _noted(student: fx.GraphModule, text: str) -> dict[str, str]:
    """Read which tensors a stored student has in float, and why."""
    noted: Any = json.loads(text)
    quantizers = dict(student.named_modules())
    known = isinstance(noted, dict) and all(f"quant.{name}" in quantizers for name in noted)
    if not known or not all(isinstance(reason, str) for reason in noted.values()):
        message = f"it names tensors in float that the model has no quantizer for: {text[:200]!r}"
        raise ValueError(message)
    return dict(noted)


def _layer_bits(student: fx.GraphModule, text: str) -> list[LayerBits]:
    """Read which layers of a stored student have more bits than the others."""
    layers = {name for name, module in student.named_modules() if isinstance(module, Layer)}
    try:
        found = [LayerBits(**each) for each in json.loads(text)]
    except TypeError as error:
        message = f"what it says of layers' bits is not that: {text[:200]!r}"
        raise ValueError(message) from error
    if unknown := [each.layer for each in found if each.layer not in layers]:
        message = f"it gives bits to '{unknown[0]}', no layer of the model"
        raise ValueError(message)
    return found


def restore(student: fx.GraphModule, state: dict[str, Tensor], config: QuantConfig) -> None:
    """Put tensors into a student, calibrated or just built; its parameters stay the same objects."""
    with torch.no_grad(), _quantizers_kept():
        student.load_state_dict({name: value.clone() for name, value in state.items()})
    settle(student, learnable=config.scales == "float")


@contextmanager
def _quantizers_kept() -> Iterator[None]:
    """Keep Brevitas from making every quantizer anew on loading: an optimizer would go on with the old ones' scales."""
    before = brevitas_config.REINIT_ON_STATE_DICT_LOAD
    brevitas_config.REINIT_ON_STATE_DICT_LOAD = False
    try:
        yield
    finally:
        brevitas_config.REINIT_ON_STATE_DICT_LOAD = before


def snapshot(student: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a student's tensors."""
    with warnings.catch_warnings():
        # Brevitas 0.13 overrides state_dict with positional arguments, of which torch warns.
        warnings.filterwarnings("ignore", "Positional args are being deprecated", FutureWarning)
        return {name: value.detach().clone() for name, value in student.state_dict().items()}
