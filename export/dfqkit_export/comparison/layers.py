"""How far the outputs of one layer are apart, and from when on that is too much.

What belongs here: the sums over batches, and the rule by which a layer has parted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Decibels below which a layer has parted, where the two sides do not quantize it alike.
MIN_SQNR = 20.0
#: Share of a layer's values that rounding alone moves by a code; above it, the difference has begun.
MAX_DIFFERING = 0.001


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """How far the outputs of one layer are apart.

    Attributes:
        name: The layer in A.
        name_b: The layer in B.
        sqnr_db: Signal-to-noise ratio of B against A; None where both are equal or A is zero.
        max_abs: Largest difference; None where not the same values are finite.
        lsb: The same in steps of B's quantizer there, or of A's where B has none; None where neither has one.
        differing: Share of the values that are not the same code, in [0, 1]; None where the two sides do not quantize
            with the same scale.
        beyond: Share that differs by more than one code.
        parts: Whether that is too much.
        why: What is too much, in words; "" otherwise.
    """

    name: str
    name_b: str
    sqnr_db: float | None
    max_abs: float | None
    lsb: float | None
    differing: float | None
    beyond: float | None
    parts: bool
    why: str


@dataclass
class Apart:
    """What is summed up, batch by batch, of how far two tensors are apart.

    Attributes:
        step_a: Scale of the codes of A's tensor; None where it is float.
        step_b: The same of B's.
    """

    step_a: float | None
    step_b: float | None
    signal: float = 0.0
    noise: float = 0.0
    count: int = 0
    differing: int = 0
    beyond: int = 0
    largest: float = 0.0
    broken: bool = False

    def add(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
        """Take one batch of both, of equal shapes."""
        finite = np.isfinite(a) & np.isfinite(b)
        self.broken |= not np.array_equal(a[~finite], b[~finite], equal_nan=True)
        first, second = np.where(finite, a, 0).astype(np.float64), np.where(finite, b, 0).astype(np.float64)
        apart = np.abs(first - second)
        self.signal += float(np.square(first).sum())
        self.noise += float(np.square(apart).sum())
        self.largest = max(self.largest, float(apart.max(initial=0.0)))
        self.count += apart.size
        if self.same_grid and self.step_b:
            self.differing += int((apart > 0.5 * self.step_b).sum())
            self.beyond += int((apart > 1.5 * self.step_b).sum())

    @property
    def same_grid(self) -> bool:
        """Whether both are codes of the same scale."""
        return bool(self.step_a and self.step_b and abs(self.step_a / self.step_b - 1) < 1e-5)

    @property
    def sqnr_db(self) -> float | None:
        """Signal-to-noise ratio of B against A; None where both are equal or A is zero."""
        return float(10 * np.log10(self.signal / self.noise)) if self.signal and self.noise else None

    @property
    def max_abs(self) -> float | None:
        """Largest difference; None where not the same values are finite."""
        return None if self.broken else self.largest

    def why(self, min_sqnr: float) -> str:
        """Say what is too much; "" where nothing is."""
        if self.broken:
            return "not the same values are NaN or infinite"
        if self.same_grid and self.step_b:
            # A quantizer's own error is uniform over one step, with the variance step^2 / 12.
            ratio = self.noise / self.count / (self.step_b**2 / 12)
            return f"its error has {ratio:.2g} times the power of the quantizer's own" if ratio > 1 else ""
        if self.noise and (self.sqnr_db is None or self.sqnr_db < min_sqnr):
            return "A is zero there" if self.sqnr_db is None else f"{self.sqnr_db:.1f} dB"
        return ""

    def difference(self, name: str, name_b: str, min_sqnr: float) -> LayerDifference:
        """Sum it up for a layer of that name in A and in B."""
        step, why = self.step_b or self.step_a, self.why(min_sqnr)
        return LayerDifference(
            name=name,
            name_b=name_b,
            sqnr_db=self.sqnr_db,
            max_abs=self.max_abs,
            lsb=self.largest / step if step else None,
            differing=self.differing / self.count if self.same_grid else None,
            beyond=self.beyond / self.count if self.same_grid else None,
            parts=bool(why),
            why=why,
        )
