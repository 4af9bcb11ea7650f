"""An ONNX file from teacher to int8 file: its names stay, it is found, and what it does not say is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import dfqkit
from dfqkit.cli import main
from dfqkit.config.files import find_recipe
from dfqkit.config.image_of_model import image_values, require_values
from dfqkit.config.reading import load_recipe
from dfqkit.config.untrusted import require_harmless
from dfqkit.students.capture import float_graph
from dfqkit.students.naming import FileNames, tensor_names
from dfqkit.students.nodes import watch
from dfqkit.students.onnx_file import float_model
from dfqkit.teacher.load import load_teacher
from dfqkit_export.errors import RecipeError
from dfqkit_export.tasks import task_of
from tests._messages import names, raises_naming
from tests._onnx_files import file, op, spec, weights

IMAGE = spec(3, 8, 8)
_STORED: Mapping[str, Any] = {
    "w": weights(8, 3, 3, 3),
    **{
        f"n{i}": each for i, each in enumerate((np.ones(8, np.float32), weights(8), weights(8), np.ones(8, np.float32)))
    },
    "h": weights(4, 8, 1, 1),
    "g": weights(6, 8, 1, 1, seed=1),
    "four": [1, -1, 4],
    "six": [1, -1, 6],
}


def two_heads(path: Path) -> Path:
    """A file for one image, whose outputs are called as exporters and layers call tensors, the second layer's first."""
    nodes = [
        op("Conv", "x w", "c", pads=[1] * 4, kernel_shape=[3, 3]),
        op("BatchNormalization", "c n0 n1 n2 n3", "b"),
        op("Relu", "b", "r"),
        op("Conv", "r h", "h1", name="head"),
        op("Transpose", "h1", "t1", perm=[0, 2, 3, 1]),
        op("Reshape", "t1 four", "relu"),
        op("Conv", "r g", "h2"),
        op("Transpose", "h2", "t2", perm=[0, 2, 3, 1]),
        op("Reshape", "t2 six", "head/output"),
    ]
    file(path, nodes, _STORED, shape=(1, 3, 8, 8), outputs=("head/output", "relu"), opset=11)
    model = onnx.load(path)
    model.graph.input[0].name = model.graph.node[0].input[0] = "val_0"
    onnx.save(model, path)
    return path


def test_a_file_keeps_the_names_and_the_order_of_the_file_that_it_came_from(tmp_path: Path) -> None:
    path = two_heads(tmp_path / "net.onnx")
    # The task names them in another order.
    task = task_of({"name": "generic", "names": ("relu", "head/output"), "shapes": ((64, 4), (64, 6))})
    teacher = load_teacher(f"onnx:{path}", IMAGE, task=task)
    graph = float_graph(teacher.model, IMAGE, task, teacher.names)
    written = float_model(graph)
    assert [value.name for value in written.graph.input] == ["val_0"]
    assert [value.name for value in written.graph.output] == ["head/output", "relu"]
    sizes = written.graph.input[0].type.tensor_type.shape.dim
    assert (sizes[0].dim_param, [size.dim_value for size in sizes[1:]]) == ("N", [3, 8, 8])
    made = [name for node in written.graph.node for name in node.output]
    assert len(set(made)) == len(made)
    x = torch.randn(3, 3, 8, 8)
    session = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"val_0": x.numpy()})
    first = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for place in range(2):
        wanted = np.concatenate([first.run(None, {"val_0": x[i : i + 1].numpy()})[place] for i in range(3)])
        np.testing.assert_allclose(found[place], wanted, rtol=1e-4, atol=1e-5)
    # Reports find the tensor of every layer in the file.
    called = tensor_names(graph)
    tensors = {name for node in graph.graph.nodes if (name := called.get(node))}
    assert {"head/output", "relu"} <= tensors
    held: dict[str, Any] = {}
    watch(graph, x, lambda node, value: held.setdefault(called.get(node, ""), value))
    shapes = {value.name: value for value in onnx.shape_inference.infer_shapes(written).graph.value_info}
    for name in set(held) & set(shapes):
        dims = [size.dim_value for size in shapes[name].type.tensor_type.shape.dim]
        assert dims[1:] == list(held[name].shape[1:])


def test_names_of_a_task_that_are_not_the_files_go_by_order() -> None:
    named = FileNames(inputs=("x",), outputs=("save/scale_0", "b"), axes={})
    assert named.of(("logits",)) == ("save/scale_0",)
    assert named.of(("b", "save/scale_0")) == ("b", "save/scale_0")


