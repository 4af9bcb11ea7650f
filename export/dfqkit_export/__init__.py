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
        "dfqkit_export.backends.onnxruntime.session": "OrtSession",
        "dfqkit_export.backends.opening": "realised_precision",
        "dfqkit_export.backends.precision": "LayerPrecision Realised",
        "dfqkit_export.checker": "CheckResult FixResult Problem check_file fix_file",
        "dfqkit_export.comparison": "compare_files",
        "dfqkit_export.env": "environment",
        "dfqkit_export.errors": "ArtefactError CheckFailedError DfqkitError RecipeError "
        "RuntimeCrashedError RuntimeUnavailableError TargetError TeacherError",
        "dfqkit_export.estimate": "Estimate estimate_drop",
        "dfqkit_export.images.labelled": "LabelledImages load_images",
        "dfqkit_export.images.spec": "ImageSpec",
        "dfqkit_export.measure.activations": "layer_outputs",
        "dfqkit_export.measure.kinds": "Metric",
        "dfqkit_export.profiling": "profile_file",
        "dfqkit_export.report": "Finding Floor LayerRow Report check_floors",
        "dfqkit_export.report.page": "render_html",
        "dfqkit_export.report.text": "render_markdown render_text",
    },
)

__all__ = [
    "ArtefactError", "CheckFailedError", "CheckResult", "DfqkitError", "Estimate", "Finding", "FixResult", "Floor",
    "ImageSpec", "LabelledImages", "LayerPrecision", "LayerRow", "Metric", "OrtSession", "Problem", "Realised",
    "RecipeError", "Report", "RuntimeCrashedError", "RuntimeUnavailableError", "TargetError", "TeacherError",
    "check_file", "check_floors", "compare_files", "environment", "estimate_drop", "fix_file", "layer_outputs",
    "load_images", "profile_file", "realised_precision", "render_html", "render_markdown", "render_text",
]  # fmt: skip
