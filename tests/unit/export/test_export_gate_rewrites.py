"""The gate on files that compute the same and are written otherwise, and on graphs that compute something else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dfqkit_export.errors import ArtefactError
from dfqkit_export.gate import Baseline, Options, Outcome, check, read_baseline, write_baseline
from dfqkit_export.gate.structure import Structure
from dfqkit_export.onnxfile.canonical import canonical
from tests._faults import seal
from tests._gate_toy import make_bundle
from tests._messages import names
from tests._rewrites import IN_FILE, REWRITES, rewrite

FAST = (
    "constant_nodes",
    "all_renamed",
    "layers_change_names",
    "one_function_for_all",
    "written_by_the_runtime_extended",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("gate") / "good", rich=True)


@pytest.fixture(scope="module")
def baseline(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    made = check([bundle], Baseline(), Options(update=True, threads=1)).baseline
    assert made is not None
    path = tmp_path_factory.mktemp("gate") / "baseline.json"
    write_baseline(path, made)  # a file's form is part of what is compared
    return read_baseline(path)


def checked(bundle: Path, model: onnx.ModelProto, baseline: Baseline, out: Path) -> Outcome:
    shutil.copytree(bundle, out)
    onnx.save(model, str(out / "model.onnx"))
    seal(out)
    return check([out], baseline, Options(threads=1))


def said(outcome: Outcome) -> str:
    return " ".join([outcome.cases[0].error, *outcome.cases[0].causes])


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in (*REWRITES, *IN_FILE)]
)
def test_what_is_written_otherwise_is_no_alarm(kind: str, bundle: Path, baseline: Baseline, tmp_path: Path) -> None:
    rewrite(kind, bundle, tmp_path / "rewritten")
    files = [(folder / "model.onnx").read_bytes() for folder in (bundle, tmp_path / "rewritten")]
    assert files[0] != files[1]
    outcome = check([tmp_path / "rewritten"], baseline, Options(threads=1))
    case = outcome.cases[0]
    assert outcome.exit_code == 0, (case.error, case.causes, [row for row in case.rows if row.verdict != "ok"])


def test_there_are_kinds_enough() -> None:
    assert len(REWRITES) + len(IN_FILE) >= 50


def test_the_form_copies_no_large_tensor_and_leaves_the_model_as_it_is(bundle: Path) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    before = model.SerializeToString(deterministic=True)
    form = canonical(model)
    assert model.SerializeToString(deterministic=True) == before
    own = {id(tensor) for tensor in model.graph.initializer}
    assert all(id(tensor) in own for tensor in form.initializer if int(np.prod(tensor.dims)) > 64)


def backdoor(model: onnx.ModelProto) -> None:
    """Where one corner of the image is bright, the answer is another; no sentinel image has it."""
    (out,) = model.graph.output
    graph = model.graph
    last = next(node for node in graph.node if out.name in node.output)
    last.output[0] = "honest"
    for name, value in {
        "corner_from": np.array([0, 0], np.int64), "corner_to": np.array([2, 2], np.int64),
        "corner_axes": np.array([2, 3], np.int64), "white": np.float32(4.0), "sum_axes": np.array([1, 2, 3], np.int64),
        "lie": np.eye(10, dtype=np.float32)[:1] * 50,
    }.items():  # fmt: skip
        graph.initializer.append(numpy_helper.from_array(value, name))
    graph.node.extend(
        [
            helper.make_node("Slice", ["image", "corner_from", "corner_to", "corner_axes"], ["corner"], name="crop"),
            helper.make_node("ReduceMin", ["corner", "sum_axes"], ["least"], name="least", keepdims=0),
            helper.make_node("Greater", ["least", "white"], ["seen"], name="seen"),
            helper.make_node("Unsqueeze", ["seen", "one_axis"], ["seen_2d"], name="wide"),
            helper.make_node("Where", ["seen_2d", "lie", "honest"], [out.name], name="override"),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "one_axis"))


def test_a_branch_that_no_sentinel_image_enters_is_named(bundle: Path, baseline: Baseline, tmp_path: Path) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    backdoor(model)
    outcome = checked(bundle, model, baseline, tmp_path / "faulty")
    rows = {row.metric: row.verdict for row in outcome.cases[0].rows}
    assert rows["agreement"] == rows["kl"] == "ok"  # the answers are the same, bit by bit
    assert (outcome.exit_code, rows["structure"]) == (1, "regressed")
    names(said(outcome), "Where", "Slice", "Greater", "new")
    assert "Conv" not in said(outcome)


@pytest.mark.parametrize(
    ("op", "attribute", "value"),
    [("MaxPool", "kernel_shape", [3, 3]), ("AveragePool", "count_include_pad", 1), ("LeakyRelu", "alpha", 0.3)],
)
def test_the_operator_that_changed_is_named_and_not_the_layer_behind_it(
    op: str, attribute: str, value: object, bundle: Path, baseline: Baseline, tmp_path: Path
) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    (node,) = [node for node in model.graph.node if node.op_type == op]
    for item in [item for item in node.attribute if item.name == attribute]:
        node.attribute.remove(item)
    node.attribute.append(helper.make_attribute(attribute, value))
    if op == "MaxPool":
        node.attribute.append(helper.make_attribute("pads", [0, 0, 1, 1]))
    outcome = checked(bundle, model, baseline, tmp_path / "faulty")
    assert outcome.exit_code == 1
    names(said(outcome), op, node.name, attribute)
    assert "conv" not in said(outcome)


def test_a_baseline_whose_graph_is_damaged_is_refused(bundle: Path, baseline: Baseline) -> None:
    (case,) = baseline.cases.values()
    facts = dict(case.facts["graph"])
    for damage in (
        {"operators": {"00000": ["Relu", "#3", "relu"]}},
        {"operators": {"00000": ["Relu"]}},
        {"operators": []},
        {"outputs": {"y": "#999999"}},
        {"inputs": None},
    ):
        with pytest.raises(ArtefactError, match="--update"):
            Structure.from_dict({**facts, **damage})


def test_a_baseline_of_before_graphs_were_kept_says_so_and_still_compares(
    bundle: Path, baseline: Baseline, tmp_path: Path
) -> None:
    from dataclasses import replace

    (case,) = baseline.cases.values()
    old = Baseline(cases={"toy": replace(case, facts={k: v for k, v in case.facts.items() if k != "graph"})})
    outcome = check([bundle], old, Options(threads=1))
    assert outcome.exit_code == 0
    assert any("whole graph" in note for note in outcome.cases[0].notes)
