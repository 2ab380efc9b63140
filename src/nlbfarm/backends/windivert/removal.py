"""Take the VIPs away from this host when the node that brought them up is gone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import psutil

from nlbfarm import plugins
from nlbfarm.core.policy import FilterPolicy, Vip
from nlbfarm.errors import NlbfarmError
from nlbfarm.interfaces import VIPManager

__all__ = ["VipRemoval", "present", "remove_vips"]

_COMMAND_S = 10.0


@dataclass(frozen=True, slots=True)
class VipRemoval:
    """The VIP manager that the node works with, so that the guard can put back what it changed.

    Args:
        manager: Its name among the plug-ins (``filter.vip_manager``).
        journal: Path of its journal.
    """

    manager: str
    journal: Path


def remove_vips(policy: FilterPolicy, removal: VipRemoval | None) -> bool:
    """Take every VIP of ``policy`` off this host; returns whether none is there any more.

    Args:
        policy: Whose VIPs.
        removal: The node's VIP manager, whose ``cleanup`` does it; what that leaves, or everything without
            one, is done by the host's own tool.
    """
    if removal is not None:
        with suppress(NlbfarmError, OSError):
            asyncio.run(_cleanup(removal))
    for vip in present(policy):
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(_command(vip), capture_output=True, timeout=_COMMAND_S, check=False)
    return not present(policy)


def present(policy: FilterPolicy) -> list[Vip]:
    """Return the VIPs of ``policy`` that are on their interfaces."""
    there = {
        (interface, ip_address(item.address.partition("%")[0]))
        for interface, items in psutil.net_if_addrs().items()
        for item in items
        if item.family.name in ("AF_INET", "AF_INET6")
    }
    return [vip for vip in policy.vips if (vip.interface, vip.address) in there]


def _command(vip: Vip) -> list[str]:
    if sys.platform == "win32":
        family = "ipv4" if vip.address.version == 4 else "ipv6"
        return ["netsh", "interface", family, "delete", "address", vip.interface, str(vip.address)]
    return ["ip", "address", "delete", f"{vip.address}/{vip.address.max_prefixlen}", "dev", vip.interface]


async def _cleanup(removal: VipRemoval) -> None:
    manager = plugins.make(
        plugins.Kind.VIP,
        removal.manager,
        VIPManager,  # type: ignore[type-abstract]
        "the VIP manager",
        (),
        removal.journal,
    )
    try:
        await manager.cleanup()
    finally:
        await manager.close()
