"""What TensorRT's importer refuses, and what keeps it from running a layer in integers; it is TensorRT-RTX's, too."""

from __future__ import annotations

from dfqkit_export.backends.tensorrt.rules import errors, placement, warnings

__all__ = ["RULES"]

RULES = (*errors.RULES, *warnings.RULES, *placement.RULES)
