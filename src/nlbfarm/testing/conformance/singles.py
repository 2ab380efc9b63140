"""Packets that stand alone: each comes from a client that nobody has seen before."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from nlbfarm.core.decision import IcmpKind, icmp_kind
from nlbfarm.core.policy import Protocol
from nlbfarm.testing.conformance import wire
from nlbfarm.testing.conformance.oddities import Oddities
from nlbfarm.testing.conformance.parts import Single
from nlbfarm.testing.conformance.scene import (
    NODE,
    PORTS,
)

__all__ = ["CATEGORIES", "Singles"]

_AUTH = 51
_OTHER_PROTOCOLS = (2, 4, 33, 41, 47, 50, 51, 89, 103, 112, 132, 136, 253, 255)


@cache
def _types(version: int, kind: IcmpKind) -> tuple[int, ...]:
    return tuple(number for number in range(256) if icmp_kind(version, number) is kind)


class Singles(Oddities):
    """Makes packets of one IP version, by category."""

    def make(self, category: str, number: int) -> Single:
        """Return a packet of that category, which carries ``number``."""
        return CATEGORIES[category][1](self, category, number)

    def tcp_new(self, category: str, number: int) -> Single:
        facts = replace(self.ported(self.facts(), Protocol.TCP), syn=True)
        more = self._rng.choice((0, 0, 0, wire.PSH, 0xC0))  # ECN-setup SYN (RFC 3168)
        return Single(category, self.packet(facts, self.segment(facts, more), number=number), facts)

    def tcp_other(self, category: str, number: int) -> Single:
        flags = self._rng.randrange(256)
        if self._rng.random() < 0.4:
            flags = self._rng.choice((wire.ACK, wire.ACK | wire.PSH, wire.ACK | wire.FIN, wire.RST))
        facts = self.ported(self.facts(), Protocol.TCP)
        facts = replace(facts, syn=bool(flags & wire.SYN), ack=bool(flags & wire.ACK))
        payload = self._rng.randbytes(self._rng.choice((0, 0, 30, 600)))
        more = flags & ~(wire.SYN | wire.ACK)
        return Single(category, self.packet(facts, self.segment(facts, more, payload), number=number), facts)

    def udp(self, category: str, number: int) -> Single:
        facts = self.ported(self.facts(), Protocol.UDP)
        return Single(category, self.packet(facts, self.datagram(facts), number=number), facts)

    def _icmp_of(self, what: IcmpKind, category: str, number: int) -> Single:
        kind = self._rng.choice(_types(self._family, what))
        facts = replace(self.facts(), protocol=self._icmp, icmp=icmp_kind(self._family, kind))
        return Single(category, self.packet(facts, self.message(facts, kind), number=number), facts)

    def echo(self, category: str, number: int) -> Single:
        return self._icmp_of(IcmpKind.ECHO_REQUEST, category, number)

    def error(self, category: str, number: int) -> Single:
        return self._icmp_of(IcmpKind.ERROR, category, number)

    def other_icmp(self, category: str, number: int) -> Single:
        return self._icmp_of(IcmpKind.OTHER, category, number)

    def neighbour(self, category: str, number: int) -> Single:
        return self._icmp_of(IcmpKind.NEIGHBOUR, category, number)

    def other_protocol(self, category: str, number: int) -> Single:
        others = (*_OTHER_PROTOCOLS, *((58,) if self._family == 4 else (1,)))
        facts = replace(self.facts(), protocol=self._rng.choice(others))
        ports = struct.pack("!HH", self._rng.randrange(65536), self._rng.choice(PORTS))
        least = 24 if facts.protocol == _AUTH else 0
        payload = (ports + self._rng.randbytes(20))[: max(least, self._rng.choice((0, 4, 24, 24)))]
        return Single(category, self.packet(facts, payload, number=number), facts)

    def not_for_a_vip(self, category: str, number: int) -> Single:
        facts, payload = self.served(self.facts(NODE[self._family]))
        return Single(category, self.packet(facts, payload, number=number), facts)

    def on_another_interface(self, category: str, number: int) -> Single:
        facts, payload = self.served()
        facts = replace(facts, interface="eth0" if facts.interface == "eth1" else "eth1")
        return Single(category, self.packet(facts, payload, number=number), facts)


_Maker = Callable[[Singles, str, int], Single]

CATEGORIES: dict[str, tuple[dict[int, int], _Maker]] = {
    name: (dict.fromkeys(families, weight), maker)
    for name, weight, families, maker in (
        ("tcp: first packet of a connection", 30, (4, 6), Singles.tcp_new),
        ("tcp: any other flags", 30, (4, 6), Singles.tcp_other),
        ("udp", 20, (4, 6), Singles.udp),
        ("icmp: echo request", 10, (4, 6), Singles.echo),
        ("icmp: error", 5, (4, 6), Singles.error),
        ("icmp: any other type", 4, (4, 6), Singles.other_icmp),
        ("icmp: neighbour discovery", 2, (6,), Singles.neighbour),
        ("other protocols", 5, (4, 6), Singles.other_protocol),
        ("not for a VIP", 3, (4, 6), Singles.not_for_a_vip),
        ("on an interface that is not the VIP's", 4, (4, 6), Singles.on_another_interface),
        ("tcp: options", 5, (4, 6), Singles.tcp_options),
        ("cut off in the TCP, UDP or ICMP header", 10, (4, 6), Singles.cut_transport),
        ("bad data offset of TCP", 5, (4, 6), Singles.bad_data_offset),
        ("padded frames", 5, (4, 6), Singles.padded),
        ("bad checksum of TCP, UDP, ICMP", 5, (4, 6), Singles.bad_checksum),
        ("martian source", 5, (4, 6), Singles.martian),
        ("priority tag (VLAN 0)", 3, (4, 6), Singles.priority_tagged),
        ("VLAN tag", 5, (4, 6), Singles.vlan_tagged),
        ("bad IP header", 4, (4, 6), Singles.bad_header),
        ("bad checksum of the IP header", 2, (4,), Singles.bad_header_checksum),
        ("truncated packet", 4, (4, 6), Singles.truncated),
        ("ip options", 10, (4,), Singles.options),
        ("ip flags", 3, (4,), Singles.flag_bits),
        ("ipv6 extension headers", 14, (6,), Singles.extended),
        ("ipv6 extension headers, odd order", 4, (6,), Singles.extended_oddly),
        ("cut off in an extension header", 5, (6,), Singles.cut_extension),
    )
}
"""By name: the weight for each IP version that has it, and what makes one."""
