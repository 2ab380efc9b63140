"""A stand-in for systemd on a private bus: the part of org.freedesktop.systemd1(5) that nlbfarm uses.

It runs no programs: what a unit does when it is started, stopped or killed is said by the test.
"""

# ruff: noqa: N802 - the names are systemd's
# No "from __future__ import annotations": dbus-fast reads the annotations themselves.

import asyncio
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from dbus_fast import DBusError, PropertyAccess
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import DBusObjectPath, DBusSignature, DBusStr
from dbus_fast.service import ServiceInterface, dbus_method, dbus_property, dbus_signal

NAME = "org.freedesktop.systemd1"
_ROOT = "/org/freedesktop/systemd1"
_CONFIGURATION = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*"/><allow eavesdrop="false"/>
  </policy>
</busconfig>
"""


def missing() -> str:
    """Return what these tests lack, or nothing."""
    return "" if shutil.which("dbus-daemon") else "the program 'dbus-daemon'"


@asynccontextmanager
async def private_bus(directory: Path) -> AsyncIterator[str]:
    """Run a bus of our own; yields its address."""
    socket = directory / "bus"
    configuration = directory / "bus.conf"
    configuration.write_text(_CONFIGURATION.format(socket=socket))
    process = subprocess.Popen(
        ["dbus-daemon", f"--config-file={configuration}", "--nofork", "--nopidfile", "--print-address"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip().split(",")[0]
    finally:
        process.kill()
        process.communicate()


@dataclass
class Plan:
    """What the units do.

    Args:
        start: How a start job ends; empty: not at all.
        stop: The same of a stop job.
        kill: Whether killed processes end.
        refuse: D-Bus error that managing methods answer with, by method.
        calls: What was called, in order.
    """

    start: str = "done"
    stop: str = "done"
    kill: bool = True
    refuse: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)


class Unit(ServiceInterface):
    """org.freedesktop.systemd1.Unit of one unit."""

    def __init__(self, load: str = "loaded", enabled: str = "disabled") -> None:
        super().__init__(f"{NAME}.Unit")
        self.load, self.enabled = load, enabled
        self.active, self.sub = "inactive", "dead"

    @dbus_property(access=PropertyAccess.READ)
    def ActiveState(self) -> DBusStr:
        return self.active

    @dbus_property(access=PropertyAccess.READ)
    def SubState(self) -> DBusStr:
        return self.sub

    @dbus_property(access=PropertyAccess.READ)
    def LoadState(self) -> DBusStr:
        return self.load

    @dbus_property(access=PropertyAccess.READ)
    def UnitFileState(self) -> DBusStr:
        return self.enabled

    def become(self, active: str, sub: str) -> None:
        """Change its state, and say so as systemd does."""
        self.active, self.sub = active, sub
        self.emit_properties_changed({"ActiveState": active, "SubState": sub})


class ServiceUnit(ServiceInterface):
    """org.freedesktop.systemd1.Service of one unit."""

    def __init__(self) -> None:
        super().__init__(f"{NAME}.Service")
        self.result, self.code, self.status, self.restart = "success", 0, 0, "no"

    @dbus_property(access=PropertyAccess.READ)
    def Result(self) -> DBusStr:
        return self.result

    @dbus_property(access=PropertyAccess.READ)
    def ExecMainCode(self) -> Annotated[int, DBusSignature("i")]:
        return self.code

    @dbus_property(access=PropertyAccess.READ)
    def ExecMainStatus(self) -> Annotated[int, DBusSignature("i")]:
        return self.status

    @dbus_property(access=PropertyAccess.READ)
    def Restart(self) -> DBusStr:
        return self.restart


class Manager(ServiceInterface):
    """org.freedesktop.systemd1.Manager, with one unit that exists.

    Args:
        name: That one's name.
    """

    def __init__(self, name: str = "acme.service") -> None:
        super().__init__(f"{NAME}.Manager")
        self.unit_name = name
        self.unit, self.service, self.absent = Unit(), ServiceUnit(), Unit(load="not-found")
        self.plan = Plan()
        self.runs = 0
        self._jobs = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._bus: MessageBus | None = None

    async def serve(self, address: str) -> None:
        """Be systemd on the bus."""
        self._bus = MessageBus(address)
        await self._bus.connect()
        self._bus.export(_ROOT, self)
        self._bus.export(f"{_ROOT}/unit/acme", self.unit)
        self._bus.export(f"{_ROOT}/unit/acme", self.service)
        self._bus.export(f"{_ROOT}/unit/absent", self.absent)
        await self._bus.request_name(NAME)

    async def leave(self) -> None:
        """Be gone."""
        for task in self._tasks:
            task.cancel()
        if self._bus is not None:
            if self._bus.connected:
                self._bus.disconnect()
            with suppress(OSError, EOFError):  # the bus was gone before
                await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]

    def _called(self, method: str) -> None:
        self.plan.calls.append(method)
        if method in self.plan.refuse:
            raise DBusError(self.plan.refuse[method], f"{method} refused")

    @dbus_method()
    def Subscribe(self) -> None:
        self._called("Subscribe")

    @dbus_method()
    def LoadUnit(self, name: DBusStr) -> DBusObjectPath:
        self._called("LoadUnit")
        return f"{_ROOT}/unit/{'acme' if name == self.unit_name else 'absent'}"

    @dbus_method()
    def StartUnit(self, name: DBusStr, mode: DBusStr) -> DBusObjectPath:
        self._called("StartUnit")
        return self._job(self.plan.start, ("active", "running"))

    @dbus_method()
    def StopUnit(self, name: DBusStr, mode: DBusStr) -> DBusObjectPath:
        self._called("StopUnit")
        self.unit.become("deactivating", "stop-sigterm")
        return self._job(self.plan.stop, ("inactive", "dead"))

    @dbus_method()
    def KillUnit(self, name: DBusStr, whom: DBusStr, number: Annotated[int, DBusSignature("i")]) -> None:
        self._called(f"KillUnit {whom} {signal.Signals(number).name}")
        if self.plan.kill:
            self.service.result, self.service.code, self.service.status = "signal", 2, number
            self.unit.become("failed", "failed")

    @dbus_method()
    def ResetFailedUnit(self, name: DBusStr) -> None:
        self._called("ResetFailedUnit")
        self.unit.become("inactive", "dead")

    @dbus_method()
    def GetUnitProcesses(
        self, name: DBusStr
    ) -> Annotated[list[tuple[str, int, str]], DBusSignature("a(sus)")]:
        self._called("GetUnitProcesses")
        return [["/acme", 4711, "acme"], ["/acme", 815, "acme: worker"]]  # type: ignore[list-item]

    @dbus_signal()
    def JobRemoved(
        self, number: int, job: str, unit: str, result: str
    ) -> Annotated[tuple[int, str, str, str], DBusSignature("uoss")]:
        return [number, job, unit, result]  # type: ignore[return-value]

    def _job(self, result: str, state: tuple[str, str]) -> str:
        self._jobs += 1
        number, path = self._jobs, f"{_ROOT}/job/{self._jobs}"
        if result:
            task = asyncio.get_running_loop().create_task(self._end(number, path, result, state))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return path

    async def _end(self, number: int, path: str, result: str, state: tuple[str, str]) -> None:
        await asyncio.sleep(0.01)
        if result == "done":
            self.runs += state[0] == "active"
            self.unit.become(*state)
        elif state[0] == "active":
            self.unit.become("failed", "failed")
        self.JobRemoved(number, path, self.unit_name, result)
