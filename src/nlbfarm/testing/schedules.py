"""Schedules: what happens to a simulated farm, as data that is made at random, replayed and shrunk.

A run is a function of its schedule: ``play`` runs it. ``nlbfarm.testing.chance`` makes them from a seed.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from nlbfarm.core.settings import Admin, Partition
from nlbfarm.core.wire import Fitness, NodeState
from nlbfarm.testing.farm import SimulatedFarm
from nlbfarm.testing.invariants import ViolationError

__all__ = ["Action", "Outcome", "Schedule", "build", "play"]

QUIET_S = 6.0
"""I2's bound: so long after the last action, on a network that is whole, every bucket has its one server."""

LONGEST_DRAIN_S = 20.0
"""How long I2's bound waits, at most, for the connections of a node that leaves."""

STEADY_S = 0.7
"""A farm that has been whole for so long is taken for settled."""

LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that happens.

    Args:
        at: When, seconds.
        kind: What: a name in ``ACTIONS``.
        nodes: To which nodes.
        value: How long, how much, or a word; see ``ACTIONS``.
    """

    at: float
    kind: str
    nodes: tuple[int, ...] = ()
    value: float | str = 0.0

    def __str__(self) -> str:
        value = f" {self.value}" if self.value else ""
        return f"{self.at:8.4f}  {self.kind}{value} {' '.join(map(str, self.nodes))}".rstrip()


@dataclass(frozen=True, slots=True)
class Schedule:
    """A farm, the conditions that it lives under, and what happens to it.

    Args:
        seed: Of all chance in the run.
        nodes: How many nodes there are; each starts when an action says so.
        actions: By rising time.
        strict: No link is ever cut.
        planned: Only planned things happen: no connection may break.
        sides: When all is quiet, the sets of nodes that hear one another; empty: all do.
        rest: Those of them that are left as they are when all is quiet; the others are started and healed.
        majority: Only a majority of the configured nodes serves.
        groups, codec, ordered, networks, loss, duplicate, delay_s, clock_error, slow_turns, apply_s,
        connections_per_s, connection_life_s: As for ``SimulatedFarm``.
        takeover_grace, restart_grace, drain_timeout: As in ``Settings``, seconds.
        old: Nodes that speak wire version 1.
        unfit: Nodes stay as fit as they are when all is quiet.
    """

    seed: int
    nodes: int
    actions: tuple[Action, ...] = ()
    strict: bool = False
    planned: bool = False
    sides: tuple[tuple[int, ...], ...] = ()
    rest: tuple[int, ...] = ()
    majority: bool = False
    groups: int = 1
    codec: bool = False
    ordered: bool = True
    networks: int = 1
    loss: float = 0.0
    duplicate: float = 0.0
    delay_s: tuple[float, float] = (0.0001, 0.001)
    clock_error: float = 0.0
    slow_turns: tuple[float, float] = (0.0, 0.0)
    apply_s: tuple[float, float] = (0.0001, 0.003)
    connections_per_s: float = 0.0
    connection_life_s: float = 1.0
    takeover_grace: float = 2.0
    restart_grace: float = 15.0
    drain_timeout: float = 60.0
    old: tuple[int, ...] = ()
    unfit: bool = False

    @property
    def ends(self) -> float:
        """When the last action is done."""
        return max((action.at for action in self.actions), default=0.0)

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """Return the schedule in ``text``, as ``to_json`` made it."""
        fields: dict[str, Any] = json.loads(text)
        fields["actions"] = tuple(
            Action(**{**action, "nodes": tuple(action["nodes"])}) for action in fields["actions"]
        )
        for name in ("rest", "old", "delay_s", "slow_turns", "apply_s"):
            fields[name] = tuple(fields[name])
        fields["sides"] = tuple(map(tuple, fields["sides"]))
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went; ``violation`` is ``None`` if every invariant held."""

    violation: ViolationError | None
    simulated_s: float
    datagrams: int
    opened: int
    broken: int
    retransmits: int
    settled_s: float


