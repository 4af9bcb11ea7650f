"""The side of `peers.py` that runs in an environment of the tool's own; that file starts it.

    PYTHON tests/benchmarks/peers_tools.py '{"tool": "mct", "network": "fdmobilenet", "bits": "w4a8", "images_made": 32,
                                             "steps": 60, "place": FOLDER, "file": "x.onnx"}'

`mct` (Sony model-compression-toolkit): images from noise by `pytorch_data_generation_experimental` with its own
settings but for the number of images and steps; they do not depend on the bits and stay in the folder with what they
cost. Then `pytorch_post_training_quantization` with its own target: weights symmetric, one scale for a channel;
activations of 8 bits, scales that are powers of two. At w4a8 all weights between the first and the last layer have 4
bits. The file is its ONNX export `FAKELY_QUANT`: weights in float that stand on their grids, activations through pairs
of QuantizeLinear and DequantizeLinear. Whatever runs it computes the simulation.

`quantize_static`, `onnxsim` and `esp-ppq` quantize the teacher's ONNX file as they come, per channel, with 64 images
from a file, onnxsim with the random ones that it makes when it is given none. Prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import real_size
import torch
from torch import nn


def teacher(name: str) -> nn.Module:
    """Return the network with its weights."""
    factory, weights, _ = real_size.NETS[name]
    module, _, function = factory.rpartition(":")
    made: nn.Module = getattr(real_size if module.endswith(".py") else import_module(module), function)()
    if weights is not None:
        load_file = import_module("safetensors.torch").load_file
        made.load_state_dict(load_file(Path(os.environ["DFQKIT_ASSETS"]) / weights))
    return made.eval()


def images(model: nn.Module, name: str, count: int, steps: int, place: Path) -> tuple[torch.Tensor, float]:
    """Return MCT's images, (n, 3, 224, 224) normalised, and the processor seconds that they cost, once."""
    kept = place / f"mct-{name}-{count}-{steps}.npz"
    if not kept.is_file():
        start = time.process_time()
        made = generated(model, name, count, steps)
        np.savez(kept, images=torch.cat(made).numpy(), seconds=time.process_time() - start)
    found = np.load(kept, allow_pickle=False)
    return torch.from_numpy(found["images"]), float(found["seconds"])


def generated(model: nn.Module, name: str, count: int, steps: int) -> list[torch.Tensor]:
    """Let MCT make images, in batches of 32."""
    toolkit = import_module("model_compression_toolkit")
    enums = import_module("model_compression_toolkit.data_generation.common.enums")
    # Its two ranges of pixels: ImageNet's deviations, or -1 to 1.
    kind = "TORCHVISION" if real_size.NETS[name][2] == real_size.IMAGENET else "KERAS_APPLICATIONS"
    config = toolkit.data_generation.get_pytorch_data_generation_config(
        n_iter=steps, data_gen_batch_size=min(32, count), image_normalization_type=enums.ImageNormalizationType[kind]
    )
    made = toolkit.data_generation.pytorch_data_generation_experimental(
        model=model, n_images=count, output_image_size=224, data_generation_config=config
    )
    return [image.detach().float() for image in made]


def bits_of_layers(model: nn.Module, bits: str) -> dict[str, Any]:
    """Arguments by which all weights between the ends have 4 bits; none for 8, which is what MCT does by itself."""
    if bits == "w8a8":
        return {}
    toolkit = import_module("model_compression_toolkit")
    filters = import_module("model_compression_toolkit.core.common.network_editors.node_filters")
    config = toolkit.core.BitWidthConfig()
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for name in layers[1:-1]:
        # The node of a layer into which BatchNorm is folded has that name and more behind it.
        config.set_manual_weights_bit_width(filters.NodeNameScopeFilter(name.replace(".", "_") + "_bn"), 4, "weight")
    return {"core_config": toolkit.core.CoreConfig(bit_width_config=config)}


def mct(asked: dict[str, Any], place: Path) -> dict[str, Any]:
    """Quantize by Sony's toolkit."""
    toolkit = import_module("model_compression_toolkit")
    torch.manual_seed(0)
    model = teacher(asked["network"])
    real = torch.from_numpy(np.load(place / f"{asked['network']}-real.npy"))
    made, seconds = real, 0.0
    if asked["from"] != "real":
        made, seconds = images(model, asked["network"], asked["images_made"], asked["steps"], place)
    start = time.process_time()

    def batches() -> Iterator[list[torch.Tensor]]:
        for batch in made.split(32):
            yield [batch]

    student, _ = toolkit.ptq.pytorch_post_training_quantization(model, batches, **bits_of_layers(model, asked["bits"]))
    seconds += time.process_time() - start
    widths = Counter(
        quantizer.num_bits
        for module in student.modules()
        for quantizer in getattr(module, "weights_quantizers", {}).values()
    )
    with torch.no_grad():
        said = student(real).argmax(1).tolist()
    form = toolkit.exporter.QuantizationFormat.FAKELY_QUANT
    # It calls torch's exporter for what the newer one, today's default, does not take.
    torch.onnx.export = partial(torch.onnx.export, dynamo=False)
    toolkit.exporter.pytorch_export_model(student, str(place / asked["file"]), batches, quantization_format=form)
    return {"seconds": seconds, "weights": dict(widths), "said": said}


