"""What is done for a GPU, as far as a machine without one shows it."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqkit.images.bank import _moved
from dfqkit.run.context import on_device, resolve_device
from dfqkit.students.student import snapshot
from dfqkit.training.quantized_student import QuantizedStudentTrainer
from dfqkit.training.ranks import Ranks
from dfqkit_export.errors import RecipeError
from tests._toys import toy_teacher
from tests.unit.test_distill import distiller, same

SETTING: dict[str, Any] = {"batch": 8, "steps": 4, "average": 0.5}


def full_above(images: int, patch: pytest.MonkeyPatch) -> None:
    """Let memory hold a step on so many images."""
    real = QuantizedStudentTrainer._terms

    def limited(self: QuantizedStudentTrainer, index: int, batch: Tensor) -> dict[str, Tensor]:
        if len(batch) > images:
            message = "CUDA out of memory."
            raise torch.OutOfMemoryError(message)
        return real(self, index, batch)

    patch.setattr(QuantizedStudentTrainer, "_terms", limited)


def test_a_step_that_memory_does_not_hold_is_taken_in_pieces(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = distiller(**SETTING)
    terms = [whole.run_step() for _ in range(4)]
    full_above(3, monkeypatch)
    limited = distiller(**SETTING)
    with caplog.at_level(logging.WARNING):
        first = limited.run_step()
    assert limited.pieces == 4
    assert [record.getMessage() for record in caplog.records if record.name == "dfqkit.training.loop"] == [
        f"Memory does not hold a step on 8 images: they are taken in {pieces} pieces from now on, as one batch."
        for pieces in (2, 4)
    ]
    assert first == pytest.approx(terms[0], rel=1e-5)
    tensors, values = limited.state()
    again = distiller(**SETTING)
    again.load_state(tensors, json.loads(json.dumps(values)))
    assert again.pieces == 4
    assert again.run_step() == limited.run_step() == pytest.approx(terms[1], rel=1e-3)
    assert same(snapshot(again.students[0]), snapshot(limited.students[0]))


def test_a_step_that_no_piece_makes_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    full_above(1, monkeypatch)
    with pytest.raises(RecipeError, match=r"step on 2 images \(CUDA out of memory.\). Lower distill.batch \(now 8\)"):
        distiller(**SETTING).run_step()
    shared = distiller(**SETTING)
    shared.ranks = Ranks(world=2)
    with pytest.raises(RecipeError, match="step on 4 images"):
        shared.run_step()


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_gpu")
def test_kernels_are_deterministic_and_round_as_float32_does() -> None:
    assert resolve_device("auto").type == "cuda"
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cuda.matmul.allow_tf32
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


def test_convolutions_have_channels_last_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = toy_teacher("option_a")
    asked = []
    monkeypatch.setattr(copy, "deepcopy", lambda model: model)
    monkeypatch.setattr(nn.Module, "to", lambda self, *given, **named: asked.append((given, named)) or self)
    on_device(teacher, torch.device("cpu"))
    assert asked == []  # it is there already
    on_device(teacher, torch.device("cuda"))
    assert asked == [((torch.device("cuda"),), {}), ((), {"memory_format": torch.channels_last})]


def test_images_go_to_a_gpu_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values, asked = torch.zeros(2), []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: asked.append("pinned") or self)
    monkeypatch.setattr(Tensor, "to", lambda self, *given, **named: asked.append((given, named)) or self)
    _moved(values, "cpu")
    _moved(values, "cuda")
    assert asked == [(("cpu",), {}), "pinned", (("cuda",), {"non_blocking": True})]
