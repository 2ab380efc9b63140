"""The virtual IPs of one node: brought up, kept, and taken away when the node is stopped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence

from nlbfarm.core.events import Event, Reachability, ResourceChanged
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError
from nlbfarm.events import EventLog
from nlbfarm.interfaces import VIPManager

__all__ = ["REPAIR_S", "VIPS", "VipKeeper"]

VIPS = "virtual-ip"
"""Name of the resource that stands for the VIPs."""

LOOK_S = 1.0
"""How often the node looks whether its VIPs are still there."""

REPAIR_S = 0.5
"""Pause between two attempts to repair a damaged filter, or to take a VIP that a stranger uses."""


class VipKeeper:
    """Brings the VIPs up, and keeps them there while they are wanted.

    Args:
        manager: What does it.
        handle: Where events go.
        changed: Told when they are there, and when they are no longer wanted.
        log: Of the node.
    """

    def __init__(
        self,
        manager: VIPManager,
        handle: Callable[[Event], None],
        changed: Callable[[bool], None],
        log: EventLog,
    ) -> None:
        self._manager = manager
        self._handle = handle
        self._changed = changed
        self._log = log
        self._changing = asyncio.Lock()
        """Held while the VIPs are brought up or taken away."""
        self._nudged = asyncio.Event()
        self._told: bool | None = None
        self._taken = False
        self.up = False
        self.wanted = True
        self.hindered = False
        """Set while the filter is damaged: the VIPs are down, and stay so."""
        self.present: Mapping[IPAddress, bool] = {}
        """Whether each was there when last looked for."""

    async def keep(self) -> None:
        """Bring the VIPs up and keep them, for ever."""
        while True:
            if self.wanted and not self._taken:
                self._taken = await self._take()
            elif self.wanted:
                await self._look()
            await self._pause(LOOK_S if self._taken or not self.wanted else REPAIR_S)

    def halt(self) -> None:
        """Want the VIPs no longer; ``lower`` takes them away."""
        self.wanted = self._taken = False
        self._changed(False)

    def resume(self) -> None:
        """Want the VIPs again. The node does not count with them until they are there."""
        if not self.wanted:
            self.wanted = True
            self._tell(False, "the virtual IPs are being brought up")
            self._nudged.set()

    async def lower(self) -> None:
        """Take the VIPs away unless they are wanted again by now.

        Raises:
            HostError: One cannot be taken away.
        """
        async with self._changing:
            if not self.wanted:
                await self.down()
                self.present = self._manager.present()

    def changing(self) -> asyncio.Lock:
        """Return the lock that is held while the VIPs change."""
        return self._changing

    async def down(self) -> None:
        """Take the VIPs away; the caller has the lock."""
        await self._manager.down()
        self.up = False

    async def back(self) -> None:
        """Bring the VIPs back after ``down``, if they are wanted; the caller has the lock."""
        if not self.wanted:
            return
        try:
            await self._manager.up()
            self.up = True
        except HostError as error:  # the next look tries again
            self._tell(False, str(error))

    async def probe(self, peers: Mapping[int, Sequence[IPAddress]]) -> None:
        """Find out which peers answer ARP on a VIP's interface, and tell."""
        try:
            answered = await self._manager.reachable({a for known in peers.values() for a in known})
        except HostError as error:
            self._log.warning("vip.probe_failed", error=str(error))
            answered = frozenset()
        nodes = frozenset(node for node, known in peers.items() if answered.intersection(known))
        self._handle(Reachability(nodes))

    async def _look(self) -> None:
        self.present = self._manager.present()
        gone = sorted(str(address) for address, there in self.present.items() if not there)
        if self.hindered or (self._told and not gone):
            return
        if gone and self._told:
            self._log.warning("vip.vanished", addresses=gone)
        await self._take()

    async def _take(self) -> bool:
        """Bring the VIPs up unless a stranger has one; return whether that was possible."""
        try:
            strangers = await self._manager.claimed()
            if strangers:
                who = ", ".join(f"{address} is in use by {mac}" for address, mac in strangers.items())
                reason = f"{who}, not a node of this farm: give that machine another address (tried again)"
                self._tell(False, reason)
                return False
            async with self._changing:
                if self.hindered or not self.wanted:
                    return False
                await self._manager.up()
                self.up = True
        except HostError as error:
            self._tell(False, str(error))
            return False
        self.present = self._manager.present()
        self._tell(True)
        return True

    def _tell(self, ok: bool, reason: str = "") -> None:
        self._told = ok
        self._handle(ResourceChanged(VIPS, ok, reason))
        if ok:
            self._changed(True)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._nudged.wait()
        self._nudged.clear()
