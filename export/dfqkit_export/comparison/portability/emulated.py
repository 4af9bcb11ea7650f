"""The program that runs a file in whatever Python and ONNX Runtime it is started with: it needs numpy and nothing else.

What belongs here: no import of this package, which the other Python does not have. What goes in and comes out are
files in one folder.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path) -> None:
    """Run the file of ``request.json`` on batches ``feed-N.npz``; leave ``out-N.npz``, ``codes-N.npz`` and an answer.

    The first session runs the file as it is; the second one, for the first batches, with inner tensors as outputs.
    """
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    plain = _session(request["model"], exact=request["exact"])
    names = [value.name for value in plain.get_outputs()]
    for number in range(request["batches"]):
        _run(plain, names, folder / f"feed-{number}.npz", folder / f"out-{number}.npz")
    del plain
    laid_open = list(request["tensors"])
    if laid_open:
        session = _session(request["exposed"], exact=request["exact"])
        for number in range(request["open_batches"]):
            _run(session, [*names, *laid_open], folder / f"feed-{number}.npz", folder / f"codes-{number}.npz")
    said = {"version": import_module("onnxruntime").__version__, "machine": platform.machine(), "outputs": names}
    (folder / "answer.json").write_text(json.dumps(said), encoding="utf-8")


def _session(path: str, *, exact: bool) -> Any:
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.use_deterministic_compute = True
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session: Any, names: list[str], feed: Path, out: Path) -> None:
    with np.load(feed) as stored:
        found = session.run(names, {name: stored[name] for name in stored.files})
    np.savez(out, **{str(place): value for place, value in enumerate(found)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
