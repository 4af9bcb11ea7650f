"""Sixteen ways in which a quantized file goes wrong, each as an edit of a QDQ file or of a bundle's folder.

What belongs here: injectors that know ONNX and numpy alone. They leave a file that loads (but for the truncated one)
and a manifest whose hashes fit, so that what notices them has to look at what the file computes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from dfqkit_export.images.tensors import read_tensors, write_tensors
from tests._qdqfile import File


def swapped_channels(file: File) -> str:
    layer = file.layers[0]
    codes, scale = file.codes_scale(layer)
    file.reweigh(layer, codes[:, ::-1], scale)
    return ""


def scaled_weights(factor: float) -> Callable[[File], str]:
    def inject(file: File) -> str:
        layer = file.middle
        weight = file.weight(layer)
        assert weight is not None
        scale = file.value(weight.input[1])
        file.put(weight, 1, scale * np.asarray(factor, scale.dtype))
        return layer.name

    return inject


def scaled_activation(factor: float) -> Callable[[File], str]:
    def inject(file: File) -> str:
        layer = file.middle
        pair = file.pair_after(layer)
        file.put_scale(pair, float(file.value(pair[0].input[1])) * factor)
        return layer.name

    return inject


def uncalibrated(file: File) -> str:
    """The output quantizer of one layer keeps the scale that it was made with, 1."""
    layer = file.middle
    file.put_scale(file.pair_after(layer), 1.0)
    return layer.name


def noise_calibrated(file: File) -> str:
    """Every activation range is the one that standard normal noise gives, biases in codes of the new scales."""
    import onnxruntime

    quantizers = [n for n in file.graph.node if n.op_type == "QuantizeLinear" and file.initializer(n.input[0]) is None]
    seen = copy.deepcopy(file.model)
    have = {o.name for o in seen.graph.output} | {i.name for i in seen.graph.input}
    for node in quantizers:
        if node.input[0] not in have:
            seen.graph.output.append(helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
            have.add(node.input[0])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(seen.SerializeToString(), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 32 for size in entry.shape]
    noise = np.random.default_rng(0).standard_normal((shape[0], *shape[1:])).astype(np.float32)
    names = [o.name for o in session.get_outputs()]
    values = dict(zip(names, session.run(names, {entry.name: noise}), strict=True)) | {entry.name: noise}
    before = {node.output[0]: _input_scale(file, node) for node in file.layers}
    for node in quantizers:
        zero = file.value(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
        top = float(np.abs(values[node.input[0]]).max()) or 1.0
        codes = np.iinfo(zero.dtype).max - int(zero.reshape(-1)[0])
        file.put_scale([node, *file.dequantizers(node)], top / codes)
    for layer in file.layers:
        bias = file.bias(layer)
        if bias is not None:
            file.rescale_bias(bias, np.asarray(_input_scale(file, layer) / before[layer.output[0]]))
    return ""


def _input_scale(file: File, layer: onnx.NodeProto) -> float:
    node = file.producer(layer.input[0])
    while node is not None and node.op_type != "DequantizeLinear":
        node = file.producer(node.input[0])
    return float(file.value(node.input[1]).reshape(-1)[0]) if node is not None else 1.0


def marked_as_noise(file: File) -> str:
    noise_calibrated(file)
    _set_metadata(file.model, "dfqkit.synthesizer", "noise")
    return ""


def per_tensor(file: File) -> str:
    for layer in file.layers:
        codes, scale = file.codes_scale(layer)
        weights = codes * file.per_channel(layer, scale)
        one = np.abs(weights).max() / 127
        file.reweigh(layer, np.clip(np.rint(weights / one), -128, 127), np.asarray(one))
    return ""


def batchnorm_misfolded(file: File) -> str:
    """One layer's channels lack the factor gamma / sigma that folding gives them; the bias has its own already."""
    layer = file.middle
    codes, scale = file.codes_scale(layer)
    factors = np.exp(np.random.default_rng(1).normal(0, 0.5, scale.shape))
    file.reweigh(layer, codes, scale * factors)
    return layer.name


