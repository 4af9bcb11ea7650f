"""The pytest plugin, loaded by name in every pytest run of its environment, so that it must stay light.

What belongs here: pytest's hooks and the fixture, by name; `plugin` says what they do.
"""

from __future__ import annotations

from dfqkit_export.pytest_plugin.options import pytest_addoption
from dfqkit_export.pytest_plugin.plugin import (
    AccuracyCheck,
    accuracy_check,
    pytest_configure,
    pytest_runtest_makereport,
)

__all__ = ["AccuracyCheck", "accuracy_check", "pytest_addoption", "pytest_configure", "pytest_runtest_makereport"]
