"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two threads that fight for cores make torch several times slower, and sums depend on their number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real teachers and images, from DFQKIT_ASSETS or beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DFQKIT_ASSETS", beside))
    if not folder.is_dir():
        pytest.skip(f"real teachers and images are absent: set DFQKIT_ASSETS (looked in {folder})")
    return folder
