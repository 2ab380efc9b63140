"""Virtual IPs: bring them up on this host, take them away, leave the host as it was.

- ``arp``: ARP frames as bytes (pure)
- ``arpio``: sends and hears them on packet sockets (asyncio)
- ``journal``: what was changed on the host, on disk before it is changed
- ``changes``: the changes themselves (sysctl, ARP rewriting, address), each with its way back
- ``netlink``: links and addresses through pyroute2, and a cheap watch over both
- ``membership``: joins the group MAC for as long as the process lives
- ``linux``: ``LinuxVIPManager``, which puts these together
- ``memory``: ``MemoryVIPManager``, for tests and trials
"""

from __future__ import annotations

from nlbfarm.vip.linux import LinuxVIPManager
from nlbfarm.vip.memory import MemoryHost, MemoryVIPManager

__all__ = ["LinuxVIPManager", "MemoryHost", "MemoryVIPManager"]
