"""The demo's story and its measurements: a farm comes up, serves, loses a machine, and gets it back.

``Story`` does it and tells a listener; ``nlbfarm.cli.demo`` is the listener that draws. The clock of
every measurement is the monotonic one, which all processes of the lab share.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab.farm import Lab
from nlbfarm.lab.probing import Probing, percentile
from nlbfarm.lab.world import LabError

__all__ = ["MOST_OUTAGE_MS", "Crash", "Rejoin", "Results", "Share", "Story"]

MOST_OUTAGE_MS = 1000.0
"""Goal: no bucket is unserved for longer after a machine has died."""

_SHARE_TOLERANCE = 0.10
_POLL = 0.01


@dataclass(frozen=True, slots=True)
class Share:
    """What one node had to do: buckets it owned, new connections it answered."""

    buckets: int
    requests: int


@dataclass(frozen=True, slots=True)
class Crash:
    """What the loss of a machine cost; times in milliseconds from the moment its power was cut.

    Args:
        node: Which.
        detect_ms: Until a peer took it for lost.
        outage_ms: Over its buckets, until the first new connection was answered: ``p50``, ``p99``, ``max``.
        requests_failed: Requests, new and held, that were not answered until the farm had settled.
        buckets_unserved_after: Buckets, of all 256, that nobody answered after the farm had settled.
        buckets_double_served: Buckets where two machines answered one SYN after the farm had settled.
    """

    node: str
    detect_ms: float
    outage_ms: dict[str, float]
    requests_failed: int
    buckets_unserved_after: int
    buckets_double_served: int


@dataclass(frozen=True, slots=True)
class Rejoin:
    """What the return of the machine cost.

    Args:
        moved_buckets: Buckets that changed their owner.
        seconds: From the start of its ``nlbfarm-node`` until it had its share again.
        requests_failed: Requests, new and held, that were not answered meanwhile.
    """

    moved_buckets: int
    seconds: float
    requests_failed: int


@dataclass(slots=True)
class Results:
    """What the demo measured; ``as_json`` has the stable keys. ``logs`` are the nodes', for a missed goal."""

    nodes: int
    server: str
    backend: str = ""
    delivery: str = ""
    probes_per_second: float = 0.0
    share: dict[str, Share] = field(default_factory=dict)
    crash: Crash | None = None
    rejoin: Rejoin | None = None
    leftovers: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the results under the keys that scripts may rely on."""
        crash, rejoin = self.crash, self.rejoin
        return {
            "nodes": self.nodes,
            "backend": self.backend,
            "delivery": self.delivery,
            "server": self.server,
            "probes_per_second": round(self.probes_per_second, 1),
            "share": {name: {"buckets": s.buckets, "requests": s.requests} for name, s in self.share.items()},
            "crash": crash
            and {
                "node": crash.node,
                "detect_ms": _finite(crash.detect_ms),
                "outage_ms": {name: _finite(value) for name, value in crash.outage_ms.items()},
                "requests_failed": crash.requests_failed,
                "buckets_unserved_after": crash.buckets_unserved_after,
                "buckets_double_served": crash.buckets_double_served,
            },
            "rejoin": rejoin
            and {
                "moved_buckets": rejoin.moved_buckets,
                "seconds": round(rejoin.seconds, 3),
                "requests_failed": rejoin.requests_failed,
            },
            "leftovers": self.leftovers,
        }

    def failures(self) -> list[str]:
        """Return a sentence for each goal that was missed; empty if all hold."""
        missed = list(self.misplaced)
        buckets = [share.buckets for share in self.share.values()]
        if sum(buckets) != BUCKETS or max(buckets) - min(buckets) > 1:
            missed.append(f"the shares of the {BUCKETS} buckets are not equal to within one: {buckets}")
        requests = sum(share.requests for share in self.share.values())
        for name, share in self.share.items():
            expected = requests * share.buckets / BUCKETS
            if not expected or abs(share.requests - expected) > _SHARE_TOLERANCE * expected:
                missed.append(
                    f"{name} answered {share.requests} requests; its buckets are worth {expected:.0f}"
                )
        if self.crash is None or self.rejoin is None:
            return [*missed, "the demo did not come to its end"]
        if not self.crash.outage_ms["max"] < MOST_OUTAGE_MS:
            missed.append(f"a bucket was unserved for {self.crash.outage_ms['max']:.0f} ms")
        if self.crash.buckets_unserved_after:
            missed.append(f"{self.crash.buckets_unserved_after} buckets were not served after the crash")
        if self.crash.buckets_double_served:
            missed.append(
                f"{self.crash.buckets_double_served} buckets were served by two nodes after the crash"
            )
        if self.leftovers:
            missed.append(f"{len(self.leftovers)} things were left behind: {'; '.join(self.leftovers)}")
        return missed


class Story:
    """Runs the demo.

    Args:
        lab: An entered lab of two nodes or more; nothing has been started in it.
        tell: Called with a sentence at each turn of the story.
        seconds: Length of the measurements of steady service.
        rate: New connections a second.
        held: Held connections.
    """

    def __init__(
        self,
        lab: Lab,
        tell: Callable[[str], None],
        *,
        seconds: float = 4.0,
        rate: float = 1000,
        held: int = 32,
    ) -> None:
        self.lab = lab
        self.results = Results(nodes=len(lab.names), server=lab.server.name)
        self.probing = Probing(lab, rate=rate, held=held)
        self._tell = tell
        self._seconds = seconds
        self._victim = lab.names[1]

    def run(self) -> Results:
        """Tell the story to its end; the farm then runs on and the client has stopped.

        Raises:
            LabError: The farm did not do in time what the story needs.
        """
        began = time.monotonic()
        self._tell(f"starting nlbfarm-node on {', '.join(self.lab.names)}")
        self.lab.start()
        placement = self.lab.settle(timeout=30)
        status = self.lab.status(self.lab.names[0])
        self.results.backend = status["backend"]["name"]
        self.results.delivery = status["delivery"]
        took = time.monotonic() - began
        self._tell(f"all {BUCKETS} buckets are served after {took:.1f} s, by {self._shares(placement)}")
        with self.probing:
            self._serve(placement)
            after = self._crash()
            self._rejoin(after)
            self.probing.wait_until(time.monotonic())
        return self.results

    def finish(self) -> None:
        """Stop the farm's processes politely, end the lab and note what is left."""
        self.results.logs = {node: self.lab.log(node) for node in self.lab.names}
        for node in self.lab.running:
            self._tell(f"stopping {node}")
            code = self.lab.stop(node)
            if code:
                self.results.leftovers.append(f"{node} ended with exit code {code}")
        self.results.leftovers += self.lab.leftovers()
        self.results.leftovers += self.lab.close()

    def _serve(self, placement: tuple[int, ...]) -> None:
        self._tell("a client loads the VIP: every bucket, on new and on held connections")
        since = self.probing.seen
        until = since + self._seconds
        self.probing.wait_until(until)
        served = self.probing.served(since, until)
        totals = sum(served, Counter())
        for node in self.lab.names:
            owned = placement.count(self.lab.id_of(node))
            self.results.share[node] = Share(owned, totals[node])
        wrong = [b for b, owner in enumerate(placement) if list(served[b]) != [self.lab.names[owner - 1]]]
        if wrong:
            self.results.misplaced.append(
                f"{len(wrong)} buckets were not answered by just the node that owns them, first {wrong[0]}: "
                f"{dict(served[wrong[0]])}"
            )
        self.results.probes_per_second = len(self.probing.requests(since, until, held=False)) / (
            until - since
        )
        shares = ", ".join(f"{name} {share.requests}" for name, share in self.results.share.items())
        self._tell(f"{self.results.probes_per_second:.0f} new connections a second, answered by {shares}")

    def _crash(self) -> tuple[int, ...]:
        names = [name for name in self.lab.names if name != self._victim]
        lost = [b for b, owner in enumerate(self.lab.settle()) if owner == self.lab.id_of(self._victim)]
        time.sleep(random.uniform(0, 0.1))  # any phase of the heartbeat
        self._tell(f"cutting the power of {self._victim}, which serves {len(lost)} buckets")
        at = self.lab.crash(self._victim)
        detected = self._detected(names[0]) - at
        placement = self.lab.settle(*names)
        settled = time.monotonic()
        self._tell(
            f"{names[0]} noticed after {detected * 1000:.0f} ms; now serving: {self._shares(placement)}"
        )
        until = settled + max(1.5, self._seconds / 2)
        self.probing.wait_until(until + 1)
        outages = self.probing.outages(lost, at).values()
        served = self.probing.served(settled, until)
        self.results.crash = Crash(
            node=self._victim,
            detect_ms=detected * 1000,
            outage_ms={
                "p50": percentile(outages, 0.5) * 1000,
                "p99": percentile(outages, 0.99) * 1000,
                "max": max(outages) * 1000,
            },
            requests_failed=self.probing.failed(at, settled),
            buckets_unserved_after=sum(not counter for counter in served),
            buckets_double_served=len({double.bucket for double in self.probing.doubles(settled)}),
        )
        worst = self.results.crash.outage_ms
        self._tell(
            f"its buckets were answered again after {worst['p50']:.0f} ms (median) to {worst['max']:.0f} ms"
        )
        return placement

    def _detected(self, peer: str) -> float:
        """Wait until ``peer`` takes the victim for lost; returns when, seconds on the monotonic clock."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            now = time.monotonic()
            nodes = self.lab.status(peer)["nodes"]
            if not next(node["heard"] for node in nodes if node["name"] == self._victim):
                return now
            time.sleep(_POLL)
        raise LabError(f"{peer} still hears {self._victim}, 20 s after its power was cut")

    def _rejoin(self, before: tuple[int, ...]) -> None:
        self._tell(f"{self._victim} boots again; its nlbfarm-node starts, as its service manager would do")
        self.lab.boot(self._victim)
        at = time.monotonic()
        self.lab.start(self._victim)
        placement = self.lab.settle(timeout=30)
        settled = time.monotonic()
        moved = sum(old != new for old, new in zip(before, placement, strict=True))
        self.probing.wait_until(settled + 1.5)
        self.results.rejoin = Rejoin(moved, settled - at, self.probing.failed(at, settled + 0.3))
        self._tell(f"{self._victim} has its share again after {settled - at:.1f} s; {moved} buckets moved")

    def _shares(self, placement: tuple[int, ...]) -> str:
        counts = Counter(placement)
        return ", ".join(
            f"{self.lab.names[owner - 1]} ({counts[owner]})" for owner in sorted(counts) if owner
        )


def _finite(milliseconds: float) -> float | None:
    """Return a number that JSON knows; ``None`` for never."""
    return round(milliseconds, 1) if milliseconds != float("inf") else None
