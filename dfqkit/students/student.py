"""A student from start to file: built from a teacher, calibrated, stored, loaded again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from brevitas import config as brevitas_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, fx, nn

from dfqkit.config.quant import QuantConfig
from dfqkit.students.calibration import calibrate, correct_bias, settle
from dfqkit.students.equalizing import equalize
from dfqkit.students.placement import quantized_graph
from dfqkit_export.backends.target import Target
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes
from dfqkit_export.images.spec import ImageSpec


def build_student(graph: fx.GraphModule, config: QuantConfig, target: Target, image: ImageSpec) -> fx.GraphModule:
    """Return a fake-quantized copy of a float graph, equalized where the scheme asks for it, not calibrated."""
    return quantized_graph(equalized_graph(graph, config), config, target, image)


def equalized_graph(graph: fx.GraphModule, config: QuantConfig) -> fx.GraphModule:
    """Return the float graph that a scheme quantizes, with its students' features: ``graph`` itself, or a copy.

    Equalization (`equalizing`) scales layers against each other without changing the function.
    """
    return equalize(graph, config.equalize) if config.equalize else graph


def calibrate_student(
    student: fx.GraphModule, batches: Sequence[Tensor], config: QuantConfig, image: ImageSpec
) -> None:
    """Find ranges and, where the scheme asks for it, correct biases on normalised images (n, C, H, W)."""
    calibrate(student, batches, image, learnable=config.scales == "float")
    if config.bias_correction:
        correct_bias(student, batches)
        return
    with torch.no_grad():
        student(batches[0])  # weights' scales enter the state with the first quantized pass, and a file needs them


def save_student(student: nn.Module, path: Path) -> None:
    """Write the tensors of a student, quantized or float; there whole or not at all."""
    write_bytes(path, save({name: value.contiguous().cpu() for name, value in snapshot(student).items()}))


def load_student(student: fx.GraphModule, path: Path, config: QuantConfig) -> None:
    """Load tensors that `save_student` wrote into a student just built with the same scheme.

    Raises:
        ArtefactError: When the file is damaged or belongs to another model.
    """
    try:
        state = load_file(path)
        restore(student, state, config)
    except (OSError, SafetensorError) as error:
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