def bias_dropped(file: File) -> str:
    layer = file.middle
    del layer.input[2:]
    return layer.name


def bias_zeroed(file: File) -> str:
    layer = file.middle
    bias = file.bias(layer)
    assert bias is not None
    file.put(bias, 0, np.zeros_like(file.value(bias.input[0])))
    return layer.name


def swapped_classes(file: File) -> str:
    layer = file.layers[-1]
    weight, bias = file.weight(layer), file.bias(layer)
    assert weight is not None
    codes, scale = file.value(weight.input[0]), file.value(weight.input[1])
    across = next((a.i for a in layer.attribute if a.name == "transB"), 0)
    order = np.arange(codes.shape[0] if across else codes.shape[1])
    order[[3, 5]] = 5, 3
    file.put(weight, 0, np.take(codes, order, 0 if across else 1))
    if scale.size > 1:
        file.put(weight, 1, scale[order])
    if bias is not None:
        file.put(bias, 0, file.value(bias.input[0])[order])
        if file.value(bias.input[1]).size > 1:
            file.put(bias, 1, file.value(bias.input[1])[order])
    return layer.name


def floored(file: File) -> str:
    """Rounding down: about half of all codes are one less. Which half is drawn, for the weights are not at hand."""
    rng = np.random.default_rng(2)
    for layer in file.layers:
        codes, scale = file.codes_scale(layer)
        file.reweigh(layer, np.maximum(codes - (rng.random(codes.shape) < 0.5), -128), scale)
    return ""


def other_checkpoint(file: File) -> str:
    """All weights as of an earlier epoch: each layer's differ by a sixth of their size."""
    rng = np.random.default_rng(3)
    for layer in file.layers:
        codes, scale = file.codes_scale(layer)
        other = codes + rng.normal(0, codes.std() / 6, codes.shape)
        file.reweigh(layer, np.clip(np.rint(other), -128, 127), scale)
    return ""


def signedness_mixed_up(file: File) -> str:
    """One activation's codes change from uint8 to int8 or back, and its zero point keeps its number."""
    layer = file.middle
    for node in file.pair_after(layer):
        zero = file.value(node.input[2])
        other = np.int8 if zero.dtype == np.uint8 else np.uint8
        file.put(node, 2, np.clip(zero.astype(np.int64), *_limits(other)).astype(other))
        for attribute in [a for a in node.attribute if a.name == "output_dtype"]:
            node.attribute.remove(attribute)
    for value in [v for v in file.graph.value_info if v.name == file.pair_after(layer)[0].output[0]]:
        file.graph.value_info.remove(value)
    return layer.name


def _limits(dtype: type) -> tuple[int, int]:
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def two_bits_first(file: File) -> str:
    layer = file.layers[0]
    codes, scale = file.codes_scale(layer)
    axes = tuple(range(1, codes.ndim))
    top = np.maximum(np.abs(codes).max(axis=axes), 1)
    file.reweigh(layer, np.rint(codes / file.per_channel(layer, top)), scale * (top if scale.size > 1 else top.max()))
    return layer.name


#: Faults of the model file, by name.
IN_MODEL: dict[str, Callable[[File], str]] = {
    "swapped_channels": swapped_channels,
    "scale_doubled": scaled_weights(2.0),
    "scale_halved": scaled_weights(0.5),
    "uncalibrated_layer": uncalibrated,
    "noise_calibration": marked_as_noise,
    "per_tensor_weights": per_tensor,
    "batchnorm_misfolded": batchnorm_misfolded,
    "bias_dropped": bias_dropped,
    "swapped_classes": swapped_classes,
    "floor_rounding": floored,
    "other_checkpoint": other_checkpoint,
    "signedness_mixed_up": signedness_mixed_up,
    "two_bits_first_layer": two_bits_first,
}
#: Further shapes that some of them take.
VARIANTS: dict[str, Callable[[File], str]] = {
    "activation_scale_doubled": scaled_activation(2.0),
    "activation_scale_halved": scaled_activation(0.5),
    "noise_calibration_unmarked": noise_calibrated,
    "bias_zeroed": bias_zeroed,
}
#: Faults of what stands beside the model.
IN_BUNDLE = ("wrong_mean_std", "stale_sentinel", "truncated_file")
FAULTS = (*IN_MODEL, *IN_BUNDLE)


