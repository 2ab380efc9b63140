"""Planned changes: a node comes, drains, stops, changes its power, and nobody's connection breaks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab.acts.stage import Measurement, Stage
from nlbfarm.lab.talking import Tally
from nlbfarm.lab.world import LabError

__all__ = [
    "Account",
    "Planned",
    "drain",
    "join",
    "power",
    "rejoin",
    "reload",
    "restart",
    "stop",
]

_WATCH = 2.5  # seconds; every held connection talks twice or more

Placement = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Planned(Measurement):
    """What a planned change cost those who were connected.

    Args:
        name: Which change; the key of the results.
        node: To which node it happened.
        moved_buckets: Buckets that changed their owner, on the way out and on the way back.
        seconds: From the order until the new owners served.
        tally: What the connections went through, from the order until everything had been watched.
        trouble: A sentence for each connection that broke or failed.
    """

    name: str
    node: str
    moved_buckets: int
    seconds: float
    tally: Tally
    trouble: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        tally = self.tally
        return {
            self.name: {
                "node": self.node,
                "seconds": round(self.seconds, 3),
                "moved_buckets": self.moved_buckets,
                "requests_failed": tally.broken_connections + tally.failed_connections,
                **tally.as_json(),
            }
        }

    def failures(self) -> list[str]:
        missed = []
        if broken := self.tally.broken_connections:
            missed.append(f"{self.name}: {broken} of {self.tally.established} held connections broke")
        if failed := self.tally.failed_connections:
            missed.append(f"{self.name}: {failed} of {self.tally.new_connections} new connections failed")
        if not self.moved_buckets and self.name != "restart":
            missed.append(f"{self.name}: no bucket moved")
        if missed:
            missed += [f"{self.name}: {line}" for line in self.trouble[:5]]
        return missed

    def rows(self) -> list[tuple[str, str]]:
        tally = self.tally
        stall = f"longest stall {tally.longest_stall_ms:.0f} ms"
        repeated = f"{tally.syn_retransmits} SYNs repeated"
        return [
            (f"{self.name} of {self.node}", f"{self.seconds:.1f} s, {self.moved_buckets} buckets moved"),
            ("held connections that broke", f"{tally.broken_connections} of {tally.established} ({stall})"),
            (
                "new connections that failed",
                f"{tally.failed_connections} of {tally.new_connections} ({repeated})",
            ),
        ]


class Account:
    """Notes what moves, and what it costs, from now on.

    Args:
        stage: Where; the talker runs, and the farm has settled.
        name: Of the change, in the results.
    """

    def __init__(self, stage: Stage, name: str) -> None:
        self._stage = stage
        self._name = name
        self._placement = stage.lab.settle()
        self._moved = 0
        self._since = time.monotonic()
        self._seconds = 0.0

    def step(self, order: Callable[[], object], served: Callable[[], Placement]) -> Placement:
        """Give an order, wait until the new owners serve, and let the connections talk on."""
        began = time.monotonic()
        order()
        placement = served()
        self._seconds = self._seconds or time.monotonic() - began
        self._moved += moved_between(self._placement, placement)
        self._placement = placement
        self._stage.talking.watch(_WATCH)
        return placement

    def close(self, node: str) -> Planned:
        """Return what it cost; ``node`` is to whom it happened."""
        until = time.monotonic()
        tally = self._stage.talking.tally(self._since, until)
        planned = Planned(
            name=self._name,
            node=node,
            moved_buckets=self._moved,
            seconds=self._seconds,
            tally=tally,
            trouble=self._stage.talking.trouble(self._since, until),
        )
        self._stage.tell(
            f"broken: {tally.broken_connections} of {tally.established} held connections; failed: "
            f"{tally.failed_connections} of {tally.new_connections} new ones"
        )
        return planned


def moved_between(before: Placement, after: Placement) -> int:
    """Return how many buckets have another owner."""
    return sum(old != new for old, new in zip(before, after, strict=True))


def rejoin(stage: Stage) -> Planned:
    """Boot the victim, which is away, and let it take its share; the talker runs."""
    stage.tell(f"{stage.victim} boots again; its nlbfarm-node starts, as its service manager would do")
    stage.lab.boot(stage.victim)
    return join(stage, "rejoin")


def join(stage: Stage, name: str = "join") -> Planned:
    """Start the victim's process, which does not run, and let it take its share; the talker runs."""
    lab, victim = stage.lab, stage.victim
    account = Account(stage, name)
    placement = account.step(lambda: lab.start(victim), lambda: lab.settle(timeout=30))
    stage.tell(f"{victim} has its share again; now serving: {stage.shares(placement)}")
    return account.close(victim)


