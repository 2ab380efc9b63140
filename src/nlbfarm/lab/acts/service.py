"""The farm serves: every bucket is answered by the node that owns it, and the shares are equal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab.acts.stage import Measurement, Stage

__all__ = ["Service", "Share", "serve"]

_SHARE_TOLERANCE = 0.10


@dataclass(frozen=True, slots=True)
class Share:
    """What one node had to do: buckets it owned, new connections it answered."""

    buckets: int
    requests: int


@dataclass(frozen=True, slots=True)
class Service(Measurement):
    """The farm while nothing happens.

    Args:
        probes_per_second: New connections.
        share: Of each node.
        misplaced: A sentence for what was answered by another node than its owner.
    """

    probes_per_second: float
    share: dict[str, Share]
    misplaced: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "probes_per_second": round(self.probes_per_second, 1),
            "share": {name: {"buckets": s.buckets, "requests": s.requests} for name, s in self.share.items()},
        }

    def failures(self) -> list[str]:
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
        return missed

    def rows(self) -> list[tuple[str, str]]:
        rows = [("new connections", f"{self.probes_per_second:.0f} a second")]
        for name, share in self.share.items():
            rows.append((f"share of {name}", f"{share.buckets} buckets, {share.requests} requests"))
        return rows


def serve(stage: Stage, seconds: float = 4.0) -> Service:
    """Watch the settled farm serve for so long; the prober runs."""
    lab, probing = stage.lab, stage.probing
    stage.tell("a client loads the VIP: every bucket, on new and on held connections")
    placement = lab.settle()
    since = probing.seen
    until = since + seconds
    probing.wait_until(until)
    served = probing.served(since, until)
    totals = sum(served, Counter())
    share = {node: Share(placement.count(lab.id_of(node)), totals[node]) for node in lab.names}
    wrong = [b for b, owner in enumerate(placement) if list(served[b]) != [lab.names[owner - 1]]]
    misplaced = []
    if wrong:
        misplaced.append(
            f"{len(wrong)} buckets were not answered by just the node that owns them, first {wrong[0]}: "
            f"{dict(served[wrong[0]])}"
        )
    rate = len(probing.requests(since, until, held=False)) / (until - since)
    answered = ", ".join(f"{name} {one.requests}" for name, one in share.items())
    stage.tell(f"{rate:.0f} new connections a second, answered by {answered}")
    return Service(rate, share, misplaced)
