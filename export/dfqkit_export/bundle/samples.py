"""The samples of a bundle: small programs that run its model, and images by which they check themselves.

What belongs here: what lies under ``samples/``. The programs are `templates`; nothing in them depends on the model, so
that they are the same in every bundle.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from importlib import resources

import numpy as np

from dfqkit_export.backends import all_targets, backend_of
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import ArtefactError
from dfqkit_export.sentinel import Sentinel

__all__ = ["sample_files"]

#: Images of the samples; those that the teacher is surest of, so that runtimes do not differ in their classes.
_IMAGES = 4
_PROGRAMS = {
    "samples/python/classify.py": "classify.py.txt",
    "samples/cpp/main.cpp": "main.cpp.txt",
    "samples/cpp/CMakeLists.txt": "CMakeLists.txt",
}
_NAME = re.compile(r"[\w./-]+", re.ASCII)


def sample_files(session: OrtSession, sentinel: Sentinel, target: str) -> dict[str, bytes]:
    """Everything under ``samples/``, by name.

    Args:
        session: the model.
        sentinel: images to pick from.
        target: what the model was made for.

    Raises:
        ArtefactError: the model's input has a name that no command line can hold, or its batch is fixed to more images
            than there are.
    """
    fixed = session.input_shape[0]
    count = fixed if isinstance(fixed, int) else min(_IMAGES, len(sentinel))
    if count > len(sentinel):
        message = f"The model takes {count} images at once, and there are {len(sentinel)}. Export it with a free batch."
        raise ArtefactError(message)
    ranked = np.sort(sentinel.teacher_logits, axis=1)
    surest = np.argsort(ranked[:, -2] - ranked[:, -1], kind="stable")[:count]
    images = sentinel.normalized()[surest]
    files = {name: _template(template) for name, template in _PROGRAMS.items()}
    files["samples/inputs.bin"] = images.astype("<f4").tobytes()
    files["samples/expected.bin"] = session.run(images).astype("<f4").tobytes()
    files["samples/trtexec.md"] = _trtexec(session, images.shape, target).encode()
    files["samples/README.md"] = _README.format(count=count, shape="x".join(map(str, images.shape))).encode()
    return files


def _template(name: str) -> bytes:
    return resources.files(__package__).joinpath("templates", name).read_bytes()


_README = """\
# Samples

`inputs.bin` holds {count} images, float32, little-endian, {shape}, normalised; `expected.bin` the logits that ONNX
Runtime gave for them when the bundle was made. Each program runs the model on them, compares, and ends with 0 where
they agree.

- Python, with numpy and onnxruntime: `python python/classify.py`, or `python python/classify.py image.npy`
- C++, with ONNX Runtime's headers and library: `cmake -S cpp -B build -DONNXRUNTIME_ROOT=... && cmake --build build`,
  then `build/classify ../model.onnx inputs.bin expected.bin`
- TensorRT: see `trtexec.md`

Small differences between processors are normal: kernels without VNNI and sums in another order move a logit by a step
or two of its scale. Another class is not.
"""


def _trtexec(session: OrtSession, shape: tuple[int, ...], target: str) -> str:
    known = all_targets().get(target)
    if known is None or not backend_of(known).trtexec:
        return _NOT_TENSORRT.format(target=target)
    for name in (session.input_name, session.output_name):
        if not _NAME.fullmatch(name):
            message = f"The model has an input or output named {name!r:.80}, which trtexec cannot be told. Rename it."
            raise ArtefactError(message)
    sizes = "x".join(map(str, shape[1:]))
    fixed = isinstance(session.input_shape[0], int)
    values: Mapping[str, str] = {
        "x": session.input_name,
        "y": session.output_name,
        "run": "" if fixed else f" --shapes={session.input_name}:{shape[0]}x{sizes}",
        "profile": ""
        if fixed
        else "".join(f" --{kind}Shapes={session.input_name}:{n}x{sizes}" for kind, n in _PROFILE),
    }
    return _TRTEXEC.format(**{key: shlex.quote(text) if key in "xy" else text for key, text in values.items()})


_PROFILE = (("min", 1), ("opt", 8), ("max", 32))

_NOT_TENSORRT = """\
# TensorRT

This model is in the form of the target `{target}`. TensorRT takes signed symmetric int8 only, with quantizers at other
places, and would refuse it or run layers in float: it needs a student of its own. Set `target: tensorrt` in the recipe
(`dfqkit run RECIPE --set target=tensorrt`), and bundle that run.
"""

_TRTEXEC = """\
# TensorRT

trtexec comes with TensorRT's container, tar and deb packages, not with its wheels. Run from the folder of `model.onnx`.
These lines were not run when the bundle was made.

TensorRT 11 (strong typing is the only mode; `--int8`, `--fp16` and `--best` do not exist any more):

    trtexec --onnx=model.onnx --saveEngine=model.plan{profile} \\
        --profilingVerbosity=detailed --exportLayerInfo=layers.json

TensorRT 10.12 to 10.x (say that the types in the file hold; no `--int8`):

    trtexec --onnx=model.onnx --saveEngine=model.plan{profile} \\
        --stronglyTyped --profilingVerbosity=detailed --exportLayerInfo=layers.json

Compare with the logits in this bundle. TensorRT rounds elsewhere than ONNX Runtime, so the tolerance is wide; what must
be the same is the class:

    trtexec --loadEngine=model.plan{run} \\
        --loadInputs={x}:samples/inputs.bin --loadRefOutputs={y}:samples/expected.bin --atol=0.5 --rtol=0.05

`dfqkit inspect model.onnx --target tensorrt` checks the file without a GPU; `layers.json` says which layers run in
int8.
"""
