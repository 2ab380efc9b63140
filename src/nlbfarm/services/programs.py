"""Runs a program to its end: its output into a log, its process group killed when it takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nlbfarm.errors import HostError
from nlbfarm.services.keeper.output import LIMIT, rotate, tail_of

__all__ = ["Outcome", "run"]

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.002, 0.05
_DYING_S = 5.0

_reaping: set[asyncio.Future[None]] = set()
"""What goes on when a call is cancelled a second time: a program that was killed has to be taken note of."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program came to its end.

    Args:
        code: Its exit code; negative: the signal that it was killed by.
        timed_out: Whether it took too long, and was killed for that.
        detail: All of it for a person, with the last that it printed.
    """

    code: int
    timed_out: bool
    detail: str

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with exit code 0."""
        return self.code == 0 and not self.timed_out


async def run(argv: Sequence[str], environment: Mapping[str, str], *, log: Path, timeout: float) -> Outcome:
    """Run a program until it ends; what it left in the background goes on.

    It writes to the file, not to a pipe: so a server that it leaves behind can go on writing, too.
    When this call is cancelled, the program is killed.

    Args:
        argv: The words of its command line; no shell looks at them.
        environment: Variables beside those of this process.
        log: Where its output is kept.
        timeout: Seconds after which it is killed, with its process group.

    Raises:
        HostError: It cannot be started.
    """
    loop = asyncio.get_running_loop()
    sink = _open(log)
    start = os.fstat(sink.fileno()).st_size
    try:
        process = subprocess.Popen(  # noqa: ASYNC220 - vfork: a millisecond, as asyncio's own would take
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"{argv[0]}: {error.strerror}") from error
    finally:
        sink.close()
    deadline, pause, timed_out = loop.time() + timeout, _FIRST_PAUSE_S, False
    try:
        while process.poll() is None and not timed_out:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_S)
            timed_out = process.poll() is None and loop.time() > deadline
            _trim(log)
    finally:
        if process.poll() is None:
            await _kill(process)
    code = process.poll()
    how = _how(code, f"did not end within {timeout:g} s and was killed" if timed_out else "")
    said = tail_of(log, start)
    detail = f"{' '.join(argv)}: {how}" + (f"; it said: {said}" if said else "")
    return Outcome(-1 if code is None else code, timed_out, detail)


def _how(code: int | None, late: str) -> str:
    if late or code is None:
        return late or "is killed and does not end"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _open(log: Path) -> BinaryIO:
    """Open the log; where it cannot be had, the output is lost, and nothing else."""
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > LIMIT:
            rotate(log)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        return os.fdopen(os.open(log, flags, 0o600), "ab")
    except OSError:
        return Path(os.devnull).open("ab")


def _trim(log: Path) -> None:
    """Keep a program that prints without end from filling the disk."""
    if os.name != "posix":
        return  # a file that is shortened there would get a hole: the program has its own place in it
    with contextlib.suppress(OSError):
        if log.stat().st_size > 2 * LIMIT:
            os.truncate(log, 0)


async def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program with its process group, and take its exit status."""
    if sys.platform == "win32":
        _kill_tree(process.pid)
    else:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    reaping = asyncio.ensure_future(_reap(process))
    _reaping.add(reaping)
    reaping.add_done_callback(_reaping.discard)
    await asyncio.shield(reaping)


async def _reap(process: subprocess.Popen[bytes]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _DYING_S
    while process.poll() is None and loop.time() < deadline:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_FIRST_PAUSE_S)


def _kill_tree(pid: int) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (*root.children(recursive=True), root):
            with contextlib.suppress(psutil.Error):
                process.kill()
