"""Teachers that are stored programs: exported ones and TorchScript become networks with layers, for any batch size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dfqkit.teacher.load import Teacher, load_teacher
from dfqkit.teacher.programs import Program
from dfqkit.teacher.structure import provides
from dfqkit_export.errors import TeacherError
from tests._messages import raises_naming
from tests._toys import IMAGE, images, toy


def exported(model: nn.Module, batch: int = 2, *, dynamic: bool = True) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("N", min=1, max=64)},) if dynamic else None
    return torch.export.export(model, (images(batch),), dynamic_shapes=shapes)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["residual", "shuffle"])
@pytest.mark.parametrize("form", ["exported", "script", "trace"])
def test_a_program_computes_what_its_model_did_and_has_its_layers(name: str, form: str) -> None:
    model = toy(name)
    program: Program = (
        exported(model)
        if form == "exported"
        else torch.jit.script(model)
        if form == "script"
        else torch.jit.trace(model, images(1))
    )
    teacher = Teacher.from_module(program, IMAGE)
    x = images(3)
    torch.testing.assert_close(teacher.logits(x), model(x))
    assert provides(teacher) == {"batchnorm", "classes", "linear_head", "features"}
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms == {n for n, m in teacher.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert not any(m.training for m in teacher.model.modules())


def test_a_program_for_one_batch_size_is_one_for_any_where_no_number_stands_for_it() -> None:
    model = toy("residual")
    teacher = Teacher.from_module(exported(model, 1, dynamic=False), IMAGE)
    torch.testing.assert_close(teacher.logits(images(5)), model(images(5)))


def test_a_program_that_fixes_its_batch_size_is_refused() -> None:
    with raises_naming(TeacherError, "batch"):
        Teacher.from_module(exported(toy("shuffle"), 1, dynamic=False), IMAGE)


def test_a_program_exported_in_train_mode_is_refused() -> None:
    with raises_naming(TeacherError, "train mode", "eval()"):
        Teacher.from_module(exported(toy("residual").train(), dynamic=False), IMAGE)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::DeprecationWarning")
def test_files_of_programs_are_factories(tmp_path: Path) -> None:
    model = toy("residual")
    torch.export.save(exported(model), tmp_path / "net.pt2")
    torch.jit.save(torch.jit.script(model), tmp_path / "net.pt")
    for factory in (f"exported:{tmp_path / 'net.pt2'}", f"torchscript:{tmp_path / 'net.pt'}"):
        teacher = load_teacher(factory, IMAGE)
        torch.testing.assert_close(teacher.logits(images(2)), model(images(2)))
        assert (teacher.factory, teacher.weights_source) == (factory, teacher.name)
    with raises_naming(TeacherError, "leave teacher.weights"):
        load_teacher(factory, IMAGE, tmp_path / "net.pt")
    (tmp_path / "net.pt2").write_bytes(b"PK\3\4 no archive")
    for source in ("exported", "torchscript"):
        with raises_naming(TeacherError, "net.pt2", "torch.export.save"):
            load_teacher(f"{source}:{tmp_path / 'net.pt2'}", IMAGE)


class Squeezing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, IMAGE.classes, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).squeeze()  # type: ignore[no-any-return]


def test_a_squeeze_that_eats_the_batch_is_named_with_its_line() -> None:
    with raises_naming(TeacherError, "test_programs.py", "in forward: `return self.conv(x).squeeze()", "flatten(1)"):
        Teacher.from_module(Squeezing(), IMAGE)


def test_a_module_in_train_mode_is_left_so() -> None:
    model = toy("residual").train()
    teacher = Teacher.from_module(model, IMAGE)
    assert all(m.training for m in model.modules())
    assert not any(m.training for m in teacher.model.modules())
