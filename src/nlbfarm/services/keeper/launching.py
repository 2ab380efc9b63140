"""From the keeper to the application: fork, and everything that has to be so before it is executed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nlbfarm.services.keeper.family import TOKEN

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["IN_CGROUP", "LaunchError", "Program", "launch", "prctl"]

IN_CGROUP = "its cgroup"
"""The stage at which the application is put into its cgroup."""

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_TIMERSLACK, PR_SET_CHILD_SUBREAPER = 1, 15, 29, 36  # linux/prctl.h
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_NOT_FOR_IT = (
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"),
    *("INVOCATION_ID", "JOURNAL_STREAM", "MAINPID", "MANAGERPID", "SYSTEMD_EXEC_PID"),
    *("CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"),
)  # systemd.exec(5): what it tells the node about itself

if sys.platform == "win32":
    raise ImportError("the keeper is for POSIX; on Windows a job object does its work")

_libc = ctypes.CDLL(None, use_errno=True)


class LaunchError(Exception):
    """The application cannot be started.

    Args:
        stage: What could not be done.
        why: What the host said to it.
    """

    def __init__(self, stage: str, why: str) -> None:
        super().__init__(f"{stage}: {why}" if stage else why)
        self.stage = stage


class Program:
    """What is to be executed, and how.

    Args:
        argv: The words of its command line.
        environment: Variables beside those of the keeper.
        directory: Where it starts.
        user: As whom; empty: as the keeper.
        token: By which its processes are found again.
        dies: Whether it is killed with the keeper.
    """

    def __init__(
        self,
        argv: list[str],
        environment: dict[str, str],
        directory: str,
        user: str,
        token: str,
        dies: bool,
    ) -> None:
        self.argv, self.environment, self.directory = argv, environment, directory
        self.user, self.token, self.dies = user, token, dies


def prctl(option: int, value: int | bytes) -> bool:
    """Set something of this process (prctl(2)); returns whether the kernel did."""
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    return bool(_libc.prctl(option, argument, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0)


def launch(program: Program, output: int, cgroup: Path | None) -> int:
    """Start the application in a session of its own; returns its process id once it is executed.

    Args:
        program: What to execute.
        output: Descriptor that it writes to.
        cgroup: The cgroup that it is in from its first instruction.

    Raises:
        LaunchError: It cannot be started; nothing of it is there.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    keeper = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise LaunchError("fork", str(error.strerror)) from error
    if pid == 0:
        _become(program, output, cgroup, keeper, writer)
    os.close(writer)
    try:
        said = b""
        while data := os.read(reader, 4096):
            said += data
    finally:
        os.close(reader)
    if said:  # execve(2) closes the pipe without a word
        os.waitpid(pid, 0)
        stage, _, why = said.decode(errors="replace").partition("\0")
        raise LaunchError(stage, why)
    return pid


def _become(program: Program, output: int, cgroup: Path | None, keeper: int, report: int) -> NoReturn:
    """Be the application; in the child, never returns."""
    stage = ""
    try:
        os.setsid()
        if cgroup is not None:
            stage = IN_CGROUP
            (cgroup / "cgroup.procs").write_text("0")
        stage = ""
        for number in signal.valid_signals():
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                _default(number)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, target)
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_FOR_IT}
        if program.user:
            stage = f'user "{program.user}"'
            environment.update(_become_user(program.user))
        environment.update(program.environment)
        environment[TOKEN] = program.token
        # The node's own rights over the network are not the application's.
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        # Last but one: a change of credentials would take it back (kernel/cred.c, commit_creds).
        if program.dies and prctl(PR_SET_PDEATHSIG, signal.SIGKILL) and os.getppid() != keeper:
            os._exit(127)
        stage = program.directory
        os.chdir(program.directory)
        stage = program.argv[0]
        os.execvpe(program.argv[0], program.argv, environment)  # noqa: S606 - no shell is what is wanted
    except OSError as error:
        os.write(report, f"{stage}\0{error.strerror}".encode())
    except BaseException as error:  # noqa: BLE001 - whatever it is, this copy of the keeper must not go on
        os.write(report, f"{stage}\0{type(error).__name__}: {error}".encode())
    os._exit(127)


def _default(number: int) -> None:
    try:
        signal.signal(number, signal.SIG_DFL)
    except OSError:
        return  # one that the C library has for itself


def _become_user(name: str) -> dict[str, str]:
    """Drop to another user, with its groups; returns the variables that go with it."""
    import pwd  # not on every platform; built into the interpreter

    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise OSError(0, "this host has no such user") from None
    if found.pw_uid != os.geteuid() or os.geteuid() == 0:
        os.initgroups(name, found.pw_gid)
        os.setgid(found.pw_gid)
        os.setuid(found.pw_uid)
    return {"HOME": found.pw_dir, "USER": name, "LOGNAME": name, "SHELL": found.pw_shell}
