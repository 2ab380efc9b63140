"""What has to fit together between services, checkers and failover rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from nlbfarm.config.draft import Draft, Entry
from nlbfarm.config.failover_rules import Condition
from nlbfarm.config.rules import Failback
from nlbfarm.config.types import format_duration, nearest
from nlbfarm.core.policy import Mode
from nlbfarm.core.supervision import Action
from nlbfarm.core.supervision.model import RESTARTS
from nlbfarm.errors import Problem

__all__ = ["doubts", "supervised"]


def supervised(draft: Draft) -> Iterator[Problem]:
    """Yield everything that does not fit together, as far as the draft's tables can be read."""
    yield from _order(draft.services)
    services = _names(draft.services)
    for checker in draft.checkers:
        yield from _service_of(checker, "on_failure", services)
        yield from _targets(checker, draft)
        yield from _too_late(checker, draft.services)
    checkers = _names(draft.checkers)
    for rule in draft.failover_rules:
        yield from _service_of(rule, "action", services)
        action = rule.get("action")
        if rule.get("service") is not None and action not in (Action.RESTART, None):
            yield Problem(
                rule.at("service"),
                f'is for action = "restart"; with "{action}" no service is meant: remove it',
            )
        condition = rule.get("when")
        if isinstance(condition, Condition) and checkers is not None:
            for name in sorted(condition.expression.names() - set(checkers)):
                yield Problem(rule.at("when"), f'no checker is called "{name}"{nearest(name, checkers)}')
    for rule in draft.rules:
        if rule.get("failback") is Failback.MANUAL and rule.get("mode") in (Mode.BALANCED, Mode.BLOCKED):
            yield Problem(rule.at("failback"), 'only a rule with mode = "failover" has a failback')


def doubts(draft: Draft) -> Iterator[Problem]:
    """Yield what is allowed but probably not meant."""
    for rule in draft.failover_rules:
        condition = rule.get("when")
        named = condition.expression.names() if isinstance(condition, Condition) else frozenset()
        for checker in draft.checkers:
            if checker.model is None or checker.get("name") not in named:
                continue
            if "on_failure" not in checker.model.model_fields_set:
                yield Problem(
                    checker.path,
                    f'{rule.label or rule.path} counts it, but without on_failure that is "wait": the node '
                    "gives its clients away when this one alone is down; write on_failure = "
                    '"none" to leave that to the rule, or "wait" if it is meant',
                )


def _names(entries: Sequence[Entry]) -> tuple[str, ...] | None:
    """Return the names of all entries; ``None`` if one is wrong: it may be the one that is meant."""
    found = [entry.get("name") for entry in entries]
    return None if None in found else tuple(found)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _service_of(entry: Entry, key: str, services: tuple[str, ...] | None) -> Iterator[Problem]:
    name, action = entry.get("service"), entry.get(key)
    if services is None:
        return
    if name is not None and name not in services:
        there = f"there: {_listed(services)}"
        yield Problem(
            entry.at("service"), f'no service is called "{name}"{nearest(name, services)} ({there})'
        )
    elif name is None and action is Action.RESTART and len(services) != 1:
        which = _listed(f'"{service}"' for service in services)
        missing = f"write service = one of {which}" if services else "write a [[services]] table for it"
        yield Problem(entry.at(key), f'"restart" of which service? {missing}')
    elif action is Action.RESTART_ALL and not services:
        yield Problem(entry.at(key), 'there is no service to restart; write [[services]], or "wait"')


def _targets(checker: Entry, draft: Draft) -> Iterator[Problem]:
    """Yield what a checker looks at that is not there."""
    address, vips = checker.get("address"), [vip.get("address") for vip in draft.vips]
    if checker.get("type") == "ip" and address is not None and None not in vips and address not in vips:
        there = _listed(str(vip) for vip in vips)
        yield Problem(
            checker.at("address"), f'"{address}" is not the address of any [[vips]] table (there: {there})'
        )


def _too_late(checker: Entry, services: Sequence[Entry]) -> Iterator[Problem]:
    """Yield a checker that says nothing before its service is taken for one that does not start."""
    delay, action = checker.get("initial_delay"), checker.get("on_failure")
    name = checker.get("service")
    if name is None and action is Action.RESTART and len(services) == 1:
        name = services[0].get("name")
    for service in services:
        limit = service.get("start_timeout")
        if None in (delay, limit, name) or service.get("name") != name or action not in RESTARTS:
            continue
        if delay >= limit:
            yield Problem(
                checker.at("initial_delay"),
                f'"{format_duration(delay)}" is too long: {service.label or service.path} has to answer '
                f'within its start_timeout, "{format_duration(limit)}", and would be restarted each time',
            )


def _order(services: Sequence[Entry]) -> Iterator[Problem]:
    """Yield services that are after unknown ones, or after themselves."""
    names = _names(services)
    if names is None:
        return
    after: dict[str, tuple[str, ...]] = {}
    for service in services:
        wanted = service.get("after") or ()
        for index, name in enumerate(wanted):
            if name not in names:
                there = f"there: {_listed(names)}"
                yield Problem(
                    service.at("after", index),
                    f'no service is called "{name}"{nearest(name, names)} ({there})',
                )
        after[service.get("name")] = tuple(wanted)
    told: set[str] = set()
    for service in services:
        ring = _ring(service.get("name"), after)
        if ring and not told.intersection(ring):
            told.update(ring)
            yield Problem(service.at("after"), f"goes round in a circle: {' after '.join((*ring, ring[0]))}")


def _ring(start: str, after: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the way from a service back to itself; empty if there is none."""
    ways: list[tuple[str, ...]] = [(start,)]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for name in after.get(way[-1], ()):
            if name == start:
                return way
            if name not in seen:
                seen.add(name)
                ways.append((*way, name))
    return ()
