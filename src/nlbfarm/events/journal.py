"""Keeps events on disk: JSON lines, rotated by size, written by a thread.

A disk that hangs, is full or is read-only delays nobody but that thread. Meanwhile events wait in memory;
when too many do, the oldest are lost and counted (``events.dropped``). What is written is in the hands of the
kernel: it outlives ``kill -9``, though not a power cut in the next seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nlbfarm.errors import HostError, NlbfarmError
from nlbfarm.events.log import EventLog
from nlbfarm.events.model import NodeEvent
from nlbfarm.events.reading import numbered, read
from nlbfarm.events.stream import RECENT

__all__ = ["Journal"]

WAITING = 10_000
"""So many events wait for the disk at most."""

RETRY_S = 5.0
"""A disk that refuses is asked again after so long."""

_MODE = 0o640


@dataclass(frozen=True, slots=True)
class _Question:
    """What somebody on an event loop wants to know of the past."""

    last: int
    since: float | None
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[list[NodeEvent]]

    def resolve(self, found: list[NodeEvent] | NlbfarmError) -> None:
        """Answer it, on its loop; whoever asked may be gone."""

        def tell() -> None:
            if self.answer.done():
                return
            if isinstance(found, NlbfarmError):
                self.answer.set_exception(found)
            else:
                self.answer.set_result(found)

        with contextlib.suppress(RuntimeError):  # its loop is closed
            self.loop.call_soon_threadsafe(tell)


def _opened(path: Path) -> io.FileIO:
    return io.FileIO(path, "a+", opener=lambda name, flags: os.open(name, flags, _MODE))


class Journal:
    """The journal of one node.

    Args:
        path: The file; its directory is made if it is missing. ``path.1`` is the one before, and so on.
        log: The node's events; also told when they cannot be saved.
        max_bytes: A file that would become larger is put aside.
        files: So many files are kept, the current one included; at least 2.
        opened: Opens a file at its end, for reading and writing, without a buffer.
    """

    def __init__(
        self,
        path: Path,
        log: EventLog,
        *,
        max_bytes: int,
        files: int,
        opened: Callable[[Path], io.FileIO] = _opened,
    ) -> None:
        self.path = path
        self._log = log
        self._max_bytes = max_bytes
        self._files = files
        self._open = opened
        self._file: io.FileIO | None = None
        self._size = 0
        self._torn = False
        self._unsaved: deque[NodeEvent] = deque()
        self._saved = 0
        """Number of the newest event of this life that is on disk."""
        self._refused = False
        self._try_at = 0.0
        self._closing = False
        self._questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self._bell = threading.Event()
        self._coming = log.stream.subscribe(WAITING, past=True)
        self._thread = threading.Thread(target=self._work, name="nlbfarm-events", daemon=True)

    def open(self) -> None:
        """Begin to write, what was published before included; does not wait for the disk."""
        self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Write what is waiting, for at most ``timeout`` seconds; may be called twice."""
        self._closing = True
        self._coming.close()
        self._bell.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    async def look_back(self, last: int, since: float | None) -> list[NodeEvent]:
        """Return what happened before, earlier lives of the node included, oldest first.

        The thread reads, too: a disk that hangs delays this answer, and nothing else. Arguments as for
        ``read``.

        Raises:
            NlbfarmError: The journal is not open.
            HostError: It cannot be read.
        """
        if self._closing or not self._thread.is_alive():
            raise NlbfarmError("the journal of events is closed: the node ends")
        loop = asyncio.get_running_loop()
        question = _Question(last, since, loop, loop.create_future())
        self._questions.put(question)
        self._ring()
        return await question.answer

    def _ring(self) -> None:
        self._bell.set()
        self._coming.wake()

    # -- the thread ------------------------------------------------------------------------

    def _work(self) -> None:
        closing = False
        while not closing:
            if self._unsaved:
                self._bell.wait(max(0.0, self._try_at - time.monotonic()))
                self._bell.clear()
            closing = self._closing  # before the last events are taken, not after
            if not self._unsaved:
                self._unsaved.extend(self._coming.take())
            if closing or time.monotonic() >= self._try_at:
                self._save()
            self._answer()
        if not self._unsaved:  # otherwise the disk refuses even those
            self._unsaved.extend(self._coming.take())
            self._save()
        self._answer()
        self._release()

    def _save(self) -> None:
        try:
            if self._file is not None and not self._in_place(self._file):
                self._release()
            while self._unsaved:
                self._append(self._unsaved[0].line().encode() + b"\n")
                self._saved = self._unsaved.popleft().sequence
        except OSError as error:
            self._release()
            self._try_at = time.monotonic() + RETRY_S
            if not self._refused:
                self._refused = True
                self._log.warning("events.not_saved", file=str(self.path), error=error.strerror or str(error))
            return
        if self._refused:
            self._refused = False
            self._log.info("events.saved_again", file=str(self.path))

    def _append(self, line: bytes) -> None:
        file = self._current()
        if self._size and self._size + len(line) > self._max_bytes:
            self._release()
            for number in range(self._files - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    numbered(self.path, number - 1).replace(numbered(self.path, number))
            file = self._current()
        if self._torn:
            line = b"\n" + line
        written = file.write(line) or 0
        self._size += written
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False

    def _current(self) -> io.FileIO:
        """Return the file, opened at its end."""
        if self._file is None:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._file = self._open(self.path)
            self._size = self._file.seek(0, os.SEEK_END)
            if self._size:  # a process that was killed, or a full disk, may have left half a line
                self._file.seek(-1, os.SEEK_END)
                self._torn = self._file.read(1) != b"\n"
            else:
                self._torn = False
            number = self._files
            while numbered(self.path, number).exists():  # there were to be more files once
                numbered(self.path, number).unlink()
                number += 1
        return self._file

    def _in_place(self, file: io.FileIO) -> bool:
        """Whether what is written still has its name: somebody may have removed or renamed it."""
        mine = os.fstat(file.fileno())
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino)

    def _release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _answer(self) -> None:
        """Answer what has been asked meanwhile."""
        while True:
            try:
                question = self._questions.get_nowait()
            except queue.Empty:
                return
            if question.answer.done():
                continue
            try:
                found = read(self.path, last=question.last, since=question.since)
            except HostError as error:
                question.resolve(error)
                continue
            found += [
                event
                for event in self._log.stream.recent(RECENT)
                if event.sequence > self._saved and (question.since is None or event.time >= question.since)
            ]
            question.resolve(found[-question.last :] if question.last else [])
