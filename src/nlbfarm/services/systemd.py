"""A unit of systemd as a service."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from typing import Any

from nlbfarm.errors import HostError
from nlbfarm.interfaces import CheckResult, Service, ServiceContext
from nlbfarm.services.systemd_bus import SystemdBus, SystemdError

__all__ = ["SystemdService"]

_UP = ("active", "reloading", "refreshing")
_DOWN = ("inactive", "failed", "maintenance")
_KILLED_S = 10.0  # for systemd to see that what was killed is gone
_LOOK_S = 10.0  # between two looks without a signal
_AGAIN_S = 1.0  # between two attempts to reach the bus

_REMEDIES = {
    "org.freedesktop.DBus.Error.AccessDenied": "run nlbfarm as root",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": "run nlbfarm as root, or let polkit allow "
    "its user the action org.freedesktop.systemd1.manage-units",
    "org.freedesktop.systemd1.NoSuchUnit": "is its package installed? see systemctl list-unit-files",
    "org.freedesktop.systemd1.UnitMasked": "systemctl unmask it",
    "org.freedesktop.systemd1.LoadFailed": "see systemctl status",
}
_ENDED_BY = {1: "exit code", 2: "signal", 3: "signal (core dumped)"}  # CLD_EXITED, ... of siginfo_t


class SystemdService(Service):
    """Starts and stops a unit through systemd's D-Bus interface.

    A stop that takes longer than ``stop_timeout`` becomes a kill of all processes of the unit.

    Args:
        context: Where it runs.
        unit: Its whole name: ``"apache2.service"``.
        stop_timeout: Seconds.
        bus: D-Bus address; empty: the system bus.
    """

    def __init__(
        self, context: ServiceContext, *, unit: str, stop_timeout: float = 30.0, bus: str = ""
    ) -> None:
        self._context = context
        self._unit = unit
        self._stop_timeout = stop_timeout
        self._bus = SystemdBus(bus)

    @classmethod
    def from_config(cls, config: Any, context: ServiceContext) -> SystemdService:
        """Return the service for an entry with ``systemd``."""
        return cls(context, unit=config.systemd, stop_timeout=config.stop_timeout.total_seconds())

    async def start(self, reason: str) -> None:
        try:
            path = await self._path()
            state = await self._bus.get(path, "Unit", "ActiveState")
            if state in _UP:
                return
            if state == "failed":
                # How often it may be started is the node's business: systemd's own limit is not to be met.
                with contextlib.suppress(SystemdError):
                    await self._bus.manager("ResetFailedUnit", "s", self._unit)
            result = await self._bus.job("StartUnit", "ss", self._unit, "replace")
            if result in ("done", "skipped"):
                return
            why = f'its job ended as "{result}"{await self._result(path)}'
        except SystemdError as error:
            raise self._refused("started", error) from error
        raise HostError(f"{self._unit} cannot be started: {why}; see journalctl -u {self._unit}")

    async def stop(self, reason: str) -> None:
        try:
            path = await self._path(must_exist=False)
            if not path or await self._bus.get(path, "Unit", "ActiveState") in _DOWN:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._stop_timeout):
                    await self._bus.job("StopUnit", "ss", self._unit, "replace")
            if await self._down(path, 0.0):
                return
            with contextlib.suppress(SystemdError):  # its last process may have ended just now
                await self._bus.manager("KillUnit", "ssi", self._unit, "all", int(signal.SIGKILL))
            if await self._down(path, _KILLED_S):
                return
            state = await self._bus.get(path, "Unit", "ActiveState")
        except SystemdError as error:
            raise self._refused("stopped", error) from error
        raise HostError(f"{self._unit} cannot be stopped: it was killed and is {state}; see systemctl status")

    async def running(self) -> CheckResult:
        try:
            path = await self._path(must_exist=False)
            if not path:
                return CheckResult(False, f"this host has no unit {self._unit}")
            state, sub = [await self._bus.get(path, "Unit", key) for key in ("ActiveState", "SubState")]
        except (SystemdError, HostError) as error:
            return CheckResult(False, str(error))
        return CheckResult(state in _UP, f"{self._unit} is {state} ({sub})")

    async def ended(self) -> str:
        while True:
            try:
                path = await self._path()
                news = self._bus.news()
                if await self._bus.get(path, "Unit", "ActiveState") in _DOWN:
                    sub = await self._bus.get(path, "Unit", "SubState")
                    return f"{self._unit} is {sub}{await self._result(path)}"
                await asyncio.wait({news}, timeout=_LOOK_S)
            except (SystemdError, HostError):  # that nobody tells us does not mean that it has ended
                await asyncio.sleep(_AGAIN_S)

    async def close(self) -> None:
        await self._bus.close()

    async def pids(self) -> Sequence[int]:
        """Return the ids of the unit's processes, for who watches what they use."""
        try:
            await self._bus.open()
            (found,) = await self._bus.manager("GetUnitProcesses", "s", self._unit)
        except SystemdError as error:
            raise HostError(f"{self._unit}: {error}") from error
        return sorted(pid for _cgroup, pid, _command in found)

    async def lacks(self) -> Sequence[str]:
        """Return what this host lacks to start it, a line each; changes nothing."""
        try:
            await self._path()
        except SystemdError as error:
            return [str(self._refused("looked at", error))]
        except HostError as error:
            return [str(error)]
        return ()

    async def notes(self) -> Sequence[str]:
        """Return what in the unit's settings is at odds with nlbfarm, a line each."""
        try:
            path = await self._path()
            enabled = await self._bus.get(path, "Unit", "UnitFileState")
            restart = await self._restart_setting(path)
        except SystemdError as error:
            return [str(self._refused("looked at", error))]
        except HostError as error:
            return [str(error)]
        found = []
        if enabled in ("enabled", "enabled-runtime"):
            found.append(
                f"{self._unit} is enabled: systemd starts it at boot, before nlbfarm has a say; "
                f"systemctl disable {self._unit}"
            )
        if restart != "no":
            found.append(
                f"{self._unit} has Restart={restart}: systemd restarts it by itself, and nlbfarm does not "
                'count that; set Restart=no in a drop-in (systemctl edit), or on_exit = "none"'
            )
        return found

    # -- the unit ----------------------------------------------------------------------------------

    async def _path(self, *, must_exist: bool = True) -> str:
        """Return the unit's object, loaded; empty if there is no such unit and none is needed."""
        await self._bus.open()
        (path,) = await self._bus.manager("LoadUnit", "s", self._unit)
        state = str(await self._bus.get(path, "Unit", "LoadState"))
        if state == "not-found" and not must_exist:
            return ""
        if state == "not-found":
            raise HostError(f"this host has no unit {self._unit}; see systemctl list-unit-files")
        if state == "masked" and must_exist:
            raise HostError(f"{self._unit} is masked; systemctl unmask {self._unit}")
        if state in ("error", "bad-setting") and must_exist:
            raise HostError(f"{self._unit} cannot be loaded ({state}); see systemctl status {self._unit}")
        return str(path)

    async def _down(self, path: str, patience: float) -> bool:
        """Wait until nothing of the unit runs; returns whether that is so."""
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            news = self._bus.news()
            if await self._bus.get(path, "Unit", "ActiveState") in _DOWN:
                return True
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            await asyncio.wait({news}, timeout=left)

    async def _result(self, path: str) -> str:
        """Return how the unit's last run ended, in brackets; empty if systemd has nothing to say of it."""
        try:
            keys = ("Result", "ExecMainCode", "ExecMainStatus")
            result, code, status = [await self._bus.get(path, "Service", key) for key in keys]
        except SystemdError:
            return ""  # a unit of another kind
        if code not in _ENDED_BY:
            return f" ({result})"
        what = _signal_name(status) if code != 1 else status
        return f" ({result}: {_ENDED_BY[code]} {what})"

    async def _restart_setting(self, path: str) -> str:
        try:
            return str(await self._bus.get(path, "Service", "Restart"))
        except SystemdError:
            return "no"  # a unit of another kind

    def _refused(self, what: str, error: SystemdError) -> HostError:
        remedy = _REMEDIES.get(error.name, f"see systemctl status {self._unit}")
        return HostError(f"{self._unit} cannot be {what}: {error.text}; {remedy}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
