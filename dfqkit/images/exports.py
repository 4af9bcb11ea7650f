"""A stored set in forms that other tools read: one npz, or PNG files in folders by what they are sorted by.

What belongs here: the two forms, written shard by shard, and whole or not at all. Labels are the teacher's groups, of a
classifier its classes.
"""

from __future__ import annotations

import contextlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dfqkit_export.errors import ArtefactError
from dfqkit_export.images.stored import Answers, Codes, StoredBank
from dfqkit_export.tasks import Groups, task_of

Array = NDArray[Any]


def write_npz(images: StoredBank, path: Path) -> None:
    """Write arrays ``images`` uint8 (N, H, W, C), the teacher's outputs float32 (N, ...), and ``labels`` int64 (N,).

    `numpy.load` and ``validate.data`` of a recipe read the file, which is replaced if it is there.

    Raises:
        ArtefactError: The file cannot be written.
    """
    channels, height, width = images.spec.shape
    n = len(images)
    outputs = {name: (n, *shape) for name, shape in images.outputs.items()}
    shapes = {"images": (n, height, width, channels), **outputs, "labels": (n,)}
    kinds = {"images": np.uint8, "labels": np.int64}
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, shape in shapes.items():
                kind = np.dtype(kinds.get(name, np.float32))
                header = {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    npy.write_array_header_1_0(file, header)
                    for codes, answers, groups in _read(images):
                        arrays = {"images": codes.transpose(0, 2, 3, 1), **answers, "labels": groups.of}
                        file.write(np.ascontiguousarray(arrays[name]).tobytes())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            temporary.unlink(missing_ok=True)


def write_class_folders(images: StoredBank, folder: Path) -> None:
    """Write ``GROUP/INDEX.png``: GROUP is the teacher's class, INDEX the image's place in the set, padded with zeros.

    Classes without images have no folder. A folder's name is the class; readers that number folders by their order
    instead (torchvision's ImageFolder) agree where no class is empty.

    Raises:
        ArtefactError: The folder has something in it, cannot be written, or images have neither 1 nor 3 channels.
    """
    from PIL import Image

    folder, channels = folder.resolve(), images.spec.shape[0]
    if channels not in (1, 3):
        message = f"PNG files have 1 or 3 channels, these images {channels}. Export them with --npz."
        raise ArtefactError(message)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        message = f"'{folder}' is not a new or empty folder. Choose another, so that no other images get in between."
        raise ArtefactError(message)
    index_width = len(str(max(len(images) - 1, 0)))
    temporary = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        index = 0
        for codes, _, groups in _read(images):
            width = len(str(groups.count - 1))
            for code, label in zip(codes, groups.of.tolist(), strict=True):
                place = temporary / f"{label:0{width}d}"
                place.mkdir(exist_ok=True)
                pixels = code[0] if channels == 1 else code.transpose(1, 2, 0)
                Image.fromarray(np.ascontiguousarray(pixels)).save(place / f"{index:0{index_width}d}.png")
                index += 1
        if folder.exists():
            folder.rmdir()
        temporary.replace(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(images: StoredBank) -> Iterator[tuple[Codes, Answers, Groups]]:
    task = task_of(images.task)
    return ((codes, answers, task.groups(answers, images.spec)) for codes, answers in images.each_shard())


def _cannot_write(path: Path, error: OSError) -> ArtefactError:
    message = f"Cannot write '{path}': {error.strerror or error}. Free space, or choose another place."
    return ArtefactError(message)
