"""The family ``applications`` of random schedules: what is supervised, and what happens to it."""

from __future__ import annotations

import random
from dataclasses import replace

from nlbfarm.core.supervision import Action, CheckSpec, ServiceSpec
from nlbfarm.testing.agenda import Agenda, happen
from nlbfarm.testing.applications.actions import FATES
from nlbfarm.testing.applications.model import Applications, CheckPlan, RulePlan, ServicePlan
from nlbfarm.testing.schedules import Schedule

__all__ = ["applications"]

KINDS = (
    *("cause",) * 4,
    *("shared",) * 3,
    *("application",) * 6,
    *("maintenance",) * 2,
    *("admin",) * 3,
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
        "power",
        "damage",
    ),
)
CUTS = ("cut", "one-way", "partition", "heal")

_ON_EXIT = ((Action.RESTART,) * 8, (Action.RESTART_ALL, *Action))
_OWN = (Action.NONE, Action.WAIT, Action.RESTART, Action.RESTART_ALL, Action.DRAIN, Action.STOP)
_HOSTS = (
    *(Action.WAIT, Action.WAIT, Action.STOP, Action.STOP, Action.DRAIN, Action.NONE),
    *(Action.RESTART_ALL, Action.RESTART_ALL),
)
_WHEN = (
    "gw1 down and gw2 down",
    "any of (gw1, gw2) down",
    "2 of (gw1, gw2, disk) down",
    "disk down and not gw1 down",
    "gateway down or gw1 down",
)


def applications(rng: random.Random, conditions: Schedule) -> Schedule:
    """Return a schedule in which applications fail, and what is checked, among what else may happen."""
    unfit = rng.random() < 0.5
    plan = _plan(rng, for_ever=unfit)
    agenda = Agenda(rng, conditions.nodes)
    agenda.begin(late=0.1)
    agenda.now += rng.choice([0.0, 0.5, 2.0, 2.0])
    strict = rng.random() < 0.85
    kinds = KINDS if strict else KINDS + CUTS
    calm = rng.random() < 0.4
    for _ in range(rng.randint(1, 9)):
        kind = rng.choice(kinds)
        if calm and kind not in ("cause", "shared", "application", "maintenance", "admin"):
            kind = "shared"
        _happen(agenda, kind, plan)
        agenda.wait()
    agenda.add("heal")
    return replace(
        conditions,
        actions=agenda.done(),
        strict=strict,
        applications=plan,
        unfit=unfit,
        loss=rng.choice([0.0, 0.0, 0.02, 0.05]),
        connections_per_s=rng.choice([0.0, 0.0, 20.0]),
    )


def _happen(agenda: Agenda, kind: str, plan: Applications) -> None:
    """Put one thing of ``kind`` down."""
    rng, ids = agenda.rng, agenda.ids
    checks = [one.spec.name for one in plan.checks for _ in range(1 if one.spec.service else 3)]
    services = [one.spec.name for one in plan.services]
    match kind:
        case "cause" if checks:
            agenda.add("cause", agenda.one(agenda.up), value=f"{rng.choice(checks)} {_state(rng)}")
        case "shared" if checks:
            # The same cause on all hosts, each of which finds it at its own time.
            check, state, spread = rng.choice(checks), _state(rng), rng.choice([0.0, 0.01, 0.2, 0.6])
            some = ids if rng.random() < 0.7 else rng.sample(ids, rng.randint(1, len(ids)))
            for node in some:
                agenda.add("cause", node, value=f"{check} {state}")
                agenda.now += spread * rng.random()
        case "application" if services:
            fate = rng.choice(list(FATES))
            everywhere = rng.random() < 0.25
            value = f"{rng.choice(services)} {fate}"
            for node in ids if everywhere else [agenda.one(agenda.up)]:
                agenda.add("application", node, value=value)
                agenda.now += rng.choice([0.0, 0.3]) * rng.random()
        case "maintenance":
            agenda.add("maintenance", agenda.one(agenda.up), value=rng.choice(["on", "on", "off"]))
        case "cause" | "shared" | "application":
            pass
        case _:
            happen(agenda, kind)


def _state(rng: random.Random) -> str:
    return rng.choice(["down", "down", "down", "up"])


# -- what is supervised --------------------------------------------------------------------


