"""What ONNX Runtime's integer kernels compute where processors differ: additions and products of codes, in numpy.

What belongs here: one formula for each kind of processor, on tables of all codes that can occur, so that "the same
everywhere" is counted and not estimated. ``rint`` rounds half to even; every ``*``, ``/`` and ``+`` rounds to float32.
Sums of products are exact integers everywhere but where they saturate (`backends.saturation`), and one product of each
with a float32 factor is the same wherever rounding is to nearest: layers, and averages over all positions.

Source: ONNX Runtime 1.32, core/mlas/lib: qladd.cpp, intrinsics/avx2/qladd_avx2.cpp, qlmul.cpp. Each formula gave the
runtime's code for all 65,536 pairs of 60 sets of scales and zero points: under qemu as Nehalem, Haswell (1.32),
Cortex-A72 and with dot products (1.27), and on AVX-512 VNNI; so did one formula for averages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Table = NDArray[np.float64]

_F = np.float32
#: Arm's additions are in fixed point where both ratios of scales lie between these, from qladd.cpp.
_LEAST_RATIO, _MOST_RATIO = _F(2.0**-14), _F(2.0**8)
_FRACTION = 21  # bits behind the point of the larger factor, less its exponent
_SHIFTS = (13, 31)


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Codes from ``low`` to ``high`` of a tensor, of which ``zero`` stands for 0.

    Attributes:
        scale: Of one step.
    """

    scale: float
    zero: int
    low: int = 0
    high: int = 255

    def all(self) -> Floats:
        """Return the codes in order."""
        return np.arange(self.low, self.high + 1, dtype=np.float32)

    def cut(self, values: Floats | Table) -> Table:
        """Return values, codes beyond an end moved there."""
        return np.clip(np.asarray(values, np.float64), self.low, self.high)


def fma(a: Any, b: Any, c: Any) -> Floats:
    """Return a * b + c of float32 numbers, rounded once.

    The product is exact in float64. The sum is rounded to odd there, so that rounding it again rounds as once does.
    Source: Boldo, Melquiond, 2008, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to
    odd".
    """
    exact = np.asarray(np.multiply(a, b, dtype=np.float64))
    term = np.asarray(c, np.float64)
    total = np.asarray(exact + term)
    back = total - exact
    error = (exact - (total - back)) + (term - back)
    bits = total.view(np.int64)
    away = np.where((error > 0) == (total > 0), 1, -1)  # where the exact sum lies beyond, seen from 0
    odd = np.where((error != 0) & (bits % 2 == 0), bits + away, bits)
    return odd.view(np.float64).astype(np.float32)


def _ratios(a: Codes, b: Codes, out: Codes) -> tuple[np.float32, np.float32]:
    return _F(a.scale) / _F(out.scale), _F(b.scale) / _F(out.scale)


def add_fused(a: Codes, b: Codes, out: Codes) -> Table:
    """x86 with AVX2: rint(fma(a, p, fma(b, q, o))), p and q being the inputs' scales over the output's.

    o is the output's zero point - fma(p, a's zero point, q * b's). Returns codes, rows for those of ``a``.
    """
    p, q = _ratios(a, b, out)
    offset = _F(out.zero) - fma(p, _F(a.zero), q * _F(b.zero))
    return out.cut(np.rint(fma(a.all()[:, None], p, fma(b.all()[None], q, offset))))


def add_plain(a: Codes, b: Codes, out: Codes) -> Table:
    """x86 without: rint((o + a * p) + b * q), o being the output's zero point - (p * a's + q * b's)."""
    p, q = _ratios(a, b, out)
    offset = _F(out.zero) - (p * _F(a.zero) + q * _F(b.zero))
    return out.cut(np.rint((offset + a.all()[:, None] * p) + b.all()[None] * q))


def add_fixed(a: Codes, b: Codes, out: Codes) -> Table:
    """Arm: ((a - a's zero) * P + (b - b's zero) * Q) / 2^s, half away from 0, of P = rint(p * 2^s), Q = rint(q * 2^s).

    2^s makes the larger of both 22 bits long. Beyond the ratios that have such a shift it is rint((x + y) / c + z) in
    float32, x and y the values of the codes.
    """
    p, q = _ratios(a, b, out)
    left, right = a.all()[:, None] - _F(a.zero), b.all()[None] - _F(b.zero)
    shift = _FRACTION - int(np.frexp(max(p, q))[1]) + 1
    factors = [int(np.rint(np.float64(ratio) * 2.0**shift)) for ratio in (p, q)]
    within = all(_LEAST_RATIO <= ratio < _MOST_RATIO for ratio in (p, q)) and _SHIFTS[0] <= shift <= _SHIFTS[1]
    if not within or max(factors) >= 2 ** (_FRACTION + 1):
        values = (_F(a.scale) * left + _F(b.scale) * right) / _F(out.scale)
        return out.cut(np.rint(np.clip(values, out.low - out.zero, out.high - out.zero) + _F(out.zero)))
    sums = left.astype(np.int64) * factors[0] + right.astype(np.int64) * factors[1]
    rounded = (sums - (sums < 0) + (1 << (shift - 1))) >> shift
    return out.cut(rounded.astype(np.float64) + out.zero)


#: What computes an addition, by the kind of processor.
ADDITIONS: dict[str, Callable[[Codes, Codes, Codes], Table]] = {
    "fused": add_fused,
    "plain": add_plain,
    "fixed": add_fixed,
}


def mul_plain(a: Codes, b: Codes, out: Codes) -> Table:
    """x86: rint(((a - a's zero) * (b - b's)) * f + the output's zero), f being (a's scale * b's) / the output's."""
    factor = _F(a.scale) * _F(b.scale) / _F(out.scale)
    products = (a.all()[:, None] - _F(a.zero)) * (b.all()[None] - _F(b.zero))
    return out.cut(np.rint(products * factor + _F(out.zero)))


def mul_fused(a: Codes, b: Codes, out: Codes) -> Table:
    """Arm: the same with one rounding less."""
    factor = _F(a.scale) * _F(b.scale) / _F(out.scale)
    products = (a.all()[:, None] - _F(a.zero)) * (b.all()[None] - _F(b.zero))
    return out.cut(np.rint(fma(products, factor, _F(out.zero))))


def parting_additions(a: Codes, b: Codes, out: Codes) -> int:
    """Return for how many pairs of codes an addition gives another code on some processor than on another."""
    first, *others = (kernel(a, b, out) for kernel in ADDITIONS.values())
    return int(np.any([first != other for other in others], axis=0).sum())


def parting_products(a: Codes, b: Codes, out: Codes) -> int:
    """Return for how many pairs of codes a product may do so."""
    return int((mul_plain(a, b, out) != mul_fused(a, b, out)).sum())
