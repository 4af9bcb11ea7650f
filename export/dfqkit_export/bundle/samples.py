"""The samples of a bundle: small programs that run its model, and images by which they check themselves.

What belongs here: what lies under ``samples/``. The programs are the task's; nothing in them depends on the model, so
that they are the same in every bundle.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.backends import DEFAULT, backend_of, find_target
from dfqkit_export.backends.onnxruntime.session import OrtSession
from dfqkit_export.errors import ArtefactError
from dfqkit_export.sentinel import Sentinel
from dfqkit_export.tasks import Task, entry_of
from dfqkit_export.tasks.answering import answer
from dfqkit_export.tasks.base import SAMPLES

#: Images of the samples; those that the teacher is surest of, so that runtimes do not differ in their answers.
_IMAGES = 4
_NAME = re.compile(r"[\w./-]+", re.ASCII)


def sample_files(session: OrtSession, sentinel: Sentinel, target: str) -> dict[str, bytes]:
    """Return everything under ``samples/``, by name.

    Raises:
        ArtefactError: The model's input has a name that no command line can hold, or its batch is fixed to more images
            than there are.
    """
    task, surest = sentinel.task, sample_places(session, sentinel)
    count = len(surest)
    images = sentinel.normalized()[surest]
    image = session.entrance.image
    # Images that go in another way than the task's programs know are fed by what serves every task.
    programs = SAMPLES if image is not None and not image.plain else task.samples
    files = {f"samples/{place}": _text(resource) for place, resource in programs.programs.items()}
    if entry := entry_of(task):
        files["samples/task.txt"] = "".join(_words(entry["task"])).encode()
    given = session.entrance.feed(images)
    files |= {f"samples/{_given(place)}": _bytes(values) for place, values in enumerate(given.values())}
    lines = (_line(place, name, values) for place, (name, values) in enumerate(given.items()))
    files["samples/inputs.txt"] = "".join(lines).encode()
    outputs = answer(session, task, images)
    files |= {_expected(task, name): values.astype("<f4").tobytes() for name, values in outputs.items()}
    files["samples/trtexec.md"] = _trtexec(session, task, given, target).encode()
    expected = " and ".join(f"`{_expected(task, name).rpartition('/')[2]}`" for name in task.names)
    known = find_target(target)
    own = "" if known is None or backend_of(known) is DEFAULT else _OWN.format(backend=backend_of(known))
    told = _README.format(count=count, expected=expected, task=task, samples=programs, own=own)
    return files | {"samples/README.md": told.encode()}


def _given(place: int) -> str:
    return f"inputs_{place}.bin" if place else "inputs.bin"


def _bytes(values: NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def _line(place: int, name: str, values: NDArray[Any]) -> str:
    return f"{_given(place)} {values.dtype.name} {_sizes(values.shape) or '-'} {name}\n"


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _words(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each parameter of a task, words behind its name; lists of lists have one for each inner one."""
    for key, value in entry.items():
        if isinstance(value, tuple) and value and isinstance(value[0], tuple):
            yield from _words({f"{key}.{place}": _flat(each) for place, each in enumerate(value)})
        else:
            yield " ".join([key, *map(str, value if isinstance(value, tuple) else (value,))]).rstrip() + "\n"


def _flat(value: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(part for each in value for part in (_flat(each) if isinstance(each, tuple) else (each,)))


def sample_places(session: OrtSession, sentinel: Sentinel) -> NDArray[np.int64]:
    """Return which images of the sentinel set are the samples, in their order.

    Raises:
        ArtefactError: As `sample_files`, of the batch.
    """
    fixed = session.input_shape[0]
    count = fixed if isinstance(fixed, int) else min(_IMAGES, len(sentinel))
    if count > len(sentinel):
        message = f"The model takes {count} images at once, and there are {len(sentinel)}. Export it with a free batch."
        raise ArtefactError(message)
    margins = sentinel.task.margins(sentinel.answers, sentinel.answers)
    return np.argsort(-margins, kind="stable")[:count]


def _expected(task: Task, output: str) -> str:
    if len(task.names) == 1:
        return "samples/expected.bin"
    return f"samples/expected_{re.sub('[^A-Za-z0-9_.-]', '_', output)}.bin"  # as samples/run.py.txt does


def _text(resource: str) -> bytes:
    package, _, path = resource.partition(":")
    return resources.files(package).joinpath(path).read_bytes()


_README = """\
# Samples

`inputs.txt` lists what goes into the model for {count} images, a line an input: the file of its little-endian numbers,
their type and sizes, and its name; float32 images are normalised. {expected} hold the {task.words} that ONNX Runtime
gave for them when the bundle was made. Each program runs the model on them, compares, and ends with 0 where they agree.

{samples.use}
- TensorRT: see `trtexec.md`
{own}
{samples.note}
"""
_OWN = "- {backend.title}: `dfqkit compare model.onnx --runtime-b {backend.name} --images sentinel.safetensors`\n"


def _trtexec(session: OrtSession, task: Task, given: Mapping[str, NDArray[Any]], target: str) -> str:
    known = find_target(target)
    if known is None or not backend_of(known).trtexec:
        return _NOT_TENSORRT.format(target=target)
    theirs = task.named_in(session.output_names)
    for name in (*given, *theirs):
        if not _NAME.fullmatch(name):
            message = f"The model has an input or output named {name!r:.80}, which trtexec cannot be told. Rename it."
            raise ArtefactError(message)
    count = len(next(iter(given.values())))
    fixed = isinstance(session.input_shape[0], int)

    def shapes(n: int) -> str:
        return ",".join(f"{name}:{_sizes((n, *each.shape[1:]))}" for name, each in given.items() if len(each) == count)

    profile = "".join(f" --{kind}Shapes={shapes(n)}" for kind, n in _PROFILE)
    loaded = (f"{shlex.quote(name)}:samples/{_given(place)}" for place, name in enumerate(given))
    outputs = (f"{shlex.quote(own)}:{_expected(task, name)}" for name, own in zip(task.names, theirs, strict=True))
    return _TRTEXEC.format(
        target=target,
        x=",".join(loaded),
        y=",".join(outputs),
        words=task.words,
        same=task.samples.same,
        run="" if fixed else f" --shapes={shapes(count)}",
        profile="" if fixed else profile,
    )


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

TensorRT 10, as on a Jetson (say that the types in the file hold; no `--int8`):

    trtexec --onnx=model.onnx --saveEngine=model.plan{profile} \\
        --stronglyTyped --profilingVerbosity=detailed --exportLayerInfo=layers.json

Compare with the {words} in this bundle. TensorRT rounds elsewhere than ONNX Runtime, so the tolerance is wide; what \
must
be the same is the {same}:

    trtexec --loadEngine=model.plan{run} \\
        --loadInputs={x} --loadRefOutputs={y} --atol=0.5 --rtol=0.05

`dfqkit inspect model.onnx --target {target}` checks the file without a GPU; `layers.json` says which layers run in
int8.
"""
