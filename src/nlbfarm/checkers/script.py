"""Does a program say that all is well?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from nlbfarm.checkers.threads import OwnThread
from nlbfarm.checkers.view import HostView
from nlbfarm.checkers.words import one_line, seconds, size
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import Checker, CheckResult

__all__ = ["ScriptChecker"]

_TAIL = 4096  # bytes of output that are kept: the newest
_MOST = 16 << 20  # bytes of output after which a script is killed: to read on costs the node its processor
_READ = 65536
_LOOK_S = 0.05  # how often a script that has closed nothing is asked whether it has ended
_LINES = 3  # of its output, in the result

_OF_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
"""What systemd tells the node alone (sd_notify(3), sd_listen_fds(3))."""


class ScriptChecker(Checker):
    """Runs a program, without a shell: healthy if its exit code is 0.

    It runs in a session and process group of its own, without input. What it leaves behind in that group is
    killed when it has ended, and all of it when its time is over or the look is cancelled: looks must not
    add up. It finds ``NLBFARM_FARM``, ``NLBFARM_NODE``, ``NLBFARM_VIPS`` and ``NLBFARM_CHECKER`` in its
    environment. The newest 4 KiB of its output are kept, and more than 16 MiB of it are a failure.

    Args:
        command: The program and its arguments; without a slash it is looked for as a shell would.
        name: The checker's name, for ``NLBFARM_CHECKER``.
        environment: Further environment variables.
        user: Name of the user to run it as; empty: the node's own.
        timeout: Seconds after which it is killed, and the look has failed.

    Raises:
        UsageError: ``command`` is empty.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str = "",
        environment: Mapping[str, str] | None = None,
        user: str = "",
        timeout: float = 5.0,
    ) -> None:
        if not command:
            raise UsageError('script: names no program; write command = ["/usr/local/bin/check-shop"]')
        self._command = tuple(command)
        self._environment = {"NLBFARM_CHECKER": name, **(environment or {})}
        self._user = user
        self._timeout = timeout
        self._thread = OwnThread(f"nlbfarm-script {name}")

    @classmethod
    def from_config(cls, config: Any, host: HostView) -> ScriptChecker:
        """Return the checker for an entry of type ``script``."""
        environment = {
            "NLBFARM_FARM": host.farm,
            "NLBFARM_NODE": host.node,
            "NLBFARM_VIPS": " ".join(map(str, host.vips)),
        }
        return cls(
            config.command,
            name=config.name,
            environment=environment,
            user=config.user or "",
            timeout=config.timeout.total_seconds(),
        )

    async def check(self) -> CheckResult:
        program = _Program(self._command, self._environment, self._user)
        try:
            async with asyncio.timeout(self._timeout):
                return await self._thread.run(program.run)
        except HostError as error:
            return CheckResult(False, str(error))
        except TimeoutError:
            if program.started:
                told = f"{program} has not ended within {seconds(self._timeout)} and was killed"
                return CheckResult(False, told + program.said())
            return CheckResult(False, f"{program}: {self._thread.late(self._timeout)}")
        finally:
            program.kill()

    async def close(self) -> None:
        self._thread.close()


