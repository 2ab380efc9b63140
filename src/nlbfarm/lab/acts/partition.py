"""The network falls apart, and each side serves its own clients; it heals, and they are one farm again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlbfarm.config.heartbeat import Heartbeat
from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab import topology
from nlbfarm.lab.acts.stage import Measurement, Stage, finite
from nlbfarm.lab.probing import percentile

__all__ = ["Partition", "partition"]

_SETTLED = 2.5  # seconds from the cut until each side must serve all
_WATCH = 2.5


@dataclass(frozen=True, slots=True)
class Partition(Measurement):
    """What a partition of the network cost; times in milliseconds.

    Args:
        sides: The nodes of each.
        served: Buckets that each side answered for its own clients, from 2.5 s after the cut on.
        failed: New connections that a side did not answer, from then on.
        hearing_ms: From the repair until every two nodes of different sides heard each other.
        double_ms: How long after the repair SYNs were answered by two machines, over all that were: ``p50``,
            ``max``; 0 if there was none.
        double_served: How many were.
        double_served_late: Those later than one lease after all heard each other.
        back_seconds: From the repair until all nodes shared all buckets.
    """

    sides: list[list[str]]
    served: list[int]
    failed: list[int]
    hearing_ms: float
    double_ms: dict[str, float]
    double_served: int
    double_served_late: int
    back_seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "partition": {
                "sides": self.sides,
                "served": self.served,
                "failed": self.failed,
                "hearing_ms": finite(self.hearing_ms),
                "double_ms": {name: finite(value) for name, value in self.double_ms.items()},
                "double_served": self.double_served,
                "double_served_late": self.double_served_late,
                "back_seconds": round(self.back_seconds, 3),
            }
        }

    def failures(self) -> list[str]:
        missed = []
        for side, served in zip(self.sides, self.served, strict=True):
            if served < BUCKETS:
                missed.append(f"{' and '.join(side)} served {served} of {BUCKETS} buckets to their clients")
        if self.double_served_late:
            missed.append(f"{self.double_served_late} connections were answered twice after the healing")
        return missed

    def rows(self) -> list[tuple[str, str]]:
        rows = [
            (f"{' and '.join(side)} on their own", f"{served} buckets served, {failed} connections failed")
            for side, served, failed in zip(self.sides, self.served, self.failed, strict=True)
        ]
        return [
            *rows,
            ("healed: all heard each other", f"after {self.hearing_ms:.0f} ms"),
            ("served twice for", f"p50 {self.double_ms['p50']:.0f} max {self.double_ms['max']:.0f} ms"),
            ("connections answered twice one lease later", str(self.double_served_late)),
            ("one farm again", f"after {self.back_seconds:.1f} s"),
        ]


def partition(stage: Stage) -> Partition:
    """Cut the switch in two for some seconds; the prober runs, and the farm has settled.

    Every address of the client reaches one side only while the cut lasts, and all nodes before and after: as
    clients on both sides of a broken line between two switches.
    """
    lab, probing = stage.lab, stage.probing
    half = (len(lab.names) + 1) // 2
    sides = [list(lab.names[half:]), list(lab.names[:half])]
    addresses = [topology.PROBER_ADDRESSES[:1], topology.PROBER_ADDRESSES[1:]]
    stage.tell(f"the switch falls apart: {' and '.join(sides[0])} here, {' and '.join(sides[1])} there")
    at = lab.faults.partition(sides, addresses)
    try:
        since = at + _SETTLED
        probing.wait_until(since + _WATCH)
    finally:
        healed = lab.faults.heal()
    served, failed = [], []
    for own in addresses:
        requests = [r for one in own for r in probing.requests(since, healed - 0.1, client=str(one))]
        served.append(len({r.bucket for r in requests if r.answered is not None and not r.held}))
        failed.append(sum(r.answered is None and not r.held for r in requests))
    stage.tell(
        "each side serves its clients: "
        + ", ".join(
            f"{' and '.join(side)} {count} buckets" for side, count in zip(sides, served, strict=True)
        )
    )
    placement = lab.settle()
    back = time.monotonic()
    stage.tell(f"repaired; after {back - healed:.1f} s one farm again: {stage.shares(placement)}")
    probing.wait_until(back + 1)
    heard = _heard(stage, sides, healed)
    doubles = probing.doubles(healed)
    ages = [double.at - healed for double in doubles]
    lease = Heartbeat().lease.total_seconds()
    return Partition(
        sides=sides,
        served=served,
        failed=failed,
        hearing_ms=(heard - healed) * 1000,
        double_ms={
            "p50": percentile(ages, 0.5) * 1000,
            "max": max(ages, default=0.0) * 1000,
        },
        double_served=len(doubles),
        double_served_late=sum(double.at > heard + lease for double in doubles),
        back_seconds=back - healed,
    )


def _heard(stage: Stage, sides: Sequence[Sequence[str]], healed: float) -> float:
    """Return when, after the repair, the last node of one side heard the last of another."""
    lab = stage.lab
    latest = healed
    for side in sides:
        across = {lab.id_of(name) for other in sides if other is not side for name in other}
        for node in side:
            for event in lab.events(node, healed):
                if event.name == "peer.heard" and event.fields.get("peer") in across:
                    latest = max(latest, event.at)
    return latest
