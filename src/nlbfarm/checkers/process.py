"""Do the processes of an application run, and do they listen?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil

from nlbfarm.checkers.processes import Found, ProcessesChecker, Selection
from nlbfarm.checkers.view import HostView, Pids
from nlbfarm.checkers.words import many
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import CheckResult

__all__ = ["ProcessChecker"]


class ProcessChecker(ProcessesChecker):
    """Counts processes: healthy if there are neither too few nor too many, and one listens where it should.

    A zombie does not count: it has ended, and its parent has not noticed.

    Args:
        selection: Which processes are meant.
        service: Says which processes a service has: only those are looked at.
        at_least, at_most: How many there have to be; ``None``: any number.
        port: One of them has to listen on this port; ``None``: it does not matter.
        protocol: ``"tcp"`` or ``"udp"``, of the port.
        timeout: Seconds after which a look has failed.

    Raises:
        UsageError: Neither a selection nor a service is given.
    """

    def __init__(
        self,
        selection: Selection,
        *,
        service: Pids | None = None,
        at_least: int = 1,
        at_most: int | None = None,
        port: int | None = None,
        protocol: str = "tcp",
        timeout: float = 5.0,
    ) -> None:
        super().__init__(selection, service, timeout)
        if not selection and service is None:
            raise UsageError('process: says not which processes are meant; write process = "httpd"')
        self._at_least = at_least
        self._at_most = at_most
        self._port = port
        self._protocol = protocol

    @classmethod
    def from_config(cls, config: Any, host: HostView) -> ProcessChecker:
        """Return the checker for an entry of type ``process``; without a selection, for its service."""
        selection = Selection.from_config(config)
        return cls(
            selection,
            service=host.processes_of(config.service) if config.service and not selection else None,
            at_least=config.at_least,
            at_most=config.at_most,
            port=config.port,
            protocol=config.protocol,
            timeout=config.timeout.total_seconds(),
        )

    def look(self, among: Sequence[int] | None) -> CheckResult:
        found = self._selection.find(among, self._timeout)
        count = len(found.alive)
        told = f"{many(count, 'process', 'processes')} {self._selection or 'of the service'}"
        if count < self._at_least:
            return CheckResult(False, f"{told}, at least {self._at_least} wanted{found.short()}")
        if self._at_most is not None and count > self._at_most:
            return CheckResult(False, f"{told}, at most {self._at_most} wanted")
        if self._port is None:
            return CheckResult(True, told + found.dead())
        return self._listens(found, told)

    def _listens(self, found: Found, told: str) -> CheckResult:
        port, hidden = f"{self._protocol} port {self._port}", 0
        # Process by process, the parent first: it mostly has the socket, and a host's table of all sockets
        # with all processes is long.
        for process in found.alive:
            try:
                if any(self._is_listener(one) for one in _sockets(process, self._protocol)):
                    return CheckResult(True, f"{told}, {port} open by pid {process.pid}{found.dead()}")
            except psutil.AccessDenied:
                hidden += 1
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue
        why = f" (this user may not look into {hidden} of them; run nlbfarm as root)" if hidden else ""
        return CheckResult(False, f"{told}, none listens on {port}{why}")

    def _is_listener(self, one: Any) -> bool:
        if not one.laddr or one.laddr.port != self._port:
            return False
        return not one.raddr if self._protocol == "udp" else bool(one.status == psutil.CONN_LISTEN)


def _sockets(process: psutil.Process, protocol: str) -> Sequence[Any]:
    # psutil called it otherwise before 6.0.
    ask = getattr(process, "net_connections", None) or process.connections
    found: Sequence[Any] = ask(kind=protocol)
    return found
