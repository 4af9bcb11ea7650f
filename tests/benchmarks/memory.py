"""Peak memory of `dfqkit check` on a large model: `python tests/benchmarks/memory.py [--kind conv] [--mb 258]`.

Makes the folder of a run with a model of so many megabytes and 64 sentinel images of 3x64x64, records it in a baseline,
checks it against that, once more with a layer's weights changed, and adds up the resident memory of the command and its
children (/proc, every 5 ms; pages that a child shares with its parent are counted twice). Prints a row for each kind of
model and step; exits with 1 where one takes more than 2.3 times its file. Linux only; some minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.sentinel import PLAIN, Sentinel, normalized, write_sentinel

LIMIT, IMAGES = 2.3, 64
IMAGE = ImageSpec(shape=(3, 64, 64), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), classes=10)


class Big:
    """A chain of layers: Q/DQ around each where the weights are codes."""

    def __init__(self, *, codes: bool) -> None:
        self.codes = codes
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def const(self, name: str, value: NDArray[np.generic]) -> str:
        self.stored.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}:0"], name=name, **attributes))
        return f"{name}:0"

    def pair(self, x: str, name: str, zero: int = 0) -> str:
        if not self.codes:
            return x
        parameters = [self.const(f"{name}.s", np.array(0.05, np.float32)), self.const(f"{name}.z", np.uint8([zero])[0])]
        return self.node(
            "DequantizeLinear", [self.node("QuantizeLinear", [x, *parameters], f"{name}.Q"), *parameters], name
        )

    def layer(self, op: str, x: str, name: str, shape: tuple[int, ...], **attributes: object) -> str:
        scale = np.float32(1 / 60 / np.sqrt(np.prod(shape[1:])))
        codes = self.rng.integers(-127, 128, shape, np.int8)
        if not self.codes:
            weight = self.const(f"{name}.w", codes.astype(np.float32) * scale)
            return self.node(
                op, [x, weight, self.const(f"{name}.b", np.zeros(shape[0], np.float32))], name, **attributes
            )
        scales, zeros = np.full(shape[0], scale, np.float32), np.zeros(shape[0], np.int8)
        parts = [self.const(f"{name}.w", codes), self.const(f"{name}.ws", scales), self.const(f"{name}.wz", zeros)]
        weight = self.node("DequantizeLinear", parts, f"{name}.wDQ", axis=0)
        parts = [
            self.const(f"{name}.b", np.zeros(shape[0], np.int32)),
            self.const(f"{name}.bs", scales * np.float32(0.05)),
            self.const(f"{name}.bz", np.zeros(shape[0], np.int32)),
        ]
        return self.node(
            op, [x, weight, self.node("DequantizeLinear", parts, f"{name}.bDQ", axis=0)], name, **attributes
        )

    def model(self, output: str) -> onnx.ModelProto:
        ends = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *IMAGE.shape])]
        ends += [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", IMAGE.classes])]
        graph = helper.make_graph(self.nodes, "big", ends[:1], ends[1:], self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolutions(size: int, *, codes: bool) -> onnx.ModelProto:
    """Return convolutions of 1,024 channels, as many as fill so many bytes."""
    net, channels, x, n = Big(codes=codes), IMAGE.shape[0], "image", 0
    each = 1024 * 1024 * 9 * (1 if codes else 4)
    layers = 3 + max(1, round(size / each) - 1)
    for n in range(layers):
        out = (64, 256, 1024)[n] if n < 3 else 1024
        x = net.pair(x, f"act{n}", 128 if n == 0 else 0)
        x = net.layer("Conv", x, f"conv{n}", (out, channels, 3, 3), pads=[1] * 4, strides=[2 if n < 4 else 1] * 2)
        x, channels = net.node("Relu", [x], f"relu{n}"), out
    x = net.node("Flatten", [net.node("GlobalAveragePool", [net.pair(x, "pooled")], "pool")], "flat")
    return net.model(net.layer("Gemm", net.pair(x, "features"), "head", (IMAGE.classes, channels), transB=1))


def products(size: int, *, codes: bool) -> onnx.ModelProto:
    """Return matrix products of 4,096 features, as many as fill so many bytes."""
    net, wide = Big(codes=codes), 4096
    each = wide * wide * (1 if codes else 4)
    x = net.node("Flatten", [net.pair("image", "input", 128)], "flat")
    features = int(np.prod(IMAGE.shape))
    for n in range(max(2, round((size - wide * features * (1 if codes else 4)) / each) + 1)):
        x = net.layer("Gemm", net.pair(x, f"act{n}", 128 if n == 0 else 0), f"fc{n}", (wide, features), transB=1)
        x, features = net.node("Relu", [x], f"relu{n}"), wide
    return net.model(net.layer("Gemm", net.pair(x, "features"), "head", (IMAGE.classes, wide), transB=1))


KINDS = {
    "int8 convolutions": lambda size: convolutions(size, codes=True),
    "float convolutions": lambda size: convolutions(size, codes=False),
    "int8 products": lambda size: products(size, codes=True),
    "float products": lambda size: products(size, codes=False),
}


def write_run(folder: Path, model: onnx.ModelProto) -> Path:
    """Write the folder of a run: a model and the images that it is checked with."""
    entries = {
        "recipe": "big",
        "teacher": "big",
        "teacher_sha256": "a" * 64,
        "target": "onnxruntime",
        "synthesizer": "dfq",
    }
    entries |= {"image": json.dumps(IMAGE.to_dict()), "quant": '{"bits": "w8a8"}'}
    for key, value in entries.items():
        model.metadata_props.add(key=f"dfqkit.{key}", value=value)
    onnx.save(model, folder / "model.onnx")
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (IMAGES, *IMAGE.shape)).astype(np.uint8)
    logits = OrtSession(folder / "model.onnx", threads=1, lean=True).predict(normalized(images, IMAGE), 8)
    sentinel = Sentinel(
        spec=IMAGE, teacher_name="big", teacher_sha256="a" * 64, images=images, answers={"logits": logits},
        sources=("dfq:grading",), source=np.zeros(IMAGES, np.int16), kind=np.full(IMAGES, PLAIN, np.uint8),
    )  # fmt: skip
    write_sentinel(folder / "sentinel.safetensors", sentinel)
    files = {
        name: {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(), "size": 1}
        for name in ("model.onnx", "sentinel.safetensors")
    }
    stage = {"status": "complete", "seconds": 1.0, "files": files, "facts": {}}
    manifest = {"schema": 1, "digest": "d", "facts": {"command": "big"}, "stages": {"export": stage}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def spoil(path: Path) -> None:
    """Turn the weights of the middle layer around, so that the file regresses and is diagnosed."""
    model = onnx.load(path)
    weights = [tensor for tensor in model.graph.initializer if tensor.name.endswith(".w")]
    chosen = weights[len(weights) // 2]
    values = numpy_helper.to_array(chosen)
    chosen.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[::-1]), chosen.name))
    onnx.save(model, path)


def measured(command: list[str]) -> tuple[int, float, int, str]:
    """Return the peak of all processes in bytes, the seconds, the exit code, and what was said."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(_resident, _tree(process.pid))))
            time.sleep(0.005)
        said.seek(0)
        return peak, time.monotonic() - begun, process.returncode, said.read()


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in _tree(int(child)))]


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, action="append", help="(default: all)")
    parser.add_argument("--mb", type=int, default=258)
    args = parser.parse_args()
    worst = 0.0
    print("| model | MB | step | peak MB | times the file | seconds | exit |\n|---|--:|---|--:|--:|--:|--:|")
    for kind in args.kind or KINDS:
        with tempfile.TemporaryDirectory() as name:
            folder = write_run(Path(name), KINDS[kind](args.mb * 10**6))
            size = (folder / "model.onnx").stat().st_size
            command = [sys.executable, "-m", "dfqkit", "check", name, "--baseline", f"{name}/b.json", "--threads", "1"]
            for step, more in {
                "record": ["--update-in-ci", "--allow", "a benchmark", "--reason", "a benchmark"],
                "check": [],
                "regressed": [],
            }.items():
                if step == "regressed":
                    spoil(folder / "model.onnx")
                peak, seconds, code, said = measured([*command, *more])
                worst = max(worst, peak / size)
                row = (
                    kind,
                    f"{size / 1e6:.0f}",
                    step,
                    f"{peak / 1e6:.0f}",
                    f"{peak / size:.2f}",
                    f"{seconds:.0f}",
                    code,
                )
                print(f"| {' | '.join(map(str, row))} |", flush=True)
                if code not in (0, 1):
                    print(said)
                    return 2
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