def inject(name: str, bundle: Path, out: Path) -> str:
    """Copy a bundle's folder and put one fault into the copy.

    Args:
        name: one of `FAULTS` or `VARIANTS`.
        bundle: folder with model.onnx, sentinel.safetensors and manifest.json.
        out: where the copy goes; it must not be there.

    Returns:
        The layer that has the fault; empty where it is in none or in all.
    """
    shutil.copytree(bundle, out)
    layer = ""
    if name in IN_MODEL or name in VARIANTS:
        file = File(onnx.load(str(out / "model.onnx")))
        layer = (IN_MODEL | VARIANTS)[name](file)
        onnx.save(file.model, str(out / "model.onnx"))
    elif name == "truncated_file":
        whole = (out / "model.onnx").read_bytes()
        (out / "model.onnx").write_bytes(whole[: len(whole) * 3 // 5])
    elif name == "wrong_mean_std":
        _wrong_mean_std(out)
    else:
        _stale_sentinel(out)
    seal(out)
    return layer


def seal(folder: Path) -> None:
    """Make the manifest's hashes those of the files, in a bundle's folder as in a run's."""
    manifest = json.loads((folder / "manifest.json").read_text())
    listed = [manifest.get("files", {}), *(stage.get("files", {}) for stage in manifest.get("stages", {}).values())]
    for files in listed:
        for name, entry in files.items():
            if (folder / name).is_file():
                data = (folder / name).read_bytes()
                size = "bytes" if "bytes" in entry else "size"
                entry.update({"sha256": hashlib.sha256(data).hexdigest(), size: len(data)})
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _set_metadata(model: onnx.ModelProto, key: str, value: str) -> None:
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = value
            return
    model.metadata_props.add(key=key, value=value)


def _wrong_mean_std(folder: Path) -> None:
    """In the ONNX metadata and, of a bundle, in the manifest: what whoever deploys the file goes by."""
    model = onnx.load(str(folder / "model.onnx"))
    manifest = json.loads((folder / "manifest.json").read_text())
    stated = {entry.key: entry.value for entry in model.metadata_props}.get("dfqkit.image")
    image: dict[str, Any] = manifest["image"] if "image" in manifest else json.loads(stated or "{}")
    other = 0.5 if image["mean"][0] != 0.5 else 0.4
    image = {**image, "mean": [other] * image["shape"][0], "std": [other] * image["shape"][0]}
    if "image" in manifest:
        (folder / "manifest.json").write_text(json.dumps({**manifest, "image": image}))
    if stated is not None:
        _set_metadata(model, "dfqkit.image", json.dumps(image))
        onnx.save(model, str(folder / "model.onnx"))


def _stale_sentinel(folder: Path) -> None:
    """The sentinel set answers for a teacher that has been trained further since."""
    path = folder / "sentinel.safetensors"
    tensors, metadata = read_tensors(path)
    facts = json.loads(metadata["sentinel"])
    facts["teacher"] = {**facts["teacher"], "sha256": hashlib.sha256(b"an older teacher").hexdigest()}
    logits = tensors["teacher_logits"]
    noise = np.random.default_rng(4).normal(0, 0.3 * logits.std(), logits.shape)
    tensors["teacher_logits"] = (logits + noise).astype(np.float32)
    write_tensors(path, tensors, {**metadata, "sentinel": json.dumps(facts)})