def drain(stage: Stage) -> Planned:
    """Drain the victim and let it serve again; the talker runs, and the farm has settled."""
    return _leave(stage, "drain", stage.operator.drain, stage.operator.wait_drained)


def stop(stage: Stage) -> Planned:
    """Stop the victim and start it again; the talker runs, and the farm has settled."""
    return _leave(stage, "stop", stage.operator.stop, stage.operator.wait_stopped)


def _leave(stage: Stage, name: str, order: Callable[[str], None], wait: Callable[[str], None]) -> Planned:
    lab, talking, victim = stage.lab, stage.talking, stage.victim
    lab.settle()
    if not talking.holders()[victim]:
        talking.turn_over()  # it has just come: its buckets' connections were held by others
    account = Account(stage, name)
    stage.tell(f"nlbfarm-node {name} {victim}: it gives its buckets away and keeps its connections")
    placement = account.step(lambda: order(victim), lambda: stage.operator.wait_handed_over(victim))
    kept = talking.holders()[victim]
    stage.tell(
        f"new connections go to {stage.shares(placement)}; {kept} connections still talk to {victim}, "
        "until their clients end them"
    )
    talking.turn_over()
    wait(victim)
    stage.tell(f"{victim} has no connection left; nlbfarm-node start {victim}")
    account.step(lambda: stage.operator.start(victim), lambda: lab.settle(timeout=30))
    return account.close(victim)


def restart(stage: Stage) -> Planned:
    """Replace the victim's process while its server goes on, as an upgrade does; the talker runs.

    The peers hold its buckets meanwhile, and know that its connections are alive.
    """
    lab, victim = stage.lab, stage.victim
    lab.settle()
    if not stage.talking.holders()[victim]:
        stage.talking.turn_over()
    account = Account(stage, "restart")
    stage.tell(f"nlbfarm-node restart --process {victim}: its process is replaced, its server goes on")
    incarnation = stage.operator.row(victim)["incarnation"]

    def back() -> Placement:
        lab.wait_for(lambda: _incarnation(stage, victim) > incarnation, 30, f"the new process of {victim}")
        return lab.settle(timeout=30)

    account.step(lambda: stage.operator.restart(victim, process=True), back)
    return account.close(victim)


def power(stage: Stage) -> Planned:
    """Triple the victim's power and put it back; the talker runs, and the farm has settled."""
    lab, operator, victim = stage.lab, stage.operator, stage.victim
    account = Account(stage, "power")
    configured = next(iter(operator.row(victim)["configured_power"].values()))
    parts = {node: 3 if node == victim else 1 for node in lab.running}
    shares = {node: round(BUCKETS * part / sum(parts.values())) for node, part in parts.items()}
    stage.tell(f"nlbfarm-node power {victim} {3 * configured}: three times its power")
    placement = account.step(
        lambda: operator.power(victim, 3 * configured), lambda: operator.wait_for_shares(shares)
    )
    stage.tell(f"now serving: {stage.shares(placement)}; and back to its configured power")
    account.step(lambda: operator.power(victim, None), lambda: _equal(stage))
    return account.close(victim)


def reload(stage: Stage) -> Planned:
    """Add a node to the configuration of every node, one after the other, and take it out again.

    The talker runs, and the farm has settled.
    """
    lab, operator, talking = stage.lab, stage.operator, stage.talking
    account = Account(stage, "reload")
    before = lab.names
    node = lab.add_node()
    stage.tell(f"{node} is added to the configuration: nlbfarm-node reload on {', '.join(before)}")
    lab.start(node)

    def reload_all() -> None:
        for name in before:
            operator.reload(name, lab.configuration())

    placement = account.step(reload_all, lambda: lab.settle(timeout=30))
    stage.tell(f"now serving: {stage.shares(placement)}; {node} is stopped and taken out again")
    account.step(lambda: operator.stop(node), lambda: operator.wait_handed_over(node))
    talking.turn_over()
    operator.wait_stopped(node)
    lab.stop(node)
    for name in before:
        operator.reload(name, lab.configuration(before))
    account.step(lambda: None, lab.settle)
    lab.remove_node(node)
    return account.close(node)


def _incarnation(stage: Stage, node: str) -> int:
    try:
        return int(stage.operator.row(node)["incarnation"])
    except LabError:
        return 0  # between two processes nobody answers


def _equal(stage: Stage) -> Placement:
    nodes = stage.lab.running
    return stage.operator.wait_for_shares({node: BUCKETS // len(nodes) for node in nodes})
