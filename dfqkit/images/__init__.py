"""Stored sets of synthetic images with the teacher's answers: in memory, as a data set, exported, on a sheet.

What belongs here: the public names, resolved on first use, because two of the rooms work without torch. The form on
disk is `dfqkit_export.images.bank_file`, its torch-free reader `dfqkit_export.images.stored`; who makes the images is
`synthesis`, and who makes a whole set is `run.bank_making`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit_export.lazy import attach

if TYPE_CHECKING:
    from dfqkit.images.bank import ImageBank
    from dfqkit.images.dataset import BankDataset

__getattr__, __dir__ = attach(__name__, {"dfqkit.images.dataset": "BankDataset", "dfqkit.images.bank": "ImageBank"})

__all__ = ["BankDataset", "ImageBank"]
