"""A clock that stands still until it is told to move."""

from __future__ import annotations

import math

from nlbfarm.errors import UsageError
from nlbfarm.interfaces import Clock

__all__ = ["FakeClock"]


class FakeClock(Clock):
    """Time under the test's control.

    Args:
        monotonic: What ``monotonic`` starts at, in seconds.
        wall: What ``wall`` starts at, in seconds since 1970-01-01 UTC.
    """

    def __init__(self, monotonic: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self._monotonic = monotonic
        self._wall = wall

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass on both clocks.

        Raises:
            UsageError: ``seconds`` is negative or not a finite number: a monotonic clock never goes back.
        """
        if not math.isfinite(seconds) or seconds < 0:
            raise UsageError(f"a monotonic clock cannot advance by {seconds} s")
        self._monotonic += seconds
        self._wall += seconds

    def set_wall(self, wall: float) -> None:
        """Let the wall clock jump, as an administrator or NTP would; ``monotonic`` does not notice."""
        self._wall = wall
