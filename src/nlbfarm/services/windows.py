"""A service of Windows as a service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import structlog

from nlbfarm.errors import HostError
from nlbfarm.interfaces import CheckResult, Service, ServiceContext
from nlbfarm.services.scm import Scm, ScmError, State, Status, windows_scm

__all__ = ["WindowsService"]

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.02, 0.5
_LOOK_S = 0.5  # nobody tells when a service has ended
_KILLED_S = 10.0

_ALREADY_RUNNING, _MISSING, _CANNOT_ACCEPT, _NOT_ACTIVE = 1056, 1060, 1061, 1062  # winerror.h
_REMEDIES = {
    5: "run nlbfarm as an administrator, or as LocalSystem",
    1053: "it did not report in time that it starts; see the event log",
    1058: "it is disabled; sc.exe config NAME start= demand",
    _MISSING: "this host has no such service; see sc.exe query",
    1068: "a service that it needs does not start; see the event log",
    1069: "its account cannot log on; check the password in services.msc",
}

T = TypeVar("T")

_log = structlog.get_logger("nlbfarm.service")


class WindowsService(Service):
    """Starts and stops a service of Windows.

    Services that depend on it are stopped before it, and started again after its next start. A stop that
    takes longer than ``stop_timeout`` becomes the end of its process, if no other service is in that.

    Args:
        context: Where it runs.
        name: Its name, not the one that is displayed: ``"W3SVC"``.
        stop_timeout: Seconds.
        scm: The service control manager; this host's, if none is given.
    """

    def __init__(
        self, context: ServiceContext, *, name: str, stop_timeout: float = 30.0, scm: Scm | None = None
    ) -> None:
        self._context = context
        self._name = name
        self._stop_timeout = stop_timeout
        self._given = scm
        self._dependents: list[str] = []

    @classmethod
    def from_config(cls, config: Any, context: ServiceContext) -> WindowsService:
        """Return the service for an entry with ``windows``."""
        return cls(context, name=config.windows, stop_timeout=config.stop_timeout.total_seconds())

    @property
    def _scm(self) -> Scm:
        if self._given is None:
            self._given = windows_scm()
        return self._given

    async def start(self, reason: str) -> None:
        try:
            await self._start(self._name)
        except ScmError as error:
            raise self._refused("started", error) from error
        while self._dependents:
            name = self._dependents.pop()
            try:
                await self._start(name)
            except (
                ScmError,
                HostError,
            ) as error:  # it is another one's, and no reason to do without this one
                _log.warning("service.dependent", service=self._context.service, name=name, error=str(error))

    async def stop(self, reason: str) -> None:
        try:
            dependents = [] if await self._state() is State.STOPPED else await self._dependents_of()
            for name in dependents:
                await self._stop(name)
                self._dependents.append(name)
            await self._stop(self._name)
        except ScmError as error:
            if error.code == _MISSING:
                return
            raise self._refused("stopped", error) from error

    async def running(self) -> CheckResult:
        try:
            status = await self._ask(self._scm.status, self._name)
        except (ScmError, HostError) as error:
            return CheckResult(False, f"{self._name}: {error}")
        return CheckResult(status.state is State.RUNNING, _words(self._name, status))

    async def ended(self) -> str:
        while True:
            with contextlib.suppress(
                ScmError, HostError
            ):  # that we cannot ask does not mean that it has ended
                status = await self._ask(self._scm.status, self._name)
                if status.state is State.STOPPED:
                    return _words(self._name, status)
            await asyncio.sleep(_LOOK_S)

    async def pids(self) -> Sequence[int]:
        """Return the id of its process, for who watches what that uses."""
        try:
            status = await self._ask(self._scm.status, self._name)
        except ScmError as error:
            raise self._refused("looked at", error) from error
        return [status.pid] if status.pid else []

    async def lacks(self) -> Sequence[str]:
        """Return what this host lacks to start it, a line each; changes nothing."""
        try:
            await self._ask(self._scm.status, self._name)
        except ScmError as error:
            return [str(self._refused("looked at", error))]
        except HostError as error:
            return [str(error)]
        return ()

    async def notes(self) -> Sequence[str]:
        """Return what in its settings is at odds with nlbfarm, a line each."""
        try:
            found = await self._ask(self._scm.own_ways, self._name)
        except ScmError as error:
            return [str(self._refused("looked at", error))]
        except HostError as error:
            return [str(error)]
        return [
            f"{self._name} has {way}: Windows starts it by itself, and nlbfarm has no say in that; "
            "set it in services.msc"
            for way in found
        ]

    # -- one service -------------------------------------------------------------------------------

    async def _start(self, name: str) -> None:
        """Start a service and wait until it runs."""
        status = await self._wait(name, State.STOP_PENDING, State.PAUSE_PENDING)
        if status.state is State.STOPPED:
            with _unless(_ALREADY_RUNNING):
                await self._ask(self._scm.start, name)
        elif status.state is State.PAUSED:
            await self._ask(self._scm.resume, name)
        status = await self._wait(name, State.START_PENDING, State.CONTINUE_PENDING)
        if status.state is not State.RUNNING:
            raise HostError(f"{name} cannot be started: {_words(name, status)}; see the event log")

    async def _stop(self, name: str) -> None:
        """Stop a service and wait for its end, at last that of its process."""
        status = await self._ask(self._scm.status, name)
        pid = status.pid
        try:
            async with asyncio.timeout(self._stop_timeout):
                while status.state is not State.STOPPED:
                    if status.state is not State.STOP_PENDING:
                        # While it starts it takes no orders: it is asked again.
                        with _unless(_NOT_ACTIVE, _CANNOT_ACCEPT):
                            await self._ask(self._scm.stop, name)
                    await asyncio.sleep(_FIRST_PAUSE_S)
                    status = await self._wait(name, State.STOP_PENDING)
        except TimeoutError:
            pass
        else:
            return
        status = await self._ask(self._scm.status, name)
        if status.state is State.STOPPED:
            return
        if not status.alone or not (status.pid or pid):
            raise HostError(
                f"{name} does not stop within {self._stop_timeout:g} s, and its process cannot be ended: "
                "other services are in it"
            )
        await self._ask(self._scm.kill, status.pid or pid)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILLED_S):
                status = await self._wait(name, *(state for state in State if state is not State.STOPPED))
        if status.state is not State.STOPPED:
            raise HostError(f"{name} cannot be stopped: its process {pid} does not end")

    async def _wait(self, name: str, *states: State) -> Status:
        """Wait for as long as a service is in one of ``states``."""
        pause = _FIRST_PAUSE_S
        while (status := await self._ask(self._scm.status, name)).state in states:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_S)
        return status

    async def _state(self) -> State:
        return (await self._ask(self._scm.status, self._name)).state

    async def _dependents_of(self) -> Sequence[str]:
        return await self._ask(self._scm.dependents, self._name)

    async def _ask(self, call: Callable[[Any], T], argument: object) -> T:
        return await asyncio.to_thread(call, argument)

    def _refused(self, what: str, error: ScmError) -> HostError:
        remedy = _REMEDIES.get(error.code, "see the event log").replace("NAME", self._name)
        return HostError(f"{self._name} cannot be {what}: {error}; {remedy}")


@contextlib.contextmanager
def _unless(*codes: int) -> Iterator[None]:
    """Pass over a refusal that means that it is so already, or is to be asked again."""
    try:
        yield
    except ScmError as error:
        if error.code not in codes:
            raise


def _words(name: str, status: Status) -> str:
    text = f"{name} is {status.state.name.lower().replace('_', ' ')}"
    if status.state is State.STOPPED and status.exit_code:
        text += f" (exit code {status.exit_code})"
    return text
