"""Stored sets of synthetic images with a teacher's answers, read without torch.

What belongs here: `StoredBank`, which reads images and answers when they are asked for, and what feeds a quantizer.
What the files look like is `bank_file`, what answers mean `dfqkit_export.tasks`; the same as a torch data set is
`dfqkit.images.BankDataset`.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import sha256_of_file
from dfqkit_export.images.bank_file import IMAGES, Contents, reading, set_contents
from dfqkit_export.images.tensors import TensorFile

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]
#: The teacher's answers (N, ...), by the name of its output.
Answers = dict[str, Floats]


class StoredBank(Contents):
    """A stored set, opened with `open`; images are read when they are asked for.

    Example:
        >>> images = StoredBank.open("set")  # doctest: +SKIP
        >>> next(images.batches(64)).shape  # doctest: +SKIP
        (64, 3, 32, 32)
    """

    @classmethod
    def open(cls, path: str | Path) -> StoredBank:
        """Open a set's folder, or a lone file, and check that all its files are there with what they should hold.

        Contents are not hashed; `verify` does that.

        Raises:
            ArtefactError: It is missing, not a set, of a newer version, damaged, or cut short.
        """
        return cls(**vars(set_contents(Path(path))))

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(shard.n for shard in self.shards)]

    @cached_property
    def _files(self) -> dict[int, tuple[Any, dict[str, Any]]]:
        return {}

    def __len__(self) -> int:
        """Return how many images there are."""
        return self._starts[-1]

    @property
    def complete(self) -> bool:
        """Whether it has all the images that it was to have."""
        return len(self) == self.wanted

    @property
    def digest(self) -> str:
        """sha256 of what is in it: equal for equal shards, wherever they lie."""
        hashes = [shard.sha256 or sha256_of_file(shard.path) for shard in self.shards]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def verify(self) -> None:
        """Hash every shard and compare with the set's own list.

        Raises:
            ArtefactError: Names the first file that is not as it was written.
        """
        for shard in self.shards:
            found = sha256_of_file(shard.path)
            if shard.sha256 not in (None, found):
                message = (
                    f"'{shard.path}' was changed since it was written: its sha256 is {found[:12]}..., the set's list "
                    f"has {str(shard.sha256)[:12]}.... Copy the file again, or make the set again."
                )
                raise ArtefactError(message)

    def each_shard(self) -> Iterator[tuple[Codes, Answers]]:
        """Yield images uint8 (n, C, H, W) and the teacher's answers, shard by shard; only one is held."""
        for shard in self.shards:
            with reading(shard.path):
                file = TensorFile(shard.path)
                found = file.read(IMAGES), {name: file.read(name) for name in self.outputs}
            yield found

    def take(self, indices: Sequence[int]) -> tuple[Codes, Answers]:
        """Return images and answers at the given places, in that order; no more than these are read."""
        images = np.empty((len(indices), *self.spec.shape), np.uint8)
        answers = {name: np.empty((len(indices), *shape), np.float32) for name, shape in self.outputs.items()}
        for row, index in enumerate(indices):
            if not 0 <= index < len(self):
                message = f"Image {index} of '{self.path}', which has {len(self)}: allowed are 0 to {len(self) - 1}."
                raise IndexError(message)
            number = bisect_right(self._starts, index) - 1
            stored, outputs = self._slices(number)
            at = int(index) - self._starts[number]
            images[row] = stored[at]
            for name, values in outputs.items():
                answers[name][row] = values[at]
        return images, answers

    def batches(self, size: int) -> Iterator[Floats]:
        """Normalised images float32 (n, C, H, W), in order; the last batch may be smaller."""
        if size < 1:
            message = f"Batch size must be at least 1, found {size}."
            raise ArtefactError(message)
        return self._batches(size)

    def _batches(self, size: int) -> Iterator[Floats]:
        for start in range(0, len(self), size):
            yield self.normalized(range(start, min(start + size, len(self))))

    def normalized(self, indices: Sequence[int]) -> Floats:
        """Normalised images float32 (n, C, H, W) at the given places."""
        return self.spec.normalize(self.take(indices)[0].astype(np.float32) / np.float32(255))

    @property
    def answers(self) -> Answers:
        """The teacher's answers, (N, ...) by output, read shard by shard."""
        return {name: np.concatenate(list(self._each(name))) for name in self.outputs}

    def _each(self, output: str) -> Iterator[Floats]:
        for shard in self.shards:
            with reading(shard.path):
                values = TensorFile(shard.path).read(output)
            yield values

    def _slices(self, number: int) -> tuple[Any, dict[str, Any]]:
        found = self._files.get(number)
        if found is None:
            path = self.shards[number].path
            with reading(path):
                file = TensorFile(path)
                answers = {name: file.part(name) for name in self.outputs}
                found = self._files[number] = (file.part(IMAGES), answers)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to the worker processes of a data loader; each opens its own.
        return self.__dict__ | {"_files": {}}


def image_digest(codes: Codes) -> bytes:
    """Return what is equal for images that are equal pixel by pixel, and for no others."""
    return hashlib.blake2b(np.ascontiguousarray(codes).data, digest_size=16).digest()


class CalibrationReader:
    """Feeds a set to ``onnxruntime.quantization.quantize_static``, which takes it as a ``CalibrationDataReader``.

    Args:
        images: The set.
        input_name: Name of the model's input; of several, the set knows them.
        batch: Images in one call, at least 1.

    Example:
        >>> reader = CalibrationReader(StoredBank.open("set"), "input")  # doctest: +SKIP
        >>> quantize_static("model.onnx", "model.int8.onnx", reader)  # doctest: +SKIP
    """

    def __init__(self, images: StoredBank, input_name: str, batch: int = 32) -> None:
        if batch < 1:
            message = f"Batch size must be at least 1, found {batch}."
            raise ArtefactError(message)
        self.images, self.input_name, self.batch = images, input_name, batch
        self._next, self._end = 0, len(images)

    def get_next(self) -> dict[str, Floats] | None:
        """Return the next images by the input's name; None at the end."""
        stop = min(self._next + self.batch, self._end)
        if stop <= self._next:
            return None
        batch = self.images.normalized(range(self._next, stop))
        self._next = stop
        return {name or self.input_name: values for name, values in self.images.spec.to_file(batch).items()}

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with the images from one index to another, exclusive."""
        self._next, self._end = max(0, start_index), min(end_index, len(self.images))

    def rewind(self) -> None:
        """Begin again."""
        self.set_range(0, len(self.images))

    def __len__(self) -> int:
        """Return how many images there are."""
        return len(self.images)

    def __iter__(self) -> Iterator[dict[str, Floats]]:
        while (batch := self.get_next()) is not None:
            yield batch
