"""What checkers are told of the node that they look for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import UsageError

__all__ = ["HostView", "Pids"]

Pids = Callable[[], Awaitable[Sequence[int]]]
"""Says which processes there are now: those of one service."""


def _nowhere(address: IPAddress) -> bool:
    return False


async def _nobody() -> Mapping[IPAddress, str]:
    return {}


@dataclass(frozen=True, slots=True)
class HostView:
    """The node, its farm and its host, as far as checkers need them.

    The default knows nothing; ``tcp``, ``http`` and others that look at one named thing need no more.

    Args:
        farm: Name of the farm.
        node: Name of this node.
        vips: The farm's virtual IPs.
        interfaces: What ``interface`` looks at when its entry names none: those of VIPs and heartbeats.
        vip_present: Whether a VIP is on this host now.
        vip_claimed: Asks the network who answers for the VIPs; the MAC of a stranger by VIP.
        runtime_dir: Where each farm of this host has a directory with its control socket.
        pids_of_service: Says which processes a service has now; ``None``: nobody knows.
    """

    farm: str = ""
    node: str = ""
    vips: tuple[IPAddress, ...] = ()
    interfaces: tuple[str, ...] = ()
    vip_present: Callable[[IPAddress], bool] = _nowhere
    vip_claimed: Callable[[], Awaitable[Mapping[IPAddress, str]]] = _nobody
    runtime_dir: Path = Path("/run/nlbfarm")
    pids_of_service: Callable[[str], Awaitable[Sequence[int]]] | None = None

    def processes_of(self, service: str) -> Pids:
        """Return what says which processes ``service`` has.

        Raises:
            UsageError: Nobody knows.
        """
        if self.pids_of_service is None:
            raise UsageError(
                f'nobody can say which processes the service "{service}" has; name them: process = "httpd"'
            )
        return partial(self.pids_of_service, service)
