"""A command as a service: a program that nlbfarm starts, watches, and ends with all that it started."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import CheckResult, Service, ServiceContext

__all__ = ["Command", "CommandService", "SupervisedCommand", "log_file"]


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and how it is run.

    Args:
        argv: The words of its command line; no shell looks at them.
        directory: Where it starts.
        user: As whom; empty: as nlbfarm itself.
        environment: Variables beside those of nlbfarm and those that it is told.
        stop_signal: Name of the signal that asks it to end; Windows has its own way.
        stop_timeout: Seconds from there until it is killed.
        outlive: Whether it goes on when nlbfarm is killed.
        cgroup: Whether a cgroup of its own is made for it, where that can be.
    """

    argv: Sequence[str]
    directory: Path = Path("/")
    user: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"
    stop_timeout: float = 30.0
    outlive: bool = False
    cgroup: bool = True


class SupervisedCommand(Service):
    """What there is to a command beside a service."""

    @abstractmethod
    async def pids(self) -> Sequence[int]:
        """Return the ids of its processes, for who watches what they use."""

    @abstractmethod
    async def lacks(self) -> Sequence[str]:
        """Return what this host lacks to start it, a line each; changes nothing."""

    @abstractmethod
    async def notes(self) -> Sequence[str]:
        """Return what an administrator should know of it, started or not; a line each."""


class CommandService(Service):
    """Runs a command: under a keeper process on Linux, in a job object on Windows.

    Its main process is the service: when that ends, the service has ended, and what it left is killed. So
    it has to stay in the foreground. What it prints is kept in ``services/NAME.log`` in the state directory.

    Args:
        context: Where it runs.
        command: The words of its command line.
        directory, user, environment, stop_signal, stop_timeout, outlive, cgroup: As in ``Command``.

    Raises:
        UsageError: The command has no words.
        HostError: nlbfarm cannot supervise commands on this system.
    """

    def __init__(
        self,
        context: ServiceContext,
        *,
        command: Sequence[str],
        directory: Path | str = "/",
        user: str = "",
        environment: Mapping[str, str] | None = None,
        stop_signal: str = "SIGTERM",
        stop_timeout: float = 30.0,
        outlive: bool = False,
        cgroup: bool = True,
    ) -> None:
        if not command or isinstance(command, str) or not command[0]:
            raise UsageError(f'{command!r} is no command; give its words: ["/usr/sbin/acme", "--foreground"]')
        self._context = context
        self._runner = _runner(
            context,
            Command(
                tuple(command),
                Path(directory),
                user,
                dict(environment or {}),
                stop_signal,
                stop_timeout,
                outlive,
                cgroup,
            ),
        )

    @classmethod
    def from_config(cls, config: Any, context: ServiceContext) -> CommandService:
        """Return the service for an entry with ``command`` and the keys that go with it."""
        return cls(
            context,
            command=config.command,
            directory=config.directory or "/",
            user=config.user or "",
            environment=config.environment,
            stop_signal=config.stop_signal,
            stop_timeout=config.stop_timeout.total_seconds(),
            outlive=config.outlive,
        )

    async def start(self, reason: str) -> None:
        await self._runner.start(reason)

    async def stop(self, reason: str) -> None:
        await self._runner.stop(reason)

    async def running(self) -> CheckResult:
        return await self._runner.running()

    async def ended(self) -> str:
        return await self._runner.ended()

    async def close(self) -> None:
        await self._runner.close()

    async def pids(self) -> Sequence[int]:
        """Return the ids of its processes, for who watches what they use."""
        return await self._runner.pids()

    async def lacks(self) -> Sequence[str]:
        """Return what this host lacks to start it, a line each; changes nothing."""
        return await self._runner.lacks()

    async def notes(self) -> Sequence[str]:
        """Return what an administrator should know of it, started or not; a line each."""
        return await self._runner.notes()

    def output_tail(self) -> str:
        """Return the newest lines that it printed, on one line; reads a file."""
        from nlbfarm.services.keeper.output import tail_of

        return tail_of(log_file(self._context))


def log_file(context: ServiceContext) -> Path:
    """Return the file that the output of a service is kept in."""
    return context.state_dir / "services" / f"{context.service}.log"


def _runner(context: ServiceContext, command: Command) -> SupervisedCommand:
    if sys.platform == "win32":
        from nlbfarm.services.job import JobCommand

        return JobCommand(context, command)
    if sys.platform == "linux":
        from nlbfarm.services.kept import KeptCommand

        return KeptCommand(context, command)
    raise HostError("a command can be supervised on Linux and Windows; use scripts on this system")
