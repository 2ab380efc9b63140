"""Work that may block: done in a thread of the checker's own, one piece at a time.

A resolver, a file system or a driver can hang for ever, and nothing ends a thread that hangs in the kernel.
The threads of the event loop's executor are few and shared: some looks that hang would hold up everybody's
work. So each checker has one thread, and a look that hangs costs that checker alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from queue import SimpleQueue
from typing import Any, TypeVar

from nlbfarm.checkers.words import seconds
from nlbfarm.errors import HostError
from nlbfarm.interfaces import Checker, CheckResult

__all__ = ["BlockingChecker", "OwnThread"]

T = TypeVar("T")
_Queue = SimpleQueue[Callable[[], None] | None]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a piece of work ended."""

    value: Any = None
    error: BaseException | None = None


class OwnThread:
    """Runs blocking work in a daemon thread, which is started for the first piece.

    Used from one event loop.

    Args:
        name: Of the thread, for whoever looks at the process.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: _Queue | None = None
        self._busy: asyncio.Future[_Outcome] | None = None
        self._since = 0.0
        self._held_up = False

    async def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, or raise what it raises.

        A caller that is cancelled leaves the work behind in the thread. The next call waits for its end
        before it begins, for as long as its own caller lets it; ``late`` then says what it waited for.

        Raises:
            HostError: This host gives the process no further thread.
        """
        while self._busy is not None:
            self._held_up = True
            await asyncio.wait([self._busy])
        self._held_up = False
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[_Outcome] = loop.create_future()

        def job() -> None:
            try:
                outcome = _Outcome(work())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                outcome = _Outcome(error=error)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits
                loop.call_soon_threadsafe(self._end, ended, outcome)

        self._started().put(job)
        self._busy, self._since = ended, time.monotonic()
        # Not awaited itself: a caller that is cancelled would cancel it, and the thread would seem idle.
        await asyncio.wait([ended])
        outcome = ended.result()
        if outcome.error is not None:
            raise outcome.error
        value: T = outcome.value
        return value

    def late(self, timeout: float) -> str:
        """Say what a caller waited for whose ``timeout`` (seconds) is over; empty if not for the thread."""
        if self._busy is None:
            return ""
        if self._held_up:
            return f"the look before has not come back for {seconds(time.monotonic() - self._since)}"
        return f"no answer within {seconds(timeout)}"

    def close(self) -> None:
        """End the thread, at once or when the work that hangs in it comes back; may be called twice."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.put(None)

    def _end(self, ended: asyncio.Future[_Outcome], outcome: _Outcome) -> None:
        self._busy = None
        ended.set_result(outcome)

    def _started(self) -> _Queue:
        if self._queue is None:
            queue: _Queue = SimpleQueue()
            try:
                threading.Thread(target=_serve, args=(queue,), name=self._name, daemon=True).start()
            except RuntimeError as error:
                raise HostError(
                    f"this host gives the process no further thread ({error}); see ulimit -u and TasksMax"
                ) from error
            self._queue = queue
        return self._queue


def _serve(queue: _Queue) -> None:
    while (job := queue.get()) is not None:
        job()
        del job  # a closure that is kept keeps what the work returned


class BlockingChecker(Checker):
    """A checker whose look blocks: its ``check`` hands the look to ``within``. For plug-ins, too.

    Args:
        what: What the look asks, for messages: ``"the list of processes"``.
        timeout: Seconds after which a look has failed; without it, when it is cancelled.
    """

    def __init__(self, what: str, timeout: float = inf) -> None:
        self._what = what
        self._timeout = timeout
        self._thread = OwnThread(f"nlbfarm-look {what}")

    async def within(self, look: Callable[[], CheckResult], until: float | None = None) -> CheckResult:
        """Return what ``look`` finds in the checker's own thread, or that it has not come back in time.

        Args:
            look: Looks once; may block. A ``HostError`` of it is a resource that is down.
            until: Until when it may take, in the event loop's time; ``None``: ``timeout`` from now on.
        """
        end = asyncio.get_running_loop().time() + self._timeout if until is None else until
        try:
            async with asyncio.timeout_at(None if end == inf else end) as limit:
                return await self._thread.run(look)
        except HostError as error:
            return CheckResult(False, str(error))
        except TimeoutError:
            if not limit.expired():
                raise
            return CheckResult(False, f"{self._what}: {self._thread.late(self._timeout)}")

    async def close(self) -> None:
        self._thread.close()
