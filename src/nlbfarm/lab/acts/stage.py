"""What every act of the demo works with: the lab, its clients, and somebody who listens."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab.application import Application
from nlbfarm.lab.farm import Lab
from nlbfarm.lab.nodelog import LogEvent
from nlbfarm.lab.operator import Operator
from nlbfarm.lab.probing import Probing, percentile
from nlbfarm.lab.talking import Talking
from nlbfarm.lab.world import LabError

__all__ = ["MOST_OUTAGE_MS", "Measurement", "Stage", "finite", "spread"]

MOST_OUTAGE_MS = 1000.0
"""Goal: no bucket is unserved for longer after a node has failed."""


class Measurement(ABC):
    """What one act measured."""

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """Return the act's keys of the results; they are stable."""

    @abstractmethod
    def failures(self) -> list[str]:
        """Return a sentence for each goal that was missed; empty if all hold."""

    @abstractmethod
    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of a table for a person: what, and how much."""


class Stage:
    """A lab in which a story is told.

    Args:
        lab: An entered lab of two nodes or more; nothing has been started in it.
        tell: Called with a sentence at each turn of the story.
    """

    def __init__(self, lab: Lab, tell: Callable[[str], None]) -> None:
        self.lab = lab
        self.tell = tell
        self.operator = Operator(lab)
        self.application = Application(lab)
        self.victim = lab.names[1]
        """The node to which everything happens."""
        self._client: Probing | Talking | None = None

    @property
    def rest(self) -> list[str]:
        """All nodes but the victim."""
        return [name for name in self.lab.names if name != self.victim]

    @property
    def probing(self) -> Probing:
        """The prober, within ``probed``."""
        assert isinstance(self._client, Probing)
        return self._client

    @property
    def talking(self) -> Talking:
        """The talker, within ``talked``."""
        assert isinstance(self._client, Talking)
        return self._client

    @contextmanager
    def probed(self, *, rate: float = 1000, held: int = 32) -> Iterator[Probing]:
        """Let the prober run, which asks every bucket all the time."""
        with Probing(self.lab, rate=rate, held=held) as self._client:
            yield self._client

    @contextmanager
    def talked(self, *, held: int = 512, rate: float = 200) -> Iterator[Talking]:
        """Let the talker run, whose connections stay and talk."""
        with Talking(self.lab, held=held, rate=rate) as self._client:
            self.tell(f"a client holds {held} connections, which talk on and on, and opens {rate:g} a second")
            yield self._client

    def latest(self) -> tuple[list[str | None], Counter[str], float]:
        """Return what a picture needs; see ``Probing.latest``. Nothing was seen before a client runs."""
        return self._client.latest() if self._client else ([None] * BUCKETS, Counter(), 0.0)

    def owned(self, node: str, placement: Iterable[int]) -> list[int]:
        """Return a node's buckets."""
        return [bucket for bucket, owner in enumerate(placement) if owner == self.lab.id_of(node)]

    def shares(self, placement: Iterable[int]) -> str:
        """Return who has how many buckets, for a sentence."""
        counts = Counter(placement)
        return ", ".join(
            f"{self.lab.names[owner - 1]} ({counts[owner]})" for owner in sorted(counts) if owner
        )

    def wait_event(
        self, node: str, name: str, since: float, *, timeout: float = 20, **fields: Any
    ) -> LogEvent:
        """Wait for an event of this name, with these fields, from ``since`` on in a node's journal."""

        def found() -> LogEvent | None:
            for event in self.lab.journal(node, since):
                if event.name == name and all(event.fields.get(key) == fields[key] for key in fields):
                    return event
            return None

        said = " ".join([name, *(f"{key}={value}" for key, value in fields.items())])
        return self.lab.wait_for(found, timeout, f"the event {said} of {node}")

    def wait_unheard(self, node: str, by: str) -> float:
        """Wait until ``by`` takes ``node`` for lost; returns when, seconds on the monotonic clock."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            now = time.monotonic()
            if not self.operator.row(node, seen_by=by)["heard"]:
                return now
            time.sleep(0.01)
        raise LabError(f"{by} still hears {node}, 20 s after it fell silent")


def spread(seconds: Iterable[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum in milliseconds, under the keys of the results."""
    values = list(seconds)
    return {
        "p50": percentile(values, 0.5) * 1000,
        "p99": percentile(values, 0.99) * 1000,
        "max": max(values, default=0.0) * 1000,
    }


def finite(milliseconds: float) -> float | None:
    """Return a number that JSON knows; ``None`` for never."""
    return round(milliseconds, 1) if milliseconds != float("inf") else None
