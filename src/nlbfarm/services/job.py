"""A command on Windows: this process has the job object that the command and all that it starts are in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil

from nlbfarm.errors import HostError
from nlbfarm.interfaces import CheckResult, ServiceContext
from nlbfarm.lasting import write_lasting
from nlbfarm.services.command import Command, SupervisedCommand, log_file
from nlbfarm.services.job_object import Output, check_here
from nlbfarm.services.keeper.output import LIMIT, tail_of
from nlbfarm.services.told import told

if TYPE_CHECKING:
    from nlbfarm.services.job_object import Job

__all__ = ["JobCommand"]

_LOOK_S = 0.1
_KILLED_S = 10.0


class JobCommand(SupervisedCommand):
    """A command in a job object.

    Args:
        context: Where it runs.
        command: What to run.
    """

    def __init__(self, context: ServiceContext, command: Command) -> None:
        self._context = context
        self._command = command
        self._record = context.runtime_dir / "services" / f"{context.service}.json"
        self._output = Output(log_file(context), LIMIT)
        self._job: Job | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False
        self._ended = asyncio.Event()
        self._why = "was not started"

    async def start(self, reason: str) -> None:
        if self._job is not None and not self._ended.is_set():
            return
        await self._let_go()
        check_here()
        try:
            self._job = self._take_over() or self._begin(reason)
        except HostError as error:
            raise HostError(f'service "{self._context.service}" cannot be started: {error}') from error
        self._stopping = False
        self._ended.clear()
        self._watching = asyncio.create_task(self._watch(self._job))

    async def stop(self, reason: str) -> None:
        if self._job is None:
            self._job = self._take_over()
        job = self._job
        if job is None:
            return
        self._stopping = True
        if job.ask_to_end():
            await self._gone(job, self._command.stop_timeout)
        await self._kill(job)
        await self._let_go()
        self._record.unlink(missing_ok=True)
        self._why = "was stopped"

    async def running(self) -> CheckResult:
        if self._job is None:
            found = self._left_behind()
            return CheckResult(found is not None, f"runs as process {found.pid}" if found else self._why)
        if self._ended.is_set():
            return CheckResult(False, self._why)
        return CheckResult(True, f"runs as process {self._job.pid}")

    async def ended(self) -> str:
        if self._job is not None:
            await self._ended.wait()
        return self._why

    async def close(self) -> None:
        if self._job is not None and not self._ended.is_set():
            await self._unwatch()
            self._job.close(leave=True)
            self._job = None
        await self._let_go()

    async def pids(self) -> Sequence[int]:
        return self._job.pids() if self._job is not None else ()

    async def notes(self) -> Sequence[str]:
        return await self.lacks()

    async def lacks(self) -> Sequence[str]:
        found = []
        if shutil.which(self._command.argv[0]) is None:
            found.append(f"{self._command.argv[0]} is not there, or cannot be executed")
        if self._command.user:
            found.append("it cannot be run as another user on Windows")
        return found

    def _begin(self, reason: str) -> Job:
        from nlbfarm.services.job_object import Job

        command, context = self._command, self._context
        if command.user:
            raise HostError("user is not supported on Windows; let a service of Windows have its own account")
        log_file(context).parent.mkdir(parents=True, exist_ok=True)
        self._output.trim()
        environment = {**os.environ, **told(context, reason), **command.environment}
        program = shutil.which(command.argv[0]) or command.argv[0]
        argv = [program, *command.argv[1:]]
        job = Job.start(argv, environment, command.directory, self._output, dies=not command.outlive)
        with contextlib.suppress(psutil.Error, OSError):  # it has ended already
            began = psutil.Process(job.pid).create_time()
            write_lasting(self._record, json.dumps({"pid": job.pid, "began": began}))
        return job

    def _left_behind(self) -> psutil.Process | None:
        """Return the application that another process of the node left running; ``None``: there is none."""
        try:
            record = json.loads(self._record.read_text())
            found = psutil.Process(int(record["pid"]))
            return found if abs(found.create_time() - float(record["began"])) < 1e-3 else None
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return None

    def _take_over(self) -> Job | None:
        from nlbfarm.services.job_object import Job

        found = self._left_behind()
        if found is None:
            return None
        with contextlib.suppress(psutil.Error, OSError):
            others = [child.pid for child in found.children(recursive=True)]
            return Job.adopt(found.pid, others, dies=not self._command.outlive)
        return None

    async def _watch(self, job: Job) -> None:
        """See the end of the main process, and end what it left."""
        while (code := job.exit_code()) is None:
            self._output.trim()
            await asyncio.sleep(_LOOK_S)
        if self._stopping:
            return
        said = tail_of(log_file(self._context))
        self._why = f"its process ({job.pid}) has ended: exit code {code}" + (
            f"; it said: {said}" if said else ""
        )
        self._ended.set()
        with contextlib.suppress(HostError):  # what does not end is told by the stop that follows
            await self._kill(job)

    async def _kill(self, job: Job) -> None:
        job.kill()
        if not await self._gone(job, _KILLED_S):
            left = sorted(job.pids())
            raise HostError(f'service "{self._context.service}": processes {left} were killed and do not end')

    async def _gone(self, job: Job, patience: float) -> bool:
        """Wait until nothing is in the job any more; returns whether that is so."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while job.pids():
            if loop.time() > deadline:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def _unwatch(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _let_go(self) -> None:
        """Close what is left of the job before; all of it has ended."""
        await self._unwatch()
        job, self._job = self._job, None
        if job is not None:
            job.close(leave=False)
