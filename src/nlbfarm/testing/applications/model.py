"""What is supervised in a simulated farm, and how it behaves: plain data, the same for every host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nlbfarm.core.supervision import Action, CheckSpec, RuleSpec, ServiceSpec, SupervisionSettings
from nlbfarm.core.supervision.expressions import parse

__all__ = ["Applications", "CheckPlan", "RulePlan", "ServicePlan"]


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """A service, and how it behaves; times in seconds.

    Args:
        spec: What the supervision is told.
        start_s: Shortest and longest time that a start takes.
        warm_s: For how long it does not answer after that, at most.
        stop_s: How long a stop takes, at most.
        fails: Share of starts that fail.
        hangs: Share of starts that never end, or after which it never answers.
        lives_s: After how long it ends by itself, on average; 0: never.
        stays: Whether it goes on when its node's process is killed.
    """

    spec: ServiceSpec
    start_s: tuple[float, float] = (0.01, 0.1)
    warm_s: float = 0.0
    stop_s: float = 0.05
    fails: float = 0.0
    hangs: float = 0.0
    lives_s: float = 0.0
    stays: bool = True


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """A checker, and how it behaves.

    Args:
        spec: What the supervision is told.
        interval: Seconds from one look to the next.
        rise, fall: Looks in a row until it counts as up, or as down.
        noise: Share of the looks that see the opposite.
        deep: Whether it also sees what the service needs.
    """

    spec: CheckSpec
    interval: float = 0.2
    rise: int = 1
    fall: int = 2
    noise: float = 0.0
    deep: bool = False


@dataclass(frozen=True, slots=True)
class RulePlan:
    """A failover rule as the configuration has it."""

    name: str
    when: str
    action: Action = Action.WAIT
    service: str | None = None
    confirm: float = 0.0

    @property
    def spec(self) -> RuleSpec:
        """What the supervision is told."""
        return RuleSpec(self.name, parse(self.when), self.action, self.service, self.confirm)

    @property
    def checks(self) -> frozenset[str]:
        """The checkers that it names."""
        return parse(self.when).names()


@dataclass(frozen=True, slots=True)
class Applications:
    """All that is supervised on each host.

    Args:
        services, checks, rules: By unique names; what they name is there.
        last_stays: As in ``SupervisionSettings``.
    """

    services: tuple[ServicePlan, ...] = ()
    checks: tuple[CheckPlan, ...] = ()
    rules: tuple[RulePlan, ...] = ()
    last_stays: bool = True

    def settings(self, salt: str) -> SupervisionSettings:
        """Return what the supervision of a node is told."""
        return SupervisionSettings(
            tuple(plan.spec for plan in self.services),
            tuple(plan.spec for plan in self.checks),
            tuple(plan.spec for plan in self.rules),
            self.last_stays,
            salt,
        )

    @classmethod
    def from_fields(cls, given: Mapping[str, Any]) -> Applications:
        """Return what ``dataclasses.asdict`` and JSON have made of one."""
        return cls(
            tuple(_service(plan) for plan in given["services"]),
            tuple(_check(plan) for plan in given["checks"]),
            tuple(RulePlan(**{**plan, "action": Action(plan["action"])}) for plan in given["rules"]),
            given["last_stays"],
        )

    def simpler(self) -> Iterator[Applications]:
        """Yield what has one thing less: a rule, a checker, a service, a trouble."""
        for rule in self.rules:
            yield replace(self, rules=tuple(one for one in self.rules if one is not rule))
        for check in self.checks:
            yield self._without({check.spec.name}, self.services)
        for service in self.services:
            yield self._without_service(service.spec.name)
        for plan in self.services:
            for calmer in _calmer(plan):
                yield replace(self, services=tuple(calmer if one is plan else one for one in self.services))
        if any(plan.noise or plan.deep for plan in self.checks):
            quiet = tuple(replace(plan, noise=0.0, deep=False) for plan in self.checks)
            yield replace(self, checks=quiet)

    def told(self) -> Iterator[str]:
        """Yield a line for each part, with what is not as usual."""
        if not self.last_stays:
            yield "last node leaves"
        for kind, plans in (("service", self.services), ("checker", self.checks), ("rule", self.rules)):
            for plan in plans:
                yield f"{kind} " + " ".join(_unusual(plan))

    def _without(self, checks: set[str], services: tuple[ServicePlan, ...]) -> Applications:
        return replace(
            self,
            services=services,
            checks=tuple(plan for plan in self.checks if plan.spec.name not in checks),
            rules=tuple(plan for plan in self.rules if not plan.checks & checks),
        )

    def _without_service(self, name: str) -> Applications:
        left = tuple(
            replace(plan, spec=replace(plan.spec, after=tuple(one for one in plan.spec.after if one != name)))
            for plan in self.services
            if plan.spec.name != name
        )
        without = self._without({plan.spec.name for plan in self.checks if plan.spec.service == name}, left)
        return replace(without, rules=tuple(plan for plan in without.rules if plan.service != name))


def _unusual(plan: ServicePlan | CheckPlan | RulePlan | ServiceSpec | CheckSpec) -> Iterator[str]:
    """Yield the fields that have not their default; of the specification first."""
    for field in fields(plan):
        value = getattr(plan, field.name)
        if isinstance(value, ServiceSpec | CheckSpec):
            yield from _unusual(value)
        elif value != field.default:
            yield f"{field.name}={value}"


def _calmer(plan: ServicePlan) -> Iterator[ServicePlan]:
    """Yield the service with one trouble less."""
    calm = (
        replace(plan, fails=0.0),
        replace(plan, hangs=0.0),
        replace(plan, lives_s=0.0),
        replace(plan, warm_s=0.0),
        replace(plan, stop_s=0.0),
    )
    yield from (one for one in calm if one != plan)


def _service(given: Mapping[str, Any]) -> ServicePlan:
    spec = given["spec"]
    made = ServiceSpec(**{**spec, "after": tuple(spec["after"]), "on_exit": Action(spec["on_exit"])})
    return ServicePlan(**{**given, "spec": made, "start_s": tuple(given["start_s"])})


def _check(given: Mapping[str, Any]) -> CheckPlan:
    spec = given["spec"]
    return CheckPlan(**{**given, "spec": CheckSpec(**{**spec, "action": Action(spec["action"])})})
