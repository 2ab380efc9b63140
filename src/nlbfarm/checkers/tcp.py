"""Is a TCP connection accepted?"""

from __future__ import annotations

import asyncio
from typing import Any

from nlbfarm.checkers.connecting import Target
from nlbfarm.checkers.view import HostView
from nlbfarm.interfaces import Checker, CheckResult

__all__ = ["TcpChecker"]


class TcpChecker(Checker):
    """Opens a TCP connection and resets it: healthy if it was accepted.

    The kernel accepts for a program that hangs, as long as its backlog has room: where the
    application speaks HTTP, the ``http`` checker sees more.

    Args:
        host: Address or name to connect to.
        port: Port to connect to.
        timeout: Seconds after which a look has failed.
    """

    def __init__(self, host: str, port: int, *, timeout: float = 5.0) -> None:
        self._target = Target(host, port)
        self._timeout = timeout

    @classmethod
    def from_config(cls, config: Any, host: HostView) -> TcpChecker:
        """Return the checker for an entry with ``address``, ``port`` and ``timeout``."""
        return cls(str(config.address), config.port, timeout=config.timeout.total_seconds())

    async def check(self) -> CheckResult:
        try:
            async with asyncio.timeout(self._timeout), self._target.connected():
                pass
        except OSError as error:
            return CheckResult(False, self._target.went_wrong(error, self._timeout))
        return CheckResult(True, f"connection accepted by {self._target}")

    async def close(self) -> None:
        self._target.close()
