"""Raw packets, from the IP header on, as facts for a decision. Nothing here raises, on any bytes.

A packet is *malformed* when it is not what its headers say, so that no host can take it in:

- IPv4: the header is shorter than 20 bytes or longer than the packet; the total length is shorter than the
  header or longer than what arrived. (What arrived may be longer: Ethernet pads short frames.)
- IPv6: the payload length is longer than what arrived; an extension header is cut off, there are more than
  ``MAX_EXTENSION_HEADERS`` of them, or two of them are fragment headers. Jumbograms (RFC 2675), too.
- TCP, UDP, ICMP: the header is cut off (20, 8 and 8 bytes), or TCP's data offset is below 5 or points behind
  the end of the packet.
- A first fragment that does not hold the whole chain of headers (RFC 1858, RFC 7112): its ports, or its
  flags, would be whatever the next fragment says.
- A later fragment whose first is not known, or that overlaps it; a fragment that is empty or reaches beyond
  65,535 bytes; a fragment but the last whose length is no multiple of 8.

Checksums are not looked at, nor options, nor whether an address can be a source: that is the host's stack.
An IPv6 packet in one piece with a fragment header (an atomic fragment, RFC 6946) is a whole packet.

Hop-by-hop, routing and destination options and the fragment header are passed over in any order. AH is not:
netfilter stops there (``IP6_FH_F_AUTH`` in ``nf_tables_ipv6.h``), and in IPv4 it is a protocol as well. ESP,
"no next header" and whatever else is the packet's protocol, too.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from nlbfarm.core.decision import ICMP, ICMPV6, IcmpKind, PacketFacts, icmp_kind
from nlbfarm.core.fragments import FragmentTable
from nlbfarm.core.policy import Protocol

__all__ = [
    "ACK",
    "FIN",
    "MAX_EXTENSION_HEADERS",
    "RST",
    "SYN",
    "Packet",
    "as_facts",
    "facts",
    "follow",
    "read",
]

MAX_EXTENSION_HEADERS = 8
"""IPv6 extension headers that are passed over; a sender that follows RFC 8200 section 4.1 has six at most."""

_IPV4_HEADER = 20
_IPV6_HEADER = 40
_TCP_HEADER = 20
_UDP_HEADER = 8
_ICMP_HEADER = 8
_TCP = int(Protocol.TCP)
_UDP = int(Protocol.UDP)

# RFC 8200 section 4
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_EXTENSIONS = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION))

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
"""TCP flags (RFC 9293 section 3.1)."""


class Packet(NamedTuple):
    """What is read of a packet, addresses as they stand in it.

    Args:
        source, destination: 4 or 16 bytes.
        protocol: Protocol number (IPv6: of the last header; of a later fragment what its header says).
        source_port, destination_port: TCP and UDP; 0 elsewhere and where malformed.
        flags: The low byte of TCP's flags; 0 elsewhere.
        icmp: Kind of an ICMP message; ``None`` elsewhere and where malformed.
        malformed: It cannot be understood by itself.
        datagram: Of a fragment: what all of its datagram's fragments have in common; otherwise ``None``.
        offset, end: Of a fragment: the bytes of the datagram that it holds.
    """

    source: bytes
    destination: bytes
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    flags: int = 0
    icmp: IcmpKind | None = None
    malformed: bool = False
    datagram: bytes | None = None
    offset: int = 0
    end: int = 0


def facts(
    data: bytes | memoryview,
    interface: str,
    *,
    fragments: FragmentTable[Packet] | None = None,
    now: float = 0.0,
    snap: int | None = None,
) -> PacketFacts | None:
    """Return what a decision looks at, or ``None`` if not even the destination can be read.

    Whether the flow is established here a filter has to know by itself.

    Args:
        data: The packet from its IP header on.
        interface: Name of the interface it arrived on.
        fragments: First fragments seen so far; this packet is entered if it is one. Without it every later
            fragment is malformed.
        now: Seconds, monotonic; only ``fragments`` needs it.
        snap: As for ``read``.
    """
    packet = read(data, snap)
    if packet is None:
        return None
    if packet.datagram is not None and fragments is not None:
        packet = follow(packet, fragments, now)
    elif packet.offset:
        packet = packet._replace(malformed=True)
    return as_facts(packet, interface)


def as_facts(packet: Packet, interface: str) -> PacketFacts:
    """Return a packet that arrived on ``interface`` as what a decision looks at."""
    address = IPv4Address if len(packet.destination) == 4 else IPv6Address
    ports = packet.protocol in (_TCP, _UDP) and not packet.malformed
    return PacketFacts(
        interface=interface,
        source=address(packet.source),
        destination=address(packet.destination),
        protocol=packet.protocol,
        source_port=packet.source_port if ports else None,
        destination_port=packet.destination_port if ports else None,
        syn=bool(packet.flags & SYN),
        ack=bool(packet.flags & ACK),
        icmp=packet.icmp,
        malformed=packet.malformed,
    )


def follow(packet: Packet, fragments: FragmentTable[Packet], now: float) -> Packet:
    """Return what a fragment is judged as: its first fragment; a first one is entered into the table.

    Args:
        packet: A fragment (``datagram`` is not ``None``).
        fragments: First fragments seen so far.
        now: Seconds, monotonic.
    """
    datagram = packet.datagram
    assert datagram is not None
    if packet.offset == 0:
        if packet.malformed:
            fragments.forget(datagram)
        else:
            fragments.first(datagram, packet, packet.end, now)
        return packet
    if packet.malformed:
        return packet
    first = fragments.later(datagram, packet.offset, now)
    return packet._replace(malformed=True) if first is None else first


def read(data: bytes | memoryview, snap: int | None = None) -> Packet | None:
    """Read a packet's headers; ``None`` if not even the destination can be read.

    Args:
        data: The packet from its IP header on.
        snap: If given, longer packets may have been cut to this many bytes (or more) on their way here, and
            their length is taken as they state it. A header that was cut off is malformed all the same.
    """
    size = len(data)
    if size < _IPV4_HEADER:
        return None
    version = data[0] >> 4
    if version == 4:
        return _read4(data, size, snap)
    if version == 6 and size >= _IPV6_HEADER:
        return _read6(data, size, snap)
    return None


def _read4(data: bytes | memoryview, size: int, snap: int | None) -> Packet:
    source, destination, protocol = bytes(data[12:16]), bytes(data[16:20]), data[9]
    start = (data[0] & 15) * 4
    total = data[2] << 8 | data[3]
    fragment = (data[6] << 8 | data[7]) & 0x3FFF
    whole = _IPV4_HEADER <= start <= total and (total <= size or (snap is not None and size >= snap))
    if not fragment:
        packet = Packet(source, destination, protocol)
        return _transport(data, start, total, 4, packet) if whole else _broken(packet)
    offset = (fragment & 0x1FFF) * 8
    packet = Packet(
        source,
        destination,
        protocol,
        # RFC 791 section 3.2: identification, addresses and protocol tell datagrams apart.
        datagram=bytes(data[12:20]) + bytes(data[4:6]) + bytes((protocol,)),
        offset=offset,
        end=offset + total - start,
    )
    if not whole or _impossible(packet, bool(fragment & 0x2000), start):
        return _broken(packet)
    return packet if offset else _transport(data, start, total, 4, packet)


def _read6(data: bytes | memoryview, size: int, snap: int | None) -> Packet:
    packet = Packet(bytes(data[8:24]), bytes(data[24:40]), data[6])
    total = _IPV6_HEADER + (data[4] << 8 | data[5])
    if total > size and (snap is None or size < snap):
        return _broken(packet)
    if packet.protocol not in _EXTENSIONS:
        return _transport(data, _IPV6_HEADER, total, 6, packet)
    end = min(total, size)
    start, protocol = _IPV6_HEADER, packet.protocol
    passed, fragmented = 0, False
    while protocol in _EXTENSIONS:
        passed += 1
        if passed > MAX_EXTENSION_HEADERS or start + 8 > end or (protocol == _FRAGMENT and fragmented):
            return _broken(packet)
        following, length = data[start], data[start + 1]
        if protocol == _FRAGMENT:
            fragmented = True
            place = data[start + 2] << 8 | data[start + 3]
            start += 8
            if place & 0xFFF9:  # no atomic fragment
                offset = place & 0xFFF8
                packet = packet._replace(
                    protocol=following,
                    datagram=bytes(data[8:40]) + bytes(data[start - 4 : start]),
                    offset=offset,
                    end=offset + total - start,
                )
                if _impossible(packet, bool(place & 1), 0):
                    return _broken(packet)
                if offset:
                    return packet
        else:
            start += (length + 1) * 8
        protocol = following
    packet = packet._replace(protocol=protocol)
    return _transport(data, start, total, 6, packet) if start <= end else _broken(packet)


def _broken(packet: Packet) -> Packet:
    return packet._replace(malformed=True)


def _impossible(packet: Packet, more: bool, header: int) -> bool:
    length = packet.end - packet.offset
    return length <= 0 or packet.end + header > 0xFFFF or (more and length % 8 != 0)


def _transport(data: bytes | memoryview, start: int, end: int, version: int, packet: Packet) -> Packet:
    """Read the transport header at ``start`` of a packet that ends at ``end``, which may be cut off."""
    protocol = packet.protocol
    room = min(end, len(data)) - start
    if protocol == _TCP:
        if room < _TCP_HEADER or not _TCP_HEADER <= (data[start + 12] >> 4) * 4 <= end - start:
            return _broken(packet)
        flags = data[start + 13]
    elif protocol == _UDP:
        if room < _UDP_HEADER:
            return _broken(packet)
        flags = 0
    elif protocol == (ICMP if version == 4 else ICMPV6):
        return (
            packet._replace(icmp=icmp_kind(version, data[start])) if room >= _ICMP_HEADER else _broken(packet)
        )
    else:
        return packet
    return Packet(
        packet.source,
        packet.destination,
        protocol,
        data[start] << 8 | data[start + 1],
        data[start + 2] << 8 | data[start + 3],
        flags,
        datagram=packet.datagram,
        end=packet.end,
    )
