"""Is there enough left: processor, memory, disk, file descriptors?

Without a selection of processes, the limits are those of the host; with one, of these processes together.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from nlbfarm.checkers.processes import ProcessesChecker, Selection
from nlbfarm.checkers.view import HostView, Pids
from nlbfarm.checkers.words import many, size
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import CheckResult

__all__ = ["Limits", "ResourcesChecker"]

_WINDOW_S = 0.5
"""The least time over which the use of a processor is measured: clock ticks of 10 ms are 2 % of it."""

_FILES = Path("/proc/sys/fs/file-nr")
"""How many files the host has open (proc_sys_fs(5))."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What is still healthy; ``None``: it does not matter.

    Args:
        cpu_percent: Use of all processors together, at most.
        memory_percent: Share of the host's memory in use, at most.
        memory: Bytes of memory in use, at most.
        open_files: Open files, at most: of the host, or of that one of the processes that has most of them
            (the system limits each process by itself).
        disk_path: A directory of the file system that the next two are about.
        disk_free_percent: Share of it that has to be free, at least.
        disk_free: Bytes that have to be free, at least.

    Raises:
        UsageError: There is no limit, or one of a disk without its path.
    """

    cpu_percent: float | None = None
    memory_percent: float | None = None
    memory: int | None = None
    open_files: int | None = None
    disk_path: Path | None = None
    disk_free_percent: float | None = None
    disk_free: int | None = None

    def __post_init__(self) -> None:
        disk = self.disk_free_percent is not None or self.disk_free is not None
        if disk and self.disk_path is None:
            raise UsageError('resources: a limit of a disk needs disk_path = "/srv"')
        if not disk and (self.cpu_percent, self.memory_percent, self.memory, self.open_files) == (None,) * 4:
            raise UsageError("resources: names no limit; write cpu_percent = 95, or another one")


@dataclass(frozen=True, slots=True)
class _Sample:
    """How long processors have worked, at one time.

    Args:
        at, wall: When: seconds on the monotonic clock, and since 1970.
        used: Seconds of work, by process number and start; of the host under (0, 0.0).
        capacity: Seconds of work that were possible.
    """

    at: float
    wall: float
    used: Mapping[tuple[int, float], float]
    capacity: float

    def percent_since(self, before: _Sample) -> float:
        """Return the share of what was possible since ``before``."""
        used = 0.0
        for key, value in self.used.items():
            # What has begun since counts from nothing; what is older and was not measured, not at all.
            used += value - before.used.get(key, 0.0 if key[1] >= before.wall else value)
        return 100 * max(0.0, used) / max(1e-3, self.capacity - before.capacity)


@dataclass(frozen=True, slots=True)
class _Reading:
    """One limit, and what was found."""

    ok: bool
    text: str


class ResourcesChecker(ProcessesChecker):
    """Compares what is in use with limits: healthy if none is passed.

    The use of processors is that since the look before, or of half a second.

    Args:
        limits: What is still healthy.
        selection: Whose resources; none selected, and no service: the host's.
        service: Says which processes a service has.
        timeout: Seconds after which a look has failed.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        selection: Selection | None = None,
        service: Pids | None = None,
        timeout: float = 5.0,
    ) -> None:
        self._host = not selection and service is None
        disk = f" and {limits.disk_path}" if limits.disk_path else ""
        what = f"the resources of {'this host' if self._host else 'the processes'}{disk}"
        super().__init__(selection or Selection(), service, timeout, what)
        self._limits = limits
        self._before: _Sample | None = None

    @classmethod
    def from_config(cls, config: Any, host: HostView) -> ResourcesChecker:
        """Return the checker for an entry of type ``resources``."""
        selection = Selection.from_config(config)
        return cls(
            Limits(
                cpu_percent=config.cpu_percent,
                memory_percent=config.memory_percent,
                memory=config.memory,
                open_files=config.open_files,
                disk_path=config.disk_path,
                disk_free_percent=config.disk_free_percent,
                disk_free=config.disk_free,
            ),
            selection=selection,
            service=host.processes_of(config.service) if config.service and not selection else None,
            timeout=config.timeout.total_seconds(),
        )

    def look(self, among: Sequence[int] | None) -> CheckResult:
        whose, processes = "", None
        if not self._host:
            found = self._selection.find(among, self._timeout)
            processes, name = found.alive, self._selection or "of the service"
            if not processes:
                return CheckResult(False, f"no process {name} to measure{found.short()}")
            whose = f"{many(len(processes), 'process', 'processes')} {name}: "
        try:
            readings = [*self._use(processes), *self._disk()]
        except psutil.AccessDenied as error:
            who = f"process {error.pid}"
            raise HostError(f"this user may not look into {who}; run nlbfarm as root") from error
        wrong = [reading.text for reading in readings if not reading.ok]
        return CheckResult(not wrong, whose + ", ".join(wrong or [reading.text for reading in readings]))

    def _use(self, processes: Sequence[psutil.Process] | None) -> Iterator[_Reading]:
        """Compare what is in use, of the host or of ``processes``, with its limits."""
        limits = self._limits
        if limits.cpu_percent is not None:
            sample = _host_sample if processes is None else partial(_sample, processes)
            yield _at_most("processor use", self._percent(sample), limits.cpu_percent, _share)
        if limits.memory_percent is not None or limits.memory is not None:
            host = psutil.virtual_memory()
            used = host.total - host.available
            if processes is not None:
                # What several share counts for each: to tell it apart costs as much as to read all of it.
                used = sum(_each(processes, lambda process: process.memory_info().rss))
            if limits.memory_percent is not None:
                yield _at_most("memory", 100 * used / host.total, limits.memory_percent, _share)
            if limits.memory is not None:
                yield _at_most("memory", used, limits.memory, size)
        if limits.open_files is not None:
            what = "open files" if processes is None else "open files of one process"
            files = _host_files() if processes is None else max(_each(processes, _files), default=0)
            yield _at_most(what, files, limits.open_files, _number)

    def _percent(self, sample: Callable[[], _Sample]) -> float:
        """Return the use of processors since the look before, or in a short time from now."""
        before = self._before or sample()
        short = min(_WINDOW_S, self._timeout / 3) - (time.monotonic() - before.at)
        if short > 0:
            time.sleep(short)
        self._before = now = sample()
        return now.percent_since(before)

    def _disk(self) -> Iterator[_Reading]:
        """Compare what a disk has left with its limits."""
        path, limits = self._limits.disk_path, self._limits
        if path is None:
            return
        try:
            disk = psutil.disk_usage(str(path))
        except OSError as error:
            yield _Reading(False, f"{path}: {error.strerror}")
            return
        if limits.disk_free_percent is not None:
            share = 100 * disk.free / max(1, disk.used + disk.free)  # as df(1): without what is root's alone
            yield _at_least(f"free on {path}", share, limits.disk_free_percent, _share)
        if limits.disk_free is not None:
            yield _at_least(f"free on {path}", disk.free, limits.disk_free, size)


