"""What a filter has to enforce: the static half (VIPs, rules, groups) of every decision.

The other half, the bucket states, changes with each plan: ``nlbfarm.core.buckets.BucketStates``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

__all__ = [
    "Affinity",
    "FilterPolicy",
    "Group",
    "IPAddress",
    "Mode",
    "Protocol",
    "Rule",
    "Vip",
]

IPAddress = IPv4Address | IPv6Address


class Protocol(enum.IntEnum):
    """IP protocol numbers a rule can name (IANA, Assigned Internet Protocol Numbers)."""

    TCP = 6
    UDP = 17


class Affinity(enum.StrEnum):
    """What keeps packets together on one node (``nlbfarm.core.hashing.flow_key``)."""

    CLIENT_PORT = "client-port"
    CLIENT = "client"
    NETWORK = "network"


class Mode(enum.StrEnum):
    """How a group's buckets are placed."""

    BALANCED = "balanced"
    FAILOVER = "failover"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Vip:
    """A virtual IP address.

    Args:
        address: The address.
        interface: Name of the interface that its packets arrive on; packets for the address
            that arrive anywhere else (a client on the node itself) are not filtered.
        accept_uncovered: What happens to packets that no rule covers: ``False`` drops them on
            every node (the default of the product), ``True`` accepts them on every node while
            the lease runs.
    """

    address: IPAddress
    interface: str
    accept_uncovered: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that keep a client on one node share a group: one seed, one placement.

    Args:
        name: Its name; a rule without a group is alone in a group of its own name.
        seed: Seed of the hash, 0..2**32-1 (``nlbfarm.core.hashing.group_seed``).
        mode: How its buckets are placed; ``BLOCKED`` accepts nothing on any node.
    """

    name: str
    seed: int
    mode: Mode = Mode.BALANCED


@dataclass(frozen=True, slots=True)
class Rule:
    """One service behind a VIP.

    Args:
        name: Its name.
        group: Name of the group that places it.
        vip: The VIP's address.
        protocol: TCP or UDP.
        ports: Destination ports, 1..65535, sorted, without repetition, at least one.
        affinity: What is hashed.
    """

    name: str
    group: str
    vip: IPAddress
    protocol: Protocol
    ports: tuple[int, ...]
    affinity: Affinity = Affinity.CLIENT_PORT


@dataclass(frozen=True, slots=True)
class FilterPolicy:
    """All that a filter needs to know beside the bucket states.

    No two rules cover the same (VIP, protocol, port); every rule's group and VIP are listed;
    the configuration has checked that.

    Args:
        farm: Name of the farm; backends derive the names of what they create from it.
        vips: The VIPs, unique by address.
        groups: The groups, unique by name; their order is the order of bitmaps on the wire.
        rules: The rules, unique by name.
    """

    farm: str
    vips: tuple[Vip, ...]
    groups: tuple[Group, ...]
    rules: tuple[Rule, ...]

    def group(self, name: str) -> Group:
        """Return the group called ``name``; ``KeyError`` if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)
