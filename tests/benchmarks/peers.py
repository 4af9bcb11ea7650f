"""What dfqkit keeps of a network of 224 pixels beside what others keep, for the same teacher on the same machine.

    python tests/benchmarks/peers.py --out runs/peers --tools dfqkit quantize_static
    python tests/benchmarks/peers.py --out runs/peers --only fdmobilenet --mct-python venv-mct/bin/python
    python tests/benchmarks/peers.py --out runs/peers --tools esp-ppq --esp-python venv-esp/bin/python
    python tests/benchmarks/peers.py --out runs/peers --speed --mct-python venv-mct/bin/python

The tools have needs that exclude each other's, hence environments of their own, into which torch belongs, too:

    venv-mct/bin/pip install model-compression-toolkit==2.6.1 onnxsim==0.8.1 onnx onnxruntime onnxscript torchvision \\
        safetensors
    venv-esp/bin/pip install 'esp-ppq[cpu]==1.3.12' safetensors

What each tool does, and in which of its settings, says `peers_tools.py`. Rows with real images took 64 of the 1,300,
evenly spread, and are graded on the others; all else saw no real image and is graded on all, as `real_size.py` grades,
from which dfqkit's own rows come. `time` is that of the processor (threads: OMP_NUM_THREADS), from the network to the
quantized one: imports, the writing of files and the grading are not in it, save that dfqkit's own has its file. Rows
stand in OUT/rows.jsonl; one that is there, failed or not, is not run again, and each runs in a process of its own.

--speed measures on FD-MobileNet 0.5x, batch 32, in one process and in turn, processor seconds of a synthesis step of
MCT, of dfqkit's pixels (`zeroq`) and of the bare teacher's forward and backward, and prints the medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import real_size

GRADED, COUNT = "graded.npz", 64
#: Tool and images of each row, and how what it wrote is run.
ROWS = (
    ("dfqkit", "", "integers"),
    ("mct", "its own", "simulated"),
    ("mct", "real", "simulated"),
    ("quantize_static", "real", "integers"),
    ("quantize_static", "noise", "integers"),
    ("onnxsim", "its noise", "integers"),
    ("esp-ppq", "real", "as exported"),
    ("esp-ppq", "noise", "as exported"),
)
#: Bits of others than 8 that a tool offers.
FOUR = ("dfqkit", "mct")


def prepared(name: str, place: Path) -> None:
    """Write what the tools start from: the teacher as ONNX, 64 real images and 64 of noise, the graded images."""
    import numpy as np
    import torch

    from dfqkit.students.capture import float_graph
    from dfqkit.students.onnx_file import write_float
    from dfqkit_export.images.labelled import load_images

    image = pictures(name)
    if not (place / GRADED).is_file():
        known = load_images(Path(os.environ["DFQKIT_ASSETS"]) / real_size.DATA, image, resize=256, crop=224)
        np.savez(place / GRADED, images=known.images, labels=known.labels)
    known = load_images(place / GRADED, image)
    whole = np.concatenate(list(known.batches(image, 50)))
    np.save(place / f"{name}-real.npy", whole[taken(len(whole))])
    noise = np.random.default_rng(0).standard_normal((COUNT, *image.shape), dtype=np.float32)
    np.save(place / f"{name}-noise.npy", noise)
    from peers_tools import teacher

    torch.set_grad_enabled(False)
    file = place / f"{name}.onnx"
    write_float(float_graph(teacher(name), image), file, metadata={})
    batches = list(known.batches(image, 50))
    np.save(place / f"{name}-float.npy", real_size.answers(file, batches))


def pictures(name: str) -> Any:
    """Return what images the network takes."""
    from dfqkit_export.images.spec import ImageSpec

    mean, std = real_size.NETS[name][2]
    return ImageSpec(shape=(3, 224, 224), mean=mean, std=std, classes=1000)


def taken(count: int) -> list[int]:
    """Return which images the tools that want real ones get."""
    return [i * count // COUNT for i in range(COUNT)]


def graded(name: str, file: Path, place: Path, *, real: bool, said: list[int] | None = None) -> dict[str, Any]:
    """Grade a file as `real_size.py` does, without the images that it was made of."""
    import numpy as np

    from dfqkit_export.images.labelled import load_images

    image = pictures(name)
    known = load_images(place / GRADED, image)
    # Optimized, the runtime gave other answers than the simulation for 7 of 64 images; not looked into.
    batches = list(known.batches(image, batch_of(file)))
    ours = real_size.answers(file, batches, optimized=said is None)
    left = np.setdiff1d(np.arange(len(ours)), taken(len(ours)) if real else [])
    float_ = np.load(place / f"{name}-float.npy")
    found = real_size.compared(float_[left], ours[left], np.asarray(known.labels)[left])
    same = {} if said is None else {"as_in_torch": int((ours[taken(len(ours))] == said).sum())}
    return found | same | {"bytes": file.stat().st_size, "coded": coded(file)}


def batch_of(file: Path) -> int:
    """Return how many images at a time go into a file: one where it was exported so."""
    import onnx

    return onnx.load(file).graph.input[0].type.tensor_type.shape.dim[0].dim_value or 50


def coded(file: Path) -> str:
    """Return how many of a file's convolutions and products have weights that are stored as integers."""
    import onnx

    graph = onnx.load(file).graph
    codes = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return f"{sum(node.input[1] in codes for node in layers)} of {len(layers)}"


