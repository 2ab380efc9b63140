"""The process of a node hangs, and goes on after a while: nobody is served twice."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from nlbfarm.lab.acts.stage import MOST_OUTAGE_MS, Measurement, Stage, finite, spread

__all__ = ["Freeze", "freeze"]


@dataclass(frozen=True, slots=True)
class Freeze(Measurement):
    """What a frozen process cost; times in milliseconds.

    Args:
        node: Which was stopped (SIGSTOP), and went on (SIGCONT).
        frozen_seconds: For how long.
        silent_ms: From the freeze until its kernel gave the last answer: its lease ran out.
        outage_ms: Over its buckets, from then until another node answered: ``p50``, ``p99``, ``max``.
        double_served: SYNs that two machines answered, from the freeze until it had its share again.
        back_seconds: From SIGCONT until it had its share again.
        share: Buckets of this share.
    """

    node: str
    frozen_seconds: float
    silent_ms: float
    outage_ms: dict[str, float]
    double_served: int
    back_seconds: float
    share: int

    def as_json(self) -> dict[str, Any]:
        return {
            "freeze": {
                "node": self.node,
                "frozen_seconds": round(self.frozen_seconds, 3),
                "silent_ms": finite(self.silent_ms),
                "outage_ms": {name: finite(value) for name, value in self.outage_ms.items()},
                "double_served": self.double_served,
                "back_seconds": round(self.back_seconds, 3),
                "share": self.share,
            }
        }

    def failures(self) -> list[str]:
        missed = []
        if self.double_served:
            missed.append(f"{self.double_served} connections were answered by two nodes around the freeze")
        if not self.outage_ms["max"] < MOST_OUTAGE_MS:
            missed.append(f"a bucket was unserved for {self.outage_ms['max']:.0f} ms after the freeze")
        if not self.share:
            missed.append(f"{self.node} did not take its share again")
        return missed

    def rows(self) -> list[tuple[str, str]]:
        outage = " ".join(f"{name} {value:.0f}" for name, value in self.outage_ms.items())
        return [
            (f"{self.node} frozen for {self.frozen_seconds:.1f} s", f"silent after {self.silent_ms:.0f} ms"),
            ("its buckets answered by others", f"{outage} ms later (goal: max below {MOST_OUTAGE_MS:.0f})"),
            ("connections answered by two nodes", str(self.double_served)),
            ("back again", f"{self.back_seconds:.1f} s after it woke up, {self.share} buckets"),
        ]


def freeze(stage: Stage, seconds: float = 5.0) -> Freeze:
    """Stop the victim's process for so long, then let it go on; the prober runs, and the farm has settled."""
    lab, probing, victim = stage.lab, stage.probing, stage.victim
    mine = stage.owned(victim, lab.settle())
    stage.tell(f"freezing the nlbfarm-node of {victim} (SIGSTOP), which serves {len(mine)} buckets")
    at = lab.freeze(victim)
    placement = lab.settle(*stage.rest)
    stage.tell(f"now serving: {stage.shares(placement)}; {victim} knows nothing of it")
    probing.wait_until(at + seconds)
    last = max(
        (r.answered for r in probing.requests(at) if r.answered and r.node == victim and r.bucket in mine),
        default=at,
    )
    stage.tell(f"its kernel fell silent by itself after {(last - at) * 1000:.0f} ms; it wakes up (SIGCONT)")
    thawed = lab.thaw(victim)
    placement = lab.settle()
    back = time.monotonic()
    stage.tell(f"it has its share again after {back - thawed:.1f} s: {stage.shares(placement)}")
    probing.wait_until(back + 0.5)
    return Freeze(
        node=victim,
        frozen_seconds=thawed - at,
        silent_ms=(last - at) * 1000,
        outage_ms=spread(probing.outages(mine, last).values()),
        double_served=len(probing.doubles(at)),
        back_seconds=back - thawed,
        share=len(stage.owned(victim, placement)),
    )
