"""Reading checkpoints: formats, wrappers, prefixes, refusals and the fingerprint."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dfqkit.teacher.weights import load_weights, sha256_of_weights
from dfqkit_export.errors import TeacherError
from tests._messages import raises_naming


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3), "b": torch.ones(2).half()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_reads_safetensors(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "w.safetensors")
    assert_same(load_weights(tmp_path / "w.safetensors"), state)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PTH"])
@pytest.mark.parametrize("wrappers", [(), ("state_dict",), ("model",), ("model_state_dict",), ("model", "state_dict")])
def test_reads_state_dicts_bare_or_wrapped(
    tmp_path: Path, state: dict[str, Tensor], suffix: str, wrappers: tuple[str, ...]
) -> None:
    content: Any = OrderedDict(state)
    for wrapper in wrappers:
        content = {wrapper: content, "epoch": 3, "best": 0.5}
    torch.save(content, tmp_path / f"w{suffix}")
    assert_same(load_weights(str(tmp_path / f"w{suffix}")), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_takes_wrapper_prefixes_off(tmp_path: Path, state: dict[str, Tensor], prefix: str) -> None:
    torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "w.pt")
    assert_same(load_weights(tmp_path / "w.pt"), state)


def test_keeps_a_layer_that_is_itself_called_module(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(1), "head.weight": torch.ones(2)}
    torch.save(state, tmp_path / "w.pt")
    assert_same(load_weights(tmp_path / "w.pt"), state)


def test_parameters_come_back_without_gradients(tmp_path: Path) -> None:
    torch.save(dict(nn.Linear(2, 2).named_parameters()), tmp_path / "w.pt")
    assert not any(tensor.requires_grad for tensor in load_weights(tmp_path / "w.pt").values())


class Planted:
    """Unpickling it would create a file: proof that nothing in a pickle runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Planted(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"other than tensors.*torch\.save\(model\.state_dict\(\)"):
        load_weights(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused_and_the_way_out_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=r"the first is torch\.nn\.modules\.linear\.Linear.*safetensors") as caught:
        load_weights(tmp_path / "w.pth")
    assert "weights_only=False" not in str(caught.value)  # torch's own message advises it


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({}, "no tensor at all"),
        ({"state_dict": {}}, "no tensor at all"),
        ({"a": torch.ones(2), "epoch": 3, "lr": 0.1}, r"'epoch' \(int\), 'lr' \(float\) beside its tensors"),
        ({i: torch.ones(1) for i in range(5)}, r"0 \(Tensor\), 1 \(Tensor\), 2 \(Tensor\) and 2 more"),
        ({"net": {"a": torch.ones(2)}}, r"'net' \(dict\)"),
    ],
)
def test_tensors_that_are_not_a_state_dict_are_refused(tmp_path: Path, content: object, found: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=found):
        load_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04cut"])
def test_damaged_files_are_reported(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TeacherError, match=name):
        load_weights(tmp_path / name)


def test_a_truncated_checkpoint_is_reported(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:2000])
    with pytest.raises(TeacherError, match="cannot be read"):
        load_weights(tmp_path / "w.pt")


def test_a_torchscript_archive_is_reported(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"cannot be read.*TorchScript archive"):
        load_weights(tmp_path / "w.pt")


def test_absent_and_unknown_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="No weights file at"):
        load_weights(tmp_path / "none.pt")
    (tmp_path / "w.h5").touch()
    with pytest.raises(TeacherError, match=r"'\.h5'.*\.safetensors, \.pt and \.pth"):
        load_weights(tmp_path / "w.h5")


