"""ARP frames over Ethernet, as bytes (RFC 826; probes and announcements: RFC 5227)."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

__all__ = ["Arp", "Operation", "announcement", "parse", "probe", "request"]

_ETHERTYPE_ARP = 0x0806
_ETHERNET = struct.Struct("!6s6sH")
# Hardware type, protocol type, their lengths, operation, sender MAC and IP, target MAC and IP.
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_HARDWARE_ETHERNET = 1
_PROTOCOL_IPV4 = 0x0800
_BROADCAST = b"\xff" * 6
_NO_MAC = bytes(6)
_NO_ADDRESS = IPv4Address(0)
_MINIMUM = 60
"""An Ethernet frame without its checksum is at least this long; the rest is padded with zeros."""


class Operation(enum.IntEnum):
    """ARP operations used here."""

    REQUEST = 1
    REPLY = 2


@dataclass(frozen=True, slots=True)
class Arp:
    """One ARP packet for IPv4 over Ethernet.

    Args:
        operation: Request or reply; other numbers are kept as they are.
        sender_mac: Who says so: what receivers put into their caches.
        sender: The address that it says it has; 0.0.0.0 in a probe.
        target_mac: Zero in a request.
        target: The address asked for.
        source_mac: The frame's own source, which switches learn from.
    """

    operation: int
    sender_mac: bytes
    sender: IPv4Address
    target_mac: bytes
    target: IPv4Address
    source_mac: bytes


def _frame(source: bytes, sender_mac: bytes, sender: IPv4Address, target: IPv4Address) -> bytes:
    body = _ARP.pack(
        _HARDWARE_ETHERNET,
        _PROTOCOL_IPV4,
        6,
        4,
        Operation.REQUEST,
        sender_mac,
        sender.packed,
        _NO_MAC,
        target.packed,
    )
    return (_ETHERNET.pack(_BROADCAST, source, _ETHERTYPE_ARP) + body).ljust(_MINIMUM, b"\0")


def announcement(source: bytes, group: bytes, vip: IPv4Address) -> bytes:
    """Return a gratuitous ARP that tells everybody the group MAC of the VIP (RFC 5227 section 3).

    It is a request for the VIP from the VIP: receivers renew entries they have, and nobody answers.

    Args:
        source: The MAC of the interface. The frame must come from it: from the group MAC it would
            be an invalid frame, which switches drop or learn a wrong port from.
        group: The group MAC.
        vip: The VIP.
    """
    return _frame(source, group, vip, vip)


def probe(source: bytes, vip: IPv4Address) -> bytes:
    """Return a question who has the VIP that changes nobody's cache (RFC 5227 section 2.1.1).

    Args:
        source: The MAC of the interface.
        vip: The address asked for.
    """
    return _frame(source, source, _NO_ADDRESS, vip)


def request(source: bytes, sender: IPv4Address, target: IPv4Address) -> bytes:
    """Return an ordinary question for a neighbour's MAC.

    Args:
        source: The MAC of the interface.
        sender: The node's own address on that network, never the VIP.
        target: The address asked for.
    """
    return _frame(source, source, sender, target)


def parse(frame: bytes) -> Arp | None:
    """Read a frame; ``None`` if it is not a whole ARP packet for IPv4 over Ethernet."""
    if len(frame) < _ETHERNET.size + _ARP.size:
        return None
    _, source, ethertype = _ETHERNET.unpack_from(frame)
    hardware, protocol, mac_length, address_length, operation, *rest = _ARP.unpack_from(frame, _ETHERNET.size)
    if (ethertype, hardware, protocol, mac_length, address_length) != (
        _ETHERTYPE_ARP,
        _HARDWARE_ETHERNET,
        _PROTOCOL_IPV4,
        6,
        4,
    ):
        return None
    sender_mac, sender, target_mac, target = rest
    return Arp(operation, sender_mac, IPv4Address(sender), target_mac, IPv4Address(target), source)
