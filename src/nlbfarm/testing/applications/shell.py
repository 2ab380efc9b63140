"""One process's supervision: the real state machine, and a shell that does what the real one does.

The real one is ``nlbfarm.runtime.supervising`` with ``nlbfarm.runtime.administration``; here services,
checkers and the virtual IPs are simulated, and every answer is handled in a turn of the process's
loop, which may be late or frozen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from nlbfarm.core.events import AdminChanged, ResourceChanged
from nlbfarm.core.health import Health
from nlbfarm.core.settings import Admin
from nlbfarm.core.supervision import Action, Supervision
from nlbfarm.core.supervision.model import (
    Checked,
    Command,
    Event,
    Forgiven,
    Halt,
    Look,
    PauseChanged,
    Run,
    SaveRestarts,
    SetResource,
    Start,
    Stop,
    TakeOut,
    Tell,
    TimerFired,
)
from nlbfarm.core.supervision.placing import placed
from nlbfarm.core.supervision.table import Phase
from nlbfarm.testing.applications.ledger import Ledger
from nlbfarm.testing.applications.model import CheckPlan

if TYPE_CHECKING:
    from nlbfarm.testing.applications.host import HostApplications
    from nlbfarm.testing.hosts import SimulatedHost
    from nlbfarm.testing.world import World

__all__ = ["SupervisedProcess"]

LOOK_S = (0.001, 0.02)
"""How long a look takes."""

QUICK_S = 0.1
"""What was just started is looked at this often, or at its interval if that is shorter."""

AGAIN = 0.05
"""Share of the looks after which a checker says again what it has said, with another detail."""

VIPS_UP_S, VIPS_DOWN_S = 0.1, 0.05
"""How long virtual IPs take, at most: services run when they are there, and stop when they are gone."""


@dataclass(slots=True)
class _Look:
    """A checker at work; ``turn`` rises whenever it begins anew, or ends."""

    health: Health | None = None
    was_well: bool = False
    turn: int = 0


class SupervisedProcess:
    """The supervision of one life of a node's process.

    Args:
        farm: The simulated farm.
        host: Where it runs.
        apps: What is there.
    """

    def __init__(self, farm: World, host: SimulatedHost, apps: HostApplications) -> None:
        self.host = host
        self.apps = apps
        self.machine = Supervision(
            apps.plan.settings(f"node{host.node_id}"), apps.restarts, paused=apps.paused
        )
        self.ledger = Ledger(apps.plan)
        self.waiting = 0
        """So many changes of the virtual IPs come to an end by themselves."""
        self._farm = farm
        self._life = host.life
        self._plans = {plan.spec.name: plan for plan in apps.plan.checks}
        self._looks = {name: _Look() for name in self._plans}
        self._inbox: deque[Event] = deque()
        self._handling = False
        self._armed = inf
        self._told_placed = placed(None)
        self._wanted = False
        """Whether the services are to run."""
        self._wish = False
        """Whether they have yet to be told so: when the virtual IPs are there."""
        self._halted = False
        self._lowering = False
        self._ended: Callable[[], None] | None = None

    # -- life ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to look after the services, unless the node is stopped."""
        self.apps.taken_out &= self.host.admin is not Admin.RUN
        if self.host.admin is not Admin.STOP:
            self._run()

    def end(self, then: Callable[[], None]) -> None:
        """Stop the services, since the node has left; call ``then`` when they are."""
        self._ended = then
        self._wanted = self._wish = False
        self.do(Halt("the node ends"))

    def halted(self) -> None:
        """Take note that the node has left: its virtual IPs go, then its services."""
        self._halted = self._lowering = True
        self._later(VIPS_DOWN_S, self._lowered)

    def _lowered(self) -> None:
        self._lowering = self._wanted = self._wish = False
        self.do(Halt("the node is stopped"))
        if not self._halted:  # it was started meanwhile
            self._run()

    def _run(self) -> None:
        if not self._wanted and not self._lowering and self._ended is None:
            self._wanted = self._wish = True
            self._later(VIPS_UP_S, self._vips_up)

    def _vips_up(self) -> None:
        if self._wish:
            self._wish = False
            self.do(Run("the node starts"))

    def order(self, admin: Admin, *, at_once: bool) -> None:
        """Do what an administrator wants."""
        host = self.host
        host.admin, host.admin_reason = admin, ""
        self.apps.taken_out = False
        if admin is Admin.RUN:
            self.maintenance(on=False)
            self.do(Forgiven())
        self._farm.handle(host, AdminChanged(admin, at_once))
        if admin is not Admin.STOP:
            self._halted = False
            self._run()

    def maintenance(self, *, on: bool) -> None:
        """Begin or end a maintenance."""
        if self.apps.paused is not on:
            self.apps.paused = on
            self.do(PauseChanged(on))

    def _later(self, longest: float, act: Callable[[], None]) -> None:
        """Do something in a turn of the loop, after some time."""
        self.waiting += 1

        def done() -> None:
            self.waiting -= 1
            act()

        self._at(self._farm.now + longest * self._farm.random.random(), done)

    def _at(self, when: float, act: Callable[[], None]) -> None:
        self._farm.at(when, self._farm.turn, self.host, act, self._life)

    # -- the machine -----------------------------------------------------------------------

    def do(self, event: Event) -> None:
        """Feed the state machine and do what it says; what follows from that comes after it."""
        self._inbox.append(event)
        if self._handling:
            return
        self._handling = True
        while self._inbox and self.host.life == self._life:
            self._handle(self._inbox.popleft())
        self._handling = False
        if self.host.life == self._life:
            self._arm()
            if self._ended is not None and self.machine.halted:
                self._ended()

    def turned(self) -> None:
        """Look where the clients are now, if that matters; called after every turn of the protocol."""
        if self.machine.wants_out and self._told_placed != placed(self.host.core):
            self.do(TimerFired())

    def _handle(self, event: Event) -> None:
        now = self.host.clock.local(self._farm.now)
        self._told_placed = placed(self.host.core)
        wanted: list[Command] = []
        for told in (self._told_placed, event):
            wanted += self._farm.applications.feed(self, told, now)
        for command in wanted:
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        farm, host = self._farm, self.host
        match command:
            case Start():
                farm.tell(host.node_id, "start.service", service=command.service, reason=command.reason)
                self.apps.services[command.service].start(self._told)
            case Stop():
                farm.tell(host.node_id, "stop.service", service=command.service, reason=command.reason)
                self.apps.services[command.service].stop(self._told)
            case Look():
                for name in command.checkers:
                    self._look_anew(name, wanted=command.wanted)
            case SetResource():
                fields = command.name, command.ok, command.reason, command.fitness
                farm.handle(host, ResourceChanged(*fields))
            case SaveRestarts():
                self.apps.restarts = dict(command.times)
            case TakeOut():
                self._take_out(command)
            case Tell():
                farm.tell(host.node_id, command.event, **command.fields)

    def _take_out(self, command: TakeOut) -> None:
        """Drain or stop the node, in this very turn: in the next one others may have lost its clients."""
        host = self.host
        if host.admin is not Admin.RUN:
            return  # an administrator wants something else
        host.admin = Admin.DRAIN if command.action is Action.DRAIN else Admin.STOP
        host.admin_reason = command.reason
        self.apps.taken_out = True
        self._farm.applications.takes_itself_out(self)
        self._farm.handle(host, AdminChanged(host.admin, reason=command.reason))

    def _told(self, event: Event) -> None:
        """A service has something to say; it waits for the loop, as everything does."""
        self._farm.turn(self.host, partial(self.do, event), self._life)

    # -- time ------------------------------------------------------------------------------

    def _arm(self) -> None:
        due = self.machine.timer()
        if due != inf:
            when = max(self.host.clock.when(due), self._farm.now)
            if when < self._armed:
                self._armed = when
                self._at(when, partial(self._fire, when))

    def _fire(self, when: float) -> None:
        if self._armed == when:
            self._armed = inf
            if self.host.clock.visit(self.machine.timer(), self._farm.now):
                self.do(TimerFired())
            else:
                self._arm()

    # -- checkers --------------------------------------------------------------------------

    def _look_anew(self, name: str, *, wanted: bool) -> None:
        look, plan = self._looks[name], self._plans[name]
        look.turn += 1
        look.was_well = False
        look.health = Health(plan.rise, plan.fall) if wanted else None
        if wanted:
            self._look_in(0.0, plan, look)

    def _look_in(self, seconds: float, plan: CheckPlan, look: _Look) -> None:
        took = self._farm.random.uniform(*LOOK_S)
        self._at(self._farm.now + seconds + took, partial(self._look, plan, look, look.turn))

    def _look(self, plan: CheckPlan, look: _Look, turn: int) -> None:
        if look.turn != turn or look.health is None:
            return
        rng, name = self._farm.random, plan.spec.name
        ok = self.apps.sees(plan)
        if self._farm.wild and rng.random() < plan.noise:
            ok = not ok
        changed = look.health.observe(ok)
        look.was_well |= changed is True
        interval = plan.interval if look.was_well else min(plan.interval, QUICK_S)
        self._look_in(interval, plan, look)
        said = look.health.healthy
        if said is not None and (changed is not None or (self._farm.wild and rng.random() < AGAIN)):
            self.do(Checked(name, said, f"look {rng.randint(1, 3)} found it so"))

    # -- when all is quiet -----------------------------------------------------------------

    def restless(self) -> str:
        """Return what is not quiet yet; empty if nothing will happen by itself."""
        if self.waiting or self._inbox or self._ended is not None:
            return "virtual IPs are awaited"
        for name, service in self.apps.services.items():
            if service.busy:
                return f"{name} is being started or stopped"
            if service.running and self._farm.now < service.answers_from < inf:
                return f"{name} does not answer yet"
        for name, look in self._looks.items():
            if look.health is not None and look.health.healthy is not self.apps.sees(self._plans[name]):
                return f"checker {name} has yet to see what is there"
        if self.machine.timer() < inf:
            phases = ", ".join(f"{name} {one.phase}" for name, one in self.machine.services.items())
            return f"a timer runs (services: {phases or 'none'})"
        if not self.apps.paused and any(
            service.phase not in (Phase.UP, Phase.STOPPED, Phase.GIVEN_UP, Phase.QUEUED)
            for service in self.machine.services.values()
        ):
            return "a service is neither up nor given up"
        return ""
