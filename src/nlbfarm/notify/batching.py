"""Which events are worth a message, and when it is due; pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from math import inf

from nlbfarm.events import NodeEvent, Severity

__all__ = ["Batcher", "Selection"]

MOST = 200
"""So many events are told in a message."""

OWN = "notify."
"""Events of the notifications themselves are not notified: a target that fails would be told so for ever."""


class Selection:
    """Which events somebody wants to know of.

    Args:
        patterns: Names; ``*`` stands for any text (fnmatch(3)).
        severity: None less severe.
    """

    def __init__(self, patterns: Sequence[str], severity: Severity) -> None:
        self._names = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")
        self._severity = severity

    def wants(self, event: NodeEvent) -> bool:
        """Whether the event is one of them."""
        return (
            event.severity.rank >= self._severity.rank
            and not event.name.startswith(OWN)
            and self._names.match(event.name) is not None
        )


class Batcher:
    """Gathers events, so that a bad minute is one message and not a hundred.

    The first event after a quiet time is told ``settle`` seconds later, with what came meanwhile: one cause
    mostly has several effects. After that there is a message every ``batch`` seconds at most.

    Args:
        batch, settle: Seconds.
    """

    def __init__(self, batch: float, settle: float) -> None:
        self._batch = batch
        self._settle = settle
        self._events: list[NodeEvent] = []
        self._left_out = 0
        self._due = inf
        self._sent_at = -inf

    @property
    def due(self) -> float:
        """When a message is due, on the clock of ``now``; infinity if there is nothing to tell."""
        return self._due

    def add(self, event: NodeEvent, now: float) -> None:
        """Take in an event."""
        if not self._events:
            self._due = max(now + self._settle, self._sent_at + self._batch)
        if len(self._events) >= MOST:
            self._left_out += 1
        else:
            self._events.append(event)

    def take(self, now: float) -> tuple[tuple[NodeEvent, ...], int]:
        """Return what there is to tell, and how many events were left out of it; begin anew."""
        taken = tuple(self._events), self._left_out
        self._events, self._left_out = [], 0
        self._due, self._sent_at = inf, now
        return taken
