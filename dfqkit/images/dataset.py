"""A stored set as a torch data set, for whoever trains with their own loop.

What belongs here: the data set only; images are read when they are asked for, in worker processes too.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dfqkit_export.images.stored import StoredBank

Pair = tuple[Tensor, Tensor | dict[str, Tensor]]


class BankDataset(Dataset[Pair]):
    """Normalised images (C, H, W) and the teacher's answer, float32: its one output, or several by name.

    Args:
        path: Folder of a set, or one file of images.

    Attributes:
        stored: The set; its ``spec`` says how images are normalised.

    Raises:
        ArtefactError: For what `StoredBank.open` refuses.

    Example:
        >>> loader = torch.utils.data.DataLoader(BankDataset("set"), batch_size=64, shuffle=True)  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.stored = StoredBank.open(path)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> Pair:
        return self.__getitems__([index + len(self) if index < 0 else index])[0]

    def __getitems__(self, indices: list[int]) -> list[Pair]:
        """Return what a data loader asks for a batch: one read instead of many."""
        codes, answers = self.stored.take(indices)
        images = self.stored.spec.normalize(torch.from_numpy(codes).float() / 255)
        tensors = {name: torch.from_numpy(values) for name, values in answers.items()}
        if len(tensors) == 1:
            return list(zip(images, *tensors.values(), strict=True))
        return [(image, {name: values[i] for name, values in tensors.items()}) for i, image in enumerate(images)]
