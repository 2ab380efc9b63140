"""A service of Windows, against a service control manager of the tests' own: on any system."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.services.support import context

from nlbfarm.errors import HostError
from nlbfarm.services import WindowsService
from nlbfarm.services.scm import ScmError, State, Status
from nlbfarm.testing.service import check_service


class FakeScm:
    """One service, ``Acme``, that takes two questions to start and to stop, and its dependents.

    Attributes:
        state, pid, alone, exit_code: What is told of it.
        hangs: Whether it stays where it is when it is told to stop.
        refuse: Windows errors by method.
        needed_by: Services that depend on it, and whether they run.
        own: By what Windows starts it.
        calls: What was called, in order.
    """

    def __init__(self) -> None:
        self.state, self.pid, self.alone, self.exit_code = State.STOPPED, 0, True, 0
        self.hangs = False
        self.dies = True
        self.fails = 0
        self.refuse: dict[str, int] = {}
        self.needed_by: dict[str, bool] = {}
        self.own: list[str] = []
        self.calls: list[str] = []
        self.runs = 0
        self._left = 0

    def _called(self, method: str, name: str) -> None:
        assert threading.current_thread() is not threading.main_thread(), (
            "a call that blocks, on the event loop"
        )
        self.calls.append(f"{method} {name}")
        if method in self.refuse:
            raise ScmError(self.refuse[method], f"{method} refused")
        if name not in ("Acme", *self.needed_by):
            raise ScmError(1060, "The specified service does not exist as an installed service.")

    def status(self, name: str) -> Status:
        self._called("status", name)
        if name in self.needed_by:
            return Status(State.RUNNING if self.needed_by[name] else State.STOPPED)
        if self._left:
            self._left -= 1
        elif self.state is State.START_PENDING:
            self.state = State.STOPPED if self.fails else State.RUNNING
            self.exit_code = self.fails
            self.pid = 0 if self.fails else 4711
            self.runs += not self.fails
        elif self.state is State.STOP_PENDING and not self.hangs:
            self.state, self.pid = State.STOPPED, 0
        return Status(self.state, self.pid, self.alone, self.exit_code)

    def start(self, name: str) -> None:
        self._called("start", name)
        if name in self.needed_by:
            self.needed_by[name] = True
            return
        if self.state is not State.STOPPED:
            raise ScmError(1056, "An instance of the service is already running.")
        self.state, self._left = State.START_PENDING, 1

    def stop(self, name: str) -> None:
        self._called("stop", name)
        if name in self.needed_by:
            self.needed_by[name] = False
            return
        if self.state is State.START_PENDING:
            raise ScmError(1061, "The service cannot accept control messages at this time.")
        if any(self.needed_by.values()):
            raise ScmError(1051, "A stop control has been sent to a service that other services need.")
        self.state, self._left = State.STOP_PENDING, 1

    def resume(self, name: str) -> None:
        self._called("resume", name)
        self.state = State.RUNNING

    def dependents(self, name: str) -> Sequence[str]:
        self._called("dependents", name)
        return [one for one, runs in self.needed_by.items() if runs]

    def kill(self, pid: int) -> None:
        self.calls.append(f"kill {pid}")
        if self.dies:
            self.state, self.pid, self.exit_code = State.STOPPED, 0, 1067

    def own_ways(self, name: str) -> Sequence[str]:
        self._called("own_ways", name)
        return self.own


@pytest.fixture
def scm() -> FakeScm:
    return FakeScm()


def service(directory: Path, scm: FakeScm, name: str = "Acme", stop_timeout: float = 5.0) -> WindowsService:
    return WindowsService(context(directory), name=name, stop_timeout=stop_timeout, scm=scm)


async def test_conformance(tmp_path: Path, scm: FakeScm) -> None:
    async def kill() -> None:
        scm.kill(scm.pid)

    await check_service(
        lambda: service(tmp_path, scm),
        alive=lambda: scm.state is State.RUNNING,
        which=lambda: scm.runs,
        kill=kill,
        broken=lambda: service(tmp_path, scm, "Other"),
    )


async def test_its_end_is_told_with_its_exit_code(tmp_path: Path, scm: FakeScm) -> None:
    acme = service(tmp_path, scm)
    await acme.start("x")
    assert list(await acme.pids()) == [4711]
    ended = asyncio.ensure_future(acme.ended())
    scm.kill(4711)
    assert await ended == "Acme is stopped (exit code 1067)"


async def test_a_start_that_fails(tmp_path: Path, scm: FakeScm) -> None:
    scm.fails = 1067
    with pytest.raises(
        HostError, match=r"^Acme cannot be started: Acme is stopped \(exit code 1067\); see the "
    ):
        await service(tmp_path, scm).start("x")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (5, "run nlbfarm as an administrator"),
        (1058, "it is disabled; sc.exe config Acme start= demand"),
        (1069, "check the password"),
        (1234, "see the event log"),
    ],
)
async def test_a_refusal_has_a_remedy(tmp_path: Path, scm: FakeScm, code: int, remedy: str) -> None:
    scm.refuse = {"start": code}
    with pytest.raises(HostError, match=rf"cannot be started: start refused \(error {code}\); .*{remedy}"):
        await service(tmp_path, scm).start("x")
    scm.refuse = {"stop": code}
    scm.state = State.RUNNING
    with pytest.raises(HostError, match=r"^Acme cannot be stopped: stop refused"):
        await service(tmp_path, scm).stop("x")


async def test_one_that_is_not_there(tmp_path: Path, scm: FakeScm) -> None:
    other = service(tmp_path, scm, "Other")
    with pytest.raises(HostError, match=r"this host has no such service; see sc\.exe query"):
        await other.start("x")
    assert "does not exist" in (await other.running()).detail
    assert "this host has no such service" in (await other.notes())[0]


async def test_what_is_paused_goes_on_and_what_stops_is_waited_for(tmp_path: Path, scm: FakeScm) -> None:
    scm.state = State.PAUSED
    await service(tmp_path, scm).start("x")
    assert (scm.state, "start Acme" in scm.calls) == (State.RUNNING, False)
    scm.state = State.STOP_PENDING
    await service(tmp_path, scm).start("x")
    assert (scm.state, "start Acme" in scm.calls) == (State.RUNNING, True)


async def test_what_starts_is_stopped_when_it_takes_orders(tmp_path: Path, scm: FakeScm) -> None:
    scm.state, scm._left = State.START_PENDING, 3
    await service(tmp_path, scm).stop("x")
    assert scm.state is State.STOPPED
    assert scm.calls.count("stop Acme") > 1


async def test_dependents_are_stopped_before_and_started_after(tmp_path: Path, scm: FakeScm) -> None:
    scm.needed_by = {"Reports": True, "Mail": True, "Archive": False}
    acme = service(tmp_path, scm)
    await acme.start("x")
    assert [call for call in scm.calls if call.startswith("start ")] == ["start Acme"]
    await acme.stop("x")
    assert [call for call in scm.calls if call.startswith("stop ")] == [
        "stop Reports",
        "stop Mail",
        "stop Acme",
    ]
    await acme.start("x")
    assert [call for call in scm.calls if call.startswith("start ")][1:] == [
        "start Acme",
        "start Mail",
        "start Reports",
    ]
    assert scm.needed_by == {"Reports": True, "Mail": True, "Archive": False}


async def test_a_stop_that_takes_too_long_becomes_a_kill(tmp_path: Path, scm: FakeScm) -> None:
    scm.hangs = True
    acme = service(tmp_path, scm, stop_timeout=0.1)
    await acme.start("x")
    await acme.stop("x")
    assert scm.calls[-2] == "kill 4711"
    assert scm.state is State.STOPPED


async def test_a_process_that_others_share_is_not_killed(tmp_path: Path, scm: FakeScm) -> None:
    scm.hangs, scm.alone = True, False
    acme = service(tmp_path, scm, stop_timeout=0.1)
    await acme.start("x")
    with pytest.raises(
        HostError, match=r"does not stop within 0\.1 s, and its process cannot be ended: other"
    ):
        await acme.stop("x")


async def test_one_that_cannot_be_killed(
    tmp_path: Path, scm: FakeScm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlbfarm.services.windows._KILLED_S", 0.1)
    scm.hangs, scm.dies = True, False
    acme = service(tmp_path, scm, stop_timeout=0.1)
    await acme.start("x")
    with pytest.raises(HostError, match="its process 4711 does not end"):
        await acme.stop("x")


async def test_settings_that_compete_are_told(tmp_path: Path, scm: FakeScm) -> None:
    assert await service(tmp_path, scm).notes() == []
    scm.own = ["start type automatic"]
    (note,) = await service(tmp_path, scm).notes()
    assert note.startswith("Acme has start type automatic: Windows starts it by itself")


@pytest.mark.skipif(sys.platform == "win32", reason="lack of a system without services of Windows")
async def test_elsewhere_it_says_what_it_needs(tmp_path: Path) -> None:
    acme = WindowsService(context(tmp_path), name="Acme")
    with pytest.raises(HostError, match=r"services of Windows need Windows and pywin32 .*nlbfarm\[windows\]"):
        await acme.start("x")
    assert not (await acme.running()).ok
    assert len(await acme.notes()) == 1
