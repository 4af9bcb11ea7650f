"""Pictures for the report of a run: what teacher and file answer to the same images, side by side.

What belongs here: which images. How an answer looks says its task, the drawing is the other half's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dfqkit.run.export import MODEL

if TYPE_CHECKING:
    from dfqkit.run.context import Context

#: Images looked through, and how many are shown of those about which the teacher is least and most sure.
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
    order = np.argsort(task.margins(teacher, teacher), kind="stable")
    places = list(dict.fromkeys([*order[:_EACH].tolist(), *order[::-1][:_EACH].tolist()]))
    session = OrtSession(context.file(MODEL), optimized=context.target.bias != "float")
    own = answers(session, task, normalized(codes[places], stored.spec))
    both = task.marks({name: values[places] for name, values in teacher.items()}), task.marks(own)
    caption = f"{task.answer} of the teacher (left) and of the file (right), where the teacher is least and most sure"
    return {caption: side_by_side(codes[places], *both)}
