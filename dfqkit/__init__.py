"""dfqkit quantizes a trained vision model without its data, and proves the result in the runtime.

What belongs here: the public names, resolved on first use, so that `import dfqkit` and the command line's
help stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit_export._version import __version__
from dfqkit_export.lazy import attach

if TYPE_CHECKING:
    from dfqkit.api import Result, quantize
    from dfqkit.config.reading import load_recipe
    from dfqkit.config.recipe import Recipe
    from dfqkit.images import BankDataset, ImageBank
    from dfqkit.teacher.load import Teacher, load_teacher
    from dfqkit_export.errors import DfqkitError
    from dfqkit_export.images.spec import ImageSpec

__getattr__, __dir__ = attach(
    __name__,
    {
        "dfqkit.api": "Result quantize",
        "dfqkit.config.reading": "load_recipe",
        "dfqkit.config.recipe": "Recipe",
        "dfqkit.images": "BankDataset ImageBank",
        "dfqkit.teacher.load": "Teacher load_teacher",
        "dfqkit_export.errors": "DfqkitError",
        "dfqkit_export.images.spec": "ImageSpec",
    },
)

__all__ = [
    "BankDataset", "DfqkitError", "ImageBank", "ImageSpec", "Recipe", "Result", "Teacher", "__version__", "load_recipe",
    "load_teacher", "quantize",
]  # fmt: skip
