"""Conformance check for ``Checker``: what every checker has to do, stated as a test.

A vendor's own checker can be checked with it the same way as ours are::

    async def test_my_checker() -> None:
        await check_checker(make, healthy=start_it, unhealthy=stop_it)
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import psutil

from nlbfarm.interfaces import Checker, CheckResult

__all__ = ["check_checker"]

Change = Callable[[], Awaitable[None]]

_PATIENCE = 5.0  # seconds that threads and children have to end in
_PROMPT_S = 1.0  # a look that is cancelled ends at once; a busy machine has this much longer
_BLOCKED_S = 1.0  # the event loop turns every few milliseconds; this is no slowness but a hang
_CANCELS = 8
_SHORT_S = 0.002
_LONGEST_DETAIL = 1000


async def check_checker(
    make: Callable[[], Checker],
    *,
    healthy: Change | None = None,
    unhealthy: Change | None = None,
    timeout: float = 10.0,
) -> None:
    """Check a checker against the contract of ``nlbfarm.interfaces.Checker``.

    Args:
        make: Makes a new checker of the same resource. Called several times.
        healthy: Makes the resource healthy; without it, nothing is said of what a look finds.
        unhealthy: Takes the resource away: stops the server, removes the file.
        timeout: Seconds that a look may take; the runtime would cancel it then.

    Raises:
        AssertionError: The checker breaks the contract; the message says how.
    """
    async with _turning():
        await _closes_in_any_state(make, timeout)
        if healthy is not None:
            await healthy()
        await _looks_again_and_again(make, timeout, None if healthy is None else True)
        await _can_be_cancelled(make, timeout)
        if unhealthy is not None:
            await unhealthy()
            await _looks_again_and_again(make, timeout, False)
            await _can_be_cancelled(make, timeout)
        if healthy is not None and unhealthy is not None:
            await _notices_a_change(make, healthy, unhealthy, timeout)


@contextlib.asynccontextmanager
async def _turning() -> AsyncIterator[None]:
    """See to it that the event loop turns all the time."""
    longest, last = 0.0, time.monotonic()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(_SHORT_S)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        longest = max(longest, time.monotonic() - last)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        # Said even if something else was found: it may well be the cause of that.
        assert longest < _BLOCKED_S, (
            f"the event loop stood still for {longest:.1f} s: a look blocks; let it do that in a thread"
        )


async def _closes_in_any_state(make: Callable[[], Checker], timeout: float) -> None:
    checker = make()
    assert isinstance(checker, Checker), f"{type(checker).__name__} is not a nlbfarm.interfaces.Checker"
    await checker.close()
    await checker.close()
    checker = make()
    await _look(checker, timeout)
    await checker.close()
    await checker.close()


async def _looks_again_and_again(make: Callable[[], Checker], timeout: float, ok: bool | None) -> None:
    before = await _belongings()
    checker = make()
    try:
        for number in range(3):
            result = await _look(checker, timeout)
            assert ok is None or result.ok is ok, (
                f"look {number + 1} of what is {_word(ok)} says that it is {_word(result.ok)}: "
                f"{result.detail}"
            )
    finally:
        await checker.close()
    await _nothing_left(before, "after three looks and close()")


async def _can_be_cancelled(make: Callable[[], Checker], timeout: float) -> None:
    """Cancel looks at moments from the first step on; the next look is as good as if nothing had been."""
    before = await _belongings()
    checker = make()
    try:
        for number in range(_CANCELS):
            look = asyncio.create_task(checker.check())
            await asyncio.sleep(0)  # a task that has not begun yet is no look
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SHORT_S * (2**number - 1)):
                    await asyncio.wait([look])
            began = time.monotonic()
            look.cancel()
            await asyncio.wait([look], timeout=_PROMPT_S)
            took = time.monotonic() - began
            assert took < _PROMPT_S, f"a look that is cancelled goes on: for {took:.1f} s so far"
            if not look.cancelled():
                _valid(_of(look))  # it was just done
        await _look(checker, timeout)
    finally:
        await checker.close()
    await _nothing_left(before, f"after {_CANCELS} cancelled looks and close()")


async def _notices_a_change(
    make: Callable[[], Checker], healthy: Change, unhealthy: Change, timeout: float
) -> None:
    checker = make()
    try:
        for change, ok in ((healthy, True), (unhealthy, False), (healthy, True)):
            await change()
            result = await _look(checker, timeout)
            assert result.ok is ok, (
                f"a look at what has become {_word(ok)} says that it is {_word(result.ok)}: {result.detail}"
            )
    finally:
        await checker.close()


async def _look(checker: Checker, timeout: float) -> CheckResult:
    """Look once, as the runtime does."""
    look = asyncio.create_task(checker.check())
    await asyncio.wait([look], timeout=timeout)
    if not look.done():
        look.cancel()
        await asyncio.wait([look], timeout=_PROMPT_S)
        raise AssertionError(f"a look has not ended within {timeout:g} s")
    return _valid(_of(look))


def _of(look: asyncio.Task[CheckResult]) -> object:
    assert not look.cancelled(), "a look that nobody has cancelled ends as if it had been"
    error = look.exception()
    assert error is None, (
        f"a look raises {error!r}: a resource that is down is a result, CheckResult(False, why)"
    )
    return look.result()


def _valid(result: object) -> CheckResult:
    assert isinstance(result, CheckResult), f"check() returned {result!r}, which is not a CheckResult"
    detail: object = result.detail
    assert isinstance(result.ok, bool), f"ok is {result.ok!r}, which is neither True nor False"
    assert isinstance(detail, str), f"the detail is {detail!r}, which is not text"
    assert detail.strip(), "the detail is empty: say what was seen"
    assert detail.isprintable(), f"the detail is not one line of printable text: {detail!r}"
    assert len(detail) <= _LONGEST_DETAIL, f"the detail has {len(detail)} characters; nobody reads that"
    return result


def _word(ok: bool) -> str:
    return "healthy" if ok else "down"


@dataclass(frozen=True, slots=True)
class _Belongings:
    """What of this process a checker could leave behind."""

    tasks: int
    threads: int
    files: int
    children: int

    def more_than(self, other: _Belongings) -> list[str]:
        """Return what there is more of than in ``other``, in words."""
        return [
            f"{now - then} {what} more"
            for what, now, then in (
                ("tasks", self.tasks, other.tasks),
                ("threads", self.threads, other.threads),
                ("open files or sockets", self.files, other.files),
                ("child processes", self.children, other.children),
            )
            if now > then
        ]


def _count() -> _Belongings:
    process = psutil.Process()
    return _Belongings(
        tasks=len(asyncio.all_tasks()),
        # Not those of the event loop's executor: they stay, and there is a limit to them.
        threads=sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate()),
        # Windows counts everything that has a handle, threads that Python knows nothing of as well.
        files=process.num_fds() if psutil.POSIX else 0,
        children=len(process.children(recursive=True)),
    )


async def _belongings() -> _Belongings:
    """Count, when what was begun before has had its turn to end."""
    gc.collect()
    await asyncio.sleep(_SHORT_S)
    return _count()


async def _nothing_left(before: _Belongings, when: str) -> None:
    """Wait for everything that a checker has begun to end."""
    end = time.monotonic() + _PATIENCE
    while True:
        gc.collect()
        more = _count().more_than(before)
        if not more:
            return
        assert time.monotonic() < end, f"{when} there are {', '.join(more)} than before"
        await asyncio.sleep(5 * _SHORT_S)
