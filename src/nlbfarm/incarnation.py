"""The incarnation of a node: higher in every life than in any before.

It is the greater of the wall clock (milliseconds) and the last one saved plus one, and it is saved
before it is used: a clock that was set back does not bring an old life back.
"""

from __future__ import annotations

import os
from pathlib import Path

from nlbfarm.errors import HostError

__all__ = ["next_incarnation", "save_incarnation"]


def next_incarnation(path: Path, wall: float) -> int:
    """Return this life's incarnation and save it.

    Args:
        path: The file that keeps the last one.
        wall: The wall clock, seconds since 1970.

    Raises:
        HostError: The file cannot be read or written, or holds something else.
    """
    try:
        text = path.read_text("ascii").strip()
    except FileNotFoundError:
        text = "0"
    except (OSError, UnicodeError) as error:
        raise HostError(f"{path}: cannot be read ({error}); make it readable or remove it") from error
    if not text.isdigit():
        raise HostError(
            f"{path}: does not hold a number; remove it: the clock then gives the next incarnation"
        )
    incarnation = max(int(text) + 1, int(wall * 1000))
    save_incarnation(path, incarnation)
    return incarnation


def save_incarnation(path: Path, incarnation: int) -> None:
    """Save ``incarnation`` so that it survives a crash of the host.

    Raises:
        HostError: It cannot be written.
    """
    draft = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with draft.open("w", encoding="ascii") as file:
            file.write(f"{incarnation}\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise HostError(
            f"{path}: cannot be written ({error}); give this user the right, or name another --state-dir"
        ) from error
