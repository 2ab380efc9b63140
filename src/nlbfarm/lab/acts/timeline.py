"""What became of a node whose application failed: when it noticed, acted, and served again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab.acts.stage import MOST_OUTAGE_MS, Stage, finite, spread
from nlbfarm.lab.nodelog import LogEvent
from nlbfarm.lab.probing import Probing, Request

__all__ = ["Timeline", "timeline"]

INF = float("inf")

_ACTS = ("service.restarting", "service.given_up", "node.taken_out")


@dataclass(frozen=True, slots=True)
class Timeline:
    """What became of a node and its clients; times in milliseconds from the failure on, inf: never.

    When the node noticed and acted is what its own journal of events says; the rest is what clients saw.

    Args:
        node: Which.
        detected_ms: Until a checker of it was down, or its service had ended.
        acted_ms: Until it restarted the service, or told the others that it is not fit.
        moved_ms: Until the last of its buckets that moved was answered by another node; inf if none moved.
        back_ms: Until it answered all buckets again that it had before and has now.
        outage_ms: Over its buckets, the longest time that each was unserved: ``p50``, ``p99``, ``max``.
        requests_failed: Requests on its buckets, new and held, that were not answered.
        errors: The same by what the client saw.
        buckets_moved: How many of its buckets were answered by other nodes meanwhile.
        others_failed: New requests on all other buckets that were not answered.
        others_outage_ms: The longest time that one of those was unserved.
        restarts: How often its services were restarted, as it counts.
        reason: Why it acted, in its own words.
    """

    node: str
    detected_ms: float
    acted_ms: float
    moved_ms: float
    back_ms: float
    outage_ms: dict[str, float]
    requests_failed: int
    errors: dict[str, int]
    buckets_moved: int
    others_failed: int
    others_outage_ms: float
    restarts: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under the keys of the results."""
        return {
            "node": self.node,
            "detected_ms": finite(self.detected_ms),
            "acted_ms": finite(self.acted_ms),
            "moved_ms": finite(self.moved_ms),
            "back_ms": finite(self.back_ms),
            "outage_ms": {name: finite(value) for name, value in self.outage_ms.items()},
            "requests_failed": self.requests_failed,
            "errors": self.errors,
            "buckets_moved": self.buckets_moved,
            "others_failed": self.others_failed,
            "others_outage_ms": finite(self.others_outage_ms),
            "restarts": self.restarts,
            "reason": self.reason,
        }

    def failures(self, name: str) -> list[str]:
        """Return a sentence for each goal that every timeline has and this one missed."""
        missed = []
        if self.detected_ms == INF or self.acted_ms == INF:
            missed.append(f"{name}: {self.node} did not notice, or did nothing")
        if self.back_ms == INF:
            missed.append(f"{name}: {self.node} did not answer all of its buckets again")
        if not self.others_outage_ms < MOST_OUTAGE_MS:
            missed.append(
                f"{name}: a bucket of another node was unserved for {self.others_outage_ms:.0f} ms, too"
            )
        return missed

    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of a table for a person."""
        errors = ", ".join(f"{count} {error}" for error, count in self.errors.items())
        acted = f"acted after {_shown(self.acted_ms)}"
        moved = f"{self.buckets_moved}, all after {_shown(self.moved_ms)}" if self.buckets_moved else "none"
        return [
            (f"{self.node} noticed", f"after {_shown(self.detected_ms)}, {acted}: {self.reason}"),
            ("buckets moved to other nodes", moved),
            ("served all of its buckets again", f"after {_shown(self.back_ms)}"),
            ("requests failed meanwhile", f"{self.requests_failed}" + (f" ({errors})" if errors else "")),
            (
                "requests failed on other nodes",
                f"{self.others_failed} (longest outage {self.others_outage_ms:.0f} ms)",
            ),
        ]


def _first(events: Iterable[LogEvent], wanted: Callable[[LogEvent], bool]) -> LogEvent | None:
    return next((event for event in events if wanted(event)), None)


def _notices(event: LogEvent) -> bool:
    down = event.name == "checker.changed" and not event.fields["ok"]
    return down or event.name in ("service.ended", "service.failed")


def _acts(event: LogEvent) -> bool:
    unfit = event.name == "node.fitness" and event.fields["fitness"] != "sound"
    return unfit or event.name in _ACTS


def timeline(
    stage: Stage,
    node: str,
    mine: Collection[int],
    at: float,
    *,
    back: float | None = None,
    restarts: int | None = None,
) -> Timeline:
    """Put together what happened to a node; everything that matters has ended, and the prober has seen it.

    Args:
        stage: Where.
        node: Which.
        mine: The buckets that it had.
        at: When its application failed, seconds on the monotonic clock.
        back: When somebody helped it up; ``back_ms`` counts from there. By default it helps itself.
        restarts: How often it restarted its services; by default what it says now.
    """
    events = stage.lab.journal(node, at)
    noticed, acted = _first(events, _notices), _first(events, _acts)
    if restarts is None:
        restarts = sum(service["restarts"] for service in stage.lab.status(node)["services"])
    probing = stage.probing
    since, until = (at if back is None else back), probing.seen - 0.1
    failed = [r for r in probing.requests(at, until) if r.answered is None and r.bucket in mine]
    others = sorted(set(range(BUCKETS)) - set(mine))
    strangers = [
        r for r in probing.requests(at, until, held=False) if r.answered is None and r.bucket not in mine
    ]
    fresh = _by_bucket(probing, mine, at, until)
    again = set(stage.owned(node, stage.lab.settle())).intersection(mine)
    taken = {bucket: found for bucket, its in fresh.items() if (found := _answered_by_others(its, node))}
    return Timeline(
        node=node,
        detected_ms=_ms(noticed.at if noticed else INF, at),
        acted_ms=_ms(acted.at if acted else INF, at),
        moved_ms=_ms(max((answers[0] for answers in taken.values()), default=INF), at),
        back_ms=_ms(max((_back(fresh[bucket], node) for bucket in again), default=INF), since),
        outage_ms=spread(probing.gaps(mine, at, until)),
        requests_failed=len(failed),
        errors=dict(Counter(request.error for request in failed).most_common()),
        buckets_moved=len(taken),
        others_failed=len(strangers),
        others_outage_ms=max(probing.gaps(others, at, until), default=0.0) * 1000,
        restarts=restarts,
        reason=str(acted.fields.get("reason", "")) if acted else "",
    )


def _by_bucket(
    probing: Probing, mine: Collection[int], at: float, until: float
) -> Mapping[int, list[Request]]:
    found: dict[int, list[Request]] = {bucket: [] for bucket in mine}
    for request in sorted(probing.requests(at, until, held=False), key=lambda request: request.start):
        if request.bucket in found:
            found[request.bucket].append(request)
    return found


def _answered_by_others(requests: Iterable[Request], node: str) -> list[float]:
    return [r.answered for r in requests if r.answered is not None and r.node != node]


def _back(requests: Iterable[Request], node: str) -> float:
    """Return when ``node`` answered a bucket again after the trouble with it; 0: there was none.

    Trouble is that others answered it, or at first that nobody did: a request that was not answered later on
    is the business of a busy machine.
    """
    back = 0.0
    for request in requests:
        if request.answered is None:
            back = back or INF
        elif request.node != node:
            back = INF
        elif back == INF:
            back = request.answered
    return back


def _ms(moment: float, at: float) -> float:
    return max(0.0, moment - at) * 1000


def _shown(milliseconds: float) -> str:
    return "?" if milliseconds == INF else f"{milliseconds:.0f} ms"
