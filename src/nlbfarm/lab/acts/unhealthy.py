"""The application of one node after the other answers errors: the last ones serve on, and say so."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab.acts.stage import MOST_OUTAGE_MS, Measurement, Stage, finite

__all__ = ["UNHEALTHY_TOML", "AllUnhealthy", "Fall", "all_unhealthy"]

UNHEALTHY_TOML = """\
[[checkers]]
name = "page"
type = "http"
url = "http://127.0.0.1/health"
interval = "300ms"
timeout = "1s"
fall = 2
on_failure = "wait"
"""
"""The checker of this story."""

_WATCH = 0.8  # seconds; every bucket is asked several times


@dataclass(frozen=True, slots=True)
class Fall:
    """One more node whose application answers errors; times in milliseconds.

    Args:
        node: Which.
        detected_ms: Until its checker was down.
        settled_ms: Until every node was where it belongs.
        states: The state of every node then.
        reasons: Their reasons, where they have one.
        served_by: Buckets by who answered them from then on.
        unserved: Buckets that nobody answered from then on.
    """

    node: str
    detected_ms: float
    settled_ms: float
    states: dict[str, str]
    reasons: dict[str, str]
    served_by: dict[str, int]
    unserved: int

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under the keys of the results."""
        return {
            "node": self.node,
            "detected_ms": finite(self.detected_ms),
            "settled_ms": finite(self.settled_ms),
            "states": self.states,
            "reasons": self.reasons,
            "served_by": self.served_by,
            "unserved": self.unserved,
        }


@dataclass(frozen=True, slots=True)
class AllUnhealthy(Measurement):
    """What it cost that all applications failed, one after the other.

    Args:
        falls: Each of them.
        requests_failed: Requests, new and held, that were not answered, not even by an error page.
        outage_ms: The longest time that a bucket was unserved.
        well_ms: From the repair of all of them until all nodes were well and shared all buckets.
        states: The state of every node then.
    """

    falls: list[Fall] = field(default_factory=list)
    requests_failed: int = 0
    outage_ms: float = 0.0
    well_ms: float = 0.0
    states: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "all_unhealthy": {
                "falls": [fall.as_json() for fall in self.falls],
                "requests_failed": self.requests_failed,
                "outage_ms": finite(self.outage_ms),
                "well_ms": finite(self.well_ms),
                "states": self.states,
            }
        }

    def failures(self) -> list[str]:
        missed = []
        ill = set()
        for fall in self.falls:
            ill.add(fall.node)
            if fall.unserved:
                missed.append(f"all_unhealthy: {fall.unserved} buckets unserved after {len(ill)} fell ill")
            well = fall.states.keys() - ill
            serving = {node for node, count in fall.served_by.items() if count}
            if well and serving != well:
                missed.append(f"all_unhealthy: {sorted(serving)} served while {sorted(well)} were well")
        for node in self._last_serving():
            state, reason = self.falls[-1].states[node], self.falls[-1].reasons.get(node, "")
            if state != "UP" or "degraded" not in reason:
                missed.append(f"all_unhealthy: {node} serves and is {state}, not degraded: {reason!r}")
        if not self.outage_ms < MOST_OUTAGE_MS:
            missed.append(f"all_unhealthy: a bucket was unserved for {self.outage_ms:.0f} ms")
        if set(self.states.values()) != {"UP"}:
            missed.append(f"all_unhealthy: healed, and the nodes are {self.states}")
        return missed

    def _last_serving(self) -> list[str]:
        return [node for node, count in self.falls[-1].served_by.items() if count] if self.falls else []

    def rows(self) -> list[tuple[str, str]]:
        rows = []
        for fall in self.falls:
            served = ", ".join(f"{node} {count}" for node, count in fall.served_by.items() if count)
            noticed = f"noticed after {fall.detected_ms:.0f} ms"
            rows.append((f"{fall.node} answers 503", f"{noticed}; buckets served by {served}"))
        last = ", ".join(self._last_serving())
        return [
            *rows,
            ("serve on, degraded", last or "nobody"),
            (
                "requests without any answer",
                f"{self.requests_failed} (longest outage {self.outage_ms:.0f} ms)",
            ),
            ("repaired: all well", f"after {self.well_ms:.0f} ms"),
        ]


def all_unhealthy(stage: Stage) -> AllUnhealthy:
    """Let the application of one node after the other answer 503, then heal all; the prober runs."""
    lab, probing = stage.lab, stage.probing
    lab.settle()
    begun = time.monotonic()
    falls: list[Fall] = []
    for node in lab.names:
        falls.append(_fall(stage, node, [fall.node for fall in falls]))
    stage.tell("all of them are repaired")
    healed = min([stage.application.heal(node) for node in lab.names])
    lab.wait_for(lambda: _are(stage, {}), 20, "all nodes to be well again")
    placement = lab.settle()
    well = time.monotonic()
    stage.tell(f"after {well - healed:.1f} s all are well: {stage.shares(placement)}")
    probing.wait_until(well + _WATCH)
    return AllUnhealthy(
        falls=falls,
        requests_failed=probing.failed(begun, probing.seen - 0.1),
        outage_ms=max(probing.gaps(range(BUCKETS), begun, well)) * 1000,
        well_ms=(well - healed) * 1000,
        states={node: lab.status(node)["state"] for node in lab.names},
    )


def _fall(stage: Stage, node: str, before: list[str]) -> Fall:
    lab, probing = stage.lab, stage.probing
    at = stage.application.sicken(node)
    stage.tell(f"{node} answers 503 to everything")
    seen = stage.wait_event(node, "checker.changed", at, ok=False)
    ill = [*before, node]
    well = [name for name in lab.names if name not in ill]
    lab.wait_for(lambda: _are(stage, dict.fromkeys(ill, "degraded")), 20, f"{node} to be degraded")
    placement = lab.settle(*(well or lab.names))
    settled = time.monotonic()
    found = {name: lab.status(name) for name in lab.names}
    states = {name: one["state"] for name, one in found.items()}
    stage.tell(
        f"its checker says so after {(seen.at - at) * 1000:.0f} ms; now serving: {stage.shares(placement)} "
        f"({', '.join(f'{name} {state}' for name, state in states.items())})"
    )
    probing.wait_until(settled + _WATCH)
    served = probing.served(settled, settled + _WATCH)
    return Fall(
        node=node,
        detected_ms=(seen.at - at) * 1000,
        settled_ms=(settled - at) * 1000,
        states=states,
        reasons={name: one["reason"] for name, one in found.items() if one["reason"]},
        served_by={name: sum(name in counter for counter in served) for name in lab.names},
        unserved=sum(not counter for counter in served),
    )


def _are(stage: Stage, fitness: dict[str, str]) -> bool:
    """Whether every node is as fit as this says; one that is not named is sound."""
    return all(stage.lab.status(node)["fitness"] == fitness.get(node, "sound") for node in stage.lab.names)
