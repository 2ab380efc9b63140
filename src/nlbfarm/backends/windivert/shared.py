"""What the node, the loop and the guard share: a page of memory with a few numbers.

Each number is an aligned 64-bit word with one writer, so it is read whole without a lock. Times are
nanoseconds of ``clock``, which is the same for all processes of a host.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

__all__ = ["Shared", "Word", "clock"]

_SIZE = mmap.PAGESIZE
_NAME = "nlbfarm-windivert-"

clock = time.perf_counter if sys.platform == "win32" else time.monotonic
"""Seconds on the host's monotonic clock (Windows: the performance counter, which is finer)."""


class Word(enum.IntEnum):
    """The numbers, by place; in brackets who writes them."""

    LEASE_END = 0  # [node] ns
    LOOP_BEAT = 1  # [loop] counts as long as its threads run and packets are judged
    GUARD_BEAT = 2  # [guard] counts as long as it runs
    DROPPING_SINCE = 3  # [guard] ns; 0 while it has no handle open
    DROPS = 4  # [guard] how often it has opened its handles
    LEASE_BEGIN = 5  # [node] ns; since when there has been a lease without a gap


class Shared:
    """The page. The node creates it, the others attach to it.

    Args:
        path: The file behind it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            self._map = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._words = memoryview(self._map).cast("q")

    @classmethod
    def create(cls) -> Shared:
        """Make a page of zeros that only this user can open."""
        descriptor, path = tempfile.mkstemp(prefix=f"{_NAME}{os.getpid()}-")
        try:
            os.write(descriptor, bytes(_SIZE))
        finally:
            os.close(descriptor)
        return cls(path)

    @staticmethod
    def remove_orphans() -> None:
        """Remove the files of nodes that are gone; whoever has such a page open keeps it."""
        for path in Path(tempfile.gettempdir()).glob(f"{_NAME}*"):
            owner = path.name.removeprefix(_NAME).partition("-")[0]
            if owner.isdecimal() and not psutil.pid_exists(int(owner)):
                with contextlib.suppress(OSError):
                    path.unlink()

    def __getitem__(self, word: Word) -> int:
        return self._words[word]

    def __setitem__(self, word: Word, value: int) -> None:
        self._words[word] = value

    @property
    def lease_end(self) -> float:
        """When the lease ends, seconds of ``clock``."""
        return self._words[Word.LEASE_END] / 1e9

    def lease(self, seconds: float) -> None:
        """Let the lease end ``seconds`` from now; at once if that is not above 0."""
        now = clock()
        if now * 1e9 >= self._words[Word.LEASE_END]:
            self._words[Word.LEASE_BEGIN] = int(
                now * 1e9
            )  # before the end: nothing that came earlier shall pass
        self._words[Word.LEASE_END] = int((now + seconds) * 1e9) if seconds > 0 else 0

    def beat(self, word: Word) -> None:
        """Count a beat; only the word's one writer may."""
        self._words[word] += 1

    def close(self, *, remove: bool = False) -> None:
        """Let go of the page.

        Args:
            remove: Whether to remove the file, too; whoever has the page open keeps it.
        """
        self._words.release()
        self._map.close()
        if remove:
            with contextlib.suppress(OSError):
                Path(self.path).unlink()
