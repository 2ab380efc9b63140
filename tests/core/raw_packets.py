"""Raw packets, from the IP header on, for the tests of what reads them: sound, odd and broken ones."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from nlbfarm.core.decision import ICMP, ICMPV6
from nlbfarm.core.packets import ACK, FIN, RST, SYN
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, IPAddress, Mode, Protocol, Rule, Vip

HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60
MORE4, DONT4 = 0x2000, 0x4000
PSH = 0x08

VIP4 = IPv4Address("192.0.2.100")
VIP6 = IPv6Address("2001:db8::100")
OPEN4 = IPv4Address("192.0.2.101")
BARE6 = IPv6Address("2001:db8::102")
CLIENT4 = IPv4Address("198.51.100.7")
CLIENT6 = IPv6Address("2001:db8:5:6::7")

POLICY = FilterPolicy(
    farm="shop",
    vips=(
        Vip(VIP4, "eth0"),
        Vip(VIP6, "eth0"),
        Vip(OPEN4, "eth1", accept_uncovered=True),
        Vip(BARE6, "eth1"),  # without rules
    ),
    groups=(
        Group("web", 0x1234),
        Group("dns", 77),
        Group("mail", 5, Mode.FAILOVER),
        Group("shut", 9, Mode.BLOCKED),
    ),
    rules=(
        Rule("web", "web", VIP4, Protocol.TCP, (80, 443)),
        Rule("web6", "web", VIP6, Protocol.TCP, (80, 443), Affinity.NETWORK),
        Rule("dns", "dns", VIP4, Protocol.UDP, (53,), Affinity.NETWORK),
        Rule("dns6", "dns", VIP6, Protocol.UDP, (53,)),
        Rule("mail", "mail", VIP4, Protocol.TCP, (25,), Affinity.CLIENT),
        Rule("mail6", "mail", VIP6, Protocol.TCP, (25,), Affinity.CLIENT),
        Rule("shut", "shut", VIP4, Protocol.TCP, (99,)),
        Rule("more", "web", OPEN4, Protocol.TCP, (80,)),
    ),
)


def tcp(
    source_port: int = 40000,
    port: int = 80,
    flags: int = SYN,
    *,
    options: bytes = b"",
    payload: bytes = b"",
    words: int | None = None,
) -> bytes:
    """A TCP segment; ``words`` is a data offset that may be a lie."""
    words = words if words is not None else 5 + len(options) // 4
    fixed = struct.pack("!HHIIBBHHH", source_port, port, 1, 2, words << 4, flags, 64240, 0, 0)
    return fixed + options + payload


def udp(source_port: int = 40000, port: int = 53, payload: bytes = b"?") -> bytes:
    """A UDP datagram."""
    return struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload


def icmp(kind: int, payload: bytes = b"ping") -> bytes:
    """An ICMP or ICMPv6 message."""
    return struct.pack("!BBHHH", kind, 0, 0, 7, 1) + payload


def ipv4(
    protocol: int,
    payload: bytes,
    *,
    source: IPv4Address = CLIENT4,
    destination: IPv4Address = VIP4,
    options: bytes = b"",
    identification: int = 1,
    fragment: int = 0,
    words: int | None = None,
    total: int | None = None,
) -> bytes:
    """An IPv4 packet; ``words`` and ``total`` are lengths that may be lies."""
    words = words if words is not None else 5 + len(options) // 4
    total = total if total is not None else 20 + len(options) + len(payload)
    start = struct.pack("!BBHHHBBH", 4 << 4 | words, 0, total, identification, fragment, 64, protocol, 0)
    return start + source.packed + destination.packed + options + payload


def ipv6(
    protocol: int,
    payload: bytes,
    *,
    source: IPv6Address = CLIENT6,
    destination: IPv6Address = VIP6,
    extensions: Sequence[tuple[int, bytes]] = (),
    length: int | None = None,
) -> bytes:
    """An IPv6 packet; an extension header is given by its number and what follows its next-header field."""
    kinds = [*(kind for kind, _ in extensions), protocol]
    chain = b"".join(
        bytes((following,)) + rest for following, (_, rest) in zip(kinds[1:], extensions, strict=True)
    )
    length = length if length is not None else len(chain) + len(payload)
    start = struct.pack("!IHBB", 6 << 28, length, kinds[0], 64)
    return start + source.packed + destination.packed + chain + payload


def options(kind: int, units: int = 0) -> tuple[int, bytes]:
    """A hop-by-hop, routing or destination header of ``8 * (units + 1)`` bytes."""
    return kind, bytes((units,)) + bytes(6 + 8 * units)


def authentication(words: int = 4) -> tuple[int, bytes]:
    """An authentication header of ``4 * (words + 2)`` bytes."""
    return AH, bytes((words,)) + bytes(4 * (words + 2) - 2)


def fragment6(offset: int, *, more: bool, identification: int = 1) -> tuple[int, bytes]:
    """A fragment header; ``offset`` in bytes."""
    return FRAGMENT, struct.pack("!BHI", 0, offset | more, identification)


def cut4(packet: bytes, size: int) -> list[bytes]:
    """An IPv4 packet without options in fragments of ``size`` bytes."""
    payload = packet[20:]
    pieces = []
    for offset in range(0, len(payload), size):
        piece = payload[offset : offset + size]
        place = offset // 8 | (MORE4 if offset + size < len(payload) else 0)
        pieces.append(
            packet[:2] + struct.pack("!H2sH", 20 + len(piece), packet[4:6], place) + packet[8:20] + piece
        )
    return pieces


def cut6(packet: bytes, size: int, identification: int = 1) -> list[bytes]:
    """An IPv6 packet in fragments of ``size`` bytes, extension headers and all."""
    payload = packet[40:]
    pieces = []
    for offset in range(0, len(payload), size):
        piece = payload[offset : offset + size]
        header = struct.pack("!BBHI", packet[6], 0, offset | (offset + size < len(payload)), identification)
        pieces.append(
            packet[:4] + struct.pack("!HB", 8 + len(piece), FRAGMENT) + packet[7:40] + header + piece
        )
    return pieces


class Traffic:
    """Random packets, most of them for the VIPs of ``POLICY``: conversations, strangers, odd and broken ones.

    Args:
        rng: Where the chance comes from.
        clients: How many clients there are of each version.
    """

    def __init__(self, rng: random.Random, clients: int = 12) -> None:
        self._rng = rng
        self._clients: dict[int, list[IPAddress]] = {
            4: [IPv4Address(f"198.51.{rng.randrange(4)}.{rng.randrange(256)}") for _ in range(clients)],
            6: [IPv6Address(f"2001:db8:{rng.randrange(3)}::{rng.randrange(9)}") for _ in range(clients)],
        }
        self._pending: list[bytes] = []  # fragments that are still to come

    def packet(self) -> bytes:
        """Return the next packet."""
        rng = self._rng
        if self._pending and rng.random() < 0.6:
            return self._pending.pop(0 if rng.random() < 0.9 else rng.randrange(len(self._pending)))
        version = rng.choice((4, 6))
        protocol, payload = self._transport(version)
        source = rng.choice(self._clients[version])
        destination = rng.choice(_DESTINATIONS[version])
        data = self._ip(protocol, payload, source, destination)
        if rng.random() < 0.1:
            self._pending = [*self._cut(data), *self._pending][:64]
            return self._pending.pop(0)
        return self.broken(data) if rng.random() < 0.15 else data

    def interface(self, data: bytes) -> str:
        """Return where a packet arrives: as a rule where its destination is a VIP."""
        if self._rng.random() < 0.05:
            return self._rng.choice(("eth0", "eth1", "lo"))
        destination = data[16:20] if data[:1] < b"\x60" else data[24:40]
        return "eth1" if destination in (OPEN4.packed, BARE6.packed) else "eth0"

    def broken(self, data: bytes) -> bytes:
        """Return a packet with some bytes changed, cut off or put on."""
        rng = self._rng
        mutated = bytearray(data)
        for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
            place = min(int(rng.expovariate(0.04)), len(mutated) - 1)  # rather among the headers
            if mutated:
                mutated[place] = rng.choice((0, 1, 4, 5, 6, 43, 44, 51, 60, 255, rng.randrange(256)))
        if len(data) >= 40 and rng.random() < 0.7:  # still for whom it was
            where = slice(16, 20) if data[0] >> 4 == 4 else slice(24, 40)
            mutated[where] = data[where]
            mutated[0] = data[0] & 0xF0 | mutated[0] & 0x0F
        if rng.random() < 0.3:
            del mutated[rng.randrange(len(mutated) + 1) :]
        if rng.random() < 0.2:
            mutated += rng.randbytes(rng.randrange(40))
        return bytes(mutated)

    def _transport(self, version: int) -> tuple[int, bytes]:
        rng = self._rng
        port = rng.choice((80, 80, 80, 443, 25, 53, 99, 8080, 0))
        source_port = rng.choice((0, 1, 1024, 40000, 40001, 65535))
        payload = rng.randbytes(rng.choice((0, 0, 1, 7, 30, 90)))
        chance = rng.random()
        if chance < 0.6:
            flags = rng.choice(
                (SYN, SYN, ACK, ACK, ACK | PSH, FIN | ACK, RST, RST | ACK, SYN | ACK, 0, SYN | FIN, 255)
            )
            extra = bytes(4 * rng.choice((0, 0, 1, 10)))
            return Protocol.TCP, tcp(source_port, port, flags, options=extra, payload=payload)
        if chance < 0.8:
            return Protocol.UDP, udp(source_port, rng.choice((53, 53, port)), payload)
        if chance < 0.95:
            kinds = (
                (8, 8, 0, 3, 11, 12, 4, 5)
                if version == 4
                else (128, 128, 129, 1, 2, 3, 4, 133, 135, 136, 137, 100)
            )
            mine = ICMP if version == 4 else ICMPV6
            return rng.choice((mine, mine, mine, mine, ICMP, ICMPV6)), icmp(rng.choice(kinds), payload)
        return rng.choice((2, 41, 47, 50, 59, 132, 253)), payload

    def _ip(self, protocol: int, payload: bytes, source: IPAddress, destination: IPAddress) -> bytes:
        rng = self._rng
        if isinstance(source, IPv4Address) and isinstance(destination, IPv4Address):
            extra = bytes(4 * rng.randrange(11)) if rng.random() < 0.15 else b""
            fragment = DONT4 * rng.randrange(2)
            data = ipv4(
                protocol,
                payload,
                source=source,
                destination=destination,
                options=extra,
                fragment=fragment,
                identification=rng.randrange(50),
            )
        else:
            assert isinstance(source, IPv6Address)
            assert isinstance(destination, IPv6Address)
            chain: list[tuple[int, bytes]] = []
            while rng.random() < 0.2:
                kind = rng.choice((HOP_BY_HOP, ROUTING, DESTINATION, AH, FRAGMENT))
                if kind == AH:
                    chain.append(authentication(rng.randrange(6)))
                elif kind == FRAGMENT:
                    chain.append(fragment6(0, more=False))
                else:
                    chain.append(options(kind, rng.randrange(3)))
            data = ipv6(protocol, payload, source=source, destination=destination, extensions=chain)
        return data + bytes(rng.choice((0, 0, 0, 6)))  # padding of a short frame

    def _cut(self, data: bytes) -> list[bytes]:
        rng = self._rng
        size = rng.choice((8, 16, 24, 32, 64))
        if data[0] >> 4 == 6:
            pieces = cut6(data[: 40 + (data[4] << 8 | data[5])], size, rng.randrange(50))
        elif data[0] == 0x45:
            pieces = cut4(data[: data[2] << 8 | data[3]], size)
        else:
            pieces = [data]
        if rng.random() < 0.2:
            rng.shuffle(pieces)
        return pieces or [data]


_DESTINATIONS: dict[int, Sequence[IPAddress]] = {
    4: (*[VIP4] * 8, OPEN4, OPEN4, IPv4Address("192.0.2.9")),
    6: (*[VIP6] * 8, BARE6, IPv6Address("2001:db8::9"), IPv6Address("::ffff:192.0.2.100")),
}
