"""Faults of the network, made at the lab's switch: loss in one direction, loss in part, partitions.

They are rules in a bridge table of the switch's own namespace: the nodes' rulesets are not touched, and
what a node's host looks like stays the same. The rules see frames on their way from one port to another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from nlbfarm.config.heartbeat import Heartbeat
from nlbfarm.lab import topology
from nlbfarm.lab.world import World

__all__ = ["Faults"]

_TABLE = "faults"
_EVERY_NETWORK = tuple(range(topology.NETWORKS))


@dataclass(frozen=True, slots=True)
class _Drop:
    """Frames that enter at one port and would leave at another are dropped if they match."""

    source: str
    target: str
    match: str = ""

    def rule(self) -> str:
        return f'iifname "{self.source}" oifname "{self.target}" {self.match} drop'


class Faults:
    """What is wrong with the lab's network now; nothing to begin with.

    Each method adds to what is there, takes effect before it returns, and returns the moment just before it
    was asked for, seconds on the monotonic clock.

    Args:
        world: The lab.
        nodes: Returns the names of all nodes.
    """

    def __init__(self, world: World, nodes: Callable[[], Collection[str]]) -> None:
        self._world = world
        self._nodes = nodes
        self._drops: list[_Drop] = []

    def lose(
        self,
        sources: Iterable[str],
        targets: Iterable[str],
        *,
        percent: int = 100,
        networks: Iterable[int] = _EVERY_NETWORK,
    ) -> float:
        """Lose heartbeats in one direction; ARP, clients and everything else pass.

        Args:
            sources: The nodes that send them.
            targets: The nodes that do not get them.
            percent: How many of a hundred are lost, by chance, each on its own.
            networks: On which heartbeat networks.
        """
        match = f"udp dport {Heartbeat().port}"
        if percent < 100:
            match += f" numgen random mod 100 < {percent}"
        targets, networks = tuple(targets), tuple(networks)
        return self._add(
            _Drop(topology.ports(source)[network], topology.ports(target)[network], match)
            for source in sources
            for target in targets
            for network in networks
            if source != target
        )

    def mute(self, node: str) -> float:
        """Let nobody hear a node any more, which still hears all others."""
        return self.lose([node], self._nodes())

    def deafen(self, node: str) -> float:
        """Let a node hear nobody any more; it is still heard."""
        return self.lose(self._nodes(), [node])

    def partition(
        self, sides: Sequence[Collection[str]], clients: Sequence[Collection[IPv4Address]] = ()
    ) -> float:
        """Take the switch apart: no frame passes from one side to another, on any network.

        Args:
            sides: The nodes of each.
            clients: For each side, the client's addresses that reach this side only; an address that is named
                on no side reaches all of them (a client with a foot on each).
        """
        drops = []
        for number, side in enumerate(sides):
            others = [node for other in sides if other is not side for node in other]
            drops += [
                _Drop(topology.ports(source)[network], topology.ports(target)[network])
                for source in side
                for target in others
                for network in _EVERY_NETWORK
            ]
            for address in clients[number] if clients else ():
                port = topology.ports(topology.CLIENT)[0]
                drops += [_Drop(port, topology.ports(node)[0], f"ip saddr {address}") for node in others]
        return self._add(drops)

    def cut_off(self, nodes: Iterable[str], host: str) -> float:
        """Let no frame pass between these nodes and another host of the first network: the gateway."""
        far = topology.ports(host)[0]
        near = [topology.ports(node)[0] for node in nodes]
        return self._add(drop for port in near for drop in (_Drop(port, far), _Drop(far, port)))

    def heal(self) -> float:
        """Take every fault back."""
        self._drops = []
        return self._apply()

    def _add(self, drops: Iterable[_Drop]) -> float:
        self._drops += drops
        return self._apply()

    def _apply(self) -> float:
        rules = "\n".join(f"    {drop.rule()}" for drop in self._drops)
        chain = f"chain forward {{\n    type filter hook forward priority 0\n{rules}\n  }}"
        # One transaction: at no time is there less wrong than before and after.
        text = f"table bridge {_TABLE} {{}}\ndelete table bridge {_TABLE}\n"
        if self._drops:
            text += f"table bridge {_TABLE} {{\n  {chain}\n}}\n"
        at = time.monotonic()
        self._world.run(["nft", "-f", "-"], stdin=text)
        return at
