"""Reads the journal of events back, while a node writes it or long after."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path

from nlbfarm.errors import HostError
from nlbfarm.events.model import NodeEvent

__all__ = ["numbered", "read"]

_BLOCK = 64 * 1024
_LONGEST_LINE = 1024 * 1024
_GAPS = 3
"""So many numbers may be missing in a row: while files are renamed, one is."""


def numbered(path: Path, number: int) -> Path:
    """Return the name of the journal's file ``number``: 0 is the one that is written, 1 the one before."""
    return path.with_name(f"{path.name}.{number}") if number else path


def read(path: Path, *, last: int | None = None, since: float | None = None) -> list[NodeEvent]:
    """Return the events of a journal, oldest first.

    A line that is no event (the last one of a node that was killed while it wrote) is left out.

    Args:
        path: The journal; those that were rotated lie beside it.
        last: So many at most, the newest.
        since: None before, seconds since 1970.

    Raises:
        HostError: A file cannot be read.
    """
    found: list[NodeEvent] = []
    if last is not None and last <= 0:
        return found
    try:
        with contextlib.closing(_events(path)) as events:
            for event in events:
                if since is None or event.time >= since:
                    found.append(event)
                    if len(found) == last:
                        break
    except OSError as error:
        raise HostError(f"cannot read the journal {error.filename or path}: {error.strerror}") from error
    return found[::-1]


def _events(path: Path) -> Generator[NodeEvent, None, None]:
    """Yield the events, the newest first."""
    for line in _lines(path):
        try:
            yield NodeEvent.from_json(json.loads(line))
        except (ValueError, RecursionError):
            continue


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of all files, the newest first; a file that is renamed meanwhile is read once."""
    seen: set[tuple[int, int]] = set()
    number = gaps = 0
    while gaps < _GAPS:
        try:
            with numbered(path, number).open("rb") as file:
                gaps = 0
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    yield from _backwards(file)
        except FileNotFoundError:
            gaps += 1
        number += 1


def _backwards(file: io.BufferedReader) -> Iterator[bytes]:
    """Yield the lines of a file, the last first, without reading more of it than is asked for."""
    position, rest = file.seek(0, os.SEEK_END), b""
    while position:
        size = min(_BLOCK, position)
        position -= size
        file.seek(position)
        head, *lines = (file.read(size) + rest).split(b"\n")
        yield from reversed(lines)
        rest = head if len(head) <= _LONGEST_LINE else b""  # what is so long is no event of ours
    yield rest
