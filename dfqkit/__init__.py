"""dfqkit quantizes a trained vision model without its data, and proves the result in the runtime.

What belongs here: the public names, resolved on first use, so that `import dfqkit` and the command line's
help stay light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dfqkit_export._version import __version__

if TYPE_CHECKING:
    from dfqkit_export.errors import DfqkitError
    from dfqkit_export.images import ImageSpec

    from .api import Result, quantize
    from .imagebank import BankDataset, ImageBank
    from .recipe import Recipe, load_recipe
    from .teacher import Teacher, load_teacher

_HOME = {
    "BankDataset": "dfqkit.imagebank",
    "DfqkitError": "dfqkit_export.errors",
    "ImageBank": "dfqkit.imagebank",
    "ImageSpec": "dfqkit_export.images",
    "Recipe": "dfqkit.recipe",
    "Result": "dfqkit.api",
    "Teacher": "dfqkit.teacher",
    "load_recipe": "dfqkit.recipe",
    "load_teacher": "dfqkit.teacher",
    "quantize": "dfqkit.api",
}

__all__ = [
    "BankDataset",
    "DfqkitError",
    "ImageBank",
    "ImageSpec",
    "Recipe",
    "Result",
    "Teacher",
    "__version__",
    "load_recipe",
    "load_teacher",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        message = f"module 'dfqkit' has no attribute '{name}'"
        raise AttributeError(message)
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
