"""Virtual IPs on a host that exists in memory only, for tests and trials."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import VIPManager, VipSpec

__all__ = ["MemoryHost", "MemoryVIPManager"]


@dataclass(slots=True)
class MemoryHost:
    """The host and its network, as far as VIPs matter; tests change it as they like.

    Args:
        addresses: VIPs on the host, each with its interface.
        journal: What a manager has put there and not yet taken away.
        strangers: MACs that answer for an address on the network.
        neighbours: Addresses that answer ARP.
        refuses: If not empty, what the host says when a VIP is to be added.
        announced: Every announcement so far, in order.
    """

    addresses: dict[IPAddress, str] = field(default_factory=dict)
    journal: list[VipSpec] = field(default_factory=list)
    strangers: dict[IPAddress, str] = field(default_factory=dict)
    neighbours: set[IPAddress] = field(default_factory=set)
    refuses: str = ""
    announced: list[IPAddress] = field(default_factory=list)


class MemoryVIPManager(VIPManager):
    """Keeps VIPs in a ``MemoryHost``.

    Args:
        specs: The VIPs.
        host: Where to keep them, for managers that share a host; by default a host of its own.
    """

    def __init__(self, specs: Sequence[VipSpec], host: MemoryHost | None = None) -> None:
        self.host = MemoryHost() if host is None else host
        self._specs = tuple(specs)
        self._open = False
        self._up = False

    async def open(self) -> Sequence[str]:
        if self._open:
            return []
        for spec in self._specs:
            self._refuse_foreign(spec)
        lines = self._restore()
        self._open = True
        return lines

    async def claimed(self) -> Mapping[IPAddress, str]:
        strangers = self.host.strangers
        return {
            spec.address: strangers[spec.address]
            for spec in self._specs
            if spec.address in strangers and strangers[spec.address] != spec.group_mac
        }

    async def up(self) -> None:
        if not self._open:
            raise UsageError("up() before open()")
        for spec in self._specs:
            self._refuse_foreign(spec)
        if self.host.refuses:
            raise HostError(self.host.refuses)
        for spec in self._specs:
            if spec not in self.host.journal:
                self.host.journal.append(spec)
            self.host.addresses[spec.address] = spec.interface
        self._up = True
        await self.announce()

    async def down(self) -> None:
        self._up = False
        self._restore()

    async def announce(self) -> None:
        if self._up:
            self.host.announced += [spec.address for spec in self._specs]

    async def reachable(self, addresses: Collection[IPAddress]) -> frozenset[IPAddress]:
        return frozenset(self.host.neighbours.intersection(addresses))

    def present(self) -> Mapping[IPAddress, bool]:
        there = self.host.addresses if self._open else {}
        return {spec.address: there.get(spec.address) == spec.interface for spec in self._specs}

    async def close(self) -> None:
        if self._open:
            await self.down()
            self._open = False

    async def cleanup(self) -> Sequence[str]:
        return self._restore()

    def _refuse_foreign(self, spec: VipSpec) -> None:
        if spec.address in self.host.addresses and spec not in self.host.journal:
            raise HostError(f"the virtual IP {spec.address} is already on this host, and not by this farm")

    def _restore(self) -> list[str]:
        lines = []
        while self.host.journal:
            spec = self.host.journal.pop()
            if self.host.addresses.get(spec.address) == spec.interface:
                del self.host.addresses[spec.address]
                lines.append(f"removed {spec.address} from {spec.interface}")
        return lines
