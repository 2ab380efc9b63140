"""Packets as bytes, from the IP header on, and the frames that carry them; pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

from nlbfarm.core.policy import IPAddress

__all__ = [
    "ACK",
    "FIN",
    "PSH",
    "RST",
    "SYN",
    "acknowledge",
    "checksum",
    "cut",
    "extensions",
    "frame",
    "hexdump",
    "icmp",
    "ipv4",
    "ipv6",
    "tcp",
    "udp",
    "without_checksums",
]

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

_ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
_TAG = b"\x81\x00"  # IEEE 802.1Q
_TCP, _UDP, _ICMPV6, _FRAGMENT = 6, 17, 58, 44


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = int.from_bytes(data, "big")
    return 0xFFFF - (total % 0xFFFF or (0xFFFF if total else 0))


def ipv4(
    source: IPAddress,
    destination: IPAddress,
    protocol: int,
    payload: bytes,
    *,
    number: int,
    options: bytes = b"",
    fragment: int = 0,
) -> bytes:
    """Return an IPv4 packet.

    Args:
        source, destination, protocol, payload: What it carries.
        number: Its identification.
        options: IP options, a multiple of 4 bytes.
        fragment: The 16 bits of flags and fragment offset.
    """
    header = struct.pack(
        "!BBHHHBBH", 0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), number, fragment, 64,
        protocol, 0,
    ) + source.packed + destination.packed + options  # fmt: skip
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def ipv6(source: IPAddress, destination: IPAddress, following: int, payload: bytes, *, number: int) -> bytes:
    """Return an IPv6 packet whose flow label is ``number``; ``following`` is the next header."""
    header = struct.pack("!IHBB", 6 << 28 | number, len(payload), following, 64)
    return header + source.packed + destination.packed + payload


def extensions(chain: Sequence[tuple[int, bytes]], last: int) -> tuple[int, bytes]:
    """Chain IPv6 extension headers: number and body of each (its first byte, the next header, left out).

    Returns:
        The next header of the packet, and the bytes of the headers; ``last`` is what follows them.
    """
    kinds = [*(kind for kind, _ in chain), last]
    data = b"".join(
        bytes([following]) + body
        for (_, following), (_, body) in zip(pairwise(kinds), chain, strict=True)
    )  # fmt: skip
    return kinds[0], data


def _summed(source: IPAddress, destination: IPAddress, protocol: int, segment: bytes, place: int) -> bytes:
    pseudo = source.packed + destination.packed + struct.pack("!II", len(segment), protocol)
    total = checksum(pseudo + segment)
    if protocol == _UDP:
        total = total or 0xFFFF  # 0 says that there is none (RFC 768)
    return segment[:place] + struct.pack("!H", total) + segment[place + 2 :]


def tcp(
    source: IPAddress,
    destination: IPAddress,
    ports: tuple[int, int],
    flags: int,
    *,
    sequence: int,
    answers: int = 0,
    payload: bytes = b"",
    words: int = 5,
) -> bytes:
    """Return a TCP segment with its checksum.

    Args:
        source, destination, ports, flags, sequence, payload: What it carries.
        answers: The acknowledgement number.
        words: The data offset; the payload begins with the options.
    """
    header = struct.pack("!HHIIBBHHH", *ports, sequence, answers, words << 4, flags, 64240, 0, 0)
    return _summed(source, destination, _TCP, header + payload, 16)


def udp(source: IPAddress, destination: IPAddress, ports: tuple[int, int], payload: bytes) -> bytes:
    """Return a UDP datagram with its checksum."""
    return _summed(source, destination, _UDP, struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload, 6)


def icmp(source: IPAddress, destination: IPAddress, kind: int, rest: bytes) -> bytes:
    """Return an ICMP or ICMPv6 message of type ``kind``; ``rest`` begins behind the checksum."""
    message = bytes([kind, 0, 0, 0]) + rest
    if source.version == 6:
        return _summed(source, destination, _ICMPV6, message, 2)
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def cut(packet: bytes, sizes: Sequence[int], *, number: int) -> list[bytes]:
    """Cut a packet without IP options and extension headers into fragments.

    Args:
        packet: The packet.
        sizes: Payload bytes of each fragment but the last, multiples of 8, together less than there is.
        number: Identification of IPv6 fragments; those of IPv4 have the packet's.
    """
    places = [0]
    for size in sizes:
        places.append(places[-1] + size)
    length = 20 if packet[0] >> 4 == 4 else 40
    payload = packet[length:]
    pieces = []
    for start, end in zip(places, [*places[1:], len(payload)], strict=True):
        pieces.append(fragment(packet, start, payload[start:end], more=end < len(payload), number=number))
    return pieces


def fragment(packet: bytes, offset: int, piece: bytes, *, more: bool, number: int) -> bytes:
    """Return a fragment of ``packet`` with these payload bytes at ``offset``."""
    if packet[0] >> 4 == 4:
        header = packet[:2] + struct.pack("!H", 20 + len(piece)) + packet[4:6]
        header += struct.pack("!H", more << 13 | offset // 8) + packet[8:10] + b"\0\0" + packet[12:20]
        return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + piece
    extension = struct.pack("!BBHI", packet[6], 0, offset | more, number)
    header = packet[:4] + struct.pack("!HB", 8 + len(piece), _FRAGMENT) + packet[7:40]
    return header + extension + piece


def acknowledge(packet: bytes, transport: int, number: int) -> bytes:
    """Return the packet with the TCP acknowledgement number ``number``, its checksum adjusted (RFC 1624).

    Args:
        packet: The packet, or its first fragment.
        transport: Where its TCP header begins.
        number: The acknowledgement number.
    """
    field, place = transport + 8, transport + 16
    old = sum(struct.unpack_from("!HH", packet, field))
    new = sum(struct.unpack("!HH", number.to_bytes(4, "big")))
    total = (0xFFFF - int.from_bytes(packet[place : place + 2], "big")) + new + 2 * 0xFFFF - old
    total = 0xFFFF - (total % 0xFFFF or 0xFFFF)
    return (
        packet[:field]
        + number.to_bytes(4, "big")
        + packet[field + 4 : place]
        + total.to_bytes(2, "big")
        + packet[place + 2 :]
    )


def without_checksums(packet: bytes) -> bytes:
    """Return the packet with the checksums of IPv4, TCP, UDP and ICMP set to 0; without extension headers."""
    found = bytearray(packet)
    four = packet[0] >> 4 == 4
    start, protocol = ((packet[0] & 15) * 4, packet[9]) if four else (40, packet[6])
    if four:
        found[10:12] = b"\0\0"
        if int.from_bytes(packet[6:8], "big") & 0x1FFF:
            return bytes(found)
    place = {_TCP: 16, _UDP: 6, 1: 2, _ICMPV6: 2}.get(protocol)
    if place is not None and len(packet) >= start + place + 2:
        found[start + place : start + place + 2] = b"\0\0"
    return bytes(found)


def frame(packet: bytes, version: int, destination: str, source: str, tag: int | None = None) -> bytes:
    """Return the Ethernet frame that carries ``packet``; ``tag`` is the VLAN id of an 802.1Q tag."""
    tagged = b"" if tag is None else _TAG + struct.pack("!H", tag)
    return bytes.fromhex((destination + source).replace(":", "")) + tagged + _ETHERTYPES[version] + packet


def hexdump(data: bytes, *, indent: str = "") -> str:
    """Return ``data`` as lines of 16 bytes, which ``text2pcap`` and ``xxd -r`` read."""
    return "\n".join(
        f"{indent}{place:06x}  {data[place : place + 16].hex(' ')}" for place in range(0, len(data), 16)
    )
