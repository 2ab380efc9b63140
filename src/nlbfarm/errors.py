"""Errors of nlbfarm: a few children, told apart by whose fault it is.

Every message says what happened, where (path, address, file) and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "AddressInUseError",
    "ConfigError",
    "HostError",
    "NlbfarmError",
    "PeerError",
    "PluginError",
    "Problem",
    "UsageError",
]


class NlbfarmError(Exception):
    """Base of every error that nlbfarm raises on purpose."""


class UsageError(NlbfarmError):
    """A call of the API, or a command, that cannot be meant: nothing was changed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration.

    Args:
        path: Where, in the user's own spelling: ``nodes[2].addresses[0]``.
        message: What is wrong, and what to write instead.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(NlbfarmError):
    """The user's configuration is wrong; carries every problem at once.

    Args:
        source: The file (or what stands for it) that the problems are in.
        problems: All of them, in the order of the file.
    """

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source}: {len(self.problems)} problem(s)\n{lines}")


class HostError(NlbfarmError):
    """This host lacks something: a right, a tool, an interface, a kernel feature."""


class AddressInUseError(HostError):
    """A virtual IP that a machine outside the farm already answers for."""


class PeerError(NlbfarmError):
    """Bytes from the network that are not a valid message of this farm.

    The only error that the decoder of ``nlbfarm.core.wire`` raises, whatever the bytes.

    Args:
        kind: A short stable word for counters: ``"malformed"``, ``"version"``, ``"farm"``,
            ``"key"`` or ``"forged"``.
        message: What was wrong.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(f"{kind}: {message}")


class PluginError(NlbfarmError):
    """A plug-in (backend, heartbeat, checker, VIP manager, service) broke its contract."""
