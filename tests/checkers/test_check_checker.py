"""The conformance check finds what a checker does wrong, and takes one that does not."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.plugin_support import install_example, site_directory

from nlbfarm.interfaces import Checker, CheckResult
from nlbfarm.testing import checker as check
from nlbfarm.testing.checker import check_checker

GOOD = CheckResult(True, "all is well")


class Resource:
    """What is looked at."""

    def __init__(self) -> None:
        self.well = True

    async def heal(self) -> None:
        self.well = True

    async def break_(self) -> None:
        self.well = False


class Right(Checker):
    """Does everything right; the others each do one thing wrong."""

    def __init__(self, resource: Resource) -> None:
        self.resource = resource

    async def check(self) -> CheckResult:
        await asyncio.sleep(0.003)
        return CheckResult(self.resource.well, "all is well" if self.resource.well else "it is broken")


class Raises(Right):
    async def check(self) -> CheckResult:
        if not self.resource.well:
            raise ConnectionRefusedError("refused")
        return GOOD


class Silent(Right):
    async def check(self) -> CheckResult:
        return CheckResult(self.resource.well, " ")


class Babbles(Right):
    async def check(self) -> CheckResult:
        return CheckResult(self.resource.well, "one line\nand another")


class NeverStops(Right):
    async def check(self) -> CheckResult:
        return CheckResult(self.resource.well, "x" * 5000)


class Boolean(Right):
    async def check(self) -> Any:
        return self.resource.well


class Number(Right):
    async def check(self) -> Any:
        return CheckResult(1, "all is well")  # type: ignore[arg-type]


class NoText(Right):
    async def check(self) -> Any:
        return CheckResult(self.resource.well, None)  # type: ignore[arg-type]


class Optimist(Right):
    async def check(self) -> CheckResult:
        return GOOD


class Once(Right):
    """The second look at a healthy resource fails."""

    looked = False

    async def check(self) -> CheckResult:
        before, self.looked = self.looked, True
        return CheckResult(not before, "is it a second time?")


class Remembers(Right):
    """Never sees a change."""

    first: bool | None = None

    async def check(self) -> CheckResult:
        if self.first is None:
            self.first = self.resource.well
        return CheckResult(self.first, "as always")


class Blocks(Right):
    async def check(self) -> CheckResult:
        time.sleep(0.06)
        return GOOD


class Lasts(Right):
    async def check(self) -> CheckResult:
        await asyncio.Event().wait()
        return GOOD


class Stubborn(Right):
    """Goes on for a while after it was cancelled."""

    async def check(self) -> CheckResult:
        try:
            await asyncio.sleep(0.003)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)
        return GOOD


class GivesUp(Right):
    async def check(self) -> CheckResult:
        raise asyncio.CancelledError


class Tasks(Right):
    kept: ClassVar[list[asyncio.Task[None]]] = []

    async def check(self) -> CheckResult:
        self.kept.append(asyncio.create_task(asyncio.sleep(1000)))
        return GOOD


class Threads(Right):
    end = threading.Event()

    async def check(self) -> CheckResult:
        threading.Thread(target=self.end.wait, daemon=True).start()
        return GOOD


class Sockets(Right):
    kept: ClassVar[list[socket.socket]] = []

    async def check(self) -> CheckResult:
        self.kept.append(socket.socket())
        return GOOD


class Children(Right):
    kept: ClassVar[list[subprocess.Popen[bytes]]] = []

    async def check(self) -> CheckResult:
        self.kept.append(
            subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
        )
        return GOOD


class LeavesWhenCancelled(Right):
    """Forgets its socket only if the look is cancelled in the middle."""

    kept: ClassVar[list[socket.socket]] = []

    async def check(self) -> CheckResult:
        sock = socket.socket()
        self.kept.append(sock)
        await asyncio.sleep(0.02)
        sock.close()
        return GOOD


class ClosesOnce(Right):
    closed = False

    async def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed twice")
        self.closed = True


class ClosesOpen(Right):
    """Can only be closed after a look."""

    opened = False

    async def check(self) -> CheckResult:
        self.opened = True
        return await super().check()

    async def close(self) -> None:
        assert self.opened, "never opened"


class Stranger:
    def __init__(self, resource: Resource) -> None: ...


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is wrong here is wrong at once: the check need not be patient, and its debts are paid."""
    monkeypatch.setattr(check, "_PATIENCE", 0.2)
    yield
    Threads.end.set()
    Threads.end = threading.Event()
    for sock in (*Sockets.kept, *LeavesWhenCancelled.kept):
        sock.close()
    for process in Children.kept:
        process.communicate(b"")
    for kept in (Sockets.kept, LeavesWhenCancelled.kept, Children.kept, Tasks.kept):
        kept.clear()  # type: ignore[attr-defined]


