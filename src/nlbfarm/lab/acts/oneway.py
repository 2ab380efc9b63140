"""Heartbeats get lost in one direction only: first nobody hears a node, then a node hears nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab.acts.stage import MOST_OUTAGE_MS, Measurement, Stage, finite, spread

__all__ = ["OneWay", "Way", "oneway"]

_SETTLED = 2.0  # seconds from the cut until everybody must have found its place
_WATCH = 2.0


@dataclass(frozen=True, slots=True)
class Way:
    """What the loss of one direction cost.

    Args:
        outage_ms: Over all buckets, from their first failed connection until the next that was answered.
        unserved: Buckets that nobody answered from two seconds after the cut on.
        double_served: SYNs that two machines answered, from the cut until everything was well again.
        served_by: Who answered while the cut lasted, and how many buckets.
        back_seconds: From the repair until all nodes shared all buckets again.
    """

    outage_ms: dict[str, float]
    unserved: int
    double_served: int
    served_by: dict[str, int]
    back_seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under the keys of the results."""
        return {
            "outage_ms": {name: finite(value) for name, value in self.outage_ms.items()},
            "unserved": self.unserved,
            "double_served": self.double_served,
            "served_by": self.served_by,
            "back_seconds": round(self.back_seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class OneWay(Measurement):
    """Loss in each direction.

    Args:
        node: Which lost its voice (``mute``), and then its hearing (``deaf``).
        ways: By these names.
    """

    node: str
    ways: dict[str, Way]

    def as_json(self) -> dict[str, Any]:
        return {"oneway": {"node": self.node, **{name: way.as_json() for name, way in self.ways.items()}}}

    def failures(self) -> list[str]:
        missed = []
        for name, way in self.ways.items():
            if way.double_served:
                missed.append(f"{name}: {way.double_served} connections were answered by two nodes")
            if way.unserved:
                missed.append(f"{name}: {way.unserved} buckets were not served")
            if not way.outage_ms["max"] < MOST_OUTAGE_MS:
                missed.append(f"{name}: a bucket was unserved for {way.outage_ms['max']:.0f} ms")
        return missed

    def rows(self) -> list[tuple[str, str]]:
        rows = []
        for name, way in self.ways.items():
            served = ", ".join(f"{node} {count}" for node, count in way.served_by.items())
            rows += [
                (f"{self.node} {name}", f"served by {served}; longest outage {way.outage_ms['max']:.0f} ms"),
                ("buckets unserved, connections answered twice", f"{way.unserved}, {way.double_served}"),
                ("well again", f"{way.back_seconds:.1f} s after the repair"),
            ]
        return rows


def oneway(stage: Stage) -> OneWay:
    """Cut the victim's heartbeats in each direction in turn; the prober runs, and the farm has settled."""
    faults, victim = stage.lab.faults, stage.victim
    ways = {}
    stage.tell(f"the heartbeats of {victim} get lost on every network; it still hears the others")
    ways["mute"] = _cut(stage, faults.mute)
    stage.tell(f"now {victim} hears nobody; it is still heard")
    ways["deaf"] = _cut(stage, faults.deafen)
    return OneWay(victim, ways)


def _cut(stage: Stage, cut: Callable[[str], float]) -> Way:
    lab, probing = stage.lab, stage.probing
    at = cut(stage.victim)
    try:
        probing.wait_until(at + _SETTLED + _WATCH)
    finally:
        healed = lab.faults.heal()
    served = probing.served(at + _SETTLED, healed)
    served_by = {node: sum(node in counter for counter in served) for node in lab.names}
    placement = lab.settle()
    back = time.monotonic()
    stage.tell(
        "meanwhile served: "
        + ", ".join(f"{node} ({count})" for node, count in served_by.items())
        + f"; repaired, and after {back - healed:.1f} s: {stage.shares(placement)}"
    )
    probing.wait_until(back + 0.5)
    return Way(
        outage_ms=spread(probing.gaps(range(BUCKETS), at, back)),
        unserved=sum(not counter for counter in served),
        double_served=len(probing.doubles(at)),
        served_by=served_by,
        back_seconds=back - healed,
    )
