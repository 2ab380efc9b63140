"""The service control manager of Windows, as little of it as is needed, through pywin32."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nlbfarm.errors import HostError

__all__ = ["Scm", "ScmError", "State", "Status", "windows_scm"]


class State(enum.IntEnum):
    """States of a service (winsvc.h)."""

    STOPPED = 1
    START_PENDING = 2
    STOP_PENDING = 3
    RUNNING = 4
    CONTINUE_PENDING = 5
    PAUSE_PENDING = 6
    PAUSED = 7


class ScmError(Exception):
    """The service control manager refused.

    Args:
        code: The Windows error (winerror.h).
        text: What it says.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} (error {code})")
        self.code = code


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a service.

    Args:
        state: Its state.
        pid: Its process; 0 if it has none.
        alone: Whether no other service is in that process.
        exit_code: How it ended last: a Windows error, or the service's own.
    """

    state: State
    pid: int = 0
    alone: bool = True
    exit_code: int = 0


class Scm(Protocol):
    """What is asked of the service control manager. Every call blocks; ``ScmError`` if it is refused."""

    def status(self, name: str) -> Status:
        """Return how the service is."""

    def start(self, name: str) -> None:
        """Ask for its start."""

    def stop(self, name: str) -> None:
        """Ask for its end."""

    def resume(self, name: str) -> None:
        """Ask one that is paused to go on."""

    def dependents(self, name: str) -> Sequence[str]:
        """Return the services that run and need this one, in the order in which they can be stopped."""

    def kill(self, pid: int) -> None:
        """End a process."""

    def own_ways(self, name: str) -> Sequence[str]:
        """Return by what Windows starts it itself: ``"start type automatic"``, ``"recovery actions"``."""


def windows_scm() -> Scm:
    """Return this host's.

    Raises:
        HostError: This is not Windows, or pywin32 is missing.
    """
    try:
        import pywintypes
        import win32service
    except ImportError as error:
        raise HostError(
            f"services of Windows need Windows and pywin32 ({error}): pip install 'nlbfarm[windows]'"
        ) from error
    return _WindowsScm(win32service, pywintypes.error)


class _WindowsScm:
    """Through pywin32.

    Args:
        service: The module ``win32service``.
        error: The exception that it raises.
    """

    def __init__(self, service: Any, error: type[Exception]) -> None:
        self._service = service
        self._error = error

    @contextlib.contextmanager
    def _open(self, name: str, access: int) -> Iterator[Any]:
        service = self._service
        try:
            manager = service.OpenSCManager(None, None, service.SC_MANAGER_CONNECT)
            try:
                handle = service.OpenService(manager, name, access)
                try:
                    yield handle
                finally:
                    service.CloseServiceHandle(handle)
            finally:
                service.CloseServiceHandle(manager)
        except self._error as error:
            code, _function, text = (*error.args, 0, "", "")[:3]
            raise ScmError(int(code), str(text)) from error

    def status(self, name: str) -> Status:
        with self._open(name, self._service.SERVICE_QUERY_STATUS) as handle:
            found = self._service.QueryServiceStatusEx(handle)
        own, specific = (
            found["ServiceType"] & 0x10,
            found["Win32ExitCode"] == 1066,
        )  # ERROR_SERVICE_SPECIFIC_ERROR
        return Status(
            State(found["CurrentState"]),
            found["ProcessId"],
            bool(own),  # SERVICE_WIN32_OWN_PROCESS
            found["ServiceSpecificExitCode"] if specific else found["Win32ExitCode"],
        )

    def start(self, name: str) -> None:
        with self._open(name, self._service.SERVICE_START) as handle:
            self._service.StartService(handle, None)

    def stop(self, name: str) -> None:
        with self._open(name, self._service.SERVICE_STOP) as handle:
            self._service.ControlService(handle, self._service.SERVICE_CONTROL_STOP)

    def resume(self, name: str) -> None:
        with self._open(name, self._service.SERVICE_PAUSE_CONTINUE) as handle:
            self._service.ControlService(handle, self._service.SERVICE_CONTROL_CONTINUE)

    def dependents(self, name: str) -> Sequence[str]:
        with self._open(name, self._service.SERVICE_ENUMERATE_DEPENDENTS) as handle:
            found = self._service.EnumDependentServices(handle, self._service.SERVICE_ACTIVE)
        return [entry[0] for entry in found]

    def kill(self, pid: int) -> None:
        import psutil

        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            return
        except psutil.AccessDenied as error:
            raise ScmError(5, f"process {pid} may not be ended") from error

    def own_ways(self, name: str) -> Sequence[str]:
        service, found = self._service, []
        with self._open(name, service.SERVICE_QUERY_CONFIG) as handle:
            if service.QueryServiceConfig(handle)[1] in (
                service.SERVICE_AUTO_START,
                service.SERVICE_BOOT_START,
            ):
                found.append("start type automatic")
            with contextlib.suppress(self._error):  # Wine knows none
                failure = service.QueryServiceConfig2(handle, service.SERVICE_CONFIG_FAILURE_ACTIONS)
                if any(kind == service.SC_ACTION_RESTART for kind, _delay in failure.get("Actions") or ()):
                    found.append("recovery actions")
        return found
