"""Is a TCP connection accepted?"""

from __future__ import annotations

import asyncio
from typing import Any

from nlbfarm.checkers.connecting import connection, seconds, went_wrong
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
        self._host = host
        self._port = port
        self._timeout = timeout

    @classmethod
    def from_config(cls, config: Any) -> TcpChecker:
        """Return the checker for an entry with ``address``, ``port`` and ``timeout``."""
        return cls(str(config.address), config.port, timeout=config.timeout.total_seconds())

    async def check(self) -> CheckResult:
        try:
            async with asyncio.timeout(self._timeout), connection(self._host, self._port):
                pass
        except TimeoutError as error:
            if error.errno is None:  # ours; the kernel's own has a number
                where = f"{self._host}:{self._port}"
                return CheckResult(False, f"no answer from {where} within {seconds(self._timeout)}")
            return CheckResult(False, went_wrong(error, self._host, self._port))
        except OSError as error:
            return CheckResult(False, went_wrong(error, self._host, self._port))
        return CheckResult(True, f"connection accepted by {self._host}:{self._port}")