async def test_one_that_is_right() -> None:
    resource = Resource()
    await check_checker(lambda: Right(resource), healthy=resource.heal, unhealthy=resource.break_)
    await check_checker(lambda: Right(resource))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Raises, r"a look raises ConnectionRefusedError\('refused'\): a resource that is down is a result"),
        (Silent, "the detail is empty"),
        (Babbles, "not one line of printable text"),
        (NeverStops, "the detail has 5000 characters"),
        (Boolean, "check\\(\\) returned True, which is not a CheckResult"),
        (Number, "ok is 1, which is neither True nor False"),
        (NoText, "the detail is None, which is not text"),
        (Optimist, "look 1 of what is down says that it is healthy: all is well"),
        (Once, "look 2 of what is healthy says that it is down"),
        (Remembers, "a look at what has become down says that it is healthy: as always"),
        (GivesUp, "a look that nobody has cancelled ends as if it had been"),
        (Tasks, r"after three looks and close\(\) there are 3 tasks more"),
        (Threads, r"there are 3 threads more"),
        (Children, r"3 child processes more"),
        (Stranger, "Stranger is not a nlbfarm.interfaces.Checker"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
async def test_one_that_is_wrong(wrong: Callable[[Resource], Any], message: str) -> None:
    resource = Resource()
    with pytest.raises(AssertionError, match=message):
        await check_checker(lambda: wrong(resource), healthy=resource.heal, unhealthy=resource.break_)
    for task in Tasks.kept:
        task.cancel()


async def test_one_that_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_BLOCKED_S", 0.05)
    resource = Resource()
    with pytest.raises(AssertionError, match=r"the event loop stood still for \d+\.\d s: a look blocks"):
        await check_checker(lambda: Blocks(resource), healthy=resource.heal, unhealthy=resource.break_)


async def test_one_that_lasts() -> None:
    with pytest.raises(AssertionError, match=r"a look has not ended within 0\.1 s"):
        await check_checker(lambda: Lasts(Resource()), timeout=0.1)


async def test_one_that_goes_on_when_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_PROMPT_S", 0.1)
    with pytest.raises(AssertionError, match=r"a look that is cancelled goes on: for \d+\.\d s so far"):
        await check_checker(lambda: Stubborn(Resource()))


@pytest.mark.posix("numbers of open files")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Sockets, r"after three looks and close\(\) there are 3 open files or sockets more than before"),
        (
            LeavesWhenCancelled,
            r"after 8 cancelled looks and close\(\) there are [0-9] open files or sockets more",
        ),
    ],
)
async def test_one_that_leaves_sockets(wrong: type[Right], message: str) -> None:
    resource = Resource()
    with pytest.raises(AssertionError, match=message):
        await check_checker(lambda: wrong(resource))


@pytest.mark.parametrize(("wrong", "error"), [(ClosesOnce, RuntimeError), (ClosesOpen, AssertionError)])
async def test_one_that_cannot_be_closed(wrong: type[Right], error: type[Exception]) -> None:
    resource = Resource()
    with pytest.raises(error):
        await check_checker(lambda: wrong(resource))


@pytest.mark.posix("paths that begin with a slash")
async def test_the_example_of_a_vendor(tmp_path: Path) -> None:
    with site_directory(tmp_path / "site") as directory:
        install_example(directory)
        import acme_nlbfarm  # type: ignore[import-not-found]

        place = tmp_path / "uploads"

        async def mount() -> None:
            place.mkdir(exist_ok=True)

        async def unmount() -> None:
            place.rmdir()

        await check_checker(
            lambda: acme_nlbfarm.DiskSpaceChecker(path=str(place), free_percent=0),
            healthy=mount,
            unhealthy=unmount,
        )