def row(key: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Make a row, or say what stood in the way."""
    name, tool, place = key["network"], key["tool"], options.out.resolve()
    if tool == "dfqkit":
        own = real_size.in_child(name, key["bits"], [], target="onnxruntime", per_tensor=False)
        return own | {"seconds": 60 * own["processor_minutes"]}
    if not (place / f"{name}-float.npy").is_file():
        in_child(prepared, name, place)
    file = place / f"{tool}-{name}-{key['bits']}-{key['from'].replace(' ', '-')}.onnx"
    python = {"mct": options.mct_python, "onnxsim": options.mct_python, "esp-ppq": options.esp_python}
    asked = key | {"place": str(place), "file": file.name, "source": f"{name}-{key['from']}.npy"}
    command = [
        str(python.get(tool, sys.executable)),
        str(Path(__file__).with_name("peers_tools.py")),
        json.dumps(asked),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not ended after {options.limit} s"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines()
        return {"failed": lines[-1].strip()[:300]}
    told = json.loads(done.stdout.strip().splitlines()[-1])
    try:
        found: dict[str, Any] = in_child(
            graded, name, file, place, real=key["from"] == "real", said=told.pop("said", None)
        )
    except Exception as error:
        return told | {"failed": f"its file does not run: {str(error).splitlines()[0][:300]}"}
    return told | found


def in_child(work: Any, *asked: Any, **more: Any) -> Any:
    """Do it in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, asked, more)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    titles = "network | bits | tool | images | run | n | float, % | top-1, % | drop, points | agreement, % | CPU s"
    lines = [f"| {titles} |", "| --- " * (titles.count("|") + 1) + "|"]
    for one in rows:
        images = f"{one['images_made']} its own, {one['steps']} steps" if "steps" in one else one["from"]
        cells = [one["network"], one["bits"], f"{one['tool']} {one.get('version', '')}".strip(), images, one["run"]]
        if "as_in_torch" in one:
            cells[-1] += f", file as torch on {one['as_in_torch']} of {COUNT}"
        elif "coded" in one:
            cells[-1] += f", {one['coded']} layers"
        if "failed" in one:
            cells += ["", "", "", one["failed"].replace("|", "/"), "", ""]
        else:
            cells += [
                str(one.get("images", "")), f"{one['float']:.2f}", f"{one['top1']:.2f}",
                f"{one['drop']:.2f} ± {one['error']:.2f}", f"{one['agreement']:.1f}", f"{one['seconds']:.0f}",
            ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the rows that are not there yet, print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows and of what they start from")
    parser.add_argument("--only", nargs="+", choices=real_size.NETS, default=list(real_size.NETS))
    parser.add_argument("--bits", nargs="+", choices=("w8a8", "w4a8"), default=["w8a8", "w4a8"])
    parser.add_argument("--tools", nargs="+", choices=sorted({tool for tool, _, _ in ROWS}), help="only these")
    parser.add_argument("--mct-python", type=Path, help="Python of the environment with MCT and onnxsim")
    parser.add_argument("--esp-python", type=Path, help="Python of the environment with esp-ppq")
    parser.add_argument("--mct-images", type=int, default=32)
    parser.add_argument("--mct-steps", type=int, default=500, help="MCT's own number is 500")
    parser.add_argument("--limit", type=float, default=7200, help="seconds after which a tool is stopped")
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.speed:
        asked = json.dumps({"tool": "speed", "repeats": 5, "place": str(options.out)})
        script = Path(__file__).with_name("peers_tools.py")
        return subprocess.run([str(options.mct_python), str(script), asked], check=False).returncode
    file = options.out / "rows.jsonl"
    rows = real_size.rows_in(file)
    missing = {"mct": options.mct_python, "onnxsim": options.mct_python, "esp-ppq": options.esp_python}
    for name in options.only:
        for bits in options.bits:
            for tool, source, run in ROWS:
                wanted = tool in options.tools if options.tools else missing.get(tool, True) is not None
                if not wanted or (bits != "w8a8" and tool not in FOUR):
                    continue
                key: dict[str, Any] = {"network": name, "bits": bits, "tool": tool, "from": source, "run": run}
                if source == "its own":
                    key |= {"images_made": options.mct_images, "steps": options.mct_steps}
                if any(key.items() <= known.items() for known in rows):
                    continue
                rows.append(key | row(key, options))
                real_size.keep(rows[-1], file, table)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
