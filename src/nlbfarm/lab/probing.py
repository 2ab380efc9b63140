"""What the prober saw, on the owner's side: read while it arrives, asked by bucket, node and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab import topology
from nlbfarm.lab.client import Client
from nlbfarm.lab.farm import Lab

__all__ = ["Double", "Probing", "Request", "percentile"]


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the client that has come to an end; times in seconds on the monotonic clock.

    Args:
        bucket: 0..255.
        start: When its SYN (or, on a held connection, the request) was sent.
        answered: When the page had arrived; ``None`` if it did not.
        node: Who answered.
        error: Why it was not answered.
        held: Whether it was on a held connection.
        client: The client address that asked.
    """

    bucket: int
    start: float
    answered: float | None
    node: str
    error: str
    held: bool
    client: str = ""


@dataclass(frozen=True, slots=True)
class Double:
    """A SYN that two machines answered."""

    bucket: int
    at: float
    first: str
    second: str


class Probing(Client):
    """A running prober; a context manager. All methods may be called while it runs.

    ``wait_until`` waits for everything that *ended* before a moment.

    Args:
        lab: The lab whose client asks.
        rate: New connections a second.
        held: Connections that are kept open.
        seed: Seed of the group; by default the farm's own.
        buckets: The buckets that new connections are opened for; by default all.
        abandon: Seconds after which an unanswered SYN is given up.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        rate: float = 1000,
        held: int = 32,
        seed: int | None = None,
        buckets: Iterable[int] = (),
        abandon: float = 0.050,
    ) -> None:
        options = ["--rate", f"{rate:g}", "--held", str(held), "--abandon", f"{abandon:g}"]
        for bucket in buckets:
            options += ["--bucket", str(bucket)]
        for address in topology.PROBER_ADDRESSES:
            options += ["--address", str(address)]
        super().__init__(lab, "prober", options, seed)
        self._requests: list[Request] = []
        self._doubles: list[Double] = []
        self._latest: list[str | None] = [None] * BUCKETS
        self._totals: Counter[str] = Counter()

    def _take(self, report: dict[str, Any]) -> None:
        requests = [_request(entry, held=False) for entry in report["probes"]]
        requests += [_request(entry, held=True) for entry in report["held"]]
        self._requests += requests
        for request in requests:
            if not request.held:
                self._latest[request.bucket] = request.node or None
                self._totals[request.node] += 1
        self._doubles += [Double(*entry) for entry in report["doubles"]]
        self._seen = report["at"]

    def requests(
        self,
        since: float = 0.0,
        until: float = float("inf"),
        *,
        held: bool | None = None,
        client: str | None = None,
    ) -> list[Request]:
        """Return the requests begun in ``[since, until)``; with ``held``, only such, or only others.

        Args:
            since: Seconds on the monotonic clock.
            until: The same.
            held: Whether they were on held connections; both if not given.
            client: The client address that they came from; any if not given.
        """
        with self._lock:
            everything = list(self._requests)
        return [
            r
            for r in everything
            if since <= r.start < until and held in (None, r.held) and client in (None, r.client)
        ]

    def doubles(self, since: float = 0.0, until: float = float("inf")) -> list[Double]:
        """Return the SYNs that two machines answered in ``[since, until)``."""
        with self._lock:
            return [double for double in self._doubles if since <= double.at < until]

    def latest(self) -> tuple[list[str | None], Counter[str], float]:
        """Return what a picture needs.

        Returns:
            Who answered each bucket last (``None``: nobody), new connections by node, and until when.
        """
        with self._lock:
            return list(self._latest), Counter(self._totals), self._seen

    def outages(self, buckets: Collection[int], since: float) -> dict[int, float]:
        """Return for each bucket how long until a connection begun after ``since`` was answered, seconds."""
        found = dict.fromkeys(buckets, float("inf"))
        for request in self.requests(since, held=False):
            if request.answered is not None and request.bucket in found:
                found[request.bucket] = min(found[request.bucket], request.answered - since)
        return found

    def gaps(self, buckets: Collection[int], since: float, until: float) -> list[float]:
        """Return how long each of these buckets was unserved at most, in ``[since, until)``, seconds.

        That is from the start of the first connection that failed to the answer of the next that did not,
        which may be later; what came back before it was asked counts as 0.
        """
        longest = dict.fromkeys(buckets, 0.0)
        failing: dict[int, float] = {}
        for request in sorted(self.requests(since, held=False), key=lambda r: r.start):
            if request.bucket not in longest:
                continue
            if request.answered is None and request.start < until:
                failing.setdefault(request.bucket, request.start)
            elif request.answered is not None and request.bucket in failing:
                gap = request.answered - failing.pop(request.bucket)
                longest[request.bucket] = max(longest[request.bucket], gap)
        return [float("inf") if bucket in failing else gap for bucket, gap in longest.items()]

    def served(
        self, since: float, until: float = float("inf"), *, client: str | None = None
    ) -> list[Counter[str]]:
        """Return, for each of the 256 buckets, how many new connections each node answered."""
        counts: list[Counter[str]] = [Counter() for _ in range(BUCKETS)]
        for request in self.requests(since, until, held=False, client=client):
            if request.answered is not None:
                counts[request.bucket][request.node] += 1
        return counts

    def failed(self, since: float, until: float = float("inf")) -> int:
        """Return how many requests, new and held, were not answered."""
        return sum(request.answered is None for request in self.requests(since, until))


def _request(entry: list[Any], *, held: bool) -> Request:
    bucket, start, answered, node, error, client = entry
    return Request(bucket, start, answered, node, error, held, client)


def percentile(values: Iterable[float], fraction: float) -> float:
    """Return the smallest value that ``fraction`` (0..1) of the values do not exceed; 0.0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-fraction * len(ordered) // 1) - 1))] if ordered else 0.0
