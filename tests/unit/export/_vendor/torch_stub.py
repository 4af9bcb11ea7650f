"""A stand-in for the few names of torch that an engine's buffers need; "device" memory is the host's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

float32 = np.float32
asked = False


class Tensor:
    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def to(self, device: str) -> Tensor:
        assert device == "cuda"
        return Tensor(self.array.copy())

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.array


def from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    return Tensor(array)


def empty(shape: tuple[int, ...], *, dtype: Any, device: str) -> Tensor:
    assert device == "cuda"
    return Tensor(np.full(shape, np.nan, dtype))


class cuda:  # noqa: N801 - a module in the original
    @staticmethod
    def is_available() -> bool:
        global asked
        asked = True
        return True

    class Stream:
        cuda_stream = 4711

        def synchronize(self) -> None: ...

    @staticmethod
    @contextlib.contextmanager
    def stream(stream: Any) -> Iterator[None]:
        yield
