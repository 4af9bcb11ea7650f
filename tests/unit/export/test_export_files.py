"""Files are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dfqkit_export.errors import ArtefactError
from dfqkit_export.files import sha256_of_file, write_bytes
from tests._messages import raises_naming

KILLED = """
import os, signal, sys
from pathlib import Path
from dfqkit_export.files import write_bytes
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
{patch} = die
write_bytes(Path(sys.argv[1]), b"new" * 100_000)
"""


def test_writing_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "model.onnx"
    write_bytes(path, b"one")
    write_bytes(path, b"three")
    assert path.read_bytes() == b"three"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize("patch", ["os.fsync", "Path.replace"])
def test_a_kill_leaves_the_old_content(tmp_path: Path, patch: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.run(
        [sys.executable, "-c", KILLED.format(patch=patch), str(path)], env=environment, check=False, timeout=60
    )
    assert child.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    write_bytes(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


class FullDisk:
    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_an_artefact_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    original = Path.open
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda self, *a, **k: FullDisk(original(self, *a, **k)))
        with raises_naming(ArtefactError, "model.onnx", "8 bytes", "No space left on device"):
            write_bytes(path, b"new data")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_to_do_is_said_for_every_command(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        ArtefactError, match=r"Is a directory.*another place, then give the same command again"
    ) as found:
        write_bytes(tmp_path / "folder", b"x")
    assert "--resume" not in str(found.value)


def test_a_folder_that_is_a_file_is_an_artefact_error(tmp_path: Path) -> None:
    blocked = tmp_path / "taken"
    blocked.write_bytes(b"x")
    with pytest.raises(ArtefactError, match="Cannot write"):
        write_bytes(blocked / "model.onnx", b"data")
    with pytest.raises(ArtefactError, match="Cannot write"):
        write_bytes(blocked / "deeper" / "model.onnx", b"data")
    assert blocked.read_bytes() == b"x"


def test_a_target_that_is_a_folder_is_an_artefact_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ArtefactError, match="Cannot write"):
        write_bytes(tmp_path / "model.onnx", b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    path = tmp_path / "x"
    write_bytes(path, data)
    assert sha256_of_file(path) == hashlib.sha256(data).hexdigest()
