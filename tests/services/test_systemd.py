"""A unit of systemd, against a stand-in for systemd on a private bus: PID 1 of a build host is not it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.services.support import context, until

pytest.importorskip("dbus_fast", reason="lack of dbus-fast")
from tests.services.systemd_mock import Manager, missing, private_bus

from nlbfarm.errors import HostError
from nlbfarm.services import SystemdService
from nlbfarm.testing.service import check_service

pytestmark = [
    pytest.mark.posix("D-Bus"),
    pytest.mark.skipif(bool(missing()), reason=f"lack of {missing()}"),
]


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[str]:
    async with private_bus(tmp_path) as address:
        yield address


@pytest.fixture
async def systemd(bus: str) -> AsyncIterator[Manager]:
    manager = Manager()
    await manager.serve(bus)
    yield manager
    await manager.leave()


Make = Callable[..., SystemdService]


@pytest.fixture
async def make(bus: str, systemd: Manager, tmp_path: Path) -> AsyncIterator[Make]:
    made: list[SystemdService] = []

    def one(unit: str = "acme.service", stop_timeout: float = 5.0) -> SystemdService:
        made.append(SystemdService(context(tmp_path), unit=unit, stop_timeout=stop_timeout, bus=bus))
        return made[-1]

    yield one
    for service in made:
        await service.close()


async def test_conformance(make: Make, systemd: Manager) -> None:
    async def kill() -> None:
        systemd.service.result, systemd.service.code, systemd.service.status = "exit-code", 1, 1
        systemd.unit.become("failed", "failed")

    await check_service(
        make,
        alive=lambda: systemd.unit.active == "active",
        which=lambda: systemd.runs,
        kill=kill,
        broken=lambda: make("absent.service"),
    )


async def test_a_job_that_fails_says_why(make: Make, systemd: Manager) -> None:
    systemd.plan.start = "failed"
    systemd.service.result, systemd.service.code, systemd.service.status = "exit-code", 1, 203
    service = make()
    with pytest.raises(HostError) as raised:
        await service.start("x")
    assert str(raised.value) == (
        'acme.service cannot be started: its job ended as "failed" (exit-code: exit code 203); '
        "see journalctl -u acme.service"
    )
    assert (await service.running()).detail == "acme.service is failed (failed)"


async def test_systemds_own_limit_is_not_in_the_way(make: Make, systemd: Manager) -> None:
    systemd.unit.become("failed", "failed")
    await make().start("x")
    assert systemd.plan.calls.index("ResetFailedUnit") < systemd.plan.calls.index("StartUnit")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", "run nlbfarm as root"),
        (
            "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
            "let polkit allow its user the action org.freedesktop.systemd1.manage-units",
        ),
        ("org.freedesktop.systemd1.TransactionIsDestructive", "see systemctl status acme.service"),
    ],
)
async def test_a_right_that_is_missing(make: Make, systemd: Manager, error: str, remedy: str) -> None:
    systemd.plan.refuse = {"StartUnit": error, "StopUnit": error}
    service = make()
    with pytest.raises(HostError, match=f"acme.service cannot be started: StartUnit refused; .*{remedy}"):
        await service.start("x")
    systemd.unit.become("active", "running")
    with pytest.raises(HostError, match=f"acme.service cannot be stopped: StopUnit refused; .*{remedy}"):
        await service.stop("x")


async def test_units_that_cannot_be_had(make: Make, systemd: Manager) -> None:
    with pytest.raises(HostError, match=r"no unit absent\.service; see systemctl list-unit-files"):
        await make("absent.service").start("x")
    assert (await make("absent.service").running()).detail == "this host has no unit absent.service"
    systemd.unit.load = "masked"
    with pytest.raises(HostError, match=r"is masked; systemctl unmask acme\.service"):
        await make().start("x")
    systemd.unit.load = "bad-setting"
    with pytest.raises(HostError, match=r"cannot be loaded \(bad-setting\)"):
        await make().start("x")


async def test_a_stop_that_takes_too_long_becomes_a_kill(make: Make, systemd: Manager) -> None:
    service = make(stop_timeout=0.1)
    await service.start("x")
    systemd.plan.stop = ""
    await service.stop("x")
    assert systemd.plan.calls[-1] == "KillUnit all SIGKILL"
    assert not (await service.running()).ok


async def test_what_is_killed_and_stays_is_an_error(
    make: Make, systemd: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlbfarm.services.systemd._KILLED_S", 0.1)
    service = make(stop_timeout=0.1)
    await service.start("x")
    systemd.plan.stop, systemd.plan.kill = "", False
    with pytest.raises(HostError, match="it was killed and is deactivating"):
        await service.stop("x")


async def test_a_restart_by_systemd_itself_is_no_end(make: Make, systemd: Manager) -> None:
    service = make()
    await service.start("x")
    ended = asyncio.ensure_future(service.ended())
    for state in (("activating", "auto-restart"), ("active", "running"), ("reloading", "reload")):
        systemd.unit.become(*state)
        await asyncio.sleep(0.02)
        assert not ended.done()
    systemd.service.result, systemd.service.code, systemd.service.status = "signal", 2, 11
    systemd.unit.become("failed", "failed")
    assert await ended == "acme.service is failed (signal: signal SIGSEGV)"


async def test_a_systemd_that_is_gone_for_a_while_is_no_end(
    make: Make, systemd: Manager, bus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlbfarm.services.systemd._AGAIN_S", 0.02)
    service = make()
    await service.start("x")
    ended = asyncio.ensure_future(service.ended())
    await asyncio.sleep(0.02)
    await systemd.leave()
    assert not ended.done()
    again = Manager()
    assert not (await service.running()).ok
    again.unit.active = "active"
    await again.serve(bus)
    await until(lambda: "LoadUnit" in again.plan.calls, "it is looked at again")
    assert not ended.done()
    again.unit.become("inactive", "dead")
    assert await ended == "acme.service is dead (success)"
    await again.leave()


async def test_a_lost_bus_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlbfarm.services.systemd._AGAIN_S", 0.01)
    manager = Manager()
    async with private_bus(tmp_path) as address:
        await manager.serve(address)
        service = SystemdService(context(tmp_path), unit="acme.service", bus=address)
        await service.start("x")
        ended = asyncio.ensure_future(service.ended())
        await asyncio.sleep(0.02)
    connection = service._bus._bus
    await until(lambda: connection is None or not connection.connected, "the end of the bus is seen")
    result = await service.running()
    assert (result.ok, "no connection to the system bus" in result.detail) == (False, True)
    with pytest.raises(HostError, match="no connection to the system bus"):
        await service.stop("x")
    assert not ended.done()
    ended.cancel()
    await manager.leave()
    await service.close()


async def test_no_bus_and_no_systemd(tmp_path: Path, bus: str) -> None:
    nowhere = SystemdService(context(tmp_path), unit="a.service", bus=f"unix:path={tmp_path}/nothing")
    with pytest.raises(HostError, match=r"no connection to the system bus of D-Bus .*: is this host"):
        await nowhere.start("x")
    empty = SystemdService(context(tmp_path), unit="a.service", bus=bus)
    with pytest.raises(HostError, match="systemd is not on the system bus: this host is not run by it"):
        await empty.start("x")
    result = await empty.running()
    assert (result.ok, "not run by it" in result.detail) == (False, True)
    assert len(await empty.notes()) == 1
    await nowhere.close()
    await empty.close()


async def test_settings_that_compete_are_told(make: Make, systemd: Manager) -> None:
    service = make()
    assert await service.notes() == []
    systemd.unit.enabled, systemd.service.restart = "enabled", "on-failure"
    enabled, restart = await service.notes()
    assert "systemctl disable acme.service" in enabled
    assert "has Restart=on-failure" in restart
    assert await make("absent.service").notes() == [
        "this host has no unit absent.service; see systemctl list-unit-files"
    ]


async def test_its_processes(make: Make) -> None:
    assert await make().pids() == [815, 4711]


async def test_a_start_that_is_cancelled_can_be_stopped(make: Make, systemd: Manager) -> None:
    systemd.plan.start = ""
    service = make()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await service.start("x")
    systemd.unit.become("activating", "start")
    await service.stop("it took too long")
    assert systemd.unit.active == "inactive"