def quantize_static(asked: dict[str, Any], place: Path) -> dict[str, Any]:
    """Quantize by ONNX Runtime: QDQ, per channel, its own ranges."""
    tool = import_module("onnxruntime.quantization")
    given = iter(np.load(place / asked["source"]))

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Any] | None:
            return next(({entrance(place, asked): image[None]} for image in given), None)

    start = time.process_time()
    tool.quantize_static(place / teacher_file(asked), place / asked["file"], Reader(), per_channel=True)
    return {"seconds": time.process_time() - start}


def onnxsim(asked: dict[str, Any], place: Path) -> dict[str, Any]:
    """Quantize by onnxsim without data; by itself it would take the classifier alone, hence its whole graph."""
    tool, onnx = import_module("onnxsim"), import_module("onnx")
    start = time.process_time()
    made = tool.quantize_static(str(place / teacher_file(asked)), num_calibration_samples=64, full_graph=True)
    seconds = time.process_time() - start
    onnx.save(made, place / asked["file"])
    return {"seconds": seconds}


def esp_ppq(asked: dict[str, Any], place: Path) -> dict[str, Any]:
    """Quantize by esp-ppq, for its per-channel platform of 8 bits that exports to ONNX Runtime."""
    tool, platform = import_module("esp_ppq.api"), import_module("esp_ppq.core").TargetPlatform
    given = [torch.from_numpy(image[None]) for image in np.load(place / asked["source"])]
    # It exports for an older opset and leaves an attribute there that is new in 14; without it Reshape does the same.
    onnx = import_module("onnx")
    model, plain = onnx.load(place / teacher_file(asked)), place / f"{asked['file']}.plain"
    for node in model.graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(kept)
    onnx.save(model, plain)
    start = time.process_time()
    graph = tool.quantize_onnx_model(
        str(plain), given, calib_steps=len(given), input_shape=[1, 3, 224, 224],
        platform=platform.OPENVINO_INT8, device="cpu",
    )  # fmt: skip
    seconds = time.process_time() - start
    tool.export_ppq_graph(graph, platform.ONNXRUNTIME, str(place / asked["file"]))
    return {"seconds": seconds}


def speed(asked: dict[str, Any], place: Path) -> dict[str, Any]:
    """Image-iterations of a processor second on FD-MobileNet, batch 32: the bare teacher, dfqkit's pixels, MCT."""
    import_module("model_compression_toolkit")
    step_cost = import_module("step_cost")
    kind = import_module("dfqkit.config.registry").synthesizer_configs()["zeroq"]
    demand = import_module("dfqkit.config.synthesis").Demand(training=32, fresh=0)
    network, file, spec = step_cost.TEACHERS["fd_mobilenet_05"]
    loaded = step_cost.load_teacher(f"dfqkit.models:{network}", spec, Path(os.environ["DFQKIT_ASSETS"]) / file)
    ours = {
        name: step_cost.implementation(kind)(
            kind.model_validate({"batch": 32, "bf16": bf16}), loaded, step_cost.derive(0, "step"), demand
        )
        for name, bf16 in (("dfqkit", False), ("dfqkit_bf16", True))
    }
    bare, model = step_cost.bare_pass(loaded, 32, torch.device("cpu")), teacher("fdmobilenet")

    def seconds(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    bare()
    passes = {}
    for name, own in ours.items():
        own.synthesize([])
        before = own.cost
        own.synthesize([])
        passes[name] = (own.cost - before) / 32
    found: dict[str, list[float]] = {"bare": [], **{name: [] for name in ours}, "mct": []}
    for _ in range(asked["repeats"]):
        found["bare"].append(32 * 4 / sum(seconds(bare) for _ in range(4)))
        for name, own in ours.items():
            rounds = max(1, round(4 / passes[name]))
            spent = sum(seconds(partial(own.synthesize, [])) for _ in range(rounds))
            found[name].append(32 * passes[name] * rounds / spent)
        # What a call costs beside its steps is taken off.
        first, more = (seconds(lambda n=n: generated(model, "fdmobilenet", 32, n)) for n in (1, 4))
        found["mct"].append(32 * 3 / (more - first))

    def ratio(one: str, other: str) -> float:
        return median(a / b for a, b in zip(found[one], found[other], strict=True))

    return {
        **{name: {"median": median(values), "all": values} for name, values in found.items()},
        **{f"{name}_step_over_bare": ratio("bare", name) for name in ours},
        **{f"{name}_over_mct": ratio(name, "mct") for name in ours},
    }


def teacher_file(asked: dict[str, Any]) -> str:
    """Return the name of the float network's ONNX file."""
    return f"{asked['network']}.onnx"


def entrance(place: Path, asked: dict[str, Any]) -> str:
    """Return the name of the input of the float network's ONNX file."""
    name: str = import_module("onnx").load(place / teacher_file(asked)).graph.input[0].name
    return name


TOOLS = {"mct": mct, "quantize_static": quantize_static, "onnxsim": onnxsim, "esp-ppq": esp_ppq, "speed": speed}
PACKAGES = {"mct": "model-compression-toolkit", "quantize_static": "onnxruntime", "speed": "model-compression-toolkit"}


def main() -> int:
    """Make the file."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    found = TOOLS[asked["tool"]](asked, Path(asked["place"]))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    release = version(PACKAGES.get(asked["tool"], asked["tool"]))
    print(json.dumps({**found, "gigabytes": memory, "version": release, "torch": torch.__version__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
