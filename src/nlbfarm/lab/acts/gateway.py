"""A gateway cannot be reached any more: from one node, and then from all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab import topology
from nlbfarm.lab.acts.stage import MOST_OUTAGE_MS, Measurement, Stage, finite
from nlbfarm.lab.acts.timeline import Timeline, timeline

__all__ = ["GATEWAY_TOML", "GatewayLoss", "gateway_loss"]

GATEWAY_TOML = f"""\
[[checkers]]
name = "gateway"
type = "ping"
address = "{topology.GATEWAY_ADDRESS}"
interval = "500ms"
timeout = "400ms"
fall = 2
on_failure = "wait"
"""
"""The checker of this story; its ``confirm`` is what suits a ping, 0.9 s."""

_WATCH = 0.8  # seconds; every bucket is asked several times


@dataclass(frozen=True, slots=True)
class GatewayLoss(Measurement):
    """What the loss of the gateway cost; times in milliseconds.

    Args:
        one: What became of the node that alone did not reach it; ``back_ms`` is from the repair on.
        states: The state of every node while nobody reached it.
        reasons: Their reasons.
        degraded_ms: From the moment that nobody reached it until all of them said so.
        buckets_moved: How many buckets were answered by another node than their owner meanwhile.
        outage_ms: The longest time that a bucket was unserved while nobody reached it.
        well_ms: From the repair until all nodes were well again.
    """

    one: Timeline
    states: dict[str, str]
    reasons: dict[str, str]
    degraded_ms: float
    buckets_moved: int
    outage_ms: float
    well_ms: float

    def as_json(self) -> dict[str, Any]:
        return {
            "gateway_loss": {
                "one": self.one.as_json(),
                "all": {
                    "states": self.states,
                    "reasons": self.reasons,
                    "degraded_ms": finite(self.degraded_ms),
                    "buckets_moved": self.buckets_moved,
                    "outage_ms": finite(self.outage_ms),
                    "well_ms": finite(self.well_ms),
                },
            }
        }

    def failures(self) -> list[str]:
        missed = self.one.failures("gateway_loss")
        if not self.one.buckets_moved:
            missed.append(f"gateway_loss: {self.one.node} alone lost it, and kept its buckets")
        for node, state in self.states.items():
            if state != "UP" or "degraded" not in self.reasons[node]:
                missed.append(f"gateway_loss: all lost it, and {node} is {state}: {self.reasons[node]!r}")
        if self.buckets_moved:
            missed.append(f"gateway_loss: all lost it, and {self.buckets_moved} buckets moved")
        if not self.outage_ms < MOST_OUTAGE_MS:
            missed.append(f"gateway_loss: all lost it, and a bucket was unserved for {self.outage_ms:.0f} ms")
        return missed

    def rows(self) -> list[tuple[str, str]]:
        states = ", ".join(f"{node} {state}" for node, state in self.states.items())
        return [
            *self.one.rows(),
            ("nobody reached the gateway", f"{states} (degraded), {self.buckets_moved} buckets moved"),
            ("reached again", f"all well after {self.well_ms:.0f} ms"),
        ]


def gateway_loss(stage: Stage) -> GatewayLoss:
    """Cut the victim off the gateway, and later everybody; the prober runs, and the farm has settled."""
    one = _one(stage)
    lab = stage.lab
    owners = lab.settle()
    stage.tell("now no node reaches the gateway")
    at = lab.faults.cut_off(lab.names, topology.GATEWAY)
    states, reasons = lab.wait_for(
        lambda: _all_degraded(stage), 20, "all nodes to say that they are degraded"
    )
    degraded = time.monotonic()
    said = ", ".join(f"{node} {state}" for node, state in states.items())
    stage.tell(f"all of them are degraded after {degraded - at:.1f} s, and nobody leaves: {said}")
    stage.probing.wait_until(degraded + _WATCH)
    healed = lab.faults.heal()
    lab.wait_for(lambda: _all_well(stage), 20, "all nodes to be well again")
    well = time.monotonic()
    stage.tell(f"repaired; all are well after {well - healed:.1f} s")
    stage.probing.wait_until(well + _WATCH)
    lab.settle()
    return GatewayLoss(
        one=one,
        states=states,
        reasons=reasons,
        degraded_ms=(degraded - at) * 1000,
        buckets_moved=_elsewhere(stage, owners, at, healed),
        outage_ms=max(stage.probing.gaps(range(BUCKETS), at, well)) * 1000,
        well_ms=(well - healed) * 1000,
    )


def _one(stage: Stage) -> Timeline:
    lab, victim = stage.lab, stage.victim
    mine = stage.owned(victim, lab.settle())
    stage.tell(f"{victim} does not reach the gateway any more; the others do")
    at = lab.faults.cut_off([victim], topology.GATEWAY)
    placement = lab.settle(*stage.rest)
    reason = lab.status(victim)["reason"]
    stage.tell(f"now serving: {stage.shares(placement)}; {victim} waits: {reason}")
    stage.probing.wait_until(time.monotonic() + _WATCH)
    healed = lab.faults.heal()
    placement = lab.settle()
    stage.tell(f"repaired; {stage.shares(placement)}")
    stage.probing.wait_until(time.monotonic() + _WATCH)
    return timeline(stage, victim, mine, at, back=healed)


def _elsewhere(stage: Stage, owners: Sequence[int], since: float, until: float) -> int:
    served = stage.probing.served(since, until)
    names = [stage.lab.names[owner - 1] for owner in owners]
    return sum(bool(counter.keys() - {name}) for counter, name in zip(served, names, strict=True))


def _all_degraded(stage: Stage) -> tuple[dict[str, str], dict[str, str]] | None:
    found = {node: stage.lab.status(node) for node in stage.lab.names}
    if any("degraded" not in one["fitness"] for one in found.values()):
        return None
    return (
        {node: one["state"] for node, one in found.items()},
        {node: one["reason"] for node, one in found.items()},
    )


def _all_well(stage: Stage) -> bool:
    return all(stage.lab.status(node)["fitness"] == "sound" for node in stage.lab.names)
