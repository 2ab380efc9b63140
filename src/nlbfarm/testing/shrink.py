"""Makes a failing schedule small: the fewest actions, nodes and troubles with which it still fails.

A smaller schedule throws its dice differently, so a failure that hangs on a certain delay may get lost: each
candidate is therefore tried with a few seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from nlbfarm.testing.actions import Action
from nlbfarm.testing.schedules import Schedule, play

__all__ = ["shrink"]

SEEDS = 4
"""With how many seeds a candidate is tried."""


def shrink(schedule: Schedule, rule: str, budget_s: float = 30.0) -> Schedule:
    """Return a smaller schedule that breaks the same rule; the same one if none is found in time.

    Args:
        schedule: One that fails.
        rule: Which rule it breaks.
        budget_s: Seconds of real time, about.
    """
    deadline = time.monotonic() + budget_s
    best, changed = schedule, True
    while changed and time.monotonic() < deadline:
        changed = False
        for simpler in (_fewer_actions, _fewer_nodes, _simpler_conditions, _rounder_times):
            for candidate in _greedy(best, simpler, rule, deadline):
                best, changed = candidate, True
    return best


def _greedy(
    schedule: Schedule, simpler: Callable[[Schedule], Iterator[Schedule]], rule: str, deadline: float
) -> Iterator[Schedule]:
    """Yield ever simpler schedules that fail; each time one does, begin again with it."""
    found: Schedule | None = schedule
    while found is not None:
        schedule, found = found, None
        for candidate in simpler(schedule):
            if time.monotonic() > deadline:
                return
            found = _failing(candidate, rule)
            if found is not None:
                yield found
                break


def _failing(schedule: Schedule, rule: str) -> Schedule | None:
    """Return ``schedule`` with a seed under which it breaks ``rule``; ``None`` if there is none."""
    for step in range(SEEDS):
        candidate = replace(schedule, seed=schedule.seed + step)
        violation = play(candidate).violation
        if violation is not None and violation.rule == rule:
            return candidate
    return None


def _fewer_actions(schedule: Schedule) -> Iterator[Schedule]:
    actions = schedule.actions
    size = len(actions) // 2
    while size >= 1:
        for at in range(0, len(actions), size):
            yield replace(schedule, actions=actions[:at] + actions[at + size :])
        size //= 2


def _fewer_nodes(schedule: Schedule) -> Iterator[Schedule]:
    """Take the last node away; its actions go, too."""
    last = schedule.nodes
    if last <= 2:
        return
    actions = []
    for action in schedule.actions:
        nodes = tuple(node for node in action.nodes if node != last)
        if nodes == action.nodes or (nodes and action.kind != "cut"):
            actions.append(replace(action, nodes=nodes))
    yield replace(
        schedule,
        nodes=last - 1,
        actions=tuple(actions),
        sides=tuple(tuple(node for node in side if node != last) for side in schedule.sides),
        rest=tuple(node for node in schedule.rest if node != last),
        old=tuple(node for node in schedule.old if node != last),
    )


_PLAIN = Schedule(seed=0, nodes=2)


def _simpler_conditions(schedule: Schedule) -> Iterator[Schedule]:
    """Take one trouble away."""
    for name in (
        "groups",
        "codec",
        "ordered",
        "networks",
        "loss",
        "duplicate",
        "delay_s",
        "clock_error",
        "slow_turns",
        "apply_s",
        "connections_per_s",
        "old",
        "majority",
        "sides",
        "rest",
        "takeover_grace",
        "drain_timeout",
        "unfit",
        "applications",
    ):
        if getattr(schedule, name) != getattr(_PLAIN, name) and not (name == "rest" and schedule.planned):
            yield replace(schedule, **{name: getattr(_PLAIN, name)})
    if schedule.applications is not None:
        for simpler in schedule.applications.simpler():
            yield replace(schedule, applications=simpler)


def _rounder_times(schedule: Schedule) -> Iterator[Schedule]:
    """Move actions to rounder times, and closer together."""
    actions = schedule.actions
    for digits in (1, 2):
        rounded = tuple(replace(action, at=round(action.at, digits)) for action in actions)
        if rounded != actions:
            yield replace(schedule, actions=tuple(sorted(rounded, key=_when)))
    for index in range(1, len(actions)):
        gap = actions[index].at - actions[index - 1].at
        if gap > 0.4:
            sooner = tuple(replace(action, at=round(action.at - gap / 2, 4)) for action in actions[index:])
            yield replace(schedule, actions=actions[:index] + sooner)


def _when(action: Action) -> float:
    return action.at