def _plan(rng: random.Random, *, for_ever: bool) -> Applications:
    """Return what is supervised; if things may stay wrong ``for_ever``, restarts are counted for as long."""
    names = ("db", "app", "web")[: rng.choice([0, 1, 1, 2, 2, 3, 3])]
    services = tuple(_service(rng, names[:index], name, for_ever) for index, name in enumerate(names))
    if rng.random() < 0.3:
        services = services[::-1]
    checks = [check for name in names for check in _checks_of(rng, name)]
    checks += _checks_of_host(rng)
    if rng.random() < 0.5:
        # Nothing happens by itself: then most of the farm is well when something does.
        services = tuple(replace(one, fails=0.0, hangs=0.0, lives_s=0.0) for one in services)
        checks = [replace(one, noise=0.0) for one in checks]
    there = {check.spec.name for check in checks}
    rules = tuple(rule for rule in _rules(rng, names) if rule.checks <= there)
    return Applications(services, tuple(checks), rules, last_stays=rng.random() < 0.75)


def _service(rng: random.Random, before: tuple[str, ...], name: str, for_ever: bool) -> ServicePlan:
    start_timeout = rng.choice([0.4, 0.8, 1.5])
    spec = ServiceSpec(
        name,
        after=tuple(one for one in before if rng.random() < 0.6),
        on_exit=rng.choice(rng.choice(_ON_EXIT)),
        start_timeout=start_timeout,
        hold=rng.choice([0.0, 0.3, 1.0, 3.0]),
        max_restarts=rng.choice([0, 1, 2, 2, 3, 3]),
        within=3600.0 if for_ever else rng.choice([1.0, 4.0, 3600.0]),
        backoff=rng.choice([0.05, 0.2, 0.4]),
        longest_backoff=rng.choice([0.3, 0.6, 1.0]),
    )
    return ServicePlan(
        spec,
        start_s=rng.choice([(0.0, 0.01), (0.01, 0.2), (0.1, round(start_timeout * 1.2, 2))]),
        warm_s=rng.choice([0.0, 0.1, start_timeout]),
        stop_s=rng.choice([0.01, 0.1, 0.5]),
        fails=rng.choice([0.0, 0.0, 0.1, 0.4]),
        hangs=rng.choice([0.0, 0.0, 0.1]),
        lives_s=rng.choice([0.0, 0.0, 5.0, 2.0]),
        stays=rng.random() < 0.5,
    )


def _checks_of(rng: random.Random, service: str) -> list[CheckPlan]:
    """Return checkers of a service: one that restarts it, as a rule, and another now and then."""
    found = []
    if rng.random() < 0.85:
        found.append(_check(rng, CheckSpec(f"{service}-page", Action.RESTART, service)))
    if rng.random() < 0.25:
        action = rng.choice(_OWN)
        confirm = rng.choice([0.0, 0.0, 0.5])
        found.append(_check(rng, CheckSpec(f"{service}-else", action, service, confirm)))
    return found


def _checks_of_host(rng: random.Random) -> list[CheckPlan]:
    found = []
    if rng.random() < 0.5:
        confirm = rng.choice([0.0, 0.4, 1.0, 1.5])
        found.append(_check(rng, CheckSpec("gateway", rng.choice(_HOSTS), None, confirm)))
    if rng.random() < 0.4:
        found.append(_check(rng, CheckSpec("disk", rng.choice(_HOSTS))))
    if rng.random() < 0.4:
        found += [_check(rng, CheckSpec(name, Action.NONE)) for name in ("gw1", "gw2")]
    return found


def _check(rng: random.Random, spec: CheckSpec) -> CheckPlan:
    return CheckPlan(
        spec,
        interval=rng.choice([0.05, 0.2, 0.4]),
        rise=rng.choice([1, 1, 2]),
        fall=rng.choice([1, 2, 2, 3]),
        noise=rng.choice([0.0, 0.0, 0.02, 0.1, 0.3]),
        deep=rng.random() < 0.3,
    )


def _rules(rng: random.Random, services: tuple[str, ...]) -> list[RulePlan]:
    found = []
    for index in range(rng.choice([0, 1, 1, 2])):
        action = rng.choice(_HOSTS)
        service = None
        if services and rng.random() < 0.3:
            action, service = Action.RESTART, rng.choice(services)
        confirm = rng.choice([0.0, 0.0, 0.4, 1.0])
        found.append(RulePlan(f"rule{index}", rng.choice(_WHEN), action, service, confirm))
    return found
