"""What attention gives each token, read during a forward, whatever the modules are called that compute it.

What belongs here: telling attention by its operators, a softmax over keys whose result weighs values, or torch's
functions that are both; so that modules of any library, and graphs without modules, are read alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_PRODUCTS = frozenset({"matmul", "bmm"})


class AttentionTap:
    """Reads the outputs of attention during the forwards within its ``with`` block, with gradient.

    ``tokens`` holds one entry a call, in order: (rows, tokens, dim), the heads beside each other. A row is an image, or
    a window or a head of one, those of an image behind each other. Entering it anew forgets what was read.

    Attention inside compiled and scripted modules is not seen, nor are its forms without a softmax.

    Example:
        >>> import torch
        >>> q = torch.randn(2, 3, 5, 4)
        >>> with AttentionTap() as tap:
        ...     _ = (q @ q.mT).softmax(-1) @ q
        >>> [tuple(found.shape) for found in tap.tokens]
        [(2, 5, 12)]
    """

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []
        self._weights: dict[int, Tensor] = {}  # attention weights by identity; held, so that no other takes its place
        self._watching = ExitStack()

    def __enter__(self) -> AttentionTap:
        self.tokens.clear()
        self._watching.enter_context(_Watch(self._see))
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.close()
        self._weights.clear()

    def _see(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], found: Any) -> None:
        name = getattr(func, "__name__", "").partition(".")[0].strip("_")  # of overloads too: "softmax.int"
        first = args[0] if args else kwargs.get("input")
        if name == "scaled_dot_product_attention":
            self._note(found)
        elif name == "multi_head_attention_forward" and found[0].dim() == 3:
            self._note(found[0].transpose(0, 1))
        elif name == "softmax" and isinstance(found, Tensor) and found.dim() > 2 and found.shape[-1] > 1:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if dim in (-1, found.dim() - 1):
                self._weights[id(found)] = found
        elif self._weights and isinstance(first, Tensor) and id(first) in self._weights:
            if name in _PRODUCTS:
                values = args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("mat2"))
                if isinstance(values, Tensor) and values.dim() == first.dim():
                    self._note(found)
            elif isinstance(found, Tensor) and found.shape == first.shape:  # dropout, a cast, a gate of heads
                self._weights[id(found)] = found

    def _note(self, found: Tensor) -> None:
        """Keep (..., heads, tokens, dim) or (rows, tokens, dim) as the latter."""
        if found.dim() > 3:
            found = found.flatten(0, -4) if found.dim() > 4 else found
            found = found.transpose(1, 2).flatten(2)
        if found.dim() == 3 and found.shape[1] > 1:
            self.tokens.append(found)


class _Watch(TorchFunctionMode):
    """Shows every call of one of torch's functions to somebody, with what it gave."""

    def __init__(self, see: Callable[[Any, tuple[Any, ...], Mapping[str, Any], Any], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self.see(func, args, kwargs or {}, found)
        return found
