"""Pictures for the report of a run: what teacher and file answer to the same images, side by side.

What belongs here: which images. How an answer looks says its task, the drawing is the other half's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfqkit.run.export import MODEL

if TYPE_CHECKING:
    from dfqkit.run.context import Context

#: Images looked through, and how many are shown of those about which the teacher is least and most sure, and twice as
#: many whose answers differ.
_LOOKED, _EACH = 64, 3


def drawn_answers(context: Context) -> dict[str, bytes]:
    """Return a PNG by its caption; nothing for tasks whose answers are no picture, or where no images graded."""
    from dfqkit_export.backends.onnxruntime.session import OrtSession
    from dfqkit_export.images.stored import StoredBank
    from dfqkit_export.report.pictures import side_by_side
    from dfqkit_export.sentinel import normalized
    from dfqkit_export.tasks.answering import answers

    task, file = context.teacher.task, context.folder.path / "images" / "grading.safetensors"
    if not file.is_file():
        return {}
    stored = StoredBank.open(file)
    codes, teacher = stored.take(range(min(_LOOKED, len(stored))))
    if not len(codes) or not task.marks({name: values[:1] for name, values in teacher.items()}):
        return {}
    session = OrtSession(context.file(MODEL), optimized=context.target.bias != "float")
    own = answers(session, task, normalized(codes, stored.spec))
    differ = np.flatnonzero(~task.same_answer(teacher, own)).tolist()
    order = np.argsort(task.margins(teacher, teacher), kind="stable").tolist()
    places = list(dict.fromkeys([*differ[: 2 * _EACH], *order[:_EACH], *order[::-1][:_EACH]]))
    left, right = (task.marks({name: values[places] for name, values in found.items()}) for found in (teacher, own))
    caption = (
        f"{task.answer} of the teacher (left) and of the file (right): first {min(len(differ), 2 * _EACH)} of the "
        f"{len(differ)} of {len(codes)} images where they differ, then where the teacher is least and most sure"
    )
    return {caption: side_by_side(codes[places], left, right)}
