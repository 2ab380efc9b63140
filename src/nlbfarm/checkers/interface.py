"""Has a network interface its link?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil

from nlbfarm.checkers.threads import BlockingChecker
from nlbfarm.checkers.view import HostView
from nlbfarm.checkers.words import series
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import CheckResult

__all__ = ["InterfaceChecker"]


class InterfaceChecker(BlockingChecker):
    """Looks at interfaces: healthy if each is there, is up and has a link.

    Args:
        interfaces: Their names.
        timeout: Seconds after which a look has failed: a driver answers, and can hang.

    Raises:
        UsageError: There is none.
    """

    def __init__(self, interfaces: Sequence[str], *, timeout: float = 5.0) -> None:
        super().__init__(f"the state of {series(interfaces)}", timeout)
        if not interfaces:
            raise UsageError('interface: names no interface to look at; write interfaces = ["eth0"]')
        self._interfaces = tuple(dict.fromkeys(interfaces))

    @classmethod
    def from_config(cls, config: Any, host: HostView) -> InterfaceChecker:
        """Return the checker for an entry of type ``interface``; without names, for those of the node."""
        return cls(config.interfaces or host.interfaces, timeout=config.timeout.total_seconds())

    async def check(self) -> CheckResult:
        return await self.within(self._look)

    def _look(self) -> CheckResult:
        states = psutil.net_if_stats()
        missing = [name for name in self._interfaces if name not in states]
        there = [name for name in self._interfaces if name in states and not states[name].isup]
        flags = {name: states[name].flags.split(",") for name in there}
        # Not every system tells them; "up" is what an administrator has switched on.
        off = [name for name in there if flags[name] != [""] and "up" not in flags[name]]
        unplugged = [name for name in there if name not in off]
        wrong = [
            *(f"this host has no interface {name}" for name in missing),
            *(f"{name} is switched off (ip link set {name} up)" for name in off),
            *(f"{name} has no link: is the cable in, is the switch on?" for name in unplugged),
        ]
        if wrong:
            return CheckResult(False, "; ".join(wrong))
        have = "has" if len(self._interfaces) == 1 else "have"
        return CheckResult(True, f"{series(self._interfaces)} {have} a link")
