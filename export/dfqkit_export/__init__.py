"""The deployment half of dfqkit: images, metrics, runtimes, reports. Importing it never imports torch.

What belongs here: the package's main names, resolved on first use, so that `import dfqkit_export` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .activations import layer_outputs
    from .datasets import LabelledImages, load_images
    from .env import environment
    from .errors import (
        ArtefactError,
        CheckFailedError,
        DfqkitError,
        RecipeError,
        RuntimeUnavailableError,
        TargetError,
        TeacherError,
    )
    from .images import ImageSpec
    from .latency import measure
    from .metrics import Metric
    from .precision import LayerPrecision, Realised, realised_precision
    from .report import Finding, Floor, LayerRow, Report, check_floors
    from .report_html import render_html
    from .report_text import render_markdown, render_text
    from .runtimes.ort import OrtRuntime, OrtSession

_HOME = {
    "ArtefactError": "errors",
    "CheckFailedError": "errors",
    "DfqkitError": "errors",
    "Finding": "report",
    "Floor": "report",
    "ImageSpec": "images",
    "LabelledImages": "datasets",
    "LayerPrecision": "precision",
    "LayerRow": "report",
    "Metric": "metrics",
    "OrtRuntime": "runtimes.ort",
    "OrtSession": "runtimes.ort",
    "Realised": "precision",
    "RecipeError": "errors",
    "Report": "report",
    "RuntimeUnavailableError": "errors",
    "TargetError": "errors",
    "TeacherError": "errors",
    "check_floors": "report",
    "environment": "env",
    "layer_outputs": "activations",
    "load_images": "datasets",
    "measure": "latency",
    "realised_precision": "precision",
    "render_html": "report_html",
    "render_markdown": "report_text",
    "render_text": "report_text",
}

__all__ = [
    "ArtefactError",
    "CheckFailedError",
    "DfqkitError",
    "Finding",
    "Floor",
    "ImageSpec",
    "LabelledImages",
    "LayerPrecision",
    "LayerRow",
    "Metric",
    "OrtRuntime",
    "OrtSession",
    "Realised",
    "RecipeError",
    "Report",
    "RuntimeUnavailableError",
    "TargetError",
    "TeacherError",
    "check_floors",
    "environment",
    "layer_outputs",
    "load_images",
    "measure",
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
