"""Reading checkpoints: from a file on disk to a flat dictionary of tensors, and that dictionary's fingerprint.

What belongs here: file formats, the wrappers and prefixes that training scripts leave around a state dict, and
hashing. Whether the tensors fit a model is `teacher`'s question.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # only to name what torch.load(weights_only=True) raises; nothing is unpickled here

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dfqkit.teacher.weight_sets import CHOOSE, WRAPPERS, listed_sets, weight_set
from dfqkit_export.errors import TeacherError
from dfqkit_export.words import first_line, some

_RESAVE = (
    "Where the model's code is at hand, load it there and save the tensors alone: "
    "torch.save(model.state_dict(), 'weights.pt') or "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
)


def load_weights(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Read a checkpoint's tensors by name, on the CPU, in their own dtypes, without running any code in the file.

    Wrappers `model_state_dict`, `state_dict` and `model` are opened, and a file that has other weights of the same
    network beside them, such as averaged ones, is refused unless ``key`` says which: the place of a set (``model_ema``,
    ``model.state_dict``), or what its names begin with. The prefix `module.` (DataParallel) goes when
    every name has it; `_orig_mod.` (torch.compile) goes wherever it stands.
    """
    path = Path(path)
    if not path.is_file():
        message = f"No weights file at '{path}'. Check the path; a relative one is looked up from {Path.cwd()}."
        raise TeacherError(message)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        content: object = _read_safetensors(path)
    elif suffix in {".pt", ".pth"}:
        content = _read_torch(path)
    else:
        message = f"Weights file '{path}' ends in '{path.suffix}'. Allowed are .safetensors, .pt and .pth. {_RESAVE}"
        raise TeacherError(message)
    chosen = weight_set(content, path, key)
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in _tensors(chosen, path).items()}
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: tensor.detach() for name, tensor in state.items()}


def sha256_of_weights(state: Mapping[str, Tensor]) -> str:
    """Fingerprint tensors by name, dtype, shape and bytes, in hexadecimal digits, whatever their order and device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        header = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
        digest.update(header.encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        message = f"Weights file '{path}' is not a readable safetensors file ({error}). Copy or download it again."
        raise TeacherError(message) from error


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a TorchScript archive warns before it raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"the first is {found[1]}" if found else "for example a whole pickled model"
        message = (
            f"Weights file '{path}' holds Python objects other than tensors ({what}). dfqkit never unpickles code; it "
            f"reads a state dict. {_RESAVE}"
        )
        raise TeacherError(message) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        # torch's advice goes on to suggest weights_only=False, which a user of this package must not follow.
        reason = first_line(error).partition(". ")[0]
        message = (
            f"Weights file '{path}' cannot be read ({type(error).__name__}: {reason}). Allowed is a file "
            f"that torch.save wrote from a state dict; a TorchScript archive or a truncated download is not. {_RESAVE}"
        )
        raise TeacherError(message) from error


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    wrappers = ", ".join(WRAPPERS)
    needed = f"Needed is a dictionary of named tensors (a state dict), bare or under one of {wrappers}. {_RESAVE}"
    inside = listed_sets(content)
    if inside:
        needed = f"Sets of weights in it: {inside}. Choose one with {CHOOSE}. {needed}"
    if not isinstance(content, Mapping):
        message = f"Weights file '{path}' holds a {type(content).__name__}. {needed}"
        raise TeacherError(message)
    others = [
        f"{key!r} ({type(value).__name__})"
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if others or not content:
        found = f"{some(others, 3)} beside its tensors" if others else "no tensor at all"
        message = f"Weights file '{path}' holds {found}. {needed}"
        raise TeacherError(message)
    return dict(content)