def test_what_a_file_does_not_say_is_asked_for(tmp_path: Path) -> None:
    path = two_heads(tmp_path / "net.onnx")
    assert image_values(f"onnx:{path}", {}) == {"shape": [3, 8, 8]}
    with raises_naming(RecipeError, "mean, std", "(3, 8, 8)", "as it was trained", "0.485,0.456,0.406"):
        dfqkit.quantize(f"onnx:{path}")
    with raises_naming(RecipeError, "mean, std", "--mean"):
        require_values(f"onnx:{path}", {})
    open_path = file(tmp_path / "open.onnx", [op("Relu", "x", "y")], shape=("N", 3, "h", "w"))
    assert image_values(f"onnx:{open_path}", {}) == {}
    with raises_naming(RecipeError, "shape", "--shape", "(N, 3, h, w)", "choose the size"):
        require_values(f"onnx:{open_path}", {"mean": (0.0,) * 3, "std": (1.0,) * 3})
    with raises_naming(RecipeError, "shape, mean, std", "'x' is (N, 3, h, w)", "choose the size"):
        dfqkit.quantize(f"onnx:{open_path}")
    text = "schema: 1\nname: t\nwhy: w\ntask: generic\nteacher: {factory: 'onnx:open.onnx'}\n"
    text += "synthesis: {method: procedural}\nimage: {mean: [0, 0, 0], std: [1, 1, 1]}\n"
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    with raises_naming(RecipeError, "leaves out image.shape", "(N, 3, h, w)", "choose the size"):
        load_recipe(tmp_path / "r.yaml")
    assert load_recipe(tmp_path / "r.yaml", ["image.shape=[3, 8, 8]"]).image.shape == (3, 8, 8)


def test_inspect_takes_a_file_as_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = two_heads(tmp_path / "net.onnx")
    assert main(["inspect", "--factory", f"onnx:{path}"]) == 2
    names(capsys.readouterr().err, "mean", "std", "as it was trained")


def test_a_strangers_recipe_may_bring_its_network_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DFQKIT_ASSETS", raising=False)
    (tmp_path / "mine").mkdir()
    recipe = Path(shutil.copy(find_recipe("digits/dfq-w8a8-ort"), tmp_path / "mine" / "recipe.yaml"))
    two_heads(tmp_path / "mine" / "net.onnx")
    require_harmless(load_recipe(recipe, ["teacher.factory=onnx:net.onnx", "teacher.weights=null"]))
    for elsewhere in ("/etc/net.onnx", "../net.onnx"):
        with raises_naming(RecipeError, elsewhere, "--untrusted"):
            require_harmless(load_recipe(recipe, [f"teacher.factory=onnx:{elsewhere}", "teacher.weights=null"]))
    (tmp_path / "mine" / "link.onnx").symlink_to(two_heads(tmp_path / "other.onnx"))
    with raises_naming(RecipeError, "link"):
        require_harmless(load_recipe(recipe, ["teacher.factory=onnx:link.onnx", "teacher.weights=null"]))


def test_a_recipe_leaves_out_the_shape_that_its_file_states(tmp_path: Path) -> None:
    two_heads(tmp_path / "net.onnx")
    text = "schema: 1\nname: t\nwhy: w\ntask: generic\nteacher: {factory: 'onnx:net.onnx'}\n"
    text += "synthesis: {method: procedural}\nimage: {mean: [0, 0, 0], std: [1, 1, 1]}\n"
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "r.yaml").image.shape == (3, 8, 8)


@pytest.mark.slow
def test_a_file_is_quantized_by_one_call_and_its_run_goes_on_from_the_stored_recipe(tmp_path: Path) -> None:
    path = two_heads(tmp_path / "net.onnx")
    bank = {"calibration": 64, "held_out": 32, "grading": 64, "batch": 32}
    result = dfqkit.quantize(
        f"onnx:{path}",
        image=replace(IMAGE, mean=(0.5,) * 3),
        task="generic",
        method="procedural",
        out=tmp_path / "run",
        options={"bank": bank, "validate": {"latency_repeats": 2}},
    )
    for name in ("model.onnx", "teacher.onnx"):
        graph = onnx.load(result.folder / name).graph
        assert [value.name for value in (*graph.input, *graph.output)] == ["val_0", "head/output", "relu"]
    assert {row.name for row in result.report.layers} == {"Conv_0", "head", "Conv_6"}
    stored = load_recipe(result.folder / "recipe.yaml")
    assert (stored.teacher.factory, stored.teacher.weights) == (f"onnx:{path}", None)
    assert main(["run", "--resume", str(result.folder)]) in (0, 1)
