"""The parts that packets are put together from."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, replace

from nlbfarm.core.decision import ICMP, ICMPV6, IcmpKind, PacketFacts, icmp_kind
from nlbfarm.core.policy import FilterPolicy, IPAddress, Protocol
from nlbfarm.testing.conformance import wire
from nlbfarm.testing.conformance.scene import (
    BARE,
    HELD_PORTS,
    MARKER_PORT,
    OPEN,
    OTHER_INTERFACE,
    PORTS,
    SHUT,
    VIP,
    client,
)

__all__ = ["Parts", "Single"]


@dataclass(frozen=True, slots=True)
class Single:
    """A packet without a place in the corpus yet; ``tag`` as in ``Packet``."""

    category: str
    data: bytes
    facts: PacketFacts
    tag: int | None = None


class Parts:
    """Makes parts of packets of one IP version, for clients that nobody has seen before.

    Args:
        rng: Where all that is random comes from.
        family: 4 or 6.
        policy: What they meet.
    """

    def __init__(self, rng: random.Random, family: int, policy: FilterPolicy) -> None:
        self._rng, self._family = rng, family
        self._vips = [VIP[family]] * 4 + [
            OPEN[family],
            OPEN[family],
            OTHER_INTERFACE[family],
            BARE[family],
            SHUT[family],
        ]
        self._interfaces = {vip.address: vip.interface for vip in policy.vips}
        self._covered: dict[tuple[IPAddress, int], list[int]] = {}
        for rule in policy.rules:
            ports = [port for port in rule.ports if port not in HELD_PORTS and port != MARKER_PORT]
            self._covered.setdefault((rule.vip, rule.protocol), []).extend(ports)
        self._icmp = ICMP if family == 4 else ICMPV6

    def facts(self, destination: IPAddress | None = None) -> PacketFacts:
        """Facts of a packet for a VIP, on its interface, of a protocol that nobody serves."""
        to = destination if destination is not None else self._rng.choice(self._vips)
        interface = self._interfaces.get(to, "eth0")
        return PacketFacts(interface, client(self._rng, self._family), to, 253)

    def ported(self, facts: PacketFacts, protocol: Protocol) -> PacketFacts:
        """Add a protocol and ports, as a rule those of a service."""
        covered = self._covered.get((facts.destination, protocol), [])
        free = [port for port in PORTS if port not in HELD_PORTS]
        port = self._rng.choice(covered if covered and self._rng.random() < 0.85 else free)
        source = (
            self._rng.choice((0, 1, 80, 65535)) if self._rng.random() < 0.03 else self._rng.randrange(65536)
        )
        return replace(facts, protocol=protocol, source_port=source, destination_port=port)

    def segment(self, facts: PacketFacts, more: int = 0, payload: bytes = b"", words: int = 5) -> bytes:
        """Return the TCP segment of these facts; ``more`` are flags that the facts do not tell."""
        assert facts.source_port is not None
        assert facts.destination_port is not None
        return wire.tcp(
            facts.source,
            facts.destination,
            (facts.source_port, facts.destination_port),
            wire.SYN * facts.syn | wire.ACK * facts.ack | more,
            sequence=self._rng.getrandbits(32),
            answers=self._rng.getrandbits(32) if facts.ack else 0,
            payload=payload,
            words=words,
        )

    def datagram(self, facts: PacketFacts, length: int | None = None) -> bytes:
        """Return the UDP datagram of these facts."""
        assert facts.source_port is not None
        assert facts.destination_port is not None
        ports = facts.source_port, facts.destination_port
        size = self._rng.randrange(60) if length is None else length
        return wire.udp(facts.source, facts.destination, ports, self._rng.randbytes(size))

    def message(self, facts: PacketFacts, kind: int) -> bytes:
        """Return an ICMP message of that type; an error tells of a segment that the VIP could have sent."""
        rest = struct.pack("!HH", self._rng.getrandbits(16), 1400)
        if icmp_kind(self._family, kind) is IcmpKind.ERROR:
            ports = self._rng.choice(PORTS), self._rng.randrange(1024, 65536)
            to, about = facts.source, facts.destination
            told = self.packet(
                PacketFacts("", about, to, Protocol.TCP),
                wire.tcp(about, to, ports, wire.ACK, sequence=self._rng.getrandbits(32)),
                number=1,
            )
            rest += told[: self._rng.choice((len(told), len(told) - 12, 8, 0))]
        else:
            rest += self._rng.randbytes(self._rng.randrange(56))
        return wire.icmp(facts.source, facts.destination, kind, rest)

    def packet(
        self, facts: PacketFacts, payload: bytes, *, number: int, protocol: int | None = None
    ) -> bytes:
        """Return an IP packet with that payload."""
        what = facts.protocol if protocol is None else protocol
        if self._family == 4:
            return wire.ipv4(facts.source, facts.destination, what, payload, number=number)
        return wire.ipv6(facts.source, facts.destination, what, payload, number=number)

    def served(self, facts: PacketFacts | None = None) -> tuple[PacketFacts, bytes]:
        """Return facts and payload of an ordinary packet: TCP, UDP or an echo request."""
        facts = facts if facts is not None else self.facts()
        kind = self._rng.choice(("syn", "syn", "tcp", "udp", "echo"))
        if kind == "echo":
            facts = replace(facts, protocol=self._icmp, icmp=IcmpKind.ECHO_REQUEST)
            return facts, self.message(facts, 8 if self._family == 4 else 128)
        if kind == "udp":
            facts = self.ported(facts, Protocol.UDP)
            return facts, self.datagram(facts)
        facts = replace(self.ported(facts, Protocol.TCP), syn=kind == "syn", ack=kind == "tcp")
        return facts, self.segment(facts)
