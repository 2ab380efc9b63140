"""A policy, taken apart for the packet path: what is looked up where, by the bytes of a packet.

A *place* is a bucket of a group, as one number: 256 times the index of the group in the policy, plus the
bucket.
"""

from __future__ import annotations

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.core.fasthash import hasher
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, Mode, Protocol, Rule, Vip

__all__ = ["Arrival", "Destination", "Service", "arrivals"]


class Service:
    """What a rule means for the packets it covers.

    Attributes:
        base: The place of bucket 0.
        hash: From the bytes of a packet (source, destination, source port) to its bucket.
        echo: The same for an ICMP echo request.
    """

    __slots__ = ("base", "blocked", "echo", "group", "hash", "rule")

    def __init__(self, rule: Rule, group: Group, index: int) -> None:
        self.rule = rule
        self.group = group
        self.base = index * BUCKETS
        self.blocked = group.mode is Mode.BLOCKED
        self.hash = hasher(rule.affinity, rule.vip.version, group.seed)
        self.echo = hasher(Affinity.CLIENT, rule.vip.version, group.seed)


class Destination:
    """A VIP, and what is behind it.

    Attributes:
        services: By protocol and packed port.
        first: Of the VIP's first rule: echo requests belong there.
    """

    __slots__ = ("accept_uncovered", "first", "services")

    def __init__(self, vip: Vip) -> None:
        self.accept_uncovered = vip.accept_uncovered
        self.services: dict[int, dict[bytes, Service]] = {int(protocol): {} for protocol in Protocol}
        self.first: Service | None = None


class Arrival:
    """An interface that packets for VIPs arrive on.

    Attributes:
        destinations: The VIPs by packed address.
        tcp, udp: Places found before, by packed addresses and ports: a cache.
    """

    __slots__ = ("destinations", "interface", "tcp", "udp")

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.destinations: dict[bytes, Destination] = {}
        self.tcp: dict[bytes, int] = {}
        self.udp: dict[bytes, int] = {}


def arrivals(policy: FilterPolicy) -> dict[str, Arrival]:
    """Return the interfaces with VIPs, by name.

    Raises:
        KeyError: A rule names a group that the policy does not have.
    """
    indexes = {group.name: index for index, group in enumerate(policy.groups)}
    found: dict[str, Arrival] = {}
    for vip in policy.vips:
        destination = Destination(vip)
        for rule in policy.rules:
            if rule.vip != vip.address:
                continue
            index = indexes[rule.group]
            service = Service(rule, policy.groups[index], index)
            destination.first = destination.first or service
            for port in rule.ports:
                destination.services[rule.protocol].setdefault(port.to_bytes(2, "big"), service)
        arrival = found.setdefault(vip.interface, Arrival(vip.interface))
        arrival.destinations.setdefault(vip.address.packed, destination)
    return found
