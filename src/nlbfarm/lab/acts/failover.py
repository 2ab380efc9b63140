"""One node at a time has all buckets: who comes first, who comes next, and who comes back when asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab.acts.planned import Account, Planned
from nlbfarm.lab.acts.stage import MOST_OUTAGE_MS, Measurement, Stage, finite, spread

__all__ = ["FAILOVER", "Failback", "Takeover", "failback", "takeover"]

FAILOVER = {"rule": 'mode = "failover"\nfailback = "manual"', "powers": (2, 3)}
"""The lab of this story: the second node comes first, the first one next, then all others."""

_STAY = 2.0  # seconds for which a node that has come back has to leave the buckets where they are


@dataclass(frozen=True, slots=True)
class Takeover(Measurement):
    """The machine that had all buckets lost its power; times in milliseconds.

    Args:
        node: Which one had them: the one with the highest power.
        first: Who should have them.
        taken_by: Who had them afterwards, by the buckets that they answered.
        heir: Who should have them then: the highest power of those that are left.
        outage_ms: Over all buckets, until answered again: ``p50``, ``p99``, ``max``.
        requests_failed: Requests, new and held, that were not answered.
    """

    node: str
    first: str
    taken_by: dict[str, int]
    heir: str
    outage_ms: dict[str, float]
    requests_failed: int

    def as_json(self) -> dict[str, Any]:
        return {
            "takeover": {
                "node": self.node,
                "taken_by": self.taken_by,
                "outage_ms": {name: finite(value) for name, value in self.outage_ms.items()},
                "requests_failed": self.requests_failed,
            }
        }

    def failures(self) -> list[str]:
        missed = []
        if self.node != self.first:
            missed.append(f"takeover: {self.node} had the buckets, though {self.first} comes first")
        if self.taken_by != {self.heir: BUCKETS}:
            missed.append(f"takeover: {self.taken_by} took over, though {self.heir} comes next")
        if not self.outage_ms["max"] < MOST_OUTAGE_MS:
            missed.append(f"takeover: a bucket was unserved for {self.outage_ms['max']:.0f} ms")
        return missed

    def rows(self) -> list[tuple[str, str]]:
        outage = " ".join(f"{name} {value:.0f}" for name, value in self.outage_ms.items())
        taken = ", ".join(f"{node} {count}" for node, count in self.taken_by.items())
        return [
            (f"power of {self.node} cut, which had all buckets", f"taken over by {taken}"),
            ("its buckets answered again", f"{outage} ms (goal: max below {MOST_OUTAGE_MS:.0f})"),
        ]


@dataclass(frozen=True, slots=True)
class Failback(Measurement):
    """The node that comes first is back, and has the buckets when an administrator says so.

    Args:
        stayed_seconds: For how long it was ready and others kept the buckets.
        moved_before: Buckets that it answered meanwhile.
        planned: What the move cost that the administrator asked for.
    """

    stayed_seconds: float
    moved_before: int
    planned: Planned

    def as_json(self) -> dict[str, Any]:
        return {
            "failback": {
                "stayed_seconds": round(self.stayed_seconds, 3),
                "moved_before": self.moved_before,
                **self.planned.as_json()["failback"],
            }
        }

    def failures(self) -> list[str]:
        missed = self.planned.failures()
        if self.moved_before:
            missed.append(f"failback: {self.moved_before} buckets moved before anybody had asked for it")
        if self.planned.moved_buckets != BUCKETS:
            missed.append(f"failback: {self.planned.moved_buckets} buckets moved, not {BUCKETS}")
        return missed

    def rows(self) -> list[tuple[str, str]]:
        stayed = f"{self.moved_before} buckets moved in {self.stayed_seconds:.1f} s"
        return [(f"{self.planned.node} is back, nobody asked", stayed), *self.planned.rows()]


def takeover(stage: Stage) -> Takeover:
    """Cut the power of the node that has all buckets; the prober runs. It stays away."""
    lab, probing = stage.lab, stage.probing
    owner = lab.names[lab.settle()[0] - 1]
    left = [name for name in lab.names if name != owner]
    stage.tell(f"{owner} has all buckets; cutting its power")
    at = lab.crash(owner)
    placement = lab.settle(*left)
    settled = time.monotonic()
    stage.tell(f"now serving: {stage.shares(placement)}")
    probing.wait_until(settled + 1.1)
    served = probing.served(settled, settled + 1)
    counts = {name: sum(name in counter for counter in served) for name in lab.names}
    return Takeover(
        node=owner,
        first=_first(stage, lab.names),
        taken_by={name: count for name, count in counts.items() if count},
        heir=_first(stage, left),
        outage_ms=spread(probing.outages(range(BUCKETS), at).values()),
        requests_failed=probing.failed(at, settled),
    )


def failback(stage: Stage) -> Failback:
    """Boot the node that comes first, wait, and give the buckets back to it; the talker runs."""
    lab, node = stage.lab, _first(stage, stage.lab.names)
    stage.tell(f"{node} boots again; its nlbfarm-node starts")
    lab.boot(node)
    lab.start(node)
    lab.settle(timeout=30)
    ready = time.monotonic()
    asked = stage.talking.watch(_STAY)
    moved = {fresh.bucket for fresh in stage.talking.fresh(ready, asked) if fresh.node == node}
    kept = stage.shares(lab.settle())
    stage.tell(f"{node} is ready for {asked - ready:.1f} s; still serving: {kept}")
    stage.tell("nlbfarm-node failback")
    account = Account(stage, "failback")
    shares = {node: BUCKETS}
    placement = account.step(
        lambda: stage.operator.failback(node), lambda: stage.operator.wait_for_shares(shares)
    )
    stage.tell(f"now serving: {stage.shares(placement)}")
    return Failback(asked - ready, len(moved), account.close(node))


def _first(stage: Stage, nodes: Sequence[str]) -> str:
    """Return which of these nodes comes first: the one with the highest power, as all of them know."""
    rows = {row["name"]: row for row in stage.lab.status(stage.lab.running[0])["nodes"]}
    return max(nodes, key=lambda node: (max(rows[node]["configured_power"].values()), -rows[node]["id"]))
