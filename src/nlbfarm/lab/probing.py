"""What the prober saw, on the owner's side: read while it arrives, asked by bucket, node and time."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab import topology
from nlbfarm.lab.farm import Lab
from nlbfarm.lab.supervisor import ROOT
from nlbfarm.lab.world import LabError

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
    """

    bucket: int
    start: float
    answered: float | None
    node: str
    error: str
    held: bool


@dataclass(frozen=True, slots=True)
class Double:
    """A SYN that two machines answered."""

    bucket: int
    at: float
    first: str
    second: str


class Probing:
    """A running prober; a context manager. All methods may be called while it runs.

    Args:
        lab: The lab whose client asks.
        rate: New connections a second.
        held: Connections that are kept open.
        seed: Seed of the group; by default the farm's own.
    """

    def __init__(self, lab: Lab, *, rate: float = 1000, held: int = 32, seed: int | None = None) -> None:
        self._lab = lab
        self._options = ["--rate", f"{rate:g}", "--held", str(held), "--vip", str(topology.VIP)]
        self._options += ["--config", str(ROOT / "farm.toml")] if seed is None else ["--seed", str(seed)]
        for address in topology.CLIENT_ADDRESSES[1:]:
            self._options += ["--address", str(address)]
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._doubles: list[Double] = []
        self._seen = 0.0
        self._latest: list[str | None] = [None] * BUCKETS
        self._totals: Counter[str] = Counter()
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Probing:
        ours, theirs = os.pipe()
        try:
            self._lab.world.spawn(
                f"{topology.CLIENT}/prober",
                [sys.executable, "-m", "nlbfarm.lab.prober", *self._options],
                ns=topology.CLIENT,
                log=str(ROOT / "prober.log"),
                fds=[theirs],
            )
        finally:
            os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), name="prober", daemon=True)
        self._reader.start()
        self._lab.wait_for(self._started, 20, "the prober to start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the prober; what it saw stays."""
        name = f"{topology.CLIENT}/prober"
        try:
            self._lab.world.call("signal", name=name, number=signal.SIGKILL)
            self._lab.world.call("wait", name=name, timeout=5)
        finally:
            if self._reader:
                self._reader.join(5)

    def _started(self) -> bool:
        code = self._lab.world.call("wait", name=f"{topology.CLIENT}/prober", timeout=0)
        if code is not None:
            raise LabError(
                f"the prober ended with {code}: {self._lab.world.call('read', path='prober.log').strip()}"
            )
        return self._seen > 0

    def _read(self, descriptor: int) -> None:
        with open(descriptor, encoding="utf-8") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    return  # killed in the middle of it
                report = json.loads(line)
                requests = [_request(entry, held=False) for entry in report["probes"]]
                requests += [_request(entry, held=True) for entry in report["held"]]
                with self._lock:
                    self._requests += requests
                    for request in requests:
                        if not request.held:
                            self._latest[request.bucket] = request.node or None
                            self._totals[request.node] += 1
                    self._doubles += [Double(*entry) for entry in report["doubles"]]
                    self._seen = report["at"]

    @property
    def seen(self) -> float:
        """Until when the results are known, seconds on the monotonic clock."""
        return self._seen

    def wait_until(self, moment: float) -> None:
        """Wait until the results of everything that ended before ``moment`` are known."""
        self._lab.wait_for(
            lambda: self._seen > moment, max(0.0, moment - self._seen) + 10, "the prober's results"
        )

    def requests(
        self, since: float = 0.0, until: float = float("inf"), *, held: bool | None = None
    ) -> list[Request]:
        """Return the requests begun in ``[since, until)``; with ``held``, only such, or only others."""
        with self._lock:
            everything = list(self._requests)
        return [r for r in everything if since <= r.start < until and held in (None, r.held)]

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

    def served(self, since: float, until: float = float("inf")) -> list[Counter[str]]:
        """Return, for each of the 256 buckets, how many new connections each node answered."""
        counts: list[Counter[str]] = [Counter() for _ in range(BUCKETS)]
        for request in self.requests(since, until, held=False):
            if request.answered is not None:
                counts[request.bucket][request.node] += 1
        return counts

    def failed(self, since: float, until: float = float("inf")) -> int:
        """Return how many requests, new and held, were not answered."""
        return sum(request.answered is None for request in self.requests(since, until))


def _request(entry: list[Any], *, held: bool) -> Request:
    bucket, start, answered, node, error = entry
    return Request(bucket, start, answered, node, error, held)


def percentile(values: Iterable[float], fraction: float) -> float:
    """Return the smallest value that ``fraction`` (0..1) of the values do not exceed; 0.0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-fraction * len(ordered) // 1) - 1))] if ordered else 0.0
