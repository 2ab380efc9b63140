"""How is another farm's node on this host?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nlbfarm.checkers.view import HostView
from nlbfarm.checkers.words import one_line, seconds, series
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import Checker, CheckResult

__all__ = ["ModuleChecker"]

_LARGEST = 16 << 20  # bytes of an answer, as nlbfarm.api.control takes them
_QUESTION = b'{"verb": "status"}\n'


class ModuleChecker(Checker):
    """Asks the node of another farm, on its control socket: healthy while its state is one of those wanted.

    Args:
        farm: Name of the other farm.
        socket: Its control socket.
        states: States that are healthy.
        timeout: Seconds after which a look has failed.

    Raises:
        UsageError: No state is wanted.
    """

    def __init__(
        self, farm: str, socket: Path, *, states: Collection[str] = ("UP",), timeout: float = 5.0
    ) -> None:
        if not states:
            raise UsageError('module: names no state that is healthy; write states = ["UP"]')
        self._farm = farm
        self._socket = socket
        self._states = tuple(states)
        self._timeout = timeout

    @classmethod
    def from_config(cls, config: Any, host: HostView) -> ModuleChecker:
        """Return the checker for an entry of type ``module``.

        Raises:
            UsageError: It names the farm that it belongs to.
        """
        if config.farm == host.farm:
            raise UsageError(f'module: "{config.farm}" is this farm itself; name another one of this host')
        return cls(
            config.farm,
            host.runtime_dir / config.farm / "control.sock",
            states=[str(state) for state in config.states],
            timeout=config.timeout.total_seconds(),
        )

    async def check(self) -> CheckResult:
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._ask()
        except TimeoutError:
            return self._down(f"no answer on {self._socket} within {seconds(self._timeout)}")
        except FileNotFoundError:
            return self._down(f"not running here: there is no {self._socket}")
        except ConnectionError:
            return self._down(f"not running here: nobody answers on {self._socket}")
        except PermissionError:
            return self._down(f"this user may not ask on {self._socket} (control.group of that farm)")
        except OSError as error:
            return self._down(f"cannot be asked on {self._socket}: {error.strerror or error}")
        except ValueError as error:
            return self._down(f"no valid answer on {self._socket}: {error}")
        if not answer.get("ok"):
            return self._down(one_line(str(answer.get("error", "it gives no answer"))))
        return self._judge(answer.get("result"))

    def _judge(self, status: Any) -> CheckResult:
        if not isinstance(status, dict) or not isinstance(status.get("state"), str):
            return self._down(f"no state in what {self._socket} answers")
        state, reason = status["state"], one_line(str(status.get("reason") or ""))
        told = f"farm {self._farm} is {state} on this host" + (f": {reason}" if reason else "")
        if state in self._states:
            return CheckResult(True, told)
        return CheckResult(False, f"{told}; {series(self._states, 'or')} is wanted")

    def _down(self, why: str) -> CheckResult:
        return CheckResult(False, f"farm {self._farm}: {why}")

    async def _ask(self) -> dict[str, Any]:
        """Return the answer.

        Raises:
            ValueError: It is none.
            OSError: The node cannot be asked.
            HostError: This system has no such sockets.
        """
        if sys.platform == "win32":
            raise HostError(
                'the checker type "module" needs control sockets, which nodes on Windows do not have'
            )
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=_LARGEST)
        try:
            writer.write(_QUESTION)
            line = await reader.readuntil()
        except asyncio.IncompleteReadError:
            raise ConnectionResetError from None
        except asyncio.LimitOverrunError:
            raise ValueError(f"it has more than {_LARGEST} bytes") from None
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await asyncio.shield(writer.wait_closed())
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("it is no JSON") from None
        if not isinstance(answer, dict):
            raise ValueError("it is no JSON object")
        return answer
