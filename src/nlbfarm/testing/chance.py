"""Random schedules: the seed decides everything.

There are families: *faults* (whatever may happen to nodes; no link is ever cut), *cuts* (whatever may
happen to links), *everything*, *planned* (what an administrator does; no connection may break), *upgrade* (a
farm of two wire versions) and *applications* (services, checkers and failover rules on every node).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from nlbfarm.testing.agenda import Agenda, happen
from nlbfarm.testing.applications.chance import applications
from nlbfarm.testing.schedules import Schedule

__all__ = ["FAMILIES", "random_schedule"]

FAULTS = (
    *(
        "crash",
        "kill",
        "freeze",
        "pause",
        "start",
        "restart",
        "restart",
        "stop",
        "upgrade",
        "health",
        "damage",
    ),
    *("admin", "power", "burst", "burst", "replay", "replay", "fit", "fit"),
)
CUTS = (
    *("cut", "one-way", "one-way", "partition", "heal", "heal", "start", "restart"),
    *("deaf", "deaf", "mute", "mute"),
)
PLANNED = (
    "start",
    "start",
    *("admin",) * 3,
    "power",
    "stop",
    "upgrade",
    "health",
    "fit",
    "fit",
    "add",
    "add",
    "remove",
)


def random_schedule(seed: int, nodes: tuple[int, int] = (2, 32), family: str | None = None) -> Schedule:
    """Return the schedule that belongs to ``seed``.

    Args:
        seed: Any integer.
        nodes: Fewest and most nodes; most schedules are near the fewest.
        family: One of ``FAMILIES``; by default chance decides.
    """
    rng = random.Random(f"{seed} {nodes} {family}")
    family = family or rng.choices(list(FAMILIES), [3, 2, 3, 4, 1, 3])[0]
    fewest, most = nodes
    size = fewest + min(int(rng.expovariate(0.7)), 3)
    if rng.random() < 0.015:
        size = rng.randint(fewest, min(most, fewest + 8))
    if rng.random() < 0.0003:
        size = rng.randint(fewest, most)
    size = min(size, most)
    conditions = Schedule(
        seed=seed,
        nodes=size,
        groups=rng.choices([1, 2, 8], [20, 4, 1])[0],
        codec=rng.random() < 0.05,
        ordered=rng.random() < 0.5,
        networks=rng.choices([1, 2], [9, 1])[0],
        duplicate=rng.choice([0.0, 0.0, 0.1]),
        delay_s=rng.choice([(0.0001, 0.001), (0.001, 0.02)]),
        clock_error=rng.choice([0.0, 0.0005, 0.0005, 0.02]),
        slow_turns=rng.choice([(0.0, 0.0), (0.0, 0.0), (0.02, 0.04)]),
        apply_s=rng.choices([(0.0001, 0.003), (0.005, 0.1)], [3, 1])[0],
        connections_per_s=rng.choice([0.0, 20.0, 60.0]),
        connection_life_s=rng.choice([0.1, 0.5, 2.0]),
        takeover_grace=rng.choice([0.3, 1.0, 2.0]),
        restart_grace=rng.choice([1.0, 3.0]),
        drain_timeout=rng.choice([0.5, 2.0, 60.0]),
    )
    return FAMILIES[family](rng, conditions)


def _unplanned(rng: random.Random, conditions: Schedule, kinds: tuple[str, ...], *, strict: bool) -> Schedule:
    agenda = Agenda(rng, conditions.nodes)
    agenda.begin(late=0.2)
    if conditions.networks == 2 and not strict:
        kinds = (*kinds, "network")
    for _ in range(rng.randint(1, 8)):
        happen(agenda, rng.choice(kinds))
        agenda.wait()
    if strict and rng.random() < 0.3:
        # A machine that serves is suspended, and wakes when its peers have lost it.
        agenda.now += 1.5
        agenda.add("pause", agenda.one(agenda.up), value=round(rng.uniform(0.5, 2.0), 3))
    agenda.add("heal")
    majority = rng.random() < 0.1
    sides: tuple[tuple[int, ...], ...] = ()
    rest: tuple[int, ...] = ()
    if not strict and not majority and rng.random() < 0.3:
        side = set(rng.sample(agenda.ids, rng.randint(1, conditions.nodes - 1)))
        sides = (tuple(sorted(side)), tuple(sorted(set(agenda.ids) - side)))
    elif not majority and agenda.replayed and len(agenda.replayed) < conditions.nodes and rng.random() < 0.7:
        rest = tuple(sorted(agenda.replayed))
    elif not majority and rng.random() < 0.3:
        rest = tuple(sorted(rng.sample(agenda.ids, rng.randint(1, conditions.nodes - 1))))
    return replace(
        conditions,
        actions=agenda.done(),
        strict=strict,
        majority=majority,
        sides=sides,
        rest=rest,
        unfit=rng.random() < 0.5,
        loss=rng.choice([0.0, 0.0, 0.02, 0.05]),
        slow_turns=rng.choice([conditions.slow_turns, conditions.slow_turns, (0.02, 0.25)]),
    )


def _faults(rng: random.Random, conditions: Schedule) -> Schedule:
    return _unplanned(rng, conditions, FAULTS, strict=True)


def _cuts(rng: random.Random, conditions: Schedule) -> Schedule:
    return _unplanned(rng, conditions, CUTS, strict=False)


def _everything(rng: random.Random, conditions: Schedule) -> Schedule:
    return _unplanned(rng, conditions, FAULTS + CUTS, strict=False)


def _upgrade(rng: random.Random, conditions: Schedule) -> Schedule:
    """Nodes of two wire versions; one after the other is upgraded, while other things happen."""
    agenda = Agenda(rng, conditions.nodes)
    agenda.begin(late=0.1)
    old = sorted(rng.sample(agenda.ids, rng.randint(1, conditions.nodes)))
    for node in old:
        agenda.add("upgrade", node, value=round(rng.uniform(0.01, 0.8), 3))
        agenda.wait()
        if rng.random() < 0.4:
            happen(agenda, rng.choice(FAULTS))
            agenda.wait()
    return replace(conditions, actions=agenda.done(), strict=True, old=tuple(old))


class _Administrator:
    """Plans changes for a running farm so that somebody is left to serve, and no connection need break."""

    def __init__(self, agenda: Agenda, restart_grace: float) -> None:
        self.agenda = agenda
        self.rng = agenda.rng
        self.restart_grace = restart_grace
        self.able = set(agenda.up)
        """Nodes that can be counted on; one that was taken out of service is not counted on again."""
        self.named = set(agenda.ids)
        """Nodes that the configuration names."""
        self.taken_out: set[int] = set()

    def leave_out(self) -> None:
        """Begin with a configuration that does not name some of the nodes that are not there yet."""
        absent = {node for node in set(self.named) - self.agenda.up if self.rng.random() < 0.5}
        if absent:
            self.named -= absent
            agenda, now = self.agenda, self.agenda.now
            agenda.now = 0.0
            for node in sorted(self.named):
                agenda.add("reload", node, *sorted(self.named - {node}))
            agenda.now = now

    def change(self, kind: str) -> None:
        """Put one change of ``kind`` down, if it can be made now."""
        rng, agenda = self.rng, self.agenda
        keep = min(self.able) if rng.random() < 0.5 else max(self.able)
        spare = sorted(self.able - {keep})
        match kind:
            case "start":
                for node in sorted(self.named - agenda.up)[:1]:
                    agenda.add("start", node)
                    agenda.up.add(node)
            case "admin" if spare:
                agenda.add("admin", self._take_out(rng.choice(spare)), value=rng.choice(["drain", "stop"]))
            case "admin" if self.taken_out:
                agenda.add("admin", agenda.one(self.taken_out), value="run")
            case "power" if spare:
                for _ in range(rng.choice([1, 1, 3])):
                    agenda.add("power", rng.choice(spare), value=rng.choice([0, 1, 2, 5]))
                    agenda.now += 0.01 * rng.random()
            case "health" if spare:
                node = self._take_out(rng.choice(spare))
                agenda.add("unhealthy", node)
                agenda.wait()
                agenda.add("healthy", node)
            case "fit":
                happen(agenda, "fit")
            case "stop" if spare:
                node = self._take_out(rng.choice(spare))
                agenda.add("stop", node)
                agenda.up.discard(node)
            case "upgrade" if spare:
                gap = self.restart_grace * 0.9 * rng.random()
                agenda.add("upgrade", self._take_out(rng.choice(spare)), value=round(gap, 3))
            case "add":
                absent = sorted(set(agenda.ids) - self.named)
                if absent:
                    self.named.add(absent[0])
                    self._reload()
            case "remove":
                self._remove(spare)
            case _:
                pass

    def _take_out(self, node: int) -> int:
        self.able.discard(node)
        self.taken_out.add(node)
        return node

    def _remove(self, spare: list[int]) -> None:
        """Take a node out of the configuration: one that is not there, or one that is stopped first."""
        agenda, rng = self.agenda, self.rng
        gone = sorted(self.named - agenda.up)[:1] or ([rng.choice(spare)] if spare else [])
        for node in gone:
            if node in agenda.up:
                agenda.add("admin", self._take_out(node), value="stop")
                agenda.now += rng.uniform(0.5, 2.0)
            self.named.discard(node)
            self.taken_out.discard(node)
            self._reload()

    def _reload(self) -> None:
        """Load the new configuration on each node that is there, in any order."""
        agenda, rng = self.agenda, self.rng
        for node in rng.sample(sorted(self.named), len(self.named)):
            agenda.add("reload", node, *sorted(self.named - {node}))
            agenda.now += rng.choice([0.0, 0.1, 0.6]) * rng.random()


def _planned(rng: random.Random, conditions: Schedule) -> Schedule:
    """What an administrator does who leaves somebody to serve: no connection breaks."""
    agenda = Agenda(rng, conditions.nodes)
    agenda.begin(late=0.3)
    administrator = _Administrator(agenda, conditions.restart_grace)
    administrator.leave_out()
    agenda.now = max(agenda.now, 1.7)
    hurried = rng.random() < 0.3
    for _ in range(rng.randint(1, 7)):
        agenda.wait(0.03 if hurried else 1.5)
        administrator.change(rng.choice(PLANNED))
    missing = tuple(sorted(set(agenda.ids) - administrator.named))
    return replace(
        conditions,
        actions=agenda.done(),
        strict=True,
        planned=True,
        rest=missing,
        unfit=rng.random() < 0.5,
        connections_per_s=rng.choice([20.0, 60.0]),
        connection_life_s=rng.choice([0.3, 1.0, 3.0]),
    )


FAMILIES: dict[str, Callable[[random.Random, Schedule], Schedule]] = {
    "faults": _faults,
    "cuts": _cuts,
    "everything": _everything,
    "planned": _planned,
    "upgrade": _upgrade,
    "applications": applications,
}
"""What kinds of schedules there are."""
