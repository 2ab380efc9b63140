"""The checkers of one node: looked at for ever, each at its own interval."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass

from nlbfarm.core.health import Health
from nlbfarm.errors import NlbfarmError
from nlbfarm.events import EventLog
from nlbfarm.interfaces import CheckResult
from nlbfarm.parts import Check

__all__ = ["CheckState", "Checking"]

CHECK_SLACK_S = 0.5
"""A checker that keeps its own time has this much longer to say what it waited for."""

QUICK_S = 0.5
"""What was just started is looked at this often, or at its interval if that is shorter, until it is well."""

NOT_YET = "not looked at yet"


@dataclass(slots=True)
class CheckState:
    """What is known of a checked resource."""

    ok: bool | None = None
    detail: str = NOT_YET
    since: float = 0.0


class Checking:
    """Looks, and tells what it has seen; what follows from that is decided elsewhere.

    Args:
        checks: What to look at.
        tell: Called with a checker's name, whether it is well, and why, when that has changed.
        spawn: Starts a task of the node.
        log: Of the node.
    """

    def __init__(
        self,
        checks: Sequence[Check],
        tell: Callable[[str, bool, str], None],
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        log: EventLog,
    ) -> None:
        self.checks = tuple(checks)
        self.states: dict[str, CheckState] = {check.name: CheckState() for check in checks}
        self._tell = tell
        self._spawn = spawn
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def look(self, names: Collection[str], *, wanted: bool) -> None:
        """Forget what these said; look at them anew, often until they are well, or no longer (``wanted``)."""
        for check in self.checks:
            if check.name not in names:
                continue
            self._leave(check.name)
            self.states[check.name] = CheckState(since=asyncio.get_running_loop().time())
            if wanted:
                self._tasks[check.name] = self._spawn(self._watch(check))

    async def replace(self, checks: Sequence[Check]) -> None:
        """Look at these from now on: those that are the same object go on, the others are closed or begun."""
        kept = {check.name for check in checks if any(check is one for one in self.checks)}
        before, self.checks = self.checks, tuple(checks)
        for check in before:
            if check.name not in kept:
                looked_at = check.name in self._tasks
                await self._end(check)
                if not looked_at and any(check.name == one.name for one in checks):
                    kept.add(check.name)  # its service does not run: nobody looks at it now
        for name in self.states.keys() - {check.name for check in checks}:
            del self.states[name]
        for check in checks:
            if check.name not in kept:
                # One that only looks otherwise from now on counts as it did until it has looked.
                self.states.setdefault(check.name, CheckState())
                self._tasks[check.name] = self._spawn(self._watch(check))

    async def close(self) -> None:
        """Stop to look, and close all checkers. Tries every one before it raises the first error."""
        errors: list[Exception] = []
        for check in self.checks:
            try:
                await self._end(check)
            except Exception as error:  # noqa: BLE001 - every checker gets its turn; raised below
                errors.append(error)
        if errors:
            raise errors[0]

    async def _end(self, check: Check) -> None:
        task = self._leave(check.name)
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
        await check.checker.close()

    def _leave(self, name: str) -> asyncio.Task[None] | None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
        return task

    async def _watch(self, check: Check) -> None:
        """Look at one resource for ever."""
        loop = asyncio.get_running_loop()
        health = Health(check.rise, check.fall)
        state = self.states[check.name]
        was_well = False
        await asyncio.sleep(check.initial_delay)
        while True:
            begun = loop.time()
            result = await self._look(check)
            state.detail = result.detail
            changed = health.observe(result.ok)
            if changed is not None:
                was_well |= changed
                state.ok, state.since = changed, loop.time()
                if not changed and not was_well and check.service is not None:
                    # Its service has just been started: nobody has to hear that it takes a moment.
                    self._log.info("checker.not_yet", checker=check.name, detail=result.detail)
                else:
                    log = self._log.info if changed else self._log.warning
                    log("checker.changed", checker=check.name, ok=changed, detail=result.detail)
                self._tell(check.name, changed, result.detail)
            interval = check.interval if was_well else min(check.interval, QUICK_S)
            await asyncio.sleep(max(0.0, interval - (loop.time() - begun)))

    async def _look(self, check: Check) -> CheckResult:
        try:
            async with asyncio.timeout(check.timeout + CHECK_SLACK_S):
                return await check.checker.check()
        except TimeoutError:
            return CheckResult(False, f"no answer within {check.timeout:g} s")
        except NlbfarmError as error:
            return CheckResult(False, str(error))
        except Exception as error:  # noqa: BLE001 - a plug-in's fault is a failed check, not our end
            self._log.exception("checker.failed", checker=check.name)
            return CheckResult(False, f"the checker itself failed: {error!r}")
