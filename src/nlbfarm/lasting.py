"""Small files that must survive a crash of the host: written whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from nlbfarm.errors import HostError

__all__ = ["write_lasting"]

_ADVICE = {
    errno.ENOSPC: "make room on that file system, or name another --state-dir",
    errno.EROFS: "that file system is read-only: name another --state-dir",
    errno.EACCES: "give this user the right, or name another --state-dir",
    errno.EPERM: "give this user the right, or name another --state-dir",
}


def write_lasting(path: Path, text: str) -> None:
    """Replace the content of ``path``; whenever the host crashes, the old or the new content is there.

    Args:
        path: The file; its directory is made if it is missing.
        text: The new content, ASCII.

    Raises:
        HostError: It cannot be written; the old content is still there.
    """
    draft = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with draft.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        advice = _ADVICE.get(error.errno or 0, "name another --state-dir")
        raise HostError(f"{path}: cannot be written ({error.strerror}); {advice}") from error


def _sync_directory(directory: Path) -> None:
    """Make the new name last, too (fsync(2)); not every file system and system can."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
