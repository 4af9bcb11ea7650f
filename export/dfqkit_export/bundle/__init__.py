"""Bundles: everything that whoever deploys a file needs, in one folder or zip.

What belongs here: writing one from a run (`writing`, with `card` and `samples`), and opening one that anybody may have
made (`reading`, with `entries`, which refuses what could harm, and `archive` for zips).
"""

from __future__ import annotations

from dfqkit_export.bundle.foreign import ForeignFile, bundle_foreign
from dfqkit_export.bundle.reading import KIND, SCHEMA, Bundle, open_bundle
from dfqkit_export.bundle.writing import Order, write_bundle

__all__ = ["KIND", "SCHEMA", "Bundle", "ForeignFile", "Order", "bundle_foreign", "open_bundle", "write_bundle"]
