"""Damping: a node that fails again and again waits longer and longer before it serves.

A node whose process ended unasked (a crash, ``kill -9``, a power cut) rejoins by itself. But one that fails
soon after each start would move its share of the clients with every one of its lives. A life counts as a
failure when it ended unasked and the next one begins within ``SHORT_S`` of the time at which it was allowed
to serve; a host that took minutes to boot has not failed quickly. From the third such failure in a row on,
the node waits.

The file ``starts.json`` beside the incarnation says whether a life has ended in good order::

    {"version": 1, "running": true, "failures": 3, "started": 1764000000.0, "serves": 1764000005.0}
"""

from __future__ import annotations

import json
from pathlib import Path

import structlog

from nlbfarm.errors import HostError
from nlbfarm.lasting import write_lasting

__all__ = ["FIRST_WAIT_S", "FREE_FAILURES", "LONGEST_WAIT_S", "SHORT_S", "Starts"]

SHORT_S = 60.0
"""A life that ended unasked sooner than this, counted until the next start, was a failure."""

FREE_FAILURES = 2
"""So many failures in a row cost nothing."""

FIRST_WAIT_S = 5.0
"""The wait after the next one; each further failure doubles it."""

LONGEST_WAIT_S = 300.0

_VERSION = 1

_log = structlog.get_logger("nlbfarm.node")


class Starts:
    """Counts failures in a row.

    Args:
        path: The file that outlives the process; ``None`` keeps nothing: there is never a wait.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.failures = 0
        """Failures in a row before this life."""

    def begin(self, wall: float) -> float:
        """Begin a life; return for how many seconds the node has to wait before it serves.

        Args:
            wall: The wall clock, seconds since 1970.

        Raises:
            HostError: The file cannot be written.
        """
        running, failures, started, serves = self._read()
        # A clock that went back says nothing; then the life before is taken for a long one.
        self.failures = failures + 1 if running and started <= wall < serves + SHORT_S else 0
        wait = 0.0
        if self.failures > FREE_FAILURES:
            wait = min(FIRST_WAIT_S * 2 ** min(self.failures - FREE_FAILURES - 1, 16), LONGEST_WAIT_S)
        self._write(True, wall, wall + wait)
        return wait

    def forgive(self, wall: float) -> None:
        """Count anew from here: the administrator started the node."""
        self.failures = 0
        self._write(True, wall, wall)

    def end(self) -> None:
        """End this life in good order."""
        self.failures = 0
        self._write(False, 0.0, 0.0)

    def _read(self) -> tuple[bool, int, float, float]:
        if self._path is None:
            return False, 0, 0.0, 0.0
        try:
            data = json.loads(self._path.read_bytes())
            if data["version"] != _VERSION:
                raise ValueError(f"version {data['version']}")
            running, failures = bool(data["running"]), max(0, int(data["failures"]))
            return running, failures, float(data["started"]), float(data["serves"])
        except FileNotFoundError:
            return False, 0, 0.0, 0.0
        except OSError as error:
            raise HostError(f"{self._path}: cannot be read ({error.strerror}); make it readable") from error
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            # Lost is only how often the node failed before.
            _log.warning("starts.unreadable", file=str(self._path), detail="failures are counted anew")
            return False, 0, 0.0, 0.0

    def _write(self, running: bool, started: float, serves: float) -> None:
        if self._path is not None:
            data = {
                "version": _VERSION,
                "running": running,
                "failures": self.failures,
                "started": started,
                "serves": serves,
            }
            write_lasting(self._path, json.dumps(data) + "\n")
