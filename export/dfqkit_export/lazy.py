"""Public names of a package, resolved on first use, so that importing the package stays light."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["attach"]


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the module functions ``__getattr__`` and ``__dir__`` (PEP 562) of a package.

    Args:
        package: Its ``__name__``.
        homes: The module, absolute, in which each public name lives.

    Returns:
        Both functions, to be bound to these names in the package.

    Example:
        >>> getter, _ = attach("toy", {"sqrt": "math"})
        >>> getter("sqrt")(9)
        3.0
    """

    def resolve(name: str) -> Any:
        if name not in homes:
            message = f"module '{package}' has no attribute '{name}'"
            raise AttributeError(message)
        try:
            return getattr(import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            from dfqkit_export.env import missing_extra

            raise missing_extra(error) or error from error

    return resolve, lambda: sorted(homes)
