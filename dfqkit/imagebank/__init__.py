"""Stored sets of synthetic images with the teacher's answers: in memory, as a data set, exported, on a sheet.

What belongs here: the public names, resolved on first use, because two of the rooms work without torch. The form on
disk is `dfqkit_export.setfile`, its torch-free reader `dfqkit_export.imageset`; who makes the images is `synthesis`,
and who makes a whole set is `run.sets`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bank import ImageBank
    from .dataset import BankDataset

_HOME = {"ImageBank": "bank", "BankDataset": "dataset"}

__all__ = ["BankDataset", "ImageBank"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        message = f"module 'dfqkit.imagebank' has no attribute '{name}'"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
