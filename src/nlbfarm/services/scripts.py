"""Scripts as a service: an application that knows best itself how it is started and stopped.

What the scripts start is not nlbfarm's child. It is known by a variable in its environment (``NLBFARM_RUN``),
as long as it keeps that: so a stop can wait for its end, and insist. It outlives nlbfarm.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import structlog

from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import CheckResult, Service, ServiceContext
from nlbfarm.lasting import write_lasting
from nlbfarm.services.command import log_file
from nlbfarm.services.keeper.family import TOKEN, marked, sweep
from nlbfarm.services.keeper.output import tail_of
from nlbfarm.services.programs import Outcome, run
from nlbfarm.services.told import told

__all__ = ["ScriptsService"]

_STARTING, _STARTED = "starting", "started"
_STATUS_S = 10.0  # for the status script
_ASK_S = 5.0  # between two calls of it
_LOOK_S = 0.1
_REAPED_S = 5.0  # what was killed has a process id until its parent takes note, and a script may go by that

_log = structlog.get_logger("nlbfarm.service")


class ScriptsService(Service):
    """Starts and stops an application by scripts.

    To start: ``prestart``, then ``start``. To stop: ``stop``, then ``poststop``. When ``prestart`` fails,
    only ``poststop`` is run; when ``start`` fails, both. Whether it has been started is kept in a file that a
    reboot removes.

    Args:
        context: Where it runs.
        start, stop: The words of these scripts' command lines; no shell looks at them.
        prestart, poststop: The same; empty: none.
        status: A script that exits with 0 while the application runs; empty: it runs from when it is started
            until it is stopped.
        start_timeout: Seconds that ``prestart`` and ``start`` may take, each.
        stop_timeout: Seconds that ``stop`` may take, and ``poststop``; and what was started, to be gone.

    Raises:
        UsageError: A script is missing.
    """

    def __init__(
        self,
        context: ServiceContext,
        *,
        start: Sequence[str],
        stop: Sequence[str],
        prestart: Sequence[str] = (),
        poststop: Sequence[str] = (),
        status: Sequence[str] = (),
        start_timeout: float = 30.0,
        stop_timeout: float = 30.0,
    ) -> None:
        if not start or not stop:
            raise UsageError(f'service "{context.service}": scripts for start and stop are needed, both')
        self._context = context
        self._scripts = {
            "prestart": tuple(prestart),
            "start": tuple(start),
            "stop": tuple(stop),
            "poststop": tuple(poststop),
            "status": tuple(status),
        }
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._mark = context.runtime_dir / "services" / f"{context.service}.scripts"

    @classmethod
    def from_config(cls, config: Any, context: ServiceContext) -> ScriptsService:
        """Return the service for an entry with ``scripts``."""
        scripts = config.scripts
        return cls(
            context,
            start=scripts.start,
            stop=scripts.stop,
            prestart=scripts.prestart or (),
            poststop=scripts.poststop or (),
            status=scripts.status or (),
            start_timeout=config.start_timeout.total_seconds(),
            stop_timeout=config.stop_timeout.total_seconds(),
        )

    async def start(self, reason: str) -> None:
        state, token = self._state()
        if self._scripts["status"]:
            if (await self._status()).ok:
                self._write(_STARTED, token or _token())
                return
        elif state == _STARTED:
            return
        if state:
            # A start that was broken off, or an application that ended and was never stopped.
            await self._undo(("stop", "poststop"), reason, token)
        token = _token()
        self._write(_STARTING, token)
        for action, undo in (("prestart", ("poststop",)), ("start", ("stop", "poststop"))):
            if why := await self._try(action, reason, self._start_timeout):
                await self._undo(undo, reason, token)
                self._mark.unlink(missing_ok=True)
                raise HostError(f'service "{self._context.service}" cannot be started: {action}: {why}')
        self._write(_STARTED, token)

    async def stop(self, reason: str) -> None:
        state, token = self._state()
        if not state and not (self._scripts["status"] and (await self._status()).ok):
            return
        deadline = asyncio.get_running_loop().time() + self._stop_timeout
        known = bool(self._scripts["status"] or await self._marked(token))
        problem = await self._try("stop", reason, self._stop_timeout)
        still = await self._await_end(token, deadline)
        if after := await self._try("poststop", reason, self._stop_timeout):
            self._warn("poststop", after)
        if still or (problem and not known):
            why = f"{still} after its stop script ({problem or 'exit code 0'})" if still else problem
            raise HostError(f'service "{self._context.service}" cannot be stopped: {why}')
        if problem:
            self._warn("stop", problem)
        self._mark.unlink(missing_ok=True)

    async def running(self) -> CheckResult:
        if self._scripts["status"]:
            outcome = await self._status()
            return CheckResult(outcome.ok, outcome.detail)
        state = self._state()[0]
        return CheckResult(state == _STARTED, "was started" if state == _STARTED else "was not started")

    async def ended(self) -> str:
        if not self._scripts["status"]:
            await asyncio.Event().wait()  # nobody would know
        while True:
            outcome = await self._status()
            if not outcome.ok and not outcome.timed_out:
                return outcome.detail
            await asyncio.sleep(_ASK_S)

    async def pids(self) -> Sequence[int]:
        """Return the ids of its processes, as far as they are known by their environment."""
        return sorted(await self._marked(self._state()[1]))

    async def notes(self) -> Sequence[str]:
        """Return what an administrator should know of it before it is started; a line each."""
        return await self.lacks()

    async def lacks(self) -> Sequence[str]:
        """Return what this host lacks to start it, a line each; changes nothing."""
        return [
            f"{action}: {words[0]} is not there, or cannot be executed"
            for action, words in self._scripts.items()
            if words and shutil.which(words[0]) is None
        ]

    def output_tail(self) -> str:
        """Return the newest lines that its scripts printed, on one line; reads a file."""
        return tail_of(log_file(self._context))

    # -- scripts -----------------------------------------------------------------------------------

    async def _run(self, action: str, reason: str, timeout: float) -> Outcome:
        words = self._scripts[action]
        if not words:
            return Outcome(0, False, "")
        environment = told(self._context, reason, action)
        if action in ("prestart", "start"):
            environment[TOKEN] = self._state()[1]
        return await run(words, environment, log=log_file(self._context), timeout=timeout)

    async def _try(self, action: str, reason: str, timeout: float) -> str:
        """Run a script; returns why it failed, or nothing."""
        try:
            outcome = await self._run(action, reason, timeout)
        except HostError as error:
            return str(error)
        return "" if outcome.ok else outcome.detail

    async def _status(self) -> Outcome:
        try:
            return await self._run("status", "", _STATUS_S)
        except HostError as error:
            return Outcome(127, True, str(error))  # it says nothing of the application

    async def _undo(self, actions: Sequence[str], reason: str, token: str) -> None:
        """Take back what was begun, as well as it goes."""
        for action in actions:
            if why := await self._try(action, reason, self._stop_timeout):
                self._warn(action, why)
        if await self._marked(token):
            await asyncio.to_thread(sweep, None, token)

    def _warn(self, action: str, why: str) -> None:
        _log.warning("service.script_failed", service=self._context.service, script=action, detail=why)

    # -- what was started --------------------------------------------------------------------------

    async def _marked(self, token: str) -> set[int]:
        """Return the ids of the processes that ``prestart`` and ``start`` left, as far as they are known."""
        if not token or sys.platform != "linux":
            return set()
        return await asyncio.to_thread(marked, token)

    async def _await_end(self, token: str, deadline: float) -> str:
        """Wait for the end of what was started, and kill what is left at the deadline; returns what stays."""
        loop = asyncio.get_running_loop()
        while (found := await self._marked(token)) or (self._scripts["status"] and (await self._status()).ok):
            if loop.time() > deadline:
                break
            await asyncio.sleep(_LOOK_S)
        else:
            return ""
        if found:
            _log.warning("service.killed", service=self._context.service, processes=sorted(found))
            left = await asyncio.to_thread(sweep, None, token)
            if left:
                return f"processes {sorted(left)} do not end"
        deadline = loop.time() + (_REAPED_S if found else 0.0)
        while self._scripts["status"] and (await self._status()).ok:
            if loop.time() > deadline:
                return "it still runs, as its status script says,"
            await asyncio.sleep(_LOOK_S)
        return ""

    # -- what is remembered ------------------------------------------------------------------------

    def _state(self) -> tuple[str, str]:
        """Return how far it has been started, and the token of what was started; empty if it was not."""
        try:
            found = json.loads(self._mark.read_text())
            return str(found["state"]), str(found["token"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", ""

    def _write(self, state: str, token: str) -> None:
        write_lasting(self._mark, json.dumps({"state": state, "token": token}))


def _token() -> str:
    return secrets.token_hex(8)
