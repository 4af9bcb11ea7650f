"""Average precision as COCO's own tools compute it, where they are installed.

What belongs here: the way from boxes to pycocotools and back. It is another number than ours beside labels: the mean
over classes, at 101 recalls, of at most 100 boxes an image.
"""

from __future__ import annotations

import contextlib
import io
from importlib import import_module
from typing import Any

from dfqkit_export.tasks.boxes import Boxes, areas


def coco_precision(truth: Boxes, found: Boxes, pixels: float = 1.0) -> float | None:
    """Return AP, the mean over IoU 0.5 to 0.95, from 0 to 1; None without pycocotools, or where there is no truth.

    Args:
        truth: Labelled boxes.
        found: Those of the network.
        pixels: Area of the whole image in pixels where boxes are in its units, else 1.
    """
    try:
        coco, evaluation = import_module("pycocotools.coco"), import_module("pycocotools.cocoeval")
    except ImportError:
        return None
    if not len(truth):
        return None
    known = coco.COCO()
    known.dataset = {
        "images": [{"id": image} for image in range(truth.n)],
        "categories": [{"id": int(kind)} for kind in sorted(set(truth.kind.tolist()) | set(found.kind.tolist()))],
        "annotations": _marks(truth, pixels),
        "info": {},
    }
    # It tells its progress on the terminal.
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        if not len(found):
            return 0.0
        run = evaluation.COCOeval(known, known.loadRes(_marks(found, pixels)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0])


def _marks(boxes: Boxes, pixels: float) -> list[dict[str, Any]]:
    size = areas(boxes.box) * pixels
    return [
        {
            "id": place + 1,
            "image_id": int(boxes.image[place]),
            "category_id": int(boxes.kind[place]),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "area": float(size[place]),
            "score": float(boxes.score[place]),
            "iscrowd": 0,
        }
        for place, (x1, y1, x2, y2) in enumerate(boxes.box)
    ]
