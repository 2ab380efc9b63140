"""What the talker saw, on the owner's side: what a planned change cost those who are connected."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab import topology
from nlbfarm.lab.client import Client
from nlbfarm.lab.farm import Lab

__all__ = ["Broken", "Fresh", "Talking", "Tally"]

_RAMP = 15.0  # seconds for all held connections to stand


@dataclass(frozen=True, slots=True)
class Broken:
    """A held connection that broke.

    Args:
        bucket: 0..255.
        at: When, seconds on the monotonic clock.
        node: Whose it was; empty if it never stood.
        why: What the client saw.
    """

    bucket: int
    at: float
    node: str
    why: str


@dataclass(frozen=True, slots=True)
class Fresh:
    """A new connection with one request that came to an end; times in seconds on the monotonic clock.

    Args:
        bucket: 0..255.
        start: When its SYN was sent.
        answered: When it had ended in good order; ``None`` if it did not.
        node: Who answered.
        why: Why it failed.
        syn_retransmits: How often its SYN was sent again (the kernel's count, TCP_INFO).
    """

    bucket: int
    start: float
    answered: float | None
    node: str
    why: str
    syn_retransmits: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What the talker's connections went through in a span of time.

    Args:
        established: Held connections that stood at its beginning.
        broken_connections: Those of them, or opened since, that broke.
        new_connections: New connections begun in it, with one request each.
        failed_connections: Those of them that got no answer, or did not end in good order.
        syn_retransmits: How often a SYN of theirs was sent again.
        longest_stall_ms: The longest that a request on a held connection took.
    """

    established: int
    broken_connections: int
    new_connections: int
    failed_connections: int
    syn_retransmits: int
    longest_stall_ms: float

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under the keys that scripts may rely on."""
        return {
            "established": self.established,
            "broken_connections": self.broken_connections,
            "new_connections": self.new_connections,
            "failed_connections": self.failed_connections,
            "syn_retransmits": self.syn_retransmits,
            "longest_stall_ms": round(self.longest_stall_ms, 1),
        }


class Talking(Client):
    """A running talker; a context manager, entered when all held connections stand.

    ``wait_until`` waits for the end of everything that *began* before a moment.

    Args:
        lab: The lab whose client talks.
        held: Connections that are held, spread evenly over the buckets.
        interval: Seconds between two requests on each of them.
        rate: New connections a second.
        timeout: Seconds without an answer after which a connection is broken, or has failed.
        seed: Seed of the group; by default the farm's own.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        held: int = 512,
        interval: float = 1.0,
        rate: float = 200,
        timeout: float = 10.0,
        seed: int | None = None,
    ) -> None:
        options = ["--held", str(held), "--interval", f"{interval:g}", "--rate", f"{rate:g}"]
        options += ["--timeout", f"{timeout:g}", "--address", str(topology.TALKER_ADDRESS)]
        super().__init__(lab, "talker", options, seed)
        self._wanted = held
        self._fresh: list[Fresh] = []
        self._broken: list[Broken] = []
        self._holders: dict[int, tuple[int, str]] = {}  # connection: its bucket and node
        self._opened = 0
        self._standing: list[tuple[float, int]] = []
        self._stalls: list[tuple[float, float]] = []
        self._answers = 0
        self._latest: list[str | None] = [None] * BUCKETS
        self._totals: Counter[str] = Counter()
        self._at = 0.0

    def __enter__(self) -> Talking:
        super().__enter__()
        try:
            self.wait_for_all()
        except BaseException:
            self.close()
            raise
        return self

    def _take(self, report: dict[str, Any]) -> None:
        for number, bucket, _at, node in report["held"]:
            self._holders[number] = (bucket, node)
            self._opened += 1
        for number, bucket, at, node, why in report["broken"]:
            self._broken.append(Broken(bucket, at, node, why))
            self._holders.pop(number, None)
        for entry in report["fresh"]:
            fresh = Fresh(*entry)
            self._fresh.append(fresh)
            self._latest[fresh.bucket] = None if fresh.why else fresh.node
            self._totals[fresh.node] += 1
        self._standing.append((report["at"], report["standing"]))
        self._stalls.append((report["at"], report["longest"]))
        self._answers += report["answers"]
        self._at, self._seen = report["at"], report["oldest"]

    @property
    def standing(self) -> int:
        """How many held connections stand now."""
        with self._lock:
            return self._standing[-1][1] if self._standing else 0

    @property
    def answers(self) -> int:
        """How many requests on held connections were answered so far."""
        return self._answers

    def holders(self) -> Counter[str]:
        """Return how many held connections each node has."""
        with self._lock:
            return Counter(node for _bucket, node in self._holders.values())

    def held_in(self, buckets: Collection[int]) -> Counter[str]:
        """Return how many held connections each node has in these buckets."""
        with self._lock:
            return Counter(node for bucket, node in self._holders.values() if bucket in buckets)

    def wait_for_all(self) -> None:
        """Wait until every held connection stands.

        Raises:
            LabError: They do not within 15 s.
        """
        self._lab.wait_for(
            lambda: self.standing == self._wanted, _RAMP, f"{self._wanted} held connections to stand"
        )

    def turn_over(self) -> None:
        """Let every held connection end in good order and open another one instead; wait for all of them."""
        with self._lock:
            before, standing = self._opened, self._standing[-1][1]
        broken = len(self.broken())
        self._lab.world.call("signal", name=self._name, number=signal.SIGUSR1)

        def done() -> bool:
            lost = len(self.broken()) - broken  # of them, those which broke on the way
            return self._opened - before >= standing - lost and self.standing >= standing - lost

        self._lab.wait_for(done, _RAMP, "the held connections to be opened anew")

    def broken(self, since: float = 0.0, until: float = float("inf")) -> list[Broken]:
        """Return the held connections that broke in ``[since, until)``."""
        with self._lock:
            return [broken for broken in self._broken if since <= broken.at < until]

    def fresh(self, since: float = 0.0, until: float = float("inf")) -> list[Fresh]:
        """Return the new connections begun in ``[since, until)`` that came to an end."""
        with self._lock:
            return [fresh for fresh in self._fresh if since <= fresh.start < until]

    def tally(self, since: float, until: float) -> Tally:
        """Count ``[since, until)``, once everything has ended that began in it (``wait_until``)."""
        self.wait_until(until)
        fresh, broken = self.fresh(since, until), self.broken(since, until)
        with self._lock:
            established = [standing for at, standing in self._standing if at <= since]
            stalls = [stall for at, stall in self._stalls if since <= at < until]
        return Tally(
            established=established[-1] if established else 0,
            broken_connections=sum(bool(one.node) for one in broken),
            new_connections=len(fresh),
            failed_connections=sum(one.answered is None for one in fresh)
            + sum(not one.node for one in broken),
            syn_retransmits=sum(one.syn_retransmits for one in fresh),
            longest_stall_ms=max(stalls, default=0.0) * 1000,
        )

    def trouble(self, since: float, until: float = float("inf")) -> list[str]:
        """Return a sentence for each thing that went wrong, a hundred at most."""
        lines = [
            f"{one.at - since:.3f} s: bucket {one.bucket}, held by {one.node or 'nobody'}: {one.why}"
            for one in self.broken(since, until)
        ]
        lines += [
            f"{one.start - since:.3f} s: bucket {one.bucket}, new, {one.node or 'nobody'}: {one.why}"
            for one in self.fresh(since, until)
            if one.why
        ]
        return lines[:100]

    def latest(self) -> tuple[list[str | None], Counter[str], float]:
        """Return what a picture needs.

        Returns:
            Who answered each bucket last (``None``: nobody), new connections by node, and until when.
        """
        with self._lock:
            return list(self._latest), Counter(self._totals), self._at

    def watch(self, seconds: float) -> float:
        """Let the connections talk for so long; returns the end, seconds on the monotonic clock."""
        until = time.monotonic() + seconds
        self.wait_until(until)
        return until
