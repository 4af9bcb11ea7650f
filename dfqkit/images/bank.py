"""ImageBank: a set of synthetic images with the teacher's answers, in memory.

What belongs here: how images become a bank, and a bank one file. How files are read is
`dfqkit_export.images.stored`; who makes the images is `synthesis`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from dfqkit.tasks import Tensors
from dfqkit.teacher.load import Teacher
from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes
from dfqkit_export.images.bank_file import HEADER, IMAGES, SCHEMA
from dfqkit_export.images.spec import ImageSpec
from dfqkit_export.images.stored import Answers, Codes, StoredBank
from dfqkit_export.tasks import DEFAULT_TASK, Task, entry_of, task_of


@dataclass(frozen=True, kw_only=True)
class ImageBank:
    """Synthetic images and what the teacher says of them.

    Attributes:
        images: uint8 (N, C, H, W): what an 8-bit camera file would hold.
        answers: The teacher's outputs on exactly these 8-bit images, float32 (N, ...), by name.
        image: Shape and normalisation.
        teacher: sha256 of the teacher's weights.
        source: What made the images, e.g. ``dfq``.
        task: What the answers mean.
    """

    images: Tensor
    answers: Tensors
    image: ImageSpec
    teacher: str
    source: str
    task: Task = DEFAULT_TASK

    @classmethod
    def collect(cls, teacher: Teacher, images: Iterator[Tensor], source: str) -> ImageBank:
        """Make a bank from batches of normalised images (n, C, H, W), rounding them to 8 bits.

        Raises:
            ArtefactError: When an image is not finite.
        """
        codes, answers = [], []
        for batch in images:
            if not bool(torch.isfinite(batch).all()):
                message = (
                    f"Source '{source}' made images that are not finite. Lower its lr, or the weight of its "
                    "adversarial term where it has one."
                )
                raise ArtefactError(message)
            code = (teacher.image.denormalize(batch) * 255).round().clamp(0, 255).to(torch.uint8)
            codes.append(code.cpu())
            answers.append(teacher.answers(teacher.image.normalize(code.to(batch.device).float() / 255)))
        return cls(
            images=torch.cat(codes),
            answers={name: torch.cat([one[name].float().cpu() for one in answers]) for name in teacher.task.names},
            image=teacher.image,
            teacher=teacher.sha256,
            source=source,
            task=teacher.task,
        )

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Normalised images (n, C, H, W) and the teacher's answers, in order."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            answers = {name: _moved(values[part], device) for name, values in self.answers.items()}
            yield self.image.normalize(_moved(self.images[part], device).float() / 255), answers

    def save(self, path: Path) -> None:
        """Write the bank; there whole or not at all."""
        header: dict[str, object] = {"schema": SCHEMA, "image": self.image.to_dict(), **entry_of(self.task)}
        header |= {"teacher": self.teacher, "source": self.source}
        # One entry: safetensors writes several in an order that differs from process to process.
        metadata = {HEADER: json.dumps(header, sort_keys=True)}
        tensors = {IMAGES: self.images.contiguous()}
        tensors |= {name: values.contiguous() for name, values in self.answers.items()}
        write_bytes(path, save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: Path, teacher: Teacher | None = None) -> ImageBank:
        """Read a bank.

        Args:
            path: File that `save` wrote, or the folder of a set, which is then held in memory whole.
            teacher: When given, the bank must have been made for it.

        Raises:
            ArtefactError: For a missing or damaged file, an unknown schema, or another teacher's bank.
        """
        stored = StoredBank.open(path)
        if teacher is not None and stored.teacher != teacher.sha256:
            message = (
                f"Image bank '{stored.path}' was made for another teacher (weights {stored.teacher[:12]}, this one is "
                f"{teacher.sha256[:12]}). Make images for this teacher with `dfqkit synthesize`."
            )
            raise ArtefactError(message)
        shards = list(stored.each_shard())
        images, answers = shards[0] if len(shards) == 1 else _joined(stored, shards)
        return cls(
            images=torch.from_numpy(images),
            answers={name: torch.from_numpy(values) for name, values in answers.items()},
            image=stored.spec,
            teacher=stored.teacher,
            source=stored.source,
            task=task_of(stored.task),
        )


def _moved(values: Tensor, device: torch.device | str) -> Tensor:
    """Return values on a device; on their way to a GPU they lie in pinned memory, and nobody waits for them."""
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _joined(stored: StoredBank, shards: list[tuple[Codes, Answers]]) -> tuple[Codes, Answers]:
    if not shards:
        return stored.take([])
    answers = {name: np.concatenate([one[name] for _, one in shards]) for name in stored.outputs}
    return np.concatenate([images for images, _ in shards]), answers
