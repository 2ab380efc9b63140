"""What one simulated host has of applications: services that run, things that are down, what is persisted.

It is there whether or not a node's process is: a service may outlive it, a machine's crash ends all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING

from nlbfarm.core.supervision import Action
from nlbfarm.core.supervision.model import Ended, Event, Started, StartFailed, Stopped
from nlbfarm.testing.applications.model import Applications, CheckPlan, ServicePlan

if TYPE_CHECKING:
    from nlbfarm.testing.world import World

__all__ = ["HostApplications", "SimulatedService"]

NOTICED_S = 0.1
"""How long it takes, at most, until the end of a service is noticed."""

FOUND_S = (NOTICED_S, 1.0)
"""How long it takes until a service is found to run that ended and was started by hand."""

AT_HAND_S = 0.001
"""How long it takes to find that a service runs already."""

UNSTOPPABLE = 0.05
"""Share of the stops that leave something running."""

Told = Callable[[Event], None]


class SimulatedService:
    """A service on one host.

    Args:
        world: Whose time and chance it lives by.
        plan: How it behaves.
    """

    def __init__(self, world: World, plan: ServicePlan) -> None:
        self.plan = plan
        self.running = False
        self.ill = ""
        """``broken``: it cannot be started; ``silent``: it does not answer; until it is mended."""
        self.busy = False
        """A start or a stop is under way that will come to an end."""
        self.answers_from = inf
        """When it answers, as it runs now; infinity: it hangs."""
        self._world = world
        self._wish = 0
        """Rises with each start and stop that is wanted: an earlier one is void."""
        self._life = 0
        """Rises when it begins and ends to run."""
        self._watcher: Told | None = None
        self._watched = False
        """Whether its node has been told that it runs, and hears of its end."""
        self._stopping = False

    def answers(self) -> bool:
        """Whether it does what it is there for, if what it needs does."""
        return self.running and self.ill != "silent" and self._world.now >= self.answers_from

    # -- what its node's process wants -----------------------------------------------------

    def start(self, told: Told) -> None:
        """Start it, if it does not run; ``told`` hears how that ends, and later when the service does."""
        rng, plan, wild = self._world.random, self.plan, self._world.wild
        self._want(told)
        if self.running:
            self._after(AT_HAND_S, self._started)
            return
        if wild and rng.random() < plan.hangs / 2:
            return  # until it is stopped
        shortest, longest = plan.start_s
        if not wild:
            longest = min(longest, 0.4 * plan.spec.start_timeout)
        failed = self.ill == "broken" or (wild and rng.random() < plan.fails)
        took = rng.uniform(min(shortest, longest), longest)
        self._after(took, self._failed if failed else self._started)

    def stop(self, told: Told) -> None:
        """Stop it, also while it is being started; ``told`` hears when that is done."""
        self._want(None)
        self._stopping = True
        self._after(self.plan.stop_s * self._world.random.random(), self._stopped, told)

    def _want(self, watcher: Told | None) -> None:
        self._wish += 1
        self._watcher = watcher
        self._stopping = self._watched = self.busy = False

    def _after(self, seconds: float, then: Callable[..., None], *arguments: object) -> None:
        self.busy = True
        self._world.at(self._world.now + seconds, self._due, self._wish, then, arguments)

    def _due(self, wish: int, then: Callable[..., None], arguments: tuple[object, ...]) -> None:
        if wish == self._wish:
            self.busy = False
            then(*arguments)

    def _started(self) -> None:
        if not self.running:
            self.begin()
        self._watched = True
        if self._watcher is not None:
            self._watcher(Started(self.plan.spec.name))

    def _failed(self) -> None:
        if self.running:
            self._started()
        elif self._watcher is not None:
            self._watcher(StartFailed(self.plan.spec.name, "exit code 1 from its start"))

    def _stopped(self, told: Told) -> None:
        self._stopping = False
        problem = ""
        if self.running and self._world.wild and self._world.random.random() < UNSTOPPABLE:
            problem = "process 4711 does not end"
        else:
            self._over()
        told(Stopped(self.plan.spec.name, problem))

    # -- what becomes of it ----------------------------------------------------------------

    def begin(self) -> None:
        """It runs from now on."""
        rng, plan, wild = self._world.random, self.plan, self._world.wild
        self.running = True
        self._life += 1
        warm = plan.warm_s if wild else min(plan.warm_s, 0.3 * plan.spec.start_timeout)
        hangs = wild and rng.random() < plan.hangs / 2
        self.answers_from = inf if hangs else self._world.now + warm * rng.random()
        if plan.lives_s and wild:
            self._world.at(self._world.now + rng.expovariate(1 / plan.lives_s), self._worn_out, self._life)

    def by_hand(self) -> None:
        """An administrator starts it beside its node, which finds that out if it looks at it."""
        if not self.running and self.ill != "broken":
            self.begin()
            self._tell(Started(self.plan.spec.name), FOUND_S)

    def end(self, reason: str) -> None:
        """It ends by itself."""
        if self.running:
            self._over()
            self._tell(Ended(self.plan.spec.name, reason), (0.0, NOTICED_S))

    def mend(self) -> None:
        """Nothing is wrong with it any more; if it is left to the administrator, it is started by hand."""
        self.ill = ""
        if self.running:
            self.answers_from = min(self.answers_from, self._world.now)
        elif self._watched and self.plan.spec.on_exit in (Action.NONE, Action.WAIT):
            self.by_hand()

    def hang(self) -> None:
        """It does not answer any more, until it is started anew."""
        self.answers_from = inf

    def _tell(self, event: Event, late_s: tuple[float, float]) -> None:
        if self._watcher is not None and self._watched:
            late = self._world.random.uniform(*late_s)
            self._world.at(self._world.now + late, self._noticed, self._wish, self._watcher, event)

    def _noticed(self, wish: int, watcher: Told, event: Event) -> None:
        if wish == self._wish and (self.running or type(event) is Ended):
            watcher(event)

    def _worn_out(self, life: int) -> None:
        if life == self._life and self._world.wild:
            self.end("exit code 139")

    def _over(self) -> None:
        self.running = False
        self._life += 1
        self.answers_from = inf

    # -- what becomes of its node ----------------------------------------------------------

    def left(self, *, killed: bool) -> None:
        """The process that started it is gone; a stop that was under way goes to its end."""
        if self._stopping or (killed and not self.plan.stays):
            self._over()
        self._want(None)

    def crash(self) -> None:
        """The machine is gone."""
        self._want(None)
        self._over()


class HostApplications:
    """All of it on one host.

    Args:
        world: The simulated farm.
        plan: What is supervised.
    """

    def __init__(self, world: World, plan: Applications) -> None:
        self.plan = plan
        self.services = {one.spec.name: SimulatedService(world, one) for one in plan.services}
        self.down: set[str] = set()
        """Checkers that see something down which is not their service."""
        self.restarts: Mapping[str, tuple[float, ...]] = {}
        """When services were restarted, on the host's clock: persisted."""
        self.counted: dict[str, list[float]] = {name: [] for name in self.services}
        """The same, as it was seen from outside."""
        self.paused = False
        """Whether maintenance goes on: persisted."""
        self.taken_out = False
        """Whether it was the node itself that wanted to drain or stop: persisted."""
        self._needs = {one.spec.name: one.spec.after for one in plan.services}

    def left(self, *, killed: bool) -> None:
        """The node's process is gone."""
        for service in self.services.values():
            service.left(killed=killed)

    def crash(self) -> None:
        """The machine is gone."""
        for service in self.services.values():
            service.crash()

    def sees(self, check: CheckPlan) -> bool:
        """Return what a look at this moment should find."""
        name = check.spec.name
        if name in self.down:
            return False
        service = check.spec.service
        if service is None:
            return True
        seen = self._below(service) if check.deep else {service}
        return all(self.services[one].answers() for one in seen)

    def _below(self, service: str) -> set[str]:
        found = {service}
        for name in self._needs[service]:
            found |= self._below(name)
        return found
