"""The incarnation of a node: higher in every life than in any before.

It is the greater of the wall clock (milliseconds) and the last one saved plus one, and it is saved
before it is used: a clock that was set back does not bring an old life back.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from nlbfarm.errors import HostError
from nlbfarm.lasting import write_lasting

__all__ = ["next_incarnation", "save_incarnation"]

LARGEST = 1 << 63
"""Far above any clock, and with room below the 64 bits of the wire."""

_log = structlog.get_logger("nlbfarm.node")


def next_incarnation(path: Path, wall: float) -> int:
    """Return this life's incarnation and save it.

    Args:
        path: The file that keeps the last one.
        wall: The wall clock, seconds since 1970.

    Raises:
        HostError: The file cannot be read or written.
    """
    last = 0
    try:
        last = int(path.read_text("ascii"))
        if not 0 <= last < LARGEST:
            raise ValueError("out of range")
    except FileNotFoundError:
        pass
    except ValueError:
        # The clock is right nearly always; where it is not, a peer's echo makes the node jump (core.node).
        _log.warning(
            "incarnation.unreadable", file=str(path), detail="it holds no such number: the clock decides"
        )
        last = 0
    except OSError as error:
        raise HostError(
            f"{path}: cannot be read ({error.strerror}); make it readable or remove it"
        ) from error
    incarnation = max(last + 1, int(wall * 1000))
    save_incarnation(path, incarnation)
    return incarnation


def save_incarnation(path: Path, incarnation: int) -> None:
    """Save ``incarnation`` so that it survives a crash of the host.

    Raises:
        HostError: It cannot be written.
    """
    write_lasting(path, f"{incarnation}\n")
