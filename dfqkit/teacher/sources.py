"""From the name of an architecture in a recipe to a module with random weights.

What belongs here: how a factory string is resolved and called. Loading weights into the module and checking the
result is `teacher`'s business.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType

import torch
from torch import nn

from dfqkit_export.errors import TeacherError
from dfqkit_export.words import did_you_mean, some

__all__ = ["USER_CODE_ERRORS", "build_model", "resolve_factory"]

#: What the user's code (a factory, a forward) can reasonably raise; reported as theirs, not as a bug of ours.
USER_CODE_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)

_FORMS = "Allowed are torchvision:NAME, timm:NAME and package.module:factory, for example dfqkit.models:cifar_resnet20."
_DOWNLOADS = ("weights", "weights_backbone", "pretrained", "checkpoint_path")
_CLASS_ARGUMENTS = ("num_classes", "classes")
_RANDOM_SEED = 0


def resolve_factory(name: str) -> Callable[..., nn.Module]:
    """Find the callable that makes an architecture, without calling it and without downloading anything.

    Args:
        name: `torchvision:NAME`, `timm:NAME` (needs the extra `dfqkit[timm]`) or `package.module:factory`.

    Returns:
        A callable that returns a module with random weights; it takes the factory's own keyword arguments.

    Raises:
        TeacherError: The string has another form, or the package, module or factory does not exist.
    """
    source, separator, factory = name.partition(":")
    if not (separator and source and factory):
        msg = f"Factory '{name}' has no '<where>:<name>' form. {_FORMS}"
        raise TeacherError(msg)
    if source == "torchvision":
        models = _import_package("torchvision.models", "pip install torchvision")
        _require_known(name, factory, models.list_models(module=models))
        return functools.partial(models.get_model, factory, weights=None)
    if source == "timm":
        timm = _import_package("timm", "pip install 'dfqkit[timm]'")
        _require_known(name, factory, timm.list_models())
        return functools.partial(timm.create_model, factory, pretrained=False)
    return _attribute(name, _import_module(name, source), factory)


def build_model(
    name: str, classes: int, factory_args: Mapping[str, object] | None = None, *, seed: int = _RANDOM_SEED
) -> nn.Module:
    """Make the architecture with random weights that are the same in every process.

    The number of classes goes to the factory's `num_classes` or `classes` unless `factory_args` has one. The global
    random state is left as it was: layers draw their initial weights from it, so it is forked and seeded around the
    call.

    Args:
        name: A factory string, see `resolve_factory`.
        classes: Number of classes.
        factory_args: Further keyword arguments for the factory.
        seed: Other seeds give other random weights.

    Returns:
        The new module, on the CPU.

    Raises:
        TeacherError: The factory is unknown, fails, is asked to download weights, or returns something other than a
        module.
    """
    factory = resolve_factory(name)
    arguments = dict(factory_args or {})
    downloads = [key for key in _DOWNLOADS if arguments.get(key)] if name.startswith(("torchvision:", "timm:")) else []
    if downloads:
        msg = (
            f"Factory '{name}' is given {', '.join(downloads)}, which would fetch weights. Factories make the "
            "architecture only. Remove the argument and name a local .safetensors, .pt or .pth file "
            "with the weights."
        )
        raise TeacherError(msg)
    if not any(key in arguments for key in _CLASS_ARGUMENTS):
        arguments |= _class_argument(name, factory, classes)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = factory(**arguments)
    except USER_CODE_ERRORS as error:
        msg = (
            f"Factory '{name}' failed when called with {_call(arguments)}: {type(error).__name__}: {error}. "
            "Check its args against the factory's parameters."
        )
        raise TeacherError(msg) from error
    if not isinstance(model, nn.Module):
        msg = (
            f"Factory '{name}' returned a {type(model).__name__}; a torch.nn.Module is needed. "
            "Name a function or class that makes the model itself."
        )
        raise TeacherError(msg)
    return model


def _import_package(package: str, command: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        msg = f"This factory needs the package '{package.partition('.')[0]}', which cannot be imported ({error}). "
        msg += f"Install it: {command}"
        raise TeacherError(msg) from error


def _import_module(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except USER_CODE_ERRORS as error:
        msg = (
            f"Factory '{name}': module '{module}' cannot be imported ({type(error).__name__}: {error}). It "
            f"must be installed or lie in a folder named in PYTHONPATH. {_FORMS}"
        )
        raise TeacherError(msg) from error


def _attribute(name: str, module: ModuleType, factory: str) -> Callable[..., nn.Module]:
    public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    found = getattr(module, factory, None)
    if found is None:
        _require_known(name, factory, public)
    if isinstance(found, nn.Module) or not callable(found):
        msg = (
            f"Factory '{name}' is a {type(found).__name__}, not a function or class that makes a model. "
            "Wrap it in a function without arguments, or use Teacher.from_module in Python."
        )
        raise TeacherError(msg)
    made: Callable[..., nn.Module] = found
    return made


def _require_known(name: str, factory: str, known: Iterable[str]) -> None:
    known = sorted(known)
    if factory in known:
        return
    hint = did_you_mean(factory, known, n=3) or f" It has {some(known, 5)}."
    msg = f"Factory '{name}' does not exist: no '{factory}' in '{name.partition(':')[0]}'.{hint}"
    raise TeacherError(msg)


def _class_argument(name: str, factory: Callable[..., nn.Module], classes: int) -> dict[str, int]:
    if name.startswith(("torchvision:", "timm:")):
        return {"num_classes": classes}
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # built-in callables have no signature
        return {}
    return next(({key: classes} for key in _CLASS_ARGUMENTS if key in parameters), {})


def _call(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
