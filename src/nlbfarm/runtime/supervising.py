"""The shell of ``nlbfarm.core.supervision``: services are started and stopped, restarts remembered."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING

from nlbfarm.core.events import Event as NodeEvent
from nlbfarm.core.events import ResourceChanged
from nlbfarm.core.supervision import Action, CheckSpec, RuleSpec, Supervision, SupervisionSettings
from nlbfarm.core.supervision.model import (
    Checked,
    Command,
    Ended,
    Event,
    Forgiven,
    Halt,
    Look,
    PauseChanged,
    Placed,
    Run,
    SaveRestarts,
    SetResource,
    Start,
    Started,
    StartFailed,
    Stop,
    Stopped,
    TakeOut,
    Tell,
    TimerFired,
)
from nlbfarm.core.supervision.placing import placed
from nlbfarm.errors import HostError, NlbfarmError
from nlbfarm.events import EventLog
from nlbfarm.interfaces import Clock
from nlbfarm.parts import Check, Supervised
from nlbfarm.restarts import Restarts
from nlbfarm.runtime.checking import Checking

if TYPE_CHECKING:
    from nlbfarm.core.node import Node

__all__ = ["Supervising"]

STOP_SLACK_S = 30.0
"""What stops a service has so much longer than the service itself: then it is taken for hung."""

LOOK_S = 1.0
"""How often a service that has ended during a maintenance is looked for."""


class Supervising:
    """Looks after the services of one node.

    Args:
        services, checks, rules: What there is.
        settings: ``SupervisionSettings`` made of them is what the state machine is told.
        restarts: Where restarts are counted.
        node: Returns the state machine of the protocol; ``None`` before there is one.
        handle: Where its events go.
        take_out: Drains or stops this node, for a reason.
        spawn: Starts a task of the node.
        clock: The present.
        log: Of the node.
    """

    def __init__(
        self,
        services: Sequence[Supervised],
        checks: Sequence[Check],
        rules: Sequence[RuleSpec],
        *,
        last_stays: bool,
        salt: str,
        restarts: Restarts,
        node: Callable[[], Node | None],
        handle: Callable[[NodeEvent], None],
        take_out: Callable[[Action, str], None],
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        clock: Clock,
        log: EventLog,
    ) -> None:
        self.services = {one.spec.name: one for one in services}
        self.checking = Checking(checks, self._checked, spawn, log)
        self._last_stays = last_stays
        self._salt = salt
        self._settings = self._settings_of(checks, rules)
        self._machine = Supervision(self._settings)
        self._restarts = restarts
        self._node = node
        self._handle = handle
        self._take_out = take_out
        self._spawn = spawn
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._log = log
        self._timer: asyncio.TimerHandle | None = None
        self._wish = ""
        """Why the services are to run as soon as the virtual IPs are there; empty: they are not, or do."""
        self._vips_up = False
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._saving: asyncio.Task[None] | None = None
        self._save: SaveRestarts | None = None
        self._changed = asyncio.Event()
        self._events: deque[Event] = deque()
        self._following = False
        self._told = Placed(serving=False, others=False)

    def _settings_of(self, checks: Sequence[Check], rules: Sequence[RuleSpec]) -> SupervisionSettings:
        return SupervisionSettings(
            services=tuple(one.spec for one in self.services.values()),
            checks=tuple(CheckSpec(one.name, one.action, one.service, one.confirm) for one in checks),
            rules=tuple(rules),
            last_stays=self._last_stays,
            salt=self._salt,
        )

    @property
    def machine(self) -> Supervision:
        """The state machine, to be read."""
        return self._machine

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of the resources that the core waits for."""
        return self._machine.resources

    # -- life ------------------------------------------------------------------------------

    def open(self, *, paused: bool, run: bool) -> None:
        """Take up what earlier lives left; with ``run`` the services run as soon as the VIPs are there.

        Raises:
            HostError: What was saved cannot be read.
        """
        times = self._restarts.read(self._clock)
        self._machine = Supervision(self._settings, times, paused=paused)
        if run:
            self.run("the node starts")

    def run(self, reason: str) -> None:
        """Let the services run, as soon as the virtual IPs are there: some listen on those alone."""
        self._wish = reason
        self._fulfil()

    def vips_changed(self, up: bool) -> None:
        """Take note that the virtual IPs are there, or no longer."""
        self._vips_up = up
        self._fulfil()

    def _fulfil(self) -> None:
        if self._wish and self._vips_up:
            reason, self._wish = self._wish, ""
            self.do(Run(reason))

    def halt(self, reason: str) -> None:
        """Stop the services: the node has left, and its virtual IPs are gone."""
        self._wish = ""
        self.do(Halt(reason))

    def forgive(self) -> None:
        """Count restarts anew."""
        self.do(Forgiven())

    def pause(self, paused: bool) -> None:
        """Begin or end a maintenance."""
        self.do(PauseChanged(paused))

    async def reconfigure(self, checks: Sequence[Check], rules: Sequence[RuleSpec]) -> None:
        """Go by other checkers and rules; the services stay."""
        self._settings = self._settings_of(checks, rules)
        self._follow(self._machine.configure(self._settings, self._clock.monotonic()))
        await self.checking.replace(checks)

    async def close(self, *, stop: bool) -> None:
        """End: stop the services in their order, or leave them to the process that follows (``stop``).

        Tries everything before it raises the first error.
        """
        errors: list[Exception] = []
        if stop and self.services:
            self.halt("the node ends")
            await self._halted()
        if self._timer is not None:
            self._timer.cancel()
        for task in (*self._starting.values(), *self._watching.values()):
            task.cancel()
        await asyncio.gather(*self._starting.values(), *self._watching.values(), return_exceptions=True)
        if self._saving is not None:
            await self._saving
        for closer in (self.checking.close, *(one.service.close for one in self.services.values())):
            try:
                await closer()
            except Exception as error:  # noqa: BLE001 - every part gets its turn; raised below
                errors.append(error)
        if errors:
            raise errors[0]

    async def _halted(self) -> None:
        while not self._machine.halted:
            self._changed.clear()
            await self._changed.wait()

    # -- the machine -----------------------------------------------------------------------

    def do(self, event: Event) -> None:
        """Feed the state machine and do what it says."""
        self._events.append(event)
        self._follow(())

    def _follow(self, commands: Iterable[Command]) -> None:
        """Carry out ``commands``, then take in what has happened since, one event after the other.

        What a command leads to (the protocol's machine takes a turn, and asks back) waits until those before
        it are carried out.
        """
        if self._following:
            return
        self._following = True
        try:
            for command in commands:
                self._carry_out(command)
            while self._events:
                # Where the clients are is asked of the protocol each time: old news could take this node out.
                self._told = placed(self._node())
                now = self._clock.monotonic()
                found = self._machine.handle(self._told, now)
                found += self._machine.handle(self._events.popleft(), now)
                for command in found:
                    self._carry_out(command)
        finally:
            self._following = False
        self._changed.set()
        self._arm()

    def turned(self) -> None:
        """Look where the clients are now, if that matters; called after every turn of the protocol."""
        if self._machine.wants_out and self._told != placed(self._node()):
            self.do(TimerFired())

    def _arm(self) -> None:
        due = self._machine.timer()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due != inf:
            self._timer = self._loop.call_at(due, self.do, TimerFired())

    def _checked(self, name: str, ok: bool, detail: str) -> None:
        self.do(Checked(name, ok, detail))

    def _carry_out(self, command: Command) -> None:
        match command:
            case Start():
                self._starting[command.service] = self._spawn(self._start(command))
            case Stop():
                self._spawn(self._stop(command))
            case Look():
                self.checking.look(command.checkers, wanted=command.wanted)
            case SetResource():
                self._handle(ResourceChanged(command.name, command.ok, command.reason, command.fitness))
            case SaveRestarts():
                self._save = command
                if self._saving is None or self._saving.done():
                    self._saving = self._spawn(self._write())
            case TakeOut():
                self._take_out(command.action, command.reason)
            case Tell():
                log = self._log.warning if command.warning else self._log.info
                log(command.event, **command.fields)

    # -- services --------------------------------------------------------------------------

    async def _start(self, command: Start) -> None:
        name, service = command.service, self.services[command.service].service
        await self._saved()
        try:
            await service.start(command.reason)
        except NlbfarmError as error:
            self.do(StartFailed(name, str(error)))
            return
        except Exception as error:  # noqa: BLE001 - a plug-in's fault is a failed start, not our end
            self._log.exception("service.fault", service=name)
            self.do(StartFailed(name, f"what starts it failed: {type(error).__name__}: {error}"))
            return
        self._watching[name] = self._spawn(self._watch(name))
        self.do(Started(name))

    async def _stop(self, command: Stop) -> None:
        name, service = command.service, self.services[command.service].service
        for tasks in (self._starting, self._watching):
            task = tasks.pop(name, None)
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._saved()
        problem = ""
        patience = self.services[name].stop_timeout + STOP_SLACK_S
        try:
            async with asyncio.timeout(patience):
                await service.stop(command.reason)
        except TimeoutError:
            problem = f"it has not been stopped after {patience:g} s"
        except NlbfarmError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - a plug-in's fault; the service is tried again or given up
            self._log.exception("service.fault", service=name)
            problem = f"what stops it failed: {type(error).__name__}: {error}"
        if problem:
            self._log.warning("service.not_stopped", service=name, reason=problem)
        self.do(Stopped(name, problem))

    async def _watch(self, name: str) -> None:
        """Wait for the end of a service, and tell; one that is run again by hand is taken note of."""
        service = self.services[name].service
        while True:
            try:
                reason = await service.ended()
            except NlbfarmError as error:
                reason = str(error)
            except Exception as error:  # noqa: BLE001 - a plug-in's fault: it may run, but nobody would see its end
                self._log.exception("service.fault", service=name)
                reason = f"what watches it failed: {type(error).__name__}: {error}"
            self.do(Ended(name, reason))
            # Whoever restarts it cancels this task; in a maintenance an administrator may start it.
            while True:
                await asyncio.sleep(LOOK_S)
                with contextlib.suppress(NlbfarmError):
                    if (await service.running()).ok:
                        break
            self.do(Started(name))

    # -- restarts --------------------------------------------------------------------------

    async def _write(self) -> None:
        while self._save is not None:
            times, self._save = self._save.times, None
            try:
                await asyncio.to_thread(self._restarts.save, times, self._clock)
            except HostError as error:  # the count holds as long as this process lives
                self._log.warning("restarts.not_saved", error=str(error))

    async def _saved(self) -> None:
        """Return when what is to be remembered is: a restart that is not counted would be one too many."""
        if self._saving is not None:
            await asyncio.shield(self._saving)
