"""A command on Linux: a keeper process is its parent, and stays when the node's process is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
from collections.abc import Sequence
from typing import Any

from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import CheckResult, ServiceContext
from nlbfarm.services.command import Command, SupervisedCommand, log_file
from nlbfarm.services.keeper import cgroup as cgroups
from nlbfarm.services.keeper.family import descendants, processes
from nlbfarm.services.keeper.link import Link, sweep_record
from nlbfarm.services.keeper.output import LIMIT
from nlbfarm.services.told import told

__all__ = ["GRACE_S", "KeptCommand"]

GRACE_S = 60.0
"""How long a keeper waits for the next process of the node, seconds; then it ends the application."""

_SLACK_S = 10.0  # beyond the stop's timeout, for a keeper to kill and to say so
_ATTEMPTS = 5  # to reach a keeper that takes no connection, or to meet none
_LEAVING_S = 30.0  # for what another process of the node left to come to its end


class KeptCommand(SupervisedCommand):
    """A command under a keeper.

    Args:
        context: Where it runs.
        command: What to run.
        grace: Seconds that the keeper waits for the next process of the node.

    Raises:
        UsageError: There is no such signal.
    """

    def __init__(self, context: ServiceContext, command: Command, *, grace: float = GRACE_S) -> None:
        self._context = context
        self._command = command
        self._grace = grace
        number = getattr(signal, command.stop_signal, None)
        if not command.stop_signal.startswith("SIG") or not isinstance(number, signal.Signals):
            raise UsageError(f'"{command.stop_signal}" is no signal of this host; write "SIGTERM"')
        self._polite = number
        base = context.runtime_dir / "services" / context.service
        self._socket = base.with_name(base.name + ".sock")
        self._record = base.with_name(base.name + ".json")
        self._link: Link | None = None

    @property
    def _name(self) -> str:
        return f'service "{self._context.service}"'

    async def start(self, reason: str) -> None:
        link = self._link
        if link is not None:
            if link.running:
                return
            await self._await_end(link)
        try:
            if await self._take_over():
                return
            await self._clear()
            setup = self._setup(reason)
            self._link = await Link.spawn(f"{self._context.farm}/{self._context.service}")
            await self._link.begin(setup)
        except HostError as error:
            raise HostError(f"{self._name} cannot be started: {error}") from error

    async def stop(self, reason: str) -> None:
        if self._link is None and not await self._take_over():
            await self._clear()
            return
        assert self._link is not None
        link = self._link
        link.stop(self._polite, self._command.stop_timeout, reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._command.stop_timeout + _SLACK_S):
                await link.gone.wait()
        if not link.gone.is_set() and not link.left:
            link.drop()  # the keeper hangs: it is killed, and the rest swept up
        if not link.left:
            await link.gone.wait()
        self._complain(link.left)
        self._link = None

    async def running(self) -> CheckResult:
        link = self._link
        if link is None:
            return await self._look()
        if link.running:
            return CheckResult(True, f"runs as process {link.pid}")
        return CheckResult(False, link.why or "is being ended")

    async def ended(self) -> str:
        link = self._link
        if link is None:
            return (await self.running()).detail
        await link.ended.wait()
        return link.why

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None and link.running:
            link.keep()
        elif link is not None:
            with contextlib.suppress(HostError):
                await self._await_end(link)
            link.close()

    async def pids(self) -> Sequence[int]:
        link = self._link
        if link is None or not link.running:
            return ()
        if link.cgroup is not None:
            return sorted(cgroups.members(link.cgroup))
        return sorted(descendants(link.keeper, await asyncio.to_thread(processes)))

    async def lacks(self) -> Sequence[str]:
        return await asyncio.to_thread(self._missing)

    async def notes(self) -> Sequence[str]:
        found = list(await self.lacks())
        link = self._link
        if link is None or not link.running:
            if self._command.cgroup and not any(os.access(place, os.W_OK) for place in cgroups.places()):
                found.append(
                    "no cgroup can be made for it: run nlbfarm as root, or with Delegate=yes in its systemd "
                    "unit; without one, a process that hides can outlive a keeper that is killed"
                )
            return found
        found += [f"it runs {note}" for note in link.hello.get("notes", ())]
        if list(link.hello.get("argv", ())) != list(self._command.argv):
            found.append("it still runs the command of before; a restart of the service takes the new one")
        return found

    # -- one that is there already -----------------------------------------------------------------

    async def _look(self) -> CheckResult:
        """Ask a keeper that another process of the node left, without becoming its node."""
        try:
            link = await Link.find(self._socket)
        except HostError as error:
            return CheckResult(False, str(error))
        if link is None:
            return CheckResult(False, "was not started")
        link.close()
        if link.silent:
            return CheckResult(False, f"its keeper (process {link.keeper}) does not answer")
        return CheckResult(link.running, f"runs as process {link.pid}" if link.running else "is being ended")

    async def _take_over(self) -> bool:
        """Take over what another process of the node left; returns whether it runs."""
        for _ in range(_ATTEMPTS):
            link = await Link.find(self._socket)
            if link is None:
                return False
            try:
                if await link.adopt(outlive=self._command.outlive):
                    self._link = link
                    return True
                await self._await_end(link)
            except BaseException:
                link.close()
                raise
        # Whoever answers there again and again is not to be swept away.
        raise HostError(
            f"{self._socket}: the keeper there takes no more connections; see fuser {self._socket}"
        )

    async def _await_end(self, link: Link) -> None:
        """Wait until what ends has ended."""
        try:
            async with asyncio.timeout(_LEAVING_S):
                await link.gone.wait()
        except TimeoutError:
            left = sorted(link.left)
            raise HostError(
                f"what ran before does not end (keeper {link.keeper}, processes {left}); see ps {link.keeper}"
            ) from None
        self._complain(link.left)
        if self._link is link:
            self._link = None

    async def _clear(self) -> None:
        """End what was left by a keeper that was killed."""
        self._complain(await asyncio.to_thread(sweep_record, self._record))

    def _complain(self, left: frozenset[int]) -> None:
        if left:
            raise HostError(
                f"{self._name}: processes {', '.join(map(str, sorted(left)))} were killed and do not end "
                "(they wait for a disk or a file server?); see ps -o pid,stat,wchan,args"
            )

    # -- one that is to be started -----------------------------------------------------------------

    def _setup(self, reason: str) -> dict[str, Any]:
        """Return what the keeper is told, with its directories made."""
        log = log_file(self._context)
        for directory in (self._socket.parent, log.parent):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise HostError(f"{directory}: {error.strerror}") from error
        token = secrets.token_hex(8)
        context, command = self._context, self._command
        return {
            "argv": list(command.argv),
            "environment": {**told(context, reason), **command.environment},
            "directory": str(command.directory),
            "user": command.user,
            "token": token,
            "outlive": command.outlive,
            "grace": self._grace,
            "cgroup": f"nlbfarm-{context.farm}-{context.service}-{token}" if command.cgroup else "",
            "socket": str(self._socket),
            "record": str(self._record),
            "log": str(log),
            "log_limit": LIMIT,
            "why": reason,
        }

    def _missing(self) -> list[str]:
        """Look what this host lacks for the command, before it is started."""
        command, found = self._command, []
        program = command.argv[0]
        path = command.environment.get("PATH")
        place = str(command.directory / program) if "/" in program else program
        if shutil.which(place, path=path) is None:
            found.append(f"{program} is not there, or cannot be executed")
        if not command.directory.is_dir():
            found.append(f"{command.directory} is no directory")
        if command.user:
            import pwd  # not on every platform

            try:
                uid = pwd.getpwnam(command.user).pw_uid
            except KeyError:
                found.append(f'this host has no user "{command.user}"')
            else:
                if os.geteuid() not in (0, uid):
                    found.append(f'only root can start it as "{command.user}"')
        return found
