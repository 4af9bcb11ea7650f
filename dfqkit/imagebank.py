"""ImageBank: a set of synthetic images with the teacher's answers, as one portable file.

What belongs here: the set in memory, its file, and its batches. Who makes the images is `synthesis`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import write_bytes
from dfqkit_export.images import ImageSpec

from .teacher import Teacher

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ImageBank:
    """Synthetic images and what the teacher says of them.

    Attributes:
        images: uint8 (N, C, H, W): what an 8-bit camera file would hold.
        logits: float32 (N, K), the teacher's, on exactly these 8-bit images.
        image: shape and normalisation.
        teacher: sha256 of the teacher's weights.
        source: what made the images, e.g. ``dfq``.
    """

    images: Tensor
    logits: Tensor
    image: ImageSpec
    teacher: str
    source: str

    @classmethod
    def collect(cls, teacher: Teacher, images: Iterator[Tensor], source: str) -> ImageBank:
        """Make a bank from batches of normalised images (n, C, H, W), rounding them to 8 bits.

        Raises:
            ArtefactError: when an image is not finite.
        """
        codes, logits = [], []
        for batch in images:
            if not bool(torch.isfinite(batch).all()):
                message = f"Source '{source}' made images that are not finite. Lower its lr or its adversarial weight."
                raise ArtefactError(message)
            code = (teacher.image.denormalize(batch) * 255).round().clamp(0, 255).to(torch.uint8)
            codes.append(code.cpu())
            logits.append(teacher.logits(teacher.image.normalize(code.to(batch.device).float() / 255)).float().cpu())
        return cls(
            images=torch.cat(codes),
            logits=torch.cat(logits),
            image=teacher.image,
            teacher=teacher.sha256,
            source=source,
        )

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (n, C, H, W) and teacher logits (n, K), in order."""
        for start in range(0, len(self), size):
            codes = self.images[start : start + size].to(device)
            yield self.image.normalize(codes.float() / 255), self.logits[start : start + size].to(device)

    def save(self, path: Path) -> None:
        """Write the bank; there whole or not at all."""
        header = {"schema": SCHEMA, "image": self.image.to_dict(), "teacher": self.teacher, "source": self.source}
        # One entry: safetensors writes several in an order that differs from process to process.
        metadata = {"imagebank": json.dumps(header, sort_keys=True)}
        tensors = {"images": self.images.contiguous(), "logits": self.logits.contiguous()}
        write_bytes(path, save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: Path, teacher: Teacher | None = None) -> ImageBank:
        """Read a bank.

        Args:
            path: file that `save` wrote.
            teacher: when given, the bank must have been made for it.

        Raises:
            ArtefactError: for a missing or damaged file, an unknown schema, or another teacher's bank.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("imagebank", "{}"))
                tensors = {name: file.get_tensor(name) for name in ("images", "logits")}
            schema = header.get("schema")
        except (OSError, SafetensorError, ValueError, AttributeError) as error:
            message = f"Cannot read the image bank '{path}': {error}. Make it again with `dfqkit synthesize`."
            raise ArtefactError(message) from error
        if schema != SCHEMA:
            message = (
                f"'{path}' is not an image bank that this version reads (schema {schema}, needed {SCHEMA}). Make it "
                "again with `dfqkit synthesize`."
            )
            raise ArtefactError(message)
        try:
            bank = cls(
                **tensors,
                image=ImageSpec.from_dict(header["image"]),
                teacher=str(header["teacher"]),
                source=str(header["source"]),
            )
            bank._require_consistent()
        except (KeyError, TypeError, ValueError, ArtefactError) as error:
            message = f"Image bank '{path}' contradicts itself: {error}. Make it again with `dfqkit synthesize`."
            raise ArtefactError(message) from error
        if teacher is not None and bank.teacher != teacher.sha256:
            message = (
                f"Image bank '{path}' was made for another teacher (weights {bank.teacher[:12]}, this one is "
                f"{teacher.sha256[:12]}). Make images for this teacher with `dfqkit synthesize`."
            )
            raise ArtefactError(message)
        return bank

    def _require_consistent(self) -> None:
        images, logits = (len(self), *self.image.shape), (len(self), self.image.classes)
        for name, tensor, shape, dtype in (
            ("images", self.images, images, torch.uint8),
            ("logits", self.logits, logits, torch.float32),
        ):
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                message = f"its {name} are {tensor.dtype} {tuple(tensor.shape)}, its header asks for {dtype} {shape}"
                raise ValueError(message)
