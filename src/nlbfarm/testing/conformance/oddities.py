"""Packets that are odd, broken, or meant to be misunderstood."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.policy import Protocol
from nlbfarm.testing.conformance import wire
from nlbfarm.testing.conformance.parts import Parts, Single
from nlbfarm.testing.conformance.scene import (
    TAGGED,
    VLAN,
)

__all__ = ["Oddities"]

_ICMP_TYPES = {4: (8, 3, 11, 0, 13), 6: (128, 1, 2, 129, 100)}
_HOP_BY_HOP, _ROUTING, _ESP, _AUTH, _NO_NEXT, _DESTINATION = 0, 43, 50, 51, 59, 60
_EXPERIMENT = (
    0x1E  # an option that may be passed over (RFC 4727); Linux takes no more than 7 bytes of padding
)
_MOST_HEADERS = 8  # as nlbfarm.core.packets has it; a kernel passes over any number
_MARTIANS = {
    4: ("0.0.0.0", "127.0.0.1", "224.0.0.9", "240.0.0.1", "255.255.255.255", "192.0.2.100", "192.0.2.1"),  # noqa: S104
    6: ("::", "::1", "ff02::9", "fe80::9", "2001:db8::64", "2001:db8::1", "::ffff:198.51.100.7"),
}


class Oddities(Parts):
    """Makes them; each method is a category (``nlbfarm.testing.conformance.singles``)."""

    def cut_transport(self, category: str, number: int) -> Single:
        facts = self.facts()
        kind = self._rng.choice(("tcp", "tcp", "udp", "icmp"))
        if kind == "icmp":
            facts = replace(facts, protocol=self._icmp)
            payload = self.message(facts, self._rng.choice(_ICMP_TYPES[self._family]))[
                : self._rng.randrange(8)
            ]
        elif kind == "udp":
            facts = self.ported(facts, Protocol.UDP)
            payload = self.datagram(facts)[: self._rng.randrange(8)]
        else:
            facts = replace(self.ported(facts, Protocol.TCP), syn=self._rng.random() < 0.6)
            payload = self.segment(facts)[
                : self._rng.choice((self._rng.randrange(4), self._rng.randrange(4, 20)))
            ]
        data = self.packet(facts, payload, number=number)
        return Single(category, data + self.padding(), replace(facts, malformed=True))

    def bad_data_offset(self, category: str, number: int) -> Single:
        facts = replace(self.ported(self.facts(), Protocol.TCP), syn=self._rng.random() < 0.6)
        facts = replace(facts, ack=not facts.syn)
        payload = self._rng.randbytes(self._rng.choice((0, 4, 20, 39)))
        most = 5 + len(payload) // 4
        wrong = self._rng.choice([words for words in range(16) if words < 5 or words > most])
        data = self.packet(facts, self.segment(facts, 0, payload, wrong), number=number)
        return Single(category, data + self.padding(), replace(facts, malformed=True))

    def tcp_options(self, category: str, number: int) -> Single:
        syn = self._rng.random() < 0.6
        facts = replace(self.ported(self.facts(), Protocol.TCP), syn=syn, ack=not syn)
        words = self._rng.randrange(1, 11)
        options = b"\x01" * (4 * words)
        payload = options + self._rng.randbytes(self._rng.choice((0, 1, 200)))
        segment = self.segment(facts, 0, payload, 5 + words)
        return Single(category, self.packet(facts, segment, number=number), facts)

    def padded(self, category: str, number: int) -> Single:
        facts, payload = self.served()
        return Single(category, self.packet(facts, payload, number=number) + self.padding(1), facts)

    def padding(self, least: int = 0) -> bytes:
        # What an Ethernet frame carries behind the packet; it is no part of it.
        return self._rng.randbytes(self._rng.choice((least, 6, 26, 46)))

    def bad_checksum(self, category: str, number: int) -> Single:
        facts, payload = self.served()
        place = (
            {Protocol.TCP: 16, Protocol.UDP: 6}.get(Protocol(facts.protocol), 2) if not facts.is_icmp else 2
        )
        wrong = int.from_bytes(payload[place : place + 2], "big") ^ self._rng.randrange(1, 0xFFFF)
        payload = payload[:place] + (wrong or 1).to_bytes(2, "big") + payload[place + 2 :]
        return Single(category, self.packet(facts, payload, number=number), facts)

    def martian(self, category: str, number: int) -> Single:
        source = ip_address(self._rng.choice(_MARTIANS[self._family]))
        facts, payload = self.served(replace(self.facts(), source=source))
        return Single(category, self.packet(facts, payload, number=number), facts)

    def priority_tagged(self, category: str, number: int) -> Single:
        facts, payload = self.served()
        return Single(category, self.packet(facts, payload, number=number), facts, tag=0)

    def vlan_tagged(self, category: str, number: int) -> Single:
        facts, payload = self.served(self.facts(TAGGED[self._family]))
        return Single(category, self.packet(facts, payload, number=number), facts, tag=VLAN)

    def bad_header(self, category: str, number: int) -> Single:
        facts, payload = self.served()
        data = bytearray(self.packet(facts, payload, number=number))
        at, value = self._rng.choice(
            ((0, 0x05), (0, 0x54), (0, 0xF5), (0, 0x41), (2, 0xFF), (3, 0x07))
            if self._family == 4
            else ((0, 0x50), (0, 0x00), (0, 0xF0), (4, 0xFF))
        )
        data[at] = value
        if at == 3:
            data[2] = 0
        if self._family == 4:
            data[10:12] = b"\0\0"
            length = max((data[0] & 15) * 4, 20)
            data[10:12] = wire.checksum(bytes(data[:length])).to_bytes(2, "big")
        return Single(category, bytes(data), replace(facts, malformed=True))

    def bad_header_checksum(self, category: str, number: int) -> Single:
        facts, payload = self.served()
        data = bytearray(self.packet(facts, payload, number=number))
        data[10] ^= self._rng.randrange(1, 255)
        return Single(category, bytes(data), facts)

    def truncated(self, category: str, number: int) -> Single:
        facts, payload = self.served()
        data = self.packet(facts, payload, number=number)
        return Single(category, data[: self._rng.randrange(1, len(data))], replace(facts, malformed=True))

    def options(self, category: str, number: int) -> Single:
        facts, payload = self.served()
        options = b"".join(
            self._rng.choice(
                (
                    b"\x01",
                    b"\x94\x04\0\0",  # router alert (RFC 2113)
                    b"\x07\x07\x04\0\0\0\0",  # record route
                    b"\x44\x0c\x05\0" + bytes(8),  # timestamp
                    b"\x83\x07\x04\xc6\x33\x64\x09",  # loose source route
                    b"\x9e\x04\0\0",  # experiment (RFC 4727)
                    b"\x07\0",  # a length of 0
                    b"\xff\x20",  # runs over the end
                    b"\0",
                )
            )
            for _ in range(self._rng.randrange(1, 5))
        )[:40]
        options += bytes(-len(options) % 4)
        data = wire.ipv4(
            facts.source, facts.destination, facts.protocol, payload, number=number, options=options
        )
        return Single(category, data, facts)

    def flag_bits(self, category: str, number: int) -> Single:
        facts, payload = self.served()
        bits = self._rng.choice((0x4000, 0x8000, 0xC000))
        data = wire.ipv4(
            facts.source, facts.destination, facts.protocol, payload, number=number, fragment=bits
        )
        return Single(category, data, facts)

    def _chain(self) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for _ in range(self._rng.choice((1, 1, 2, 3, 6))):
            kinds = [_ROUTING, _DESTINATION, _DESTINATION, *([_HOP_BY_HOP] if not found else [])]
            kind = self._rng.choice(kinds)
            units = self._rng.choice((0, 0, 1, 4))
            length = 8 * units + 6
            if kind == _ROUTING:
                body = bytes([units, self._rng.choice((0, 2, 4, 253)), 0]) + bytes(length - 2)
            else:
                body = bytes([units, _EXPERIMENT, length - 2]) + bytes(length - 2)
            found.append((kind, body))
        return found

    def extended(self, category: str, number: int) -> Single:
        facts, payload = self.served()
        last = facts.protocol
        if self._rng.random() < 0.1:
            last, payload = self._rng.choice(
                ((_NO_NEXT, b""), (_ESP, payload), (_AUTH, payload), (135, payload))
            )
            facts = PacketFacts(facts.interface, facts.source, facts.destination, last)
        following, headers = wire.extensions(self._chain(), last)
        return Single(
            category, self.packet(facts, headers + payload, number=number, protocol=following), facts
        )

    def extended_oddly(self, category: str, number: int) -> Single:
        facts, payload = self.served()
        chain = [*self._chain(), (_HOP_BY_HOP, b"\0\x01\x04" + bytes(4)), *self._chain()]
        following, headers = wire.extensions(chain[: self._rng.choice((2, 3, _MOST_HEADERS))], facts.protocol)
        return Single(
            category, self.packet(facts, headers + payload, number=number, protocol=following), facts
        )

    def cut_extension(self, category: str, number: int) -> Single:
        facts, _payload = self.served()
        following, headers = wire.extensions([(_DESTINATION, b"\x03\x01\x1c" + bytes(28))], facts.protocol)
        if self._rng.random() < 0.5:  # the header's first bytes are there; it says that it is longer
            data = headers[: self._rng.randrange(2, 32)]
        else:
            data = headers[: self._rng.randrange(2)]
        facts = replace(facts, malformed=True)
        return Single(category, self.packet(facts, data, number=number, protocol=following), facts)
