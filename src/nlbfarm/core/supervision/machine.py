"""The state machine of a node's services: events in, commands out.

What holds, whatever checkers say (``nlbfarm.testing`` drives this machine with random ones):

- A service is restarted at most ``max_restarts`` times in ``within``.
- The node gets no clients before each of its services has been up.
- A service is started after those that it needs are up, and stopped before them.
- A node takes itself out only when another, fitter one has its clients (but with ``last_node = "leave"``).
- Every phase has a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf

from nlbfarm.core.messages import Fitness
from nlbfarm.core.supervision.budget import Budget
from nlbfarm.core.supervision.condition import Concern
from nlbfarm.core.supervision.model import (
    LEAVES,
    RESTARTS,
    Action,
    Checked,
    Command,
    Ended,
    Event,
    Forgiven,
    Halt,
    Look,
    PauseChanged,
    Placed,
    RuleSpec,
    Run,
    SaveRestarts,
    SetResource,
    Start,
    Started,
    StartFailed,
    Stop,
    Stopped,
    SupervisionSettings,
    TakeOut,
    Tell,
    TimerFired,
)
from nlbfarm.core.supervision.service import ServiceState
from nlbfarm.core.supervision.table import RUNNING, TRANSITIONS, Occurrence, Phase, Step

__all__ = ["Supervision"]

_WELL = Action.NONE, ""
_BUSY = RUNNING - {Phase.GIVEN_UP}
_TOLD = {
    Phase.STARTING: "service.starting",
    Phase.UP: "service.started",
    Phase.RESTARTING: "service.restarting",
    Phase.STOPPING: "service.stopping",
    Phase.STOPPED: "service.stopped",
    Phase.GIVEN_UP: "service.given_up",
}


class Supervision:
    """The supervision of one node.

    Args:
        settings: What is supervised.
        restarts: When each service was restarted in earlier lives, on the clock of ``now``.
        paused: Whether maintenance goes on.
    """

    def __init__(
        self,
        settings: SupervisionSettings,
        restarts: Mapping[str, Iterable[float]] | None = None,
        *,
        paused: bool = False,
    ) -> None:
        self.paused = paused
        self.services = {spec.name: ServiceState(spec) for spec in settings.services}
        self._all = tuple(self.services.values())
        self._use(settings)
        self._budget = Budget(settings.services, restarts or {}, settings.salt)
        self._needed_by = {
            name: [spec.name for spec in settings.services if name in spec.after] for name in self.services
        }
        self._wanted = False
        self._placed = Placed(serving=False, others=False)
        self._taken_out = False
        self._asked: TakeOut | None = None
        """What something asks for, as of the last event."""
        self._out: list[Command] = []

    def _use(self, settings: SupervisionSettings) -> None:
        """Take checkers and rules from ``settings``, all of them new."""
        self.settings = settings
        stays = settings.last_stays
        self.checks = {
            spec.name: Concern(f"checker {spec.name}", spec.action, spec.confirm, last_stays=stays)
            for spec in settings.checks
        }
        self.rules = {
            spec.name: Concern(f"rule {spec.name}", spec.action, spec.confirm, last_stays=stays)
            for spec in settings.rules
        }
        self._concerns: tuple[Concern, ...] = (*self.checks.values(), *self.rules.values())
        self._attached = {
            name: tuple(
                spec.name for spec in settings.checks if spec.service == name and spec.action in RESTARTS
            )
            for name in self.services
        }
        """By service the checkers that say whether it is up; the others are the node's own business."""
        self._own = {
            name: tuple(spec.name for spec in settings.checks if spec.service == name)
            for name in self.services
        }
        """By service the checkers that look at it: not while it is being stopped and started."""
        self._looks = {name: self._looked_at(name) for name in self.services}

    def _looked_at(self, service: str) -> tuple[str, ...]:
        """Return the checkers whose results are worth nothing once the service is restarted."""
        found = [spec.name for spec in self.settings.checks if spec.service == service]
        found += [spec.name for spec in self.settings.checks if spec.action is Action.RESTART_ALL]
        for rule in self.settings.rules:
            if rule.action is Action.RESTART_ALL or (
                rule.action is Action.RESTART and rule.service == service
            ):
                found += sorted(rule.when.names())
        return tuple(dict.fromkeys(found))

    # -- what others read ------------------------------------------------------------------

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of the resources that the node waits for before it serves."""
        return (
            *(service.resource for service in self._all),
            *(concern.resource for concern in self._concerns if concern.matters),
        )

    def restarts_left(self, service: str, now: float) -> int:
        """Return how often a service may still be restarted."""
        return self._budget.left(service, now)

    @property
    def settled(self) -> bool:
        """Whether nothing is being started or stopped."""
        still = {Phase.UP, Phase.STOPPED, Phase.GIVEN_UP}
        return all(service.phase in still for service in self._all)

    @property
    def halted(self) -> bool:
        """Whether every service is stopped, as ``Halt`` wants it."""
        return not self._wanted and all(one.phase is Phase.STOPPED for one in self._all)

    @property
    def wants_out(self) -> bool:
        """Whether something asks for the node to be taken out that another node would have to allow."""
        return self._wanted and not self._taken_out and self._asked is not None

    def timer(self) -> float:
        """Return when ``TimerFired`` is wanted next; infinity if never."""
        if self.paused:
            return min((one.deadline for one in self._all if one.phase is Phase.BACKOFF), default=inf)
        times = [one.deadline for one in self._all]
        times += [one.lost_at + one.spec.hold for one in self._all if one.told is not None and one.told.ok]
        times += [concern.deadline() for concern in self._concerns]
        return min(times, default=inf)

    # -- events ----------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in one event; return the commands to carry out, in order."""
        self._out = []
        match event:
            case Run():
                self._run(event.reason, now)
            case Halt():
                self._wanted = False
                self._out.append(Look(tuple(self.checks), wanted=False))
                for concern in self._concerns:
                    concern.begin()
                for service in self._all:
                    self._occur(service, Occurrence.UNWANTED, event.reason, now)
            case Checked():
                self._checked(event, now)
            case Placed():
                self._placed = event
            case PauseChanged():
                self._pause(event.paused)
            case Forgiven():
                self._forgive(now)
            case TimerFired():
                pass
            case _:
                if event.service in self.services:
                    self._served(self.services[event.service], event, now)
        self._step(now)
        return self._out

    def configure(self, settings: SupervisionSettings, now: float) -> list[Command]:
        """Go by other checkers and rules from now on; return the commands to carry out, in order.

        What is new counts as well until it has looked: the node serves already.

        Raises:
            ValueError: More has changed than checkers and rules; nothing was done.
        """
        if (settings.services, settings.last_stays) != (self.settings.services, self.settings.last_stays):
            raise ValueError("more has changed than checkers and failover rules")
        before = {concern.resource: concern for concern in self._concerns}
        known = {*self.settings.checks, *self.settings.rules}
        self._out = []
        self._use(settings)
        for specs, concerns in ((settings.checks, self.checks), (settings.rules, self.rules)):
            for spec in specs:
                concern = concerns[spec.name]
                if spec in known:
                    concerns[spec.name] = before[concern.resource]
                else:
                    concern.trust()
        self._concerns = (*self.checks.values(), *self.rules.values())
        kept = {concern.resource for concern in self._concerns if concern.matters}
        gone = [name for name, concern in before.items() if concern.matters and name not in kept]
        self._out.extend(SetResource(name, True) for name in gone)
        self._step(now)
        return self._out

    def _run(self, reason: str, now: float) -> None:
        if self._wanted:
            return  # they run, or are about to
        self._wanted, self._taken_out = True, False
        for concern in self._concerns:
            concern.begin()
        waiting = {name for names in self._own.values() for name in names}
        free = tuple(name for name in self.checks if name not in waiting)
        if free:
            self._out.append(Look(free, wanted=True))
        for service in self._all:
            service.was_up, service.failure = False, ""
            self._occur(service, Occurrence.WANTED, reason, now)

    def _checked(self, event: Checked, now: float) -> None:
        concern = self.checks.get(event.name)
        if concern is not None:
            concern.learn(event.ok, f"{event.name}: {event.detail}", now)

    def _pause(self, paused: bool) -> None:
        if paused is not self.paused:
            self.paused = paused
            self._out.append(Tell("node.paused" if paused else "node.resumed", {}, warning=paused))

    def _forgive(self, now: float) -> None:
        self._budget.forgive()
        self._taken_out = False
        self._out.append(SaveRestarts(self._budget.times()))
        for service in self._all:
            self._occur(service, Occurrence.FORGIVEN, "an administrator starts the node", now)

    def _served(
        self, service: ServiceState, event: Started | StartFailed | Stopped | Ended, now: float
    ) -> None:
        """Take in what became of a service."""
        match event:
            case Started():
                service.ended, service.started = "", True
                self._occur(service, Occurrence.STARTED, "it runs; its checkers have yet to answer", now)
            case StartFailed():
                if service.phase is Phase.STARTING:
                    self._tell(service, "service.failed", event.reason, warning=True)
                    service.ended = f"it cannot be started: {event.reason}"
            case Ended():
                if service.phase in (Phase.CHECKING, Phase.UP, Phase.GIVEN_UP):
                    self._tell(service, "service.ended", event.reason, warning=True)
                    service.ended = f"it ended: {event.reason}"
            case Stopped():
                problem = f" ({event.problem})" if event.problem else ""
                self._occur(service, Occurrence.STOPPED, service.reason + problem, now)

    # -- after each event ------------------------------------------------------------------

    def _step(self, now: float) -> None:
        moved = True
        while moved:
            self._weigh_rules(now)
            if not self.paused:
                for service in self._all:
                    self._judge(service, now)
                self._judge_all(now)
            self._follow(now)
            # One that is up now may be what another waited for, or what something else finds bad.
            moved = sum(self._proceed(service, now) for service in self._all) > 0
        self._tell_node(now)
        if not self.paused:
            self._take_out(now)

    def _weigh_rules(self, now: float) -> None:
        results = {name: concern.ok for name, concern in self.checks.items()}
        for spec in self.settings.rules:
            holds = spec.when.value(results)
            ok = None if holds is None else not holds
            concern = self.rules[spec.name]
            if ok is False:
                detail = f"{spec.name}: {self._seen(spec)}"
            else:
                detail = ""
            before = concern.ok
            concern.learn(ok, detail, now)
            if ok is not before and ok is not None and (before is not None or not ok):
                fields = {"rule": spec.name, "ok": ok, "detail": self._seen(spec)}
                self._out.append(Tell("rule.changed", fields, warning=not ok))

    def _seen(self, rule: RuleSpec) -> str:
        """Return what the checkers of a rule say, for a person."""
        said = [(name, self.checks[name].ok) for name in sorted(rule.when.names()) if name in self.checks]
        words = {True: "up", False: "down", None: "unknown"}
        return ", ".join(f"{name} {words[ok]}" for name, ok in said)

    def _proceed(self, service: ServiceState, now: float) -> bool:
        """Let time and its checkers move a service; return whether they did."""
        before = service.phase
        if service.phase is Phase.BACKOFF and now >= service.deadline:
            self._occur(service, Occurrence.OVER, service.reason, now)
        if service.phase is Phase.QUEUED:
            missing = [name for name in service.spec.after if self.services[name].phase is not Phase.UP]
            if not missing:
                self._occur(service, Occurrence.READY, service.cause, now)
            else:
                service.reason = "waits for " + ", ".join(missing)
        if service.phase in (Phase.CHECKING, Phase.GIVEN_UP) and self._content(service):
            self._occur(service, Occurrence.ANSWERS, "its checkers are content", now)
        return service.phase is not before

    def _content(self, service: ServiceState) -> bool:
        attached = self._attached[service.spec.name]
        if service.phase is Phase.GIVEN_UP and not self._recovers(service):
            return False
        return service.started and not service.ended and all(self.checks[name].ok for name in attached)

    def _recovers(self, service: ServiceState) -> bool:
        """Whether nothing keeps a service that was given up from being up again, but for its own checkers.

        Without one of those nobody would see that it is well.
        """
        return (
            bool(self._attached[service.spec.name])
            and all(self.services[name].phase is Phase.UP for name in service.spec.after)
            and not any(self._asking(service))
            and not any(self._asking_all())
        )

    def _asking(self, service: ServiceState) -> Iterator[Concern]:
        """Yield the checkers and rules that are bad and ask for a restart of this service."""
        for specs, concerns in ((self.settings.checks, self.checks), (self.settings.rules, self.rules)):
            for spec in specs:
                concern = concerns[spec.name]
                if (
                    spec.action is Action.RESTART
                    and spec.service == service.spec.name
                    and concern.ok is False
                ):
                    yield concern

    def _asking_all(self) -> Iterator[Concern]:
        """Yield those that ask for a restart of all services."""
        for concern in self._concerns:
            if concern.action is Action.RESTART_ALL and concern.ok is False:
                yield concern

    def _judge(self, service: ServiceState, now: float) -> None:
        """See whether a service has failed, and what is to be done about it."""
        action, reason = self._failure(service, now)
        if action in RESTARTS:
            self._restart(self._all if action is Action.RESTART_ALL else (service,), reason, now)
            if service.phase is Phase.UP:  # not all may be restarted any more; but this one is down
                self._restart((service,), reason, now)
        elif action in LEAVES:
            service.failure = reason
            self._occur(service, Occurrence.EXHAUSTED, reason, now)

    def _failure(self, service: ServiceState, now: float) -> tuple[Action, str]:
        """Return what a service's own failure asks for, and why; ``NONE`` if it has not failed."""
        spec = service.spec
        if service.phase not in (Phase.STARTING, Phase.CHECKING, Phase.UP):
            return _WELL
        up = service.phase is Phase.UP
        # One that cannot be started is tried again, whatever is wanted when it ends later.
        on_exit = spec.on_exit if up or spec.on_exit in LEAVES else Action.RESTART
        if service.ended and on_exit not in (Action.NONE, Action.WAIT):
            return on_exit, service.ended
        if not up:
            if now < service.deadline:
                return _WELL
            said = [self.checks[name].detail for name in self._attached[spec.name]]
            seen = "; ".join(text for text in said if text)
            return Action.RESTART, f"not well {spec.start_timeout:g} s after its start" + (
                f": {seen}" if seen else ""
            )
        return next(((Action.RESTART, concern.detail) for concern in self._asking(service)), _WELL)

    def _judge_all(self, now: float) -> None:
        """See whether a checker or a rule wants every service restarted; not while one is under way."""
        if any(service.phase is not Phase.UP for service in self._all):
            return
        for concern in self._asking_all():
            self._restart(self._all, concern.detail, now)
            return

    def _restart(self, targets: Iterable[ServiceState], reason: str, now: float) -> None:
        """Restart these services, or give up those that may not be restarted any more."""
        running = [one for one in targets if one.phase in (Phase.STARTING, Phase.CHECKING, Phase.UP)]
        spent = [one for one in running if not self._budget.left(one.spec.name, now)]
        for service in spent:
            spec = service.spec
            said = (
                f"restarted {spec.max_restarts} times in {_span(spec.within)}"
                if spec.max_restarts
                else ("no restart is allowed")
            )
            service.failure = f"{reason} ({said})"
            self._occur(service, Occurrence.EXHAUSTED, service.failure, now)
        for service in running if not spent else ():
            service.failure = reason
            self._occur(service, Occurrence.FAILS, reason, now)

    def _follow(self, now: float) -> None:
        """Let services follow those that they need; stop what is to be stopped, in the right order."""
        changed = True
        while changed:
            changed = False
            for name, service in self.services.items():
                if service.phase in (Phase.RESTARTING, Phase.BACKOFF, Phase.STOPPING, Phase.STOPPED):
                    for other in map(self.services.get, self._needed_by[name]):
                        if other is not None and other.phase in (Phase.STARTING, Phase.CHECKING, Phase.UP):
                            what = Occurrence.UNSETTLED if self._wanted else Occurrence.UNWANTED
                            self._occur(other, what, f"{name}, which it needs, is down", now)
                            changed = True
        for name, service in self.services.items():
            busy = any(self.services[other].phase in _BUSY for other in self._needed_by[name])
            if service.stop_due and not busy:
                service.stop_due = False
                self._out.append(Stop(name, service.reason))

    # -- what follows ----------------------------------------------------------------------

    def _occur(self, service: ServiceState, what: Occurrence, reason: str, now: float) -> None:
        """Let something happen to a service; what follows stands in the table."""
        transition = TRANSITIONS.get((service.phase, what))
        if transition is None:
            return
        before, name = service.phase, service.spec.name
        if before is Phase.UP:
            if now - service.since > service.spec.longest_backoff:
                self._budget.well(name)
            service.lost_at = now
        service.phase, service.reason, service.since = transition.to, reason, now
        fields: dict[str, object] = {}
        service.deadline = inf
        service.pause = 0.0 if transition.to is not Phase.BACKOFF else service.pause
        for step in transition.steps:
            match step:
                case Step.COUNT:
                    service.pause = self._budget.spend(name, now)
                    used = self._budget.used(name, now)
                    fields = {
                        "attempt": used,
                        "of": service.spec.max_restarts,
                        "within_s": service.spec.within,
                    }
                    self._out.append(SaveRestarts(self._budget.times()))
                case Step.STOP:
                    service.stop_due = True
                    self._look(self._own[name], wanted=False, now=now)
                case Step.START:
                    service.ended, service.started = "", False
                    self._out.append(Start(name, reason))
                case Step.LOOK:
                    self._look(self._looks[name], wanted=True, now=now)
                case Step.GIVE_UP:
                    self._look(self._own[name], wanted=True, now=now)
        self._enter(service, now)
        if transition.to in _TOLD:
            warning = transition.to in (Phase.RESTARTING, Phase.GIVEN_UP) and bool(transition.steps)
            self._tell(service, _TOLD[transition.to], reason, warning=warning, **fields)

    def _enter(self, service: ServiceState, now: float) -> None:
        match service.phase:
            case Phase.UP:
                service.was_up, service.lost_at, service.failure = True, inf, ""
            case Phase.STARTING | Phase.CHECKING:
                if service.phase is Phase.STARTING:
                    service.started_at = now
                service.deadline = service.started_at + service.spec.start_timeout
            case Phase.BACKOFF:
                service.deadline = now + service.pause
            case Phase.QUEUED:
                service.cause = service.reason
            case Phase.STOPPING | Phase.STOPPED:
                service.ended = ""
                service.was_up = False
            case _:
                pass

    def _look(self, names: tuple[str, ...], *, wanted: bool, now: float) -> None:
        for name in names:
            self.checks[name].learn(None, "", now)
        if names:
            self._out.append(Look(names, wanted))

    def _tell(
        self, service: ServiceState, event: str, reason: str, *, warning: bool = False, **fields: object
    ) -> None:
        self._out.append(Tell(event, {"service": service.spec.name, "reason": reason, **fields}, warning))

    # -- the node --------------------------------------------------------------------------

    def _tell_node(self, now: float) -> None:
        """Tell the protocol's state machine what is there and what is not."""
        for service in self._all:
            said = self._resource(service, now)
            if said != service.told:
                service.told = said
                self._out.append(said)
        for concern in self._concerns:
            self._out.extend(concern.news(now, paused=self.paused))

    def _resource(self, service: ServiceState, now: float) -> SetResource:
        """Return what a service means for the node."""
        name, reason = service.resource, f"{service.spec.name}: {service.reason}"
        if not service.was_up:
            said = f"{service.spec.name}: {service.failure}"
            return SetResource(name, False, said) if service.failure else SetResource(name, None)
        dead = service.phase is Phase.UP and service.ended and service.spec.on_exit is Action.WAIT
        held = service.phase is not Phase.GIVEN_UP and now < service.lost_at + service.spec.hold
        unsaid = self.paused and service.told is not None and service.told.ok
        if unsaid or (held and not dead):
            return SetResource(name, True)
        if dead:
            reason = f"{service.spec.name}: {service.ended}"
        return SetResource(name, False, reason, Fitness.DOWN if self.settings.last_stays else None)

    def _take_out(self, now: float) -> None:
        """Take the node out when something asks for it and another node has its clients."""
        action, reason = Action.NONE, ""
        for concern in self._concerns:
            if concern.action in LEAVES and concern.confirmed(now):
                action, reason = concern.action, concern.detail
        for service in self._all:
            if service.phase is Phase.GIVEN_UP:
                drains = service.ended and service.spec.on_exit is Action.DRAIN
                action = Action.DRAIN if drains else Action.STOP
                reason = f"{service.spec.name}: {service.reason}"
        self._asked = TakeOut(action, reason) if action is not Action.NONE else None
        if self._asked is None or not self.wants_out:
            return
        if self.settings.last_stays and (self._placed.serving or not self._placed.others):
            return
        self._taken_out = True
        self._out.append(Tell("node.taken_out", {"action": action.value, "reason": reason}, warning=True))
        self._out.append(self._asked)


def _span(seconds: float) -> str:
    """Return a length of time for a person."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size and not seconds % size and (unit != "d" or seconds > size):
            return f"{seconds // size:g} {unit}"
    return f"{seconds:g} s"
