"""The web server of a node crashes, hangs, or cannot be started any more; its node helps it up, or leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nlbfarm.lab.acts.stage import Measurement, Stage
from nlbfarm.lab.acts.timeline import Timeline, timeline
from nlbfarm.lab.configuration import SERVICE

__all__ = ["Broken", "Recovery", "app_broken", "app_crash", "app_hang"]

_WATCH = 0.8  # seconds; every bucket is asked several times


@dataclass(frozen=True, slots=True)
class Recovery(Measurement):
    """What it cost that an application failed and its node restarted it.

    Args:
        name: ``app_crash`` or ``app_hang``; the key of the results.
        timeline: What became of the node.
        moves: Whether its buckets have to move: it takes longer than the service may keep them.
        port_open: Whether its port still accepted; ``None``: nobody looked.
    """

    name: str
    timeline: Timeline
    moves: bool
    port_open: bool | None = None

    def as_json(self) -> dict[str, Any]:
        looked = {} if self.port_open is None else {"port_open": self.port_open}
        return {self.name: {**self.timeline.as_json(), **looked}}

    def failures(self) -> list[str]:
        line = self.timeline
        missed = line.failures(self.name)
        if line.restarts != 1:
            missed.append(f"{self.name}: {line.node} restarted its server {line.restarts} times, not once")
        if self.port_open is False:
            missed.append(f"{self.name}: the port of {line.node} was closed: its server did not hang")
        if self.moves and not line.buckets_moved:
            missed.append(f"{self.name}: no bucket of {line.node} was served elsewhere while its server hung")
        if not self.moves and line.buckets_moved:
            missed.append(
                f"{self.name}: {line.buckets_moved} buckets moved, though the server was back in time"
            )
        return missed

    def rows(self) -> list[tuple[str, str]]:
        return self.timeline.rows()


@dataclass(frozen=True, slots=True)
class Broken(Measurement):
    """What it cost that an application could not be started any more.

    Args:
        timeline: What became of the node; ``back_ms`` is from the administrator's ``start`` on.
        gave_up_ms: Until the budget of restarts was used up.
        left_ms: Until the node took itself out.
        max_restarts: The budget.
        state: The node's state then.
        left_reason: Its reason.
    """

    timeline: Timeline
    gave_up_ms: float
    left_ms: float
    max_restarts: int
    state: str
    left_reason: str

    def as_json(self) -> dict[str, Any]:
        return {
            "app_broken": {
                **self.timeline.as_json(),
                "gave_up_ms": round(self.gave_up_ms, 1),
                "left_ms": round(self.left_ms, 1),
                "max_restarts": self.max_restarts,
                "state": self.state,
                "left_reason": self.left_reason,
            }
        }

    def failures(self) -> list[str]:
        line = self.timeline
        missed = line.failures("app_broken")
        if line.restarts != self.max_restarts:
            missed.append(f"app_broken: {line.restarts} restarts, not {self.max_restarts}")
        if self.state != "STOP" or not self.left_reason:
            missed.append(f"app_broken: {line.node} is {self.state}, reason {self.left_reason!r}, not out")
        if not line.buckets_moved:
            missed.append(f"app_broken: no bucket of {line.node} was served elsewhere")
        return missed

    def rows(self) -> list[tuple[str, str]]:
        rows = self.timeline.rows()
        given_up = f"after {self.gave_up_ms:.0f} ms and {self.timeline.restarts} restarts"
        return [
            rows[0],
            ("gave its server up", given_up),
            ("left the farm", f"after {self.left_ms:.0f} ms: {self.left_reason}"),
            rows[1],
            ("repaired and started; serves again", rows[2][1]),
            *rows[3:],
        ]


def app_crash(stage: Stage) -> Recovery:
    """Kill the victim's web server, which its node runs; the prober runs."""
    mine = stage.owned(stage.victim, stage.lab.settle())
    stage.tell(f"kill -9 of all processes of the web server of {stage.victim}, which has {len(mine)} buckets")
    at = stage.application.crash(stage.victim)
    return _recovered(stage, "app_crash", mine, at, moves=False)


def app_hang(stage: Stage) -> Recovery:
    """Stop the workers of the victim's web server, which its node runs; the prober runs."""
    mine = stage.owned(stage.victim, stage.lab.settle())
    stage.tell(f"the workers of {stage.victim}'s web server hang (SIGSTOP); its port still accepts")
    at = stage.application.hang(stage.victim)
    accepts = stage.application.accepts(stage.victim)
    return replace(_recovered(stage, "app_hang", mine, at, moves=True), port_open=accepts)


def _recovered(stage: Stage, name: str, mine: Sequence[int], at: float, *, moves: bool) -> Recovery:
    lab, victim = stage.lab, stage.victim
    acted = stage.wait_event(victim, "service.restarting", at)
    stage.tell(f"{victim} restarts it after {(acted.at - at) * 1000:.0f} ms: {acted.fields['reason']}")
    stage.wait_event(victim, "service.started", acted.at)
    lab.settle()
    _watch(stage)
    measured = Recovery(name, timeline(stage, victim, mine, at), moves)
    line = measured.timeline
    stage.tell(
        f"all of its buckets are answered again after {line.back_ms:.0f} ms; {line.buckets_moved} had moved"
    )
    return measured


def app_broken(stage: Stage) -> Broken:
    """Break the configuration of the victim's web server, kill it, and repair it later; the prober runs."""
    lab, application, victim = stage.lab, stage.application, stage.victim
    mine = stage.owned(victim, lab.settle())
    stage.tell(f"a mistake in the configuration of {victim}'s web server; kill -9 of it")
    application.spoil(victim)
    at = application.crash(victim)
    given_up = stage.wait_event(victim, "service.given_up", at, timeout=30)
    stage.tell(f"given up after {(given_up.at - at) * 1000:.0f} ms: {given_up.fields['reason']}")
    left = stage.wait_event(victim, "node.taken_out", at)
    stage.operator.wait_stopped(victim)
    placement = lab.settle(*stage.rest)
    status = lab.status(victim)
    stage.tell(f"{victim} is {status['state']}; now serving: {stage.shares(placement)}")
    _watch(stage)
    application.repair(victim)
    stage.tell(f"the mistake is repaired; nlbfarm-node start {victim}")
    started = time.monotonic()
    stage.operator.start(victim)
    placement = lab.settle(timeout=30)
    stage.tell(f"now serving: {stage.shares(placement)}")
    _watch(stage)
    service = next(one for one in status["services"] if one["name"] == SERVICE)
    return Broken(
        timeline=timeline(stage, victim, mine, at, back=started, restarts=service["restarts"]),
        gave_up_ms=(given_up.at - at) * 1000,
        left_ms=(left.at - at) * 1000,
        max_restarts=service["max_restarts"],
        state=status["state"],
        left_reason=status["reason"],
    )


def _watch(stage: Stage) -> None:
    stage.probing.wait_until(time.monotonic() + _WATCH)
