"""Which processes a checker means, and what they are doing."""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nlbfarm.checkers.patterns import Pattern
from nlbfarm.checkers.threads import BlockingChecker
from nlbfarm.checkers.view import Pids
from nlbfarm.checkers.words import many, seconds, series
from nlbfarm.errors import HostError, NlbfarmError
from nlbfarm.interfaces import CheckResult

__all__ = ["Found", "ProcessesChecker", "Selection"]

_GONE = (psutil.NoSuchProcess, ProcessLookupError)
_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_ARGUMENTS = 4096  # characters of a command line that are searched


@dataclass(frozen=True, slots=True)
class Found:
    """The processes that were meant.

    Args:
        alive: Those that run, the oldest first: a parent before its children.
        zombies: Those that have ended and that nobody has waited for.
        hidden: How many this user may not look into: they may have been meant, too.
        note: Why there can be none: ``"there is no file /run/shop.pid"``.
    """

    alive: Sequence[psutil.Process] = ()
    zombies: Sequence[psutil.Process] = ()
    hidden: int = 0
    note: str = ""

    def dead(self) -> str:
        """Return which zombies there are, in parentheses; empty if there is none."""
        return _parentheses([self._zombies()])

    def short(self) -> str:
        """Return what keeps the number down, in parentheses; empty if nothing does."""
        hidden = (
            f"this user may not look into {many(self.hidden, 'process', 'processes')}" if self.hidden else ""
        )
        return _parentheses([self.note, self._zombies(), hidden])

    def _zombies(self) -> str:
        count = len(self.zombies)
        pids = series(process.pid for process in self.zombies[:3])
        return f"{count} {'is a zombie' if count == 1 else 'are zombies'}: pid {pids}" if count else ""


@dataclass(frozen=True)
class Selection:
    """What processes are meant: those that fit all that is given.

    Args:
        name: Name of the program, as ``ps -e`` shows it; on Windows in upper or lower case.
        executable: Path of the program's file.
        arguments: A regular expression that is found in its command line (the first 4,096 characters).
        pid_file: A file with the number of one process.

    Raises:
        UsageError: ``arguments`` is no regular expression.
    """

    name: str = ""
    executable: str = ""
    arguments: str = ""
    pid_file: Path | None = None
    _pattern: Pattern | None = field(init=False, default=None, compare=False)

    def __post_init__(self) -> None:
        if self.arguments:
            object.__setattr__(self, "_pattern", Pattern(self.arguments, "arguments"))

    @classmethod
    def from_config(cls, config: Any) -> Selection:
        """Return the selection that an entry of type ``process`` or ``resources`` makes."""
        return cls(
            name=config.process or "",
            executable=str(config.executable or ""),
            arguments=config.arguments or "",
            pid_file=config.pid_file,
        )

    def __bool__(self) -> bool:
        return bool(self.name or self.executable or self.arguments or self.pid_file)

    def __str__(self) -> str:
        parts = [
            f'"{self.name}"' if self.name else "",
            self.executable,
            f"with {self._pattern} in the command line" if self._pattern else "",
            f"of {self.pid_file}" if self.pid_file else "",
        ]
        return " ".join(part for part in parts if part)

    def find(self, among: Sequence[int] | None, timeout: float) -> Found:
        """Return the processes that are meant. Blocks: call it in a thread.

        Args:
            among: Process ids of a service; ``None``: all of the host.
            timeout: Seconds that the search in command lines may take.

        Raises:
            HostError: The search takes too long, or the pid file cannot be read.
        """
        pids, note = self._pids(among)
        alive: list[tuple[float, psutil.Process, str]] = []
        zombies: list[psutil.Process] = []
        hidden = 0
        for process in _processes(pids):
            try:
                if not self._named(process):
                    continue
                if process.status() in _DEAD:
                    # Its command line and file are gone: what is left to know it by is the name.
                    if self.name or self.pid_file or among is not None:
                        zombies.append(process)
                    continue
                if self.executable and not _same_file(process.exe(), self.executable):
                    continue
                line = " ".join(process.cmdline())[:_ARGUMENTS] if self.arguments else ""
                alive.append((process.create_time(), process, line))
            except _GONE:
                continue
            except psutil.AccessDenied:
                hidden += 1
        if self._pattern is not None:
            fits = self._pattern.found_in([line for *_, line in alive], timeout)
            alive = [one for one, fit in zip(alive, fits, strict=True) if fit]
        alive.sort(key=lambda one: (one[0], one[1].pid))
        found = [process for _, process, _ in alive]
        return Found(found, zombies, hidden, "" if found or zombies or hidden else note)

    def _pids(self, among: Sequence[int] | None) -> tuple[Sequence[int], str]:
        """Return which processes come into question, and what to say if none of them is meant."""
        if self.pid_file is None:
            return (psutil.pids() if among is None else among), ""
        pid = _read_pid(self.pid_file)
        if pid is None:
            return (), f"there is no process number in {self.pid_file}, or no such file"
        there = [] if among is not None and pid not in among else [pid]
        return there, f"process {pid} is gone, or is another program"

    def _named(self, process: psutil.Process) -> bool:
        if not self.name:
            return True
        name = process.name()
        return name.lower() == self.name.lower() if os.name == "nt" else name == self.name


class ProcessesChecker(BlockingChecker):
    """A checker that looks at processes: those that are selected, or those of a service.

    Args:
        selection: Which processes are meant.
        service: Says which processes a service has: only those are looked at.
        timeout: Seconds after which a look has failed.
        what: What the look asks, for messages.
    """

    def __init__(
        self,
        selection: Selection,
        service: Pids | None,
        timeout: float,
        what: str = "the list of processes",
    ) -> None:
        super().__init__(what, timeout)
        self._selection = selection
        self._service = service

    @abstractmethod
    def look(self, among: Sequence[int] | None) -> CheckResult:
        """Look once, in the checker's own thread; ``among``: the service's processes, if there is one."""

    async def check(self) -> CheckResult:
        end = asyncio.get_running_loop().time() + self._timeout
        among: Sequence[int] | None = None
        if self._service is not None:
            try:
                async with asyncio.timeout_at(end):
                    among = tuple(await self._service())
            except TimeoutError:
                return CheckResult(
                    False, f"which processes the service has is not known within {seconds(self._timeout)}"
                )
            except NlbfarmError as error:
                return CheckResult(False, str(error))
        return await self.within(lambda: self.look(among), end)


def _parentheses(notes: Sequence[str]) -> str:
    found = "; ".join(note for note in notes if note)
    return f" ({found})" if found else ""


def _processes(pids: Sequence[int]) -> Iterator[psutil.Process]:
    own = os.getpid()  # its own command line may well have the words in it
    for pid in pids:
        if pid == own:
            continue
        try:
            yield psutil.Process(pid)
        except (*_GONE, psutil.AccessDenied):
            continue


def _read_pid(path: Path) -> int | None:
    """Return the number in a pid file; ``None`` if there is none: the program does not run.

    Raises:
        HostError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(64).split()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"pid file {path} cannot be read: {error.strerror}") from error
    return int(content[0]) if content and content[0].isdigit() else None


def _same_file(one: str, other: str) -> bool:
    if not one:
        return False
    return os.path.normcase(one) == os.path.normcase(os.path.realpath(other))
