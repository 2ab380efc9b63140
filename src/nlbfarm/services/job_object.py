"""Job objects of Windows, through pywin32: what a process starts is in its job, and ends with that.

A job with ``JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE`` (winnt.h) ends with the last handle to it, so with the
process that has the handle, however that one ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlbfarm.errors import HostError

__all__ = ["Job", "Output", "check_here"]

_WAIT_OBJECT_0 = 0  # winbase.h
_APPEND = 0x0004  # FILE_APPEND_DATA (winnt.h): every write goes to the end of the file, wherever that is then
_SHARE_ALL = 0x0007


def check_here() -> None:
    """Raise ``HostError`` if job objects cannot be had here."""
    try:
        import win32job  # noqa: F401
    except ImportError as error:
        raise HostError(
            f"a command on Windows needs pywin32 ({error}): pip install 'nlbfarm[windows]'"
        ) from error


class Output:
    """A file that a process writes to by itself, kept short from outside.

    Args:
        path: The file; its directory is there.
        limit: Bytes of it, more or less: it is looked at now and then.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit

    def handle(self) -> Any:
        """Return a handle that a child inherits, and that appends."""
        import pywintypes
        import win32con
        import win32file

        attributes = pywintypes.SECURITY_ATTRIBUTES()
        attributes.bInheritHandle = True
        return win32file.CreateFile(
            str(self._path), _APPEND, _SHARE_ALL, attributes, win32con.OPEN_ALWAYS, 0, None
        )

    def trim(self) -> None:
        """Make the file the one of before, and begin a new one, if it is too long."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_size > self._limit:
                shutil.copyfile(self._path, self._path.with_name(self._path.name + ".1"))
                os.truncate(self._path, 0)


class Job:
    """A job object, with one main process in it.

    Args:
        handle: The job.
        process: The main process.
        pid: That one's id.
    """

    def __init__(self, handle: Any, process: Any, pid: int) -> None:
        self._handle = handle
        self._process = process
        self.pid = pid

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        output: Output,
        *,
        dies: bool,
    ) -> Job:
        """Start a process in a job of its own; it is in there before its first instruction.

        Args:
            argv: The words of its command line.
            environment: All of its variables.
            directory: Where it starts.
            output: Where it writes to.
            dies: Whether all of it ends with this process.

        Raises:
            HostError: It cannot be started.
        """
        import pywintypes
        import win32con
        import win32file
        import win32job
        import win32process

        job = _new_job()
        _set_dies(job, dies)
        sink = output.handle()
        startup = win32process.STARTUPINFO()
        startup.dwFlags = win32con.STARTF_USESTDHANDLES
        startup.hStdOutput = startup.hStdError = sink
        startup.hStdInput = win32file.INVALID_HANDLE_VALUE
        flags = win32con.CREATE_SUSPENDED | win32con.CREATE_NEW_PROCESS_GROUP
        try:
            process, thread, pid, _ = win32process.CreateProcess(
                None,
                subprocess.list2cmdline(argv),
                None,
                None,
                True,
                flags | win32con.CREATE_UNICODE_ENVIRONMENT,
                dict(environment),
                str(directory),
                startup,
            )
        except pywintypes.error as error:
            raise HostError(f"{argv[0]}: {error.strerror}") from error
        finally:
            win32file.CloseHandle(sink)
        try:
            win32job.AssignProcessToJobObject(job, process)
        except pywintypes.error as error:
            win32process.TerminateProcess(process, 1)
            raise HostError(f"{argv[0]} cannot be put into a job object: {error.strerror}") from error
        win32process.ResumeThread(thread)
        return cls(job, process, pid)

    @classmethod
    def adopt(cls, pid: int, others: Sequence[int], *, dies: bool) -> Job:
        """Put a process that runs, and others that belong to it, into a new job.

        Raises:
            HostError: It may not be touched.
        """
        import pywintypes
        import win32api
        import win32con
        import win32job

        rights = win32con.PROCESS_ALL_ACCESS
        job = _new_job()
        try:
            process = win32api.OpenProcess(rights, False, pid)
            win32job.AssignProcessToJobObject(job, process)
        except pywintypes.error as error:
            raise HostError(f"process {pid} cannot be taken over: {error.strerror}") from error
        for other in others:
            with contextlib.suppress(pywintypes.error):  # it has ended meanwhile
                win32job.AssignProcessToJobObject(job, win32api.OpenProcess(rights, False, other))
        _set_dies(job, dies)
        return cls(job, process, pid)

    def exit_code(self) -> int | None:
        """Return how the main process ended; ``None`` while it runs."""
        import win32event
        import win32process

        if win32event.WaitForSingleObject(self._process, 0) != _WAIT_OBJECT_0:
            return None
        return win32process.GetExitCodeProcess(self._process)

    def pids(self) -> Sequence[int]:
        """Return the ids of all processes in the job."""
        import win32job

        found = win32job.QueryInformationJobObject(self._handle, win32job.JobObjectBasicProcessIdList)
        return tuple(int(pid) for pid in found)

    def ask_to_end(self) -> bool:
        """Send Ctrl-Break to the main process and its group; returns whether that could be done.

        It needs a console that this process shares with it.
        """
        import pywintypes
        import win32api
        import win32con

        try:
            win32api.GenerateConsoleCtrlEvent(win32con.CTRL_BREAK_EVENT, self.pid)
        except pywintypes.error:
            return False
        return True

    def kill(self) -> None:
        """End all processes in the job."""
        import win32job

        win32job.TerminateJobObject(self._handle, 1)

    def close(self, *, leave: bool) -> None:
        """Close the handles; with ``leave`` the processes stay."""
        import win32api

        if leave:
            _set_dies(self._handle, False)
        win32api.CloseHandle(self._process)
        win32api.CloseHandle(self._handle)


def _new_job() -> Any:
    import win32job

    return win32job.CreateJobObject(None, "")


def _set_dies(job: Any, dies: bool) -> None:
    import win32job

    information = win32job.QueryInformationJobObject(job, win32job.JobObjectExtendedLimitInformation)
    information["BasicLimitInformation"]["LimitFlags"] = (
        win32job.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE if dies else 0
    )
    win32job.SetInformationJobObject(job, win32job.JobObjectExtendedLimitInformation, information)
