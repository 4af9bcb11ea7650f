"""The deployment half of dfqkit: images, metrics, runtimes, reports. Importing it never imports torch.

What belongs here: the package's main names, resolved on first use, so that `import dfqkit_export` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqkit_export.lazy import attach

if TYPE_CHECKING:
    from dfqkit_export.backends.onnxruntime.session import OrtSession
    from dfqkit_export.backends.opening import realised_precision
    from dfqkit_export.backends.precision import LayerPrecision, Realised
    from dfqkit_export.checker import CheckResult, FixResult, Problem, check_file, fix_file
    from dfqkit_export.comparison import compare_files
    from dfqkit_export.env import environment
    from dfqkit_export.errors import (
        ArtefactError,
        CheckFailedError,
        DfqkitError,
        RecipeError,
        RuntimeCrashedError,
        RuntimeUnavailableError,
        TargetError,
        TeacherError,
    )
    from dfqkit_export.estimate import Estimate, estimate_drop
    from dfqkit_export.images.labelled import LabelledImages, load_images
    from dfqkit_export.images.spec import ImageSpec
    from dfqkit_export.measure.activations import layer_outputs
    from dfqkit_export.measure.kinds import Metric
    from dfqkit_export.profiling import profile_file
    from dfqkit_export.report import Finding, Floor, LayerRow, Report, check_floors
    from dfqkit_export.report.page import render_html
    from dfqkit_export.report.text import render_markdown, render_text

__getattr__, __dir__ = attach(
    __name__,
    {
        "ArtefactError": "dfqkit_export.errors",
        "CheckFailedError": "dfqkit_export.errors",
        "CheckResult": "dfqkit_export.checker",
        "DfqkitError": "dfqkit_export.errors",
        "Estimate": "dfqkit_export.estimate",
        "Finding": "dfqkit_export.report",
        "FixResult": "dfqkit_export.checker",
        "Floor": "dfqkit_export.report",
        "ImageSpec": "dfqkit_export.images.spec",
        "LabelledImages": "dfqkit_export.images.labelled",
        "LayerPrecision": "dfqkit_export.backends.precision",
        "LayerRow": "dfqkit_export.report",
        "Metric": "dfqkit_export.measure.kinds",
        "OrtSession": "dfqkit_export.backends.onnxruntime.session",
        "Problem": "dfqkit_export.checker",
        "Realised": "dfqkit_export.backends.precision",
        "RecipeError": "dfqkit_export.errors",
        "Report": "dfqkit_export.report",
        "RuntimeCrashedError": "dfqkit_export.errors",
        "RuntimeUnavailableError": "dfqkit_export.errors",
        "TargetError": "dfqkit_export.errors",
        "TeacherError": "dfqkit_export.errors",
        "check_file": "dfqkit_export.checker",
        "check_floors": "dfqkit_export.report",
        "compare_files": "dfqkit_export.comparison",
        "environment": "dfqkit_export.env",
        "estimate_drop": "dfqkit_export.estimate",
        "fix_file": "dfqkit_export.checker",
        "layer_outputs": "dfqkit_export.measure.activations",
        "load_images": "dfqkit_export.images.labelled",
        "profile_file": "dfqkit_export.profiling",
        "realised_precision": "dfqkit_export.backends.opening",
        "render_html": "dfqkit_export.report.page",
        "render_markdown": "dfqkit_export.report.text",
        "render_text": "dfqkit_export.report.text",
    },
)

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
    "profile_file",
    "realised_precision",
    "render_html",
    "render_markdown",
    "render_text",
]
