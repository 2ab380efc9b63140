"""Blocking work in a thread of its own: one piece at a time, and nobody waits for a thread that hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from tests.checkers.support import LONG, SHORT

from nlbfarm.checkers.threads import BlockingChecker, OwnThread
from nlbfarm.errors import HostError
from nlbfarm.interfaces import CheckResult


@pytest.fixture
def thread() -> Iterator[OwnThread]:
    own = OwnThread("test-own")
    yield own
    own.close()
    own.close()


def threads() -> int:
    return sum(one.name == "test-own" for one in threading.enumerate())


async def ended() -> None:
    async with asyncio.timeout(LONG):
        while threads():
            await asyncio.sleep(0.001)


async def test_work_is_done_in_one_thread_that_ends(thread: OwnThread) -> None:
    assert threads() == 0  # none before it is needed
    who = {await thread.run(threading.get_ident) for _ in range(5)}
    assert len(who) == 1
    assert threading.get_ident() not in who
    assert thread.late(1) == ""
    thread.close()
    await ended()


async def test_what_it_raises_is_raised(thread: OwnThread) -> None:
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 / 0)
    assert await thread.run(lambda: 7) == 7


async def test_the_next_piece_waits_for_one_that_was_given_up(thread: OwnThread) -> None:
    go, begun = threading.Event(), threading.Event()

    def hangs() -> bool:
        begun.set()
        return go.wait(LONG)

    first = asyncio.create_task(thread.run(hangs))
    async with asyncio.timeout(LONG):
        while not begun.is_set():
            await asyncio.sleep(0.001)
    assert thread.late(3) == "no answer within 3 s"
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await thread.run(lambda: pytest.fail("two at once"))
    assert thread.late(3).startswith("the look before has not come back for ")
    second = asyncio.create_task(thread.run(lambda: 8))
    await asyncio.sleep(0)
    go.set()
    assert await second == 8
    assert thread.late(3) == ""


async def test_close_while_it_hangs(thread: OwnThread) -> None:
    go = threading.Event()
    hanging = asyncio.create_task(thread.run(lambda: go.wait(LONG)))
    await asyncio.sleep(0)
    hanging.cancel()
    thread.close()
    assert threads() == 1
    go.set()
    await ended()


def test_the_event_loop_ends_before_the_work_does(thread: OwnThread) -> None:
    go = threading.Event()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await thread.run(lambda: go.wait(LONG))

    asyncio.run(give_up())
    thread.close()
    go.set()
    asyncio.run(ended())


async def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch, thread: OwnThread) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(HostError, match="no further thread"):
            await thread.run(lambda: 7)
    assert await thread.run(lambda: 7) == 7


class Slow(BlockingChecker):
    """Hangs until it is let go."""

    def __init__(self) -> None:
        super().__init__("the slow thing", SHORT)
        self.go = threading.Event()

    async def check(self) -> CheckResult:
        return await self.within(self._look)

    def _look(self) -> CheckResult:
        self.go.wait(LONG)
        raise HostError("it is broken")


async def test_a_checker_says_what_it_waits_for() -> None:
    checker = Slow()
    first, second = await checker.check(), await checker.check()
    assert first == CheckResult(False, "the slow thing: no answer within 0.2 s")
    assert second.detail.startswith("the slow thing: the look before has not come back for ")
    checker.go.set()
    assert await checker.check() == CheckResult(False, "it is broken")
    await checker.close()


class Impatient(BlockingChecker):
    """Fails with a time-out of the kernel's."""

    async def check(self) -> CheckResult:
        def look() -> CheckResult:
            raise TimeoutError(110, "Connection timed out")

        return await self.within(look)


async def test_a_time_out_of_the_host_is_not_the_looks_own() -> None:
    checker = Impatient("x", LONG)
    with pytest.raises(TimeoutError):
        await checker.check()
    await checker.close()
