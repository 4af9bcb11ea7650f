"""Random numbers: every component owns a generator derived from the run's seed. The global state is never touched."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator for one component.

    Args:
        seed: The run's seed.
        names: Stage, member and so on; other names give an independent stream.
        device: Where it draws.

    Example:
        >>> derive(0, "dfq", 1).initial_seed() == derive(0, "dfq", 1).initial_seed()
        True
        >>> derive(0, "dfq", 1).initial_seed() == derive(0, "dfq", 2).initial_seed()
        False
    """
    text = "/".join(str(name).replace("%", "%25").replace("/", "%2F") for name in (seed, *names))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    return torch.Generator(device=device).manual_seed(number)
