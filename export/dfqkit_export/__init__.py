"""The deployment half of dfqkit: images, metrics, runtimes, reports. Importing it never imports torch.

What belongs here: the package's main names, resolved on first use, so that `import dfqkit_export` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .activations import layer_outputs
    from .checker import CheckResult, FixResult, Problem, check_file, fix_file
    from .comparison import compare_files
    from .datasets import LabelledImages, load_images
    from .env import environment
    from .errors import (
        ArtefactError,
        CheckFailedError,
        DfqkitError,
        RecipeError,
        RuntimeCrashedError,
        RuntimeUnavailableError,
        TargetError,
        TeacherError,
    )
    from .estimate import Estimate, estimate_drop
    from .images import ImageSpec
    from .latency import measure
    from .metrics import Metric
    from .precision import LayerPrecision, Realised, realised_precision
    from .profiling import profile_file
    from .report import Finding, Floor, LayerRow, Report, check_floors
    from .report.page import render_html
    from .report.text import render_markdown, render_text
    from .runtimes.ort import OrtRuntime, OrtSession

_HOME = {
    "ArtefactError": "errors",
    "CheckFailedError": "errors",
    "CheckResult": "checker",
    "DfqkitError": "errors",
    "Estimate": "estimate",
    "Finding": "report",
    "FixResult": "checker",
    "Floor": "report",
    "ImageSpec": "images",
    "LabelledImages": "datasets",
    "LayerPrecision": "precision",
    "LayerRow": "report",
    "Metric": "metrics",
    "OrtRuntime": "runtimes.ort",
    "OrtSession": "runtimes.ort",
    "Problem": "checker",
    "Realised": "precision",
    "RecipeError": "errors",
    "Report": "report",
    "RuntimeCrashedError": "errors",
    "RuntimeUnavailableError": "errors",
    "TargetError": "errors",
    "TeacherError": "errors",
    "check_file": "checker",
    "check_floors": "report",
    "compare_files": "comparison",
    "environment": "env",
    "estimate_drop": "estimate",
    "fix_file": "checker",
    "layer_outputs": "activations",
    "load_images": "datasets",
    "measure": "latency",
    "profile_file": "profiling",
    "realised_precision": "precision",
    "render_html": "report.page",
    "render_markdown": "report.text",
    "render_text": "report.text",
}

__all__ = [
    "ArtefactError",
    "CheckFailedError",
    "CheckResult",
    "DfqkitError",
    "Estimate",
    "Finding",
    "FixResult",
    "Floor",
    "ImageSpec",
    "LabelledImages",
    "LayerPrecision",
    "LayerRow",
    "Metric",
    "OrtRuntime",
    "OrtSession",
    "Problem",
    "Realised",
    "RecipeError",
    "Report",
    "RuntimeCrashedError",
    "RuntimeUnavailableError",
    "TargetError",
    "TeacherError",
    "check_file",
    "check_floors",
    "compare_files",
    "environment",
    "estimate_drop",
    "fix_file",
    "layer_outputs",
    "load_images",
    "measure",
    "profile_file",
    "realised_precision",
    "render_html",
    "render_markdown",
    "render_text",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds `name` the first time it is asked for."""
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_HOME})