def build(schedule: Schedule) -> SimulatedFarm:
    """Return the farm of ``schedule`` with every action in its agenda; nothing has happened yet."""
    farm = SimulatedFarm(
        schedule.nodes,
        schedule.seed,
        delay_s=schedule.delay_s,
        loss=schedule.loss,
        duplicate=schedule.duplicate,
        groups=schedule.groups,
        partition=Partition.MAJORITY if schedule.majority else Partition.SERVE,
        codec=schedule.codec,
        ordered=schedule.ordered,
        networks=schedule.networks,
        clock_error=schedule.clock_error,
        slow_turns=schedule.slow_turns,
        apply_s=schedule.apply_s,
        connections_per_s=schedule.connections_per_s,
        connection_life_s=schedule.connection_life_s,
        takeover_grace=schedule.takeover_grace,
        restart_grace=schedule.restart_grace,
        drain_timeout=schedule.drain_timeout,
    )
    farm.invariants.strict = schedule.strict
    farm.invariants.planned = schedule.planned
    for node in schedule.old:
        farm.hosts[node].version = 1
    for action in schedule.actions:
        farm.at(action.at, ACTIONS[action.kind], farm, action)
    return farm


def play(schedule: Schedule, farm: SimulatedFarm | None = None) -> Outcome:
    """Run a schedule, let the farm settle, and return how it went.

    Args:
        schedule: What to run.
        farm: Its farm, if ``build`` has made it already.
    """
    farm = farm or build(schedule)
    violation, quiet_at = None, schedule.ends
    try:
        farm.run(schedule.ends)
        _settle(farm, schedule)
        quiet_at = farm.now
        _until_whole(farm, schedule)
    except ViolationError as error:
        violation = error
    except Exception as error:  # noqa: BLE001 - whatever the core raises is a finding, with its seed
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__} in {where.name}, line {where.lineno}: {error}"
        violation = ViolationError("ERROR", f"seed {schedule.seed}, t={farm.now:.4f}: {told}\n{farm.story()}")
    return Outcome(
        violation,
        farm.now,
        farm.datagrams,
        farm.clients.opened,
        farm.clients.broken,
        farm.clients.retransmits,
        farm.now - quiet_at,
    )


def _until_whole(farm: SimulatedFarm, schedule: Schedule) -> None:
    """Wait until I2 holds for good; complain if it does not within its bound."""
    bound = farm.now + QUIET_S + schedule.nodes / 32
    sides = _judged(schedule)
    whole_since: float | None = None
    while farm.now < max(bound, farm.restarted_at + QUIET_S):
        farm.run(farm.now + LOOK_S)
        if any(host.core is not None and host.leaves and any(host.known) for host in farm.hosts.values()):
            # Not quiet yet: one that leaves still serves its connections.
            bound = max(bound, min(farm.now, schedule.ends + LONGEST_DRAIN_S) + QUIET_S)
        if any(farm.invariants.hole(side) for side in sides) or (
            schedule.planned and farm.invariants.waiting()
        ):
            whole_since = None
        elif whole_since is None:
            whole_since = farm.now
        elif farm.now - whole_since >= STEADY_S:
            return
    for side in sides:
        farm.invariants.no_hole(side)
    farm.invariants.connections_kept()


def _judged(schedule: Schedule) -> list[set[int] | None]:
    """Return the sets of nodes that I2 is held against; a node alone among many takes itself for deaf."""
    if not schedule.sides:
        return [None]
    return [set(side) for side in schedule.sides if len(side) > 1 or schedule.nodes == 2]


def _settle(farm: SimulatedFarm, schedule: Schedule) -> None:
    """Make the network whole (within each side) and lossless, loops prompt, and see that nodes run."""
    farm.heal()
    farm.network.loss = 0.0
    farm.slow_turns = (0.0, 0.0)
    for side in schedule.sides:
        for one in side:
            for other in farm.hosts:
                if other not in side:
                    farm.cut(one, other)
                    farm.cut(other, one)
    farm.keep_running = frozenset(farm.hosts) - set(schedule.rest)
    for node in sorted(farm.keep_running):
        host = farm.hosts[node]
        settings = farm.settings[node]
        if host.admin is not Admin.RUN:
            farm.admin(node, Admin.RUN)
        if not all(settings.powers):
            farm.power(node, (1,) * len(settings.powers))
        if host.core is None:
            farm.start(node)
        else:
            farm.healthy(node, True)
            if not schedule.unfit:
                farm.fit(node, Fitness.SOUND)


# -- actions -------------------------------------------------------------------------------


def _start(farm: SimulatedFarm, action: Action) -> None:
    for node in action.nodes:
        if farm.hosts[node].core is None:
            farm.start(node)


