"""Schedules: what happens to a simulated farm, as data that is made at random, replayed and shrunk.

A run is a function of its schedule: ``play`` runs it. ``nlbfarm.testing.chance`` makes them from a seed.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import asdict, dataclass
from typing import Any

from nlbfarm.core.settings import Admin, Partition
from nlbfarm.core.wire import Fitness
from nlbfarm.testing.actions import Action, act
from nlbfarm.testing.applications.model import Applications
from nlbfarm.testing.farm import SimulatedFarm
from nlbfarm.testing.invariants import ViolationError

__all__ = ["Action", "Outcome", "Schedule", "build", "play"]

QUIET_S = 6.0
"""I2's bound: so long after the last action, on a network that is whole, every bucket has its one server."""

LONGEST_DRAIN_S = 20.0
"""How long I2's bound waits, at most, for the connections of a node that leaves."""

LONGEST_UNREST_S = 60.0
"""How long it waits, at most, for services that are restarted until they may not be any more."""

STEADY_S = 0.7
"""A farm that has been whole for so long is taken for settled."""

LOOK_S = 0.1


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
        unfit: Nodes stay as fit as they are when all is quiet; so do applications and what is checked.
        applications: What is supervised on each host; ``None``: nothing.
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
    applications: Applications | None = None

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
        if fields.get("applications") is not None:
            fields["applications"] = Applications.from_fields(fields["applications"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went; ``violation`` is ``None`` if every invariant held.

    ``restarts`` counts services restarted, ``given_up`` those that may not be any more, ``taken_out`` the
    nodes that took themselves out.
    """

    violation: ViolationError | None
    simulated_s: float
    datagrams: int
    opened: int
    broken: int
    retransmits: int
    settled_s: float
    restarts: int = 0
    given_up: int = 0
    taken_out: int = 0


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
        applications=schedule.applications,
        takeover_grace=schedule.takeover_grace,
        restart_grace=schedule.restart_grace,
        drain_timeout=schedule.drain_timeout,
    )
    farm.invariants.strict = schedule.strict
    farm.invariants.planned = schedule.planned
    for node in schedule.old:
        farm.hosts[node].version = 1
    for action in schedule.actions:
        farm.at(action.at, act, farm, action)
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
        farm.applications.restarts,
        farm.applications.given_up,
        farm.applications.taken_out,
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
        restless = farm.applications.restless()
        if restless:
            # Nor is it as long as services are started, and given up, because of what was left wrong.
            bound = max(bound, min(farm.now, schedule.ends + LONGEST_UNREST_S) + QUIET_S)
        if (
            restless
            or (whole_since is not None and farm.applications.commanded_at > whole_since)
            or farm.applications.untrue()
            or any(farm.invariants.hole(side) for side in sides)
            or (schedule.planned and farm.invariants.waiting())
        ):
            whole_since = None
        elif whole_since is None:
            whole_since = farm.now
        elif farm.now - whole_since >= STEADY_S:
            return
    farm.applications.quiet()
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
    farm.wild = False
    farm.applications.disturbed()
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
        mends = host.apps is not None and not schedule.unfit
        if mends:
            farm.mend(node)
        if mends or (host.admin is not Admin.RUN and not (host.apps is not None and host.apps.taken_out)):
            farm.admin(node, Admin.RUN)
        if not all(settings.powers):
            farm.power(node, (1,) * len(settings.powers))
        if host.core is None:
            farm.start(node)
        else:
            farm.healthy(node, True)
            if not schedule.unfit:
                farm.fit(node, Fitness.SOUND)