class TestSeveralSets:
    """A file in which averaged weights stand beside trained ones is asked about, and each can be chosen."""

    @pytest.fixture
    def other(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value + 1 for name, value in state.items()}

    @pytest.mark.parametrize(
        ("usual", "beside"),
        [
            ("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "state_dict"),
            ("model_state_dict", "teacher"), ("state_dict", "callbacks.EMA.weights"),
        ],
    )  # fmt: skip
    def test_they_are_listed_and_chosen_by_name(
        self, tmp_path: Path, state: dict[str, Tensor], other: dict[str, Tensor], usual: str, beside: str
    ) -> None:
        content: dict[str, Any] = {usual: state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(())}}}}
        *above, last = beside.split(".")
        inner = content
        for name in above:
            inner = inner.setdefault(name, {})
        inner[last] = other
        torch.save(content, tmp_path / "w.pt")
        with raises_naming(
            TeacherError, "2 sets", f"{usual} (3 tensors", f"{beside} (3 tensors", "teacher.weights_key"
        ):
            load_weights(tmp_path / "w.pt")
        assert_same(load_weights(tmp_path / "w.pt", usual), state)
        assert_same(load_weights(tmp_path / "w.pt", beside), other)
        with raises_naming(TeacherError, "'wrong'", usual, beside):
            load_weights(tmp_path / "w.pt", "wrong")

    def test_names_of_an_average_may_be_written_otherwise(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        average = {f"module.{name}": value + 1 for name, value in state.items()} | {"n_averaged": torch.tensor(5)}
        flat = {name.replace(".", ""): value + 1 for name, value in state.items()}
        for other in (average, flat):
            torch.save({"model": state, "swa": other}, tmp_path / "w.pt")
            with raises_naming(TeacherError, "model (3", "swa ("):
                load_weights(tmp_path / "w.pt")

    def test_what_is_no_rival_is_passed_over(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        criterion = {"weight": torch.ones(10), "margin": torch.ones(())}
        same = {f"module.{name}": value.clone() for name, value in state.items()}
        torch.save({"state_dict": state, "criterion": criterion, "state_dict_ema": same}, tmp_path / "w.pt")
        assert_same(load_weights(tmp_path / "w.pt"), state)

    @pytest.mark.parametrize("place", ["shadow_params", "ema.shadow_params", "averages"])
    def test_averages_in_the_order_of_the_parameters(self, tmp_path: Path, place: str) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3))
        state = model.state_dict()
        averaged = [value.detach() + 1 for value in model.parameters()]
        inner = {place.rpartition(".")[2]: averaged}
        content = {"state_dict": state, "losses": [torch.ones(()), torch.ones(())]}
        torch.save({**content, **({"ema": inner} if "." in place else inner)}, tmp_path / "w.pt")
        with raises_naming(TeacherError, "2 sets", "state_dict (9 tensors", f"{place} (6 tensors"):
            load_weights(tmp_path / "w.pt")
        assert_same(load_weights(tmp_path / "w.pt", "state_dict"), state)
        chosen = load_weights(tmp_path / "w.pt", place)
        model.load_state_dict(chosen)
        assert all(torch.equal(one, other) for one, other in zip(model.parameters(), averaged, strict=True))
        assert torch.equal(chosen["1.running_mean"], state["1.running_mean"])

    def test_averages_that_fit_no_names_are_refused_when_chosen(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        averaged = list(state.values())
        torch.save({"state_dict": state, "shadow_params": averaged}, tmp_path / "w.pt")
        assert_same(load_weights(tmp_path / "w.pt"), state)
        for found in (averaged[:-1], averaged[::-1]):
            torch.save({"state_dict": state, "shadow_params": found}, tmp_path / "w.pt")
            with raises_naming(TeacherError, "2 sets", f"shadow_params ({len(found)} tensors"):
                load_weights(tmp_path / "w.pt")
            with raises_naming(TeacherError, "without names", "the 3 parameters of state_dict", "copy_to"):
                load_weights(tmp_path / "w.pt", "shadow_params")
        torch.save({"shadow_params": averaged}, tmp_path / "w.pt")
        with raises_naming(TeacherError, "no state dict beside it"):
            load_weights(tmp_path / "w.pt", "shadow_params")

    def test_a_prefix_chooses_too(self, tmp_path: Path, state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
        both = {
            f"{part}.{name}": v for part, found in (("student", state), ("teacher", other)) for name, v in found.items()
        }
        save_file(both, tmp_path / "w.safetensors")
        assert_same(load_weights(tmp_path / "w.safetensors", "teacher"), other)

    def test_a_set_under_a_name_of_its_own_is_told(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        torch.save({"net": state}, tmp_path / "w.pt")
        with raises_naming(TeacherError, "net (3 tensors", "teacher.weights_key"):
            load_weights(tmp_path / "w.pt")
        assert_same(load_weights(tmp_path / "w.pt", "net"), state)


def test_fingerprint_follows_its_definition() -> None:
    state = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor(7)}
    wanted = hashlib.sha256()
    for name, dtype, array in (("a", "int64", state["a"].numpy()), ("b", "float32", state["b"].numpy())):
        wanted.update(json.dumps([name, dtype, list(array.shape)]).encode() + b"\n" + array.tobytes())
    assert sha256_of_weights(state) == wanted.hexdigest()


def test_fingerprint_depends_on_everything_but_order_and_layout(state: dict[str, Tensor]) -> None:
    original = sha256_of_weights(state)
    assert sha256_of_weights(dict(reversed(state.items()))) == original
    assert sha256_of_weights({**state, "a.weight": state["a.weight"].t().contiguous().t()}) == original
    changed = [
        {**state, "b": state["b"].float()},
        {**state, "a.weight": state["a.weight"].view(3, 2)},
        {**state, "a.weight": state["a.weight"] + 1e-6},
        {"c" if name == "b" else name: tensor for name, tensor in state.items()},
        {name: tensor for name, tensor in state.items() if name != "b"},
    ]
    assert len({original, *map(sha256_of_weights, changed)}) == 6


def test_fingerprint_takes_every_dtype() -> None:
    for dtype in (torch.bfloat16, torch.bool, torch.int8, torch.complex64):
        assert len(sha256_of_weights({"x": torch.zeros(3).to(dtype), "empty": torch.zeros(0).to(dtype)})) == 64
