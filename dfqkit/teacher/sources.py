"""From the name of an architecture in a recipe to a module with random weights.

What belongs here: how a factory string is resolved and called. Loading weights into the module and checking the
result is `teacher`'s business.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from dfqkit_export.errors import TeacherError
from dfqkit_export.lazy import imported
from dfqkit_export.words import did_you_mean, first_line, some

#: What the user's code (a factory, a forward) can reasonably raise; reported as theirs, not as a bug of ours.
USER_CODE_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip

#: What a module can raise when it is imported; a script that reads its own arguments exits.
_IMPORT_ERRORS: tuple[type[BaseException], ...] = (*USER_CODE_ERRORS, SystemExit)

Factory = Callable[..., nn.Module]

_CLASS_ARGUMENTS = ("num_classes", "classes")


@dataclass(frozen=True, kw_only=True)
class TeacherSource:
    """One kind of factory string.

    Attributes:
        form: How the string is written, for messages.
        build: Finds the factory that a whole string names, without calling it and without downloading anything.
        classes: Keyword argument that takes the number of classes; None to look for one in the signature.
        downloads: Keyword arguments that would fetch weights, which is refused.
        stored: Whether it names a file with a whole network in it, weights and all.
        translated: Whether its factory takes the `ImageSpec` and gives an `onnx_graph.Imported`.
    """

    form: str
    build: Callable[[str], Factory]
    classes: str | None = None
    downloads: tuple[str, ...] = ()
    stored: bool = False
    translated: bool = False


def resolve_factory(name: str) -> Factory:
    """Find the callable that makes an architecture, without calling it and without downloading anything.

    It is named by `torchvision:NAME`, `timm:NAME` (needs the extra `dfqkit[timm]`), `FILE.py:factory` or
    `package.module:factory`, whose module is installed or lies in the working directory.
    """
    source, separator, factory = name.partition(":")
    if not (separator and source and factory):
        message = f"Factory '{name}' has no '<where>:<name>' form. {_forms()}"
        raise TeacherError(message)
    return _source(name).build(name)


def is_stored(name: str) -> bool:
    """Whether a factory string names a file with a whole network in it."""
    return _source(name).stored


def is_translated(name: str) -> bool:
    """Whether a factory string names a file that is translated for images of one size."""
    return _source(name).translated


def located(name: str, find: Callable[[str], object]) -> str:
    """Return a factory string whose file, where it names one, was found by ``find``."""
    source, _, path = name.partition(":")
    if _source(name) is _FILE:
        return f"{find(source)}:{path}"
    return f"{source}:{find(path)}" if is_stored(name) else name


def stored_program(name: str) -> torch.export.ExportedProgram | torch.jit.ScriptModule:
    """Read the network that `exported:FILE` or `torchscript:FILE` names; reading may run code that the file holds."""
    program: Any = resolve_factory(name)()
    assert isinstance(program, torch.export.ExportedProgram | torch.jit.ScriptModule)
    return program


def build_model(
    name: str, classes: int, factory_args: Mapping[str, object] | None = None, *, seed: int = 0
) -> nn.Module:
    """Make the architecture with random weights that are the same in every process.

    The number of classes, where there are any, goes to the factory's `num_classes` or `classes` unless `factory_args`
    has one. The global random state is left as it was: layers draw their initial weights from it, so it is forked and
    seeded around the call; another ``seed`` gives other random weights. Nothing is ever downloaded.
    """
    factory, source = resolve_factory(name), _source(name)
    if source.stored:
        message = f"'{name}' is a stored network, which is no architecture to train. Name the factory that makes it."
        raise TeacherError(message)
    arguments = dict(factory_args or {})
    downloads = [key for key in source.downloads if arguments.get(key)]
    if downloads:
        message = (
            f"Factory '{name}' is given {', '.join(downloads)}, which would fetch weights. Factories make the "
            "architecture only. Remove the argument and name a local .safetensors, .pt or .pth file "
            "with the weights."
        )
        raise TeacherError(message)
    if classes and not any(key in arguments for key in _CLASS_ARGUMENTS):
        arguments |= {source.classes: classes} if source.classes else _class_argument(factory, classes)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = factory(**arguments)
    except USER_CODE_ERRORS as error:
        called = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        message = (
            f"Factory '{name}' failed when called with {called}: {type(error).__name__}: {error}. "
            "Check its args against the factory's parameters."
        )
        raise TeacherError(message) from error
    if not isinstance(model, nn.Module):
        message = (
            f"Factory '{name}' returned a {type(model).__name__}; a torch.nn.Module is needed. "
            "Name a function or class that makes the model itself."
        )
        raise TeacherError(message)
    return model


def _torchvision(name: str) -> Factory:
    models, factory = imported("torchvision.models", "torch"), name.partition(":")[2]
    _require_known(name, factory, models.list_models(module=models))
    return functools.partial(models.get_model, factory, weights=None)


def _timm(name: str) -> Factory:
    timm, factory = imported("timm", "timm"), name.partition(":")[2]
    _require_known(name, factory, timm.list_models())
    return functools.partial(timm.create_model, factory, pretrained=False)


def _of_module(name: str) -> Factory:
    place, _, factory = name.partition(":")
    try:
        module = _executed(Path(place)) if _source(name) is _FILE else _imported(place)
    except _IMPORT_ERRORS as error:
        message = (
            f"Factory '{name}': module '{place}' cannot be imported ({type(error).__name__}: {error}). It must be "
            f"installed or lie in the working directory or in a folder named in PYTHONPATH; what only a script does "
            f"stands behind `if __name__ == '__main__':`. {_forms()}"
        )
        raise TeacherError(message) from error
    found: Factory | None = getattr(module, factory, None)
    if found is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        _require_known(name, factory, public)
    if isinstance(found, nn.Module) or not callable(found):
        message = (
            f"Factory '{name}' is a {type(found).__name__}, not a function or class that makes a model. "
            "Wrap it in a function without arguments, or use Teacher.from_module in Python."
        )
        raise TeacherError(message)
    return found


def _imported(place: str) -> ModuleType:
    """Import a module, of the working directory where none of its name is installed."""
    importlib.invalidate_caches()  # the file may be newer than what was seen of its folder
    if importlib.util.find_spec(place.partition(".")[0]) is None and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return importlib.import_module(place)


def _executed(path: Path) -> ModuleType:
    """Execute a file as it is now, as a module that finds those beside it, as Python does with a script."""
    path = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"  # hides no module of the file's own name
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    beside = str(path.parent)
    sys.path.insert(0, beside)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(beside)
        if beside not in sys.path:
            sys.path.append(beside)  # for what its functions import; what is installed comes first again
    return module


def _exported(name: str) -> Factory:
    return functools.partial(_stored, name, torch.export.load)


def _torchscript(name: str) -> Factory:
    return functools.partial(_stored, name, functools.partial(torch.jit.load, map_location="cpu"))


def _onnx(name: str) -> Factory:
    from dfqkit.teacher.onnx_graph.importing import import_onnx

    translate: Any = import_onnx  # gives a module with its names
    return functools.partial(translate, name.partition(":")[2])


def _stored(name: str, load: Callable[[str], Any]) -> Any:
    path = name.partition(":")[2]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, which its files' owners know
            return load(path)
    except Exception as error:  # torch raises what its readers of zip, JSON and pickle do
        reason = first_line(error)
        message = (
            f"Cannot read '{path}' ({type(error).__name__}: {reason[:200]}). An exported: file is what "
            "torch.export.save writes, a torchscript: file what torch.jit.save does."
        )
        raise TeacherError(message) from error


_library = functools.partial(
    TeacherSource, classes="num_classes", downloads=("weights", "weights_backbone", "pretrained", "checkpoint_path")
)
_MODULE = TeacherSource(form="package.module:factory", build=_of_module)
_FILE = TeacherSource(form="FILE.py:factory", build=_of_module)

#: All kinds of factory strings by what stands in front of the colon; every other one names a module.
SOURCES = {
    "exported": TeacherSource(form="exported:FILE.pt2", build=_exported, stored=True),
    "torchscript": TeacherSource(form="torchscript:FILE.pt", build=_torchscript, stored=True),
    "onnx": TeacherSource(form="onnx:FILE.onnx", build=_onnx, stored=True, translated=True),
    "torchvision": _library(form="torchvision:NAME", build=_torchvision),
    "timm": _library(form="timm:NAME", build=_timm),
}


def _source(name: str) -> TeacherSource:
    place = name.partition(":")[0]
    return SOURCES.get(place, _FILE if place.endswith(".py") else _MODULE)


def _forms() -> str:
    forms = ", ".join(source.form for source in (*SOURCES.values(), _FILE))
    return f"Allowed are {forms} and {_MODULE.form}, for example dfqkit.models:cifar_resnet20."


def _require_known(name: str, factory: str, known: Iterable[str]) -> None:
    known = sorted(known)
    if factory in known:
        return
    hint = did_you_mean(factory, known, n=3) or f" It has {some(known, 5)}."
    message = f"Factory '{name}' does not exist: no '{factory}' in '{name.partition(':')[0]}'.{hint}"
    raise TeacherError(message)


def _class_argument(factory: Factory, classes: int) -> dict[str, int]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # built-in callables have no signature
        return {}
    return next(({key: classes} for key in _CLASS_ARGUMENTS if key in parameters), {})
