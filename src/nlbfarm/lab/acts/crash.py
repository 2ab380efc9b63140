"""A machine loses its power."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from nlbfarm.lab.acts.stage import MOST_OUTAGE_MS, Measurement, Stage, finite, spread

__all__ = ["Crash", "crash"]


@dataclass(frozen=True, slots=True)
class Crash(Measurement):
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

    def as_json(self) -> dict[str, Any]:
        return {
            "crash": {
                "node": self.node,
                "detect_ms": finite(self.detect_ms),
                "outage_ms": {name: finite(value) for name, value in self.outage_ms.items()},
                "requests_failed": self.requests_failed,
                "buckets_unserved_after": self.buckets_unserved_after,
                "buckets_double_served": self.buckets_double_served,
            }
        }

    def failures(self) -> list[str]:
        missed = []
        if not self.outage_ms["max"] < MOST_OUTAGE_MS:
            missed.append(f"a bucket was unserved for {self.outage_ms['max']:.0f} ms")
        if self.buckets_unserved_after:
            missed.append(f"{self.buckets_unserved_after} buckets were not served after the crash")
        if self.buckets_double_served:
            missed.append(f"{self.buckets_double_served} buckets were served by two nodes after the crash")
        return missed

    def rows(self) -> list[tuple[str, str]]:
        outage = " ".join(f"{name} {value:.0f}" for name, value in self.outage_ms.items())
        return [
            (f"power of {self.node} cut", f"noticed after {self.detect_ms:.0f} ms"),
            ("its buckets answered again", f"{outage} ms (goal: max below {MOST_OUTAGE_MS:.0f})"),
            ("requests failed meanwhile", str(self.requests_failed)),
            (
                "buckets unserved, served twice, after it",
                f"{self.buckets_unserved_after}, {self.buckets_double_served}",
            ),
        ]


def crash(stage: Stage) -> Crash:
    """Cut the victim's power; the prober runs, and the farm has settled. It stays away."""
    lab, probing, victim = stage.lab, stage.probing, stage.victim
    lost = stage.owned(victim, lab.settle())
    time.sleep(random.uniform(0, 0.1))  # any phase of the heartbeat
    stage.tell(f"cutting the power of {victim}, which serves {len(lost)} buckets")
    at = lab.crash(victim)
    witness = stage.rest[0]
    detected = stage.wait_unheard(victim, by=witness) - at
    placement = lab.settle(*stage.rest)
    settled = time.monotonic()
    stage.tell(f"{witness} noticed after {detected * 1000:.0f} ms; now serving: {stage.shares(placement)}")
    until = settled + 2.0
    probing.wait_until(until + 1)
    served = probing.served(settled, until)
    measured = Crash(
        node=victim,
        detect_ms=detected * 1000,
        outage_ms=spread(probing.outages(lost, at).values()),
        requests_failed=probing.failed(at, settled),
        buckets_unserved_after=sum(not counter for counter in served),
        buckets_double_served=len({double.bucket for double in probing.doubles(settled)}),
    )
    worst = measured.outage_ms
    stage.tell(
        f"its buckets were answered again after {worst['p50']:.0f} ms (median) to {worst['max']:.0f} ms"
    )
    return measured
