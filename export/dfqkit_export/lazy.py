"""What is imported only when it is used, and how to install what is then missing.

What belongs here: public names of a package that are resolved on first use, so that importing the package stays light,
and the command that adds an extra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from dfqkit_export.errors import MissingExtraError

#: What the extra `torch` brings, by the names under which it is imported.
_OF_TORCH = frozenset({"torch", "torchvision", "brevitas", "onnxscript", "pkg_resources"})


def attach(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the module functions ``__getattr__`` and ``__dir__`` (PEP 562) of a package.

    Args:
        package: Its ``__name__``.
        names: The public names of each module, absolute, with blanks between them.

    Returns:
        Both functions, to be bound to these names in the package.

    Example:
        >>> getter, _ = attach("toy", {"math": "sqrt"})
        >>> getter("sqrt")(9)
        3.0
    """
    homes = {name: module for module, held in names.items() for name in held.split()}

    def resolve(name: str) -> Any:
        if name not in homes:
            message = f"module '{package}' has no attribute '{name}'"
            raise AttributeError(message)
        try:
            return getattr(import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            raise missing_extra(error) or error from error

    return resolve, lambda: sorted(homes)


def install_hint(extra: str) -> str:
    """Return the command that adds an extra to this installation, from where it came: a checkout, a wheel, an index.

    Args:
        extra: One of those that ``pyproject.toml`` lists.

    Example:
        >>> install_hint("torch").endswith("[torch]'")
        True
    """
    return f"pip install '{_requirement(extra)}'"


def imported(package: str, extra: str) -> ModuleType:
    """Return a package or module that an extra brings, or say how to install it."""
    try:
        return import_module(package)
    except ImportError as error:
        package = package.partition(".")[0]
        message = f"This needs {package}, which cannot be imported ({error}). Run {install_hint(extra)}."
        raise MissingExtraError(message) from error


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Return what to say where an import failed because the extra `torch` is not installed; None for another one."""
    package = (error.name or "").partition(".")[0]
    if package not in _OF_TORCH:
        return None
    return MissingExtraError(
        f"This needs {package}, which is not installed: making students takes the extra 'torch', running and checking "
        f"files does not. Run {install_hint('torch')} (docs/how-to/install.md says how to get torch without CUDA)."
    )


def _requirement(extra: str) -> str:
    # Slow to load, and needed for a message alone.
    import json
    from importlib import metadata
    from urllib.parse import unquote, urlparse

    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f"{'.' if checkout == Path.cwd() else checkout}[{extra}]"
    try:
        text = metadata.distribution("dfqkit").read_text("direct_url.json")
        origin = json.loads(text) if text else {}
    except (metadata.PackageNotFoundError, ValueError):
        origin = {}
    url, version = str(origin.get("url", "")), origin.get("vcs_info")
    if version:
        return f"dfqkit[{extra}] @ {version['vcs']}+{url}@{version['commit_id']}"
    path = Path(unquote(urlparse(url).path))
    if url.startswith("file:") and not path.exists():
        return f"FOLDER-OR-WHEEL-OF-DFQKIT[{extra}]"
    return f"{path if url.startswith('file:') else 'dfqkit'}[{extra}]"
