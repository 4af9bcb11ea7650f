"""Files of every form that dfqkit reads, and seeded ways to damage them.

What belongs here: `Corpus`, whole files and the commands that read them, and the mutations, of bytes and of what the
bytes mean. What comes of them is looked at by `benchmarks/fuzz.py` and `unit/export/test_export_fuzz.py`.
"""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from dfqkit.cli import main
from dfqkit.config.files import find_recipe
from dfqkit_export.bundle import Order, write_bundle
from tests.unit.export._bundles import codes, list_run, write_run
from tests.unit.export.conftest import QdqBuilder

KINDS = ("onnx", "safetensors", "json", "yaml", "npz", "zip")
_NUMBERS = (0, -1, 1, 2, 7, 255, 2**31 - 1, -(2**31), 2**32, 2**40, 2**63 - 1, -(2**63))
_TEXTS = (
    "", "\x00", "\x1b[2J\x1b]0;x\x07", "::error::x", "a\n::warning::b", "\u202e\u2066", "../../etc/passwd", "/dev/zero",
    "é" * 300, "%s{0}",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    *_NUMBERS, *_TEXTS, None, True, 1.5, -0.0, 1e308, float("nan"), float("inf"), [], {}, [[]], {"a": {}},
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One damaged file and the command that is to read it."""

    kind: str
    command: list[str]


def make_corpus(folder: Path) -> Corpus:
    """Write whole files of every form into an empty folder."""
    run = write_run(folder / "run", QdqBuilder)
    write_bundle(Order(run=run, out=folder / "bundle.zip"))
    write_bundle(Order(run=run, out=folder / "bundle"))
    shutil.copy(folder / "bundle" / "sentinel.safetensors", run / "sentinel.safetensors")
    list_run(run)
    main(["check", str(folder / "bundle"), "--baseline", str(folder / "baseline.json"), "--update-in-ci"])
    np.savez(folder / "images.npz", images=codes(8).transpose(0, 2, 3, 1))
    np.savez_compressed(folder / "floats.npz", images=codes(8).astype(np.float32) / 255)
    for name in ("digits/dfq-w8a8-ort", "cifar10-resnet20/dafl-w8a8-ort"):
        shutil.copy(find_recipe(name), folder / f"{name.partition('/')[0]}.yaml")
    return Corpus(folder)


class Corpus:
    """Whole files, and for every seed one of them damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def case(self, seed: int, out: Path) -> Case:
        """Write the damaged file of a seed, and what it needs beside it, into an empty folder."""
        rng = random.Random(seed)
        kind = KINDS[seed % len(KINDS)]
        command = getattr(self, f"_{kind}")(rng, out)
        return Case(kind, [str(word) for word in command])

    def _onnx(self, rng: random.Random, out: Path) -> list[Any]:
        source = self.folder / "run" / rng.choice(["model.onnx", "model.onnx", "teacher.onnx"])
        data = _onnx(source.read_bytes(), rng) if rng.random() < 0.7 else _bytes(source.read_bytes(), rng)
        bad, good = out / "bad.onnx", self.folder / "run" / "model.onnx"
        commands = [
            ["inspect", bad], ["inspect", bad, "--target", "tensorrt"], ["inspect", bad, "--runtime", "onnxruntime"],
            ["inspect", bad, "--fix", out / "fixed.onnx"], ["compare", bad, good, "--limit", 4],
            ["compare", good, bad, "--limit", 4], ["profile", bad, "--repeats", 1],
            ["compare", bad, "--runtime-b", "onnxruntime-unoptimized", "--limit", 4],
            ["sentinel", "--model", bad, "--teacher", self.folder / "run" / "teacher.onnx", "--images",
             self.folder / "run" / "images" / "grading.safetensors", "--out", out / "s.safetensors"],
        ]  # fmt: skip
        chosen = rng.randrange(len(commands) + 3)
        if chosen < len(commands):
            bad.write_bytes(data)
            return commands[chosen]
        return self._run(out, "model.onnx", data, rng)

    def _run(self, out: Path, name: str, data: bytes, rng: random.Random) -> list[Any]:
        shutil.copytree(self.folder / "run", out / "run")
        (out / "run" / name).write_bytes(data)
        if name != "manifest.json":
            list_run(out / "run")
        if rng.random() < 0.3:
            return ["bundle", out / "run", "--out", out / "made.zip"]
        return ["check", out / "run", "--baseline", self.folder / "baseline.json", "--junit-xml", out / "j.xml"]

    def _safetensors(self, rng: random.Random, out: Path) -> list[Any]:
        name = rng.choice(["sentinel.safetensors", "images/grading.safetensors"])
        source = (self.folder / "run" / name).read_bytes()
        data = _tensors(source, rng) if rng.random() < 0.7 else _bytes(source, rng)
        if rng.random() < 0.4:
            return self._run(out, name, data, rng)
        bad, run = out / "bad.safetensors", self.folder / "run"
        bad.write_bytes(data)
        return rng.choice(
            [
                ["bank", "info", bad], ["bank", "verify", bad], ["bank", "export", bad, "--npz", out / "x.npz"],
                ["compare", run / "model.onnx", run / "teacher.onnx", "--images", bad, "--limit", 4],
                ["sentinel", "--model", run / "model.onnx", "--teacher", run / "teacher.onnx", "--images", bad, "--out",
                 out / "s.safetensors"],
            ]
        )  # fmt: skip

    def _json(self, rng: random.Random, out: Path) -> list[Any]:
        name = rng.choice(["baseline.json", "run/report.json", "run/manifest.json", "bundle/manifest.json"])
        text = (self.folder / name).read_bytes()
        data = _json(text, rng) if rng.random() < 0.75 else _bytes(text, rng)
        bad = out / "bad.json"
        bad.write_bytes(data)
        if name == "baseline.json":
            return ["check", self.folder / "bundle", "--baseline", bad, *rng.choice([[], ["--update-in-ci"]])]
        if name == "run/report.json":
            report = self.folder / "run" / "report.json"
            return rng.choice(
                [
                    ["report", bad], ["compare", bad, report], ["report", bad, "--format", "markdown"],
                    ["check", bad, "--baseline", self.folder / "baseline.json"],
                    self._run(out, "report.json", data, rng),
                ]
            )  # fmt: skip
        if name == "run/manifest.json":
            return self._run(out, "manifest.json", data, rng)
        shutil.copytree(self.folder / "bundle", out / "bundle")
        (out / "bundle" / "manifest.json").write_bytes(data)
        return ["check", out / "bundle", "--baseline", self.folder / "baseline.json"]

    def _yaml(self, rng: random.Random, out: Path) -> list[Any]:
        text = (self.folder / rng.choice(["digits.yaml", "cifar10-resnet20.yaml"])).read_bytes()
        bad = out / "bad.yaml"
        bad.write_bytes(_yaml(text, rng) if rng.random() < 0.75 else _bytes(text, rng))
        return rng.choice([["recipe", "show", bad], ["run", bad, "--dry-run"]])

    def _npz(self, rng: random.Random, out: Path) -> list[Any]:
        data = (self.folder / rng.choice(["images.npz", "floats.npz"])).read_bytes()
        bad = out / rng.choice(["bad.npz", "bad.npz", "bad.npy"])
        bad.write_bytes(_zip(data, rng) if rng.random() < 0.75 else _bytes(data, rng))
        run = self.folder / "run"
        return ["compare", run / "model.onnx", run / "teacher.onnx", "--images", bad, "--limit", 4]

    def _zip(self, rng: random.Random, out: Path) -> list[Any]:
        data = (self.folder / "bundle.zip").read_bytes()
        bad = out / "bad.zip"
        bad.write_bytes(_zip(data, rng) if rng.random() < 0.75 else _bytes(data, rng))
        return ["check", bad, "--baseline", self.folder / "baseline.json", *rng.choice([[], ["--update-in-ci"]])]


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Damage one to four places, whatever they mean."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found)) if found else 0
        near = min(len(found) - 1, int(rng.expovariate(1 / 60))) if found else 0  # where headers are
        at = rng.choice([at, near])
        length = rng.choice([1, 1, 2, 4, 8, 64, 1000])
        change = rng.randrange(7)
        if change == 0 and found:
            found[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            found[at : at + length] = rng.randbytes(length)
        elif change == 2:
            del found[at : at + length]
        elif change == 3:
            found[at:at] = found[at : at + length]
        elif change == 4:
            del found[at:]
        elif change == 5:
            found[at : at + 8] = struct.pack("<q", rng.choice(_NUMBERS))
        else:
            found[at : at + length] = bytes(min(length, len(found) - at))
    return bytes(found)


def _onnx(data: bytes, rng: random.Random) -> bytes:
    """Damage one to three fields of a model."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.randint(1, 3)):
        rng.choice(_FIELDS)(model, rng)
    return model.SerializeToString()


def _number(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    numbers = [item for item in node.attribute if item.type in (2, 7)]
    if numbers:
        item = rng.choice(numbers)
        if item.type == onnx.AttributeProto.INT:
            item.i = rng.choice(_NUMBERS)
        elif item.ints:
            item.ints[rng.randrange(len(item.ints))] = rng.choice(_NUMBERS)
    else:
        names = ["axis", "group", "kernel_shape", "pads", "strides", "to", "alpha", "block_size", "transA", "perm"]
        value = rng.choice([rng.choice(_NUMBERS), [rng.choice(_NUMBERS) for _ in range(rng.randint(0, 5))], 1.5, "x"])
        if value != []:
            node.attribute.append(onnx.helper.make_attribute(rng.choice(names), value))


def _dims(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    if tensor.dims and rng.random() < 0.7:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_NUMBERS)
    else:
        tensor.dims.append(rng.choice(_NUMBERS))


def _ends(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    sizes = value.type.tensor_type.shape.dim
    change = rng.randrange(4)
    if change == 0 and sizes:
        rng.choice(sizes).dim_value = rng.choice(_NUMBERS)
    elif change == 1 and sizes:
        rng.choice(sizes).dim_param = rng.choice(_TEXTS).replace("\x00", "")
    elif change == 2:
        value.type.tensor_type.elem_type = rng.randrange(-1, 30)
    else:
        sizes.add().dim_value = rng.choice(_NUMBERS)


def _values(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    change = rng.randrange(4)
    if change == 0:
        tensor.raw_data = _bytes(tensor.raw_data, rng)
    elif change == 1:
        tensor.data_type = rng.randrange(-1, 30)
    elif change == 2 and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) >= 4:
        at = 4 * rng.randrange(len(tensor.raw_data) // 4)
        value = struct.pack("<f", rng.choice([0.0, -1.0, np.inf, np.nan, 1e-45, 1e38]))
        tensor.raw_data = tensor.raw_data[:at] + value + tensor.raw_data[at + 4 :]
    else:
        empty = np.zeros((0, *tensor.dims[1:]) if all(0 <= size < 99 for size in tensor.dims) else 0, np.float32)
        tensor.CopyFrom(numpy_helper.from_array(rng.choice([empty, np.float64(0), np.ones(7, np.int8)]), tensor.name))


def _names(model: onnx.ModelProto, rng: random.Random) -> None:
    node, text = rng.choice(model.graph.node), rng.choice(_TEXTS)
    change = rng.randrange(6)
    if change == 0:
        node.name = text
    elif change == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([text, "x", node.output[0]])
    elif change == 2:
        node.output[0] = text
    elif change == 3:
        rng.choice(model.graph.initializer).name = text
    elif change == 4:
        model.metadata_props.add(
            key=rng.choice(["dfqkit.target", "dfqkit.image", "dfqkit.task", "dfqkit.quant", text]), value=text
        )
    else:
        rng.choice([*model.graph.input, *model.graph.output]).name = text


def _structure(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes, change = model.graph.node, rng.randrange(9)
    node = rng.choice(nodes)
    if change == 0:
        nodes.remove(node)
    elif change == 1:
        nodes.add().CopyFrom(node)
    elif change == 2:
        node.op_type = rng.choice(
            [
                "Conv",
                "Gemm",
                "Loop",
                "Resize",
                "Relu",
                "Reshape",
                "QLinearConv",
                "Where",
                "Cast",
                "",
                "Nothing",
                "Expand",
                "ConstantOfShape",
                "Pad",
                "MaxPool",
                "Concat",
                "Split",
            ]
        )
    elif change == 3:
        node.domain = rng.choice(["com.microsoft", "ai.onnx.ml", "x", "\x1b"])
    elif change == 4 and node.input:
        del node.input[rng.randrange(len(node.input))]
    elif change == 5:
        node.input.append(rng.choice([*model.graph.initializer]).name)
    elif change == 6:
        del model.opset_import[:]
        model.opset_import.add(domain="", version=rng.choice(_NUMBERS))
    elif change == 7:
        model.ir_version = rng.choice(_NUMBERS)
    else:
        tensor = rng.choice(model.graph.initializer)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=rng.choice(_TEXTS))
        tensor.external_data.add(key=rng.choice(["offset", "length"]), value=str(rng.choice(_NUMBERS)))


_FIELDS: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    *(_number, _dims, _ends, _values, _values, _names, _structure),
)
_OPERATORS = (
    *("Conv", "Gemm", "Loop", "Resize", "Relu", "Reshape", "QLinearConv", "Where", "Cast", "", "Nothing", "Expand"),
    *("ConstantOfShape", "Pad", "MaxPool", "Concat", "Split"),
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a document."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, part in inner for place in [(value, key), *_places(part)]]


def _document(document: Any, rng: random.Random) -> Any:
    for _ in range(rng.randint(1, 3)):
        places = _places(document)
        if not places:
            return rng.choice(_VALUES)
        at, key = rng.choice(places)
        change = rng.randrange(5)
        if change == 0 and isinstance(at, dict):
            del at[key]
        elif change == 1 and isinstance(at, dict):
            at[rng.choice(_TEXTS)] = at.pop(key)
        elif change == 2:
            at[key] = copy.deepcopy(rng.choice(places)[0])
        else:
            at[key] = rng.choice(_VALUES)
    return document


def _json(data: bytes, rng: random.Random) -> bytes:
    choice = rng.randrange(12)
    if choice == 0:
        return b"[" * rng.choice([100, 100_000]) + b"]" * 10
    if choice == 1:
        return data.replace(b":", b":" + b'{"a":' * rng.choice([50, 5000]), 1)
    if choice == 2:
        return data.replace(b"1", b"9" * rng.choice([400, 5000]), rng.randint(1, 3))
    return json.dumps(_document(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def _yaml(data: bytes, rng: random.Random) -> bytes:
    import yaml

    lines = data.splitlines(keepends=True)
    choice = rng.randrange(8)
    if choice == 0:  # a thousand million laughs
        laughs = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n"]
        laughs += [b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 10)]
        return b"".join([*lines, *laughs])
    if choice == 1:
        return data + rng.choice(
            [
                b"x: " + b"[" * 5000,
                b"!!python/object/apply:os.system [true]",
                b"a: &a [*a]",
                b"\x00",
                b"k: 1_" + b"9" * 5000,
                b"? [a]: b",
                b"<<: [1]",
                b"x: !!binary aa",
                b"x: 2001-01-01",
                b"x: 0x" + b"f" * 400,
            ]
        )
    if choice == 2:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
        return b"".join(lines)
    document = _document(yaml.safe_load(data), rng)
    return yaml.safe_dump(document, allow_unicode=bool(rng.randrange(2))).encode("utf-8", "surrogatepass")


def _tensors(data: bytes, rng: random.Random) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    if rng.random() < 0.5:
        header = _document(header, rng)
    else:
        for key, text in header.get("__metadata__", {}).items():
            header["__metadata__"][key] = (
                json.dumps(_document(json.loads(text), rng)) if text.startswith("{") else rng.choice(_TEXTS)
            )
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    length = len(text) if rng.random() < 0.9 else rng.choice(_NUMBERS) % 2**64
    return struct.pack("<Q", length) + text + (rest if rng.random() < 0.9 else rest[: rng.randrange(len(rest))])


def _zip(data: bytes, rng: random.Random) -> bytes:
    """Damage members or what is said of them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    change = rng.randrange(9)
    if change == 0:
        members[at] = rng.choice(["../x", "/x", "a\x00b", "\x1b[2J", "A" * 70, name.upper()]), content
    elif change == 1:
        members.append((name, content))
    elif change == 2:
        members[at] = name, bytes(rng.choice([10**6, 4 * 10**7]))
    elif change == 3:
        members[at] = name, _bytes(content, rng)
    elif change == 4:
        del members[at]
    elif change == 5 and name.endswith(".npy"):
        shape = rng.choice(["(2**40,)", "(99999999999, 8, 8, 3)", "(-1, 8, 8, 3)", "(8,)", "()", "(0, 8, 8, 3)", "'x'"])
        kind = rng.choice(["|u1", "<f8", "|O", "<U9", "|b1", ">f4", "<c8", "<M8[s]", "|V9"])
        head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        members[at] = name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content[128:]
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # a name that stands twice is meant
        for member, value in members:
            entry = zipfile.ZipInfo(member)
            if change == 6 and member == name:
                entry.external_attr = 0o120777 << 16  # a link
            archive.writestr(entry, value, zipfile.ZIP_DEFLATED)
    found = bytearray(buffer.getvalue())
    if change == 7:  # encrypted, of an unknown method, or of another size than it is
        place = found.rfind(b"PK\x01\x02")
        offset, value = rng.choice([(8, 1), (10, 99), (20, 2**31), (24, 2**32 - 1), (42, 7)])
        found[place + offset : place + offset + 4] = struct.pack("<I", value)
    return bytes(found)
