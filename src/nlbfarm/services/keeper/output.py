"""What an application prints: kept in a file of bounded size, the newest of it for messages."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

__all__ = ["LIMIT", "Output", "lines_of", "rotate", "tail_of"]

LIMIT = 1 << 20
"""Bytes of the file; when it is full it becomes ``NAME.log.1``, and the one before that goes."""

_NEWEST = 4096  # bytes that are looked at for a message
_LINES = 5
_WIDTH = 300
_OURS = re.compile(r"\[\S+ nlbfarm\] ")
_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]"
)  # ECMA-48 sequences, and the rest of C0


class Output:
    """Writes to a bounded file; a file that cannot be written loses output, and nothing else.

    Args:
        path: The file; its directory is there.
        limit: Bytes of it.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self._path = path
        self._limit = limit
        self._newest = bytearray()
        self._descriptor = -1
        self._size = 0
        self.trouble = ""
        """Why output is not kept; empty if it is."""
        self._open()

    def write(self, data: bytes) -> None:
        """Keep ``data``."""
        self._newest += data
        del self._newest[:-_NEWEST]
        if self._descriptor >= 0 and self._size + len(data) > self._limit and self._size:
            os.close(self._descriptor)
            self._descriptor = -1
            rotate(self._path)
            self._open()
        if self._descriptor < 0:
            return
        try:
            self._size += os.write(self._descriptor, data)
            self.trouble = ""
        except OSError as error:  # the disk is full: later there may be room
            self.trouble = f"{self._path}: {error.strerror}"

    def note(self, text: str) -> None:
        """Write a line of nlbfarm's own, with the time; it is not part of ``tail``."""
        newest = bytes(self._newest)  # many notes must not push out the application's words
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.write(f"[{stamp} nlbfarm] {' '.join(text.split())}\n".encode(errors="replace"))
        self._newest[:] = newest

    def tail(self) -> str:
        """Return the newest lines of the application, on one line; empty if it printed nothing."""
        return lines_of(bytes(self._newest))

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(self._path, flags, 0o600)
            self._size = os.fstat(self._descriptor).st_size
        except OSError as error:
            self.trouble = f"{self._path}: {error.strerror}"


def rotate(path: Path) -> None:
    """Make the file the one of before; whoever writes to it goes on writing there."""
    try:
        path.replace(path.with_name(path.name + ".1"))
    except OSError:
        return


def tail_of(path: Path, start: int = 0) -> str:
    """Return the newest lines of a file, from byte ``start`` on, on one line; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start if start <= size else 0, size - _NEWEST))
            return lines_of(file.read(_NEWEST))
    except OSError:
        return ""


def lines_of(data: bytes) -> str:
    """Return the last lines of ``data`` on one line: no notes, and nothing that a terminal would obey."""
    text = _CONTROL.sub("", data.decode("utf-8", errors="replace").replace("\r", "\n"))
    lines = [line.strip() for line in text.split("\n") if line.strip() and not _OURS.match(line)]
    return " | ".join(line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…" for line in lines[-_LINES:])
