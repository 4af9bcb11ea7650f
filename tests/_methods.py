"""Methods that are there for a test alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import pytest

from dfqkit.config import methods as table
from dfqkit.config import registry
from dfqkit.config.recipe import Recipe
from dfqkit.synthesis.methods.mixture import MixtureConfig


def rejoin() -> None:
    """Let recipes know the methods that there are now: they joined when these classes were defined."""
    MixtureConfig.model_rebuild(force=True)
    Recipe.model_rebuild(force=True)


@contextmanager
def added(**methods: str) -> Iterator[None]:
    """Add lines to the table of methods: name and ``module:ConfigClass``, of a test module too."""

    def loaded(name: str) -> ModuleType:
        return sys.modules.get(name) or import_module(name)

    with pytest.MonkeyPatch.context() as patch:
        for name, place in methods.items():
            patch.setitem(table.METHODS, name, place)
        patch.setattr(registry, "import_module", loaded)
        rejoin()
        yield
    rejoin()