class _Program:
    """One run of the program."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], user: str) -> None:
        self._command = command
        self._environment = environment
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        """Held while the process is started, killed or reaped: its number is its own until then."""
        self._reaped = False
        self._over = threading.Event()
        self._tail = b""
        self._printed = 0

    def __str__(self) -> str:
        return self._command[0]

    @property
    def started(self) -> bool:
        """Whether there is, or was, a process."""
        return self._process is not None

    def said(self) -> str:
        """Return the last lines of the output, as the end of a sentence; empty if there is none."""
        lines = [one_line(line, 120) for line in self._tail.decode(errors="replace").splitlines()]
        newest = [line for line in lines if line][-_LINES:]
        return f": {' / '.join(newest)}" if newest else ""

    def run(self) -> CheckResult:
        """Run to the end. Blocks; ``kill`` ends it from another thread."""
        process = self._start()
        if process is None:
            return CheckResult(False, f"{self} was not started: the look was given up before")
        assert process.stdout is not None
        with process.stdout:
            if sys.platform == "win32":
                self._read_all(process)
            else:
                self._read(process)
        self._reap(process)
        return self._judge(process.returncode)

    def kill(self) -> None:
        """Kill the program and what it has started; from any thread, in any state, without waiting."""
        self._over.set()
        # Who holds the lock starts the program, and then sees that it is over; or has seen it end.
        if self._lock.acquire(blocking=False):
            try:
                if self._process is None or self._reaped:
                    return
                if sys.platform == "win32":  # where its children have to be looked for first
                    threading.Thread(target=_kill, args=(self._process,), daemon=True).start()
                else:
                    _kill(self._process)
            finally:
                self._lock.release()

    def _start(self) -> subprocess.Popen[bytes] | None:
        found = self._found()
        environment = {key: value for key, value in os.environ.items() if key not in _OF_SYSTEMD}
        user = _as_user(self._user, environment)
        with self._lock:
            if self._over.is_set():
                return None
            try:
                self._process = subprocess.Popen(
                    [found, *self._command[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={**environment, **self._environment},
                    start_new_session=True,
                    bufsize=0,
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                    **user,
                )
            except OSError as error:
                raise HostError(f"{self} cannot be started: {error.strerror}") from error
        if self._over.is_set():
            self.kill()
        return self._process

    def _found(self) -> str:
        """Return the program's file, having read of it.

        Python starts a program with its lock held until the kernel has read it. A disk that is dead hangs
        here instead, where it holds up nobody.
        """
        name = self._command[0]
        found = shutil.which(name)
        if found is None:
            there = "it may not be executed" if Path(name).exists() else "there is no such file"
            why = there if "/" in name or os.sep in name else "it is not on the PATH"
            raise HostError(f"{self} cannot be started: {why}")
        try:
            with Path(found).open("rb") as file:
                file.read(1)
        except PermissionError:
            pass  # one that may be executed and not read
        except OSError as error:
            raise HostError(f"{self} cannot be started: {error.strerror}") from error
        return found

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Read the output until it ends and the program as well; what it left running may hold it open."""
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            ended = False
            while True:
                ready = selector.select(0 if ended else _LOOK_S)
                if ready:
                    data = os.read(descriptor, _READ)
                    if not data or not self._keep(data):
                        break
                elif ended:
                    break
                ended = ended or _has_ended(process, wait=False)
        _has_ended(process, wait=True)

    def _read_all(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        while (data := process.stdout.read(_READ)) and self._keep(data):
            pass

    def _keep(self, data: bytes) -> bool:
        """Keep the newest of the output; return whether there may be more, and kill the program if not."""
        self._tail = (self._tail + data)[-_TAIL:]
        self._printed += len(data)
        if self._printed <= _MOST:
            return True
        self.kill()
        return False

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        if sys.platform == "win32":  # where a number stays its own until the handle is closed
            process.wait()
            self._reaped = True
            return
        with self._lock:
            _kill(process)  # it has ended itself, but what it left in its group may not have
            process.wait()
            self._reaped = True

    def _judge(self, code: int) -> CheckResult:
        if self._printed > _MOST:
            return CheckResult(False, f"{self} printed more than {size(_MOST)} and was killed{self.said()}")
        if code < 0:
            return CheckResult(False, f"{self} was killed by {_signal_name(-code)}{self.said()}")
        return CheckResult(code == 0, f"{self} ended with exit code {code}{self.said()}")


def _has_ended(process: subprocess.Popen[bytes], wait: bool) -> bool:
    """Say whether a program has ended; it stays a zombie, so that its number and its group stay its own."""
    if sys.platform == "win32":
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)) is not None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that is not reaped, and its group; on Windows those of its children that are found."""
    if sys.platform == "win32":
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
        with contextlib.suppress(OSError):
            process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _as_user(name: str, environment: dict[str, str]) -> dict[str, Any]:
    """Return how ``Popen`` is told to run a program as ``name``, with all of that user's groups.

    Args:
        name: The user; empty: the node's own.
        environment: Is given the variables that a login sets.

    Raises:
        HostError: There is no such user, or this system has another way.
    """
    if not name:
        return {}
    if sys.platform == "win32":
        raise HostError("script: user is not supported on Windows; leave it out")
    import pwd

    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise HostError(f'script: this host has no user "{name}"') from None
    environment.update(HOME=found.pw_dir, USER=name, LOGNAME=name, SHELL=found.pw_shell)
    groups = os.getgrouplist(name, found.pw_gid)
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": groups}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