def _forget(farm: SimulatedFarm, action: Action) -> None:
    """Start a node that lost its file of incarnations, on a machine whose clock is behind."""
    for node in action.nodes:
        if farm.hosts[node].core is None:
            farm.start(node, incarnation=farm.hosts[node].incarnation - 100)


def _replay(farm: SimulatedFarm, action: Action) -> None:
    for node in action.nodes:
        farm.replay(node)


def _running(do: Callable[[SimulatedFarm, int, Action], None]) -> Callable[[SimulatedFarm, Action], None]:
    """Return an action that happens to those of its nodes whose process is there."""

    def act(farm: SimulatedFarm, action: Action) -> None:
        for node in action.nodes:
            if farm.hosts[node].core is not None:
                do(farm, node, action)

    return act


def _spared(do: Callable[[SimulatedFarm, int, Action], None]) -> Callable[[SimulatedFarm, Action], None]:
    """Return an action that takes a node out of service: in a planned run only while another one serves."""

    def act(farm: SimulatedFarm, node: int, action: Action) -> None:
        if farm.invariants.planned and not _another_serves(farm, node):
            farm.tell(node, "not spared", kind=action.kind)
        else:
            do(farm, node, action)

    return _running(act)


def _another_serves(farm: SimulatedFarm, node: int) -> bool:
    for other, host in farm.hosts.items():
        if (
            other != node
            and other in farm.settings[node].nodes
            and host.core is not None
            and host.core.state is NodeState.UP
            and all(farm.settings[other].powers)
            and all(host.accepts(group, farm.now) for group in range(len(farm.groups)))
        ):
            return True
    return False


def _cut(farm: SimulatedFarm, action: Action) -> None:
    """Cut one link: both ways, or only from the first to the second."""
    one, other = action.nodes
    farm.cut(one, other)
    if action.value != "one-way":
        farm.cut(other, one)


def _partition(farm: SimulatedFarm, action: Action) -> None:
    """Cut these nodes off from all others."""
    for one in action.nodes:
        for other in farm.hosts:
            if other not in action.nodes:
                farm.cut(one, other)
                farm.cut(other, one)


def _network(farm: SimulatedFarm, action: Action) -> None:
    """Lose a whole heartbeat network."""
    farm.tell(0, "network down", network=int(action.value))
    farm.network.down = {int(action.value)}


def _reload(farm: SimulatedFarm, action: Action) -> None:
    """Give the first node a configuration that names these."""
    farm.reload(action.nodes[0], action.nodes)


def _power(farm: SimulatedFarm, node: int, action: Action) -> None:
    farm.power(node, (int(action.value),) * len(farm.groups))


def _admin(farm: SimulatedFarm, node: int, action: Action) -> None:
    what, _, now = str(action.value).partition(" ")
    farm.admin(node, Admin(what), at_once=now == "now")


def _admin_or_run(farm: SimulatedFarm, action: Action) -> None:
    if action.value == "run":
        for node in action.nodes:
            farm.admin(node, Admin.RUN)
    else:
        _spared(_admin)(farm, action)


ACTIONS: dict[str, Callable[[SimulatedFarm, Action], None]] = {
    "start": _start,
    "forget": _forget,
    "crash": _running(lambda farm, node, action: farm.crash(node)),
    "kill": _running(lambda farm, node, action: farm.kill(node)),
    "freeze": _running(lambda farm, node, action: farm.freeze(node, float(action.value))),
    "pause": _running(lambda farm, node, action: farm.pause(node, float(action.value))),
    "stop": _spared(lambda farm, node, action: farm.stop(node, at_once=action.value == "now")),
    "upgrade": _spared(lambda farm, node, action: farm.upgrade(node, float(action.value))),
    "unhealthy": _spared(lambda farm, node, action: farm.healthy(node, False)),
    "healthy": _running(lambda farm, node, action: farm.healthy(node, True)),
    "fit": _running(lambda farm, node, action: farm.fit(node, Fitness[str(action.value)])),
    "damage": _running(lambda farm, node, action: farm.damage(node)),
    "admin": _admin_or_run,
    "power": _spared(_power),
    "reload": _reload,
    "cut": _cut,
    "partition": _partition,
    "network": _network,
    "replay": _replay,
    "heal": lambda farm, action: farm.heal(),
}
"""What can happen, by the name that an action bears."""