def _at_most(what: str, value: float, limit: float, shown: Callable[[float], str]) -> _Reading:
    return _Reading(value <= limit, f"{what} {shown(value)} (at most {shown(limit)})")


def _at_least(what: str, value: float, limit: float, shown: Callable[[float], str]) -> _Reading:
    return _Reading(value >= limit, f"{shown(value)} {what} (at least {shown(limit)})")


def _share(value: float) -> str:
    return f"{value:.3g} %"


def _number(value: float) -> str:
    return f"{value:.0f}"


def _each(processes: Sequence[psutil.Process], read: Callable[[psutil.Process], T]) -> list[T]:
    """Return what ``read`` finds of each process that is still there."""
    found = []
    for process in processes:
        try:
            found.append(read(process))
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


def _files(process: psutil.Process) -> int:
    if sys.platform == "win32":
        return process.num_handles()
    return process.num_fds()


def _host_files() -> int:
    try:
        return int(_FILES.read_text().split()[0])
    except OSError as error:
        raise HostError(
            "how many files this host has open is known on Linux only; name the processes that are meant"
        ) from error


def _host_sample() -> _Sample:
    times = psutil.cpu_times()
    # Linux counts the time of guests as user's and nice's, too.
    every = sum(value for name, value in times._asdict().items() if not name.startswith("guest"))
    idle = times.idle + getattr(times, "iowait", 0.0)
    return _Sample(time.monotonic(), time.time(), {(0, 0.0): every - idle}, every)


def _sample(processes: Sequence[psutil.Process]) -> _Sample:
    def read(process: psutil.Process) -> tuple[tuple[int, float], float]:
        times = process.cpu_times()
        return (process.pid, process.create_time()), times.user + times.system

    now = time.monotonic()
    return _Sample(now, time.time(), dict(_each(processes, read)), now * (psutil.cpu_count() or 1))
