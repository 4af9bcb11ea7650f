"""Reports: what was measured about one exported file, and how people get to read it.

What belongs here: `document`, the JSON that is the truth, `floors` that it is held against, and its renderings as text
and Markdown (`text`) and as a page (`page`, with `rows`, `charts`, `svg`, `markup` and `style`).
"""

from __future__ import annotations

from dfqkit_export.report.document import SCHEMA, LayerRow, Report, layer_rows
from dfqkit_export.report.floors import Finding, Floor, check_floors

__all__ = ["SCHEMA", "Finding", "Floor", "LayerRow", "Report", "check_floors", "layer_rows"]
