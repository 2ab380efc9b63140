"""The multicast MAC that clients send a VIP's packets to, so that a switch delivers them to every node."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

from nlbfarm.errors import UsageError

__all__ = ["group_mac", "igmp_group", "mac_bytes", "mac_text"]

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


def group_mac(address: IPv4Address | IPv6Address) -> str:
    """Return the group MAC of a VIP: ``01:00:5e:7f:x:y`` with the last two bytes of the address.

    The same as in the IGMP multicast mode of Windows NLB: it is the MAC of the IPv4 multicast group
    ``239.127.x.y`` (RFC 1112 section 6.4), which ``igmp_group`` gives, so that a switch with IGMP
    snooping can learn who wants it.

    Args:
        address: The VIP.

    Raises:
        UsageError: It is an IPv6 address.
    """
    if not isinstance(address, IPv4Address):
        raise UsageError(f"{address}: multicast delivery is for IPv4 addresses")
    return "01:00:5e:7f:{:02x}:{:02x}".format(*address.packed[2:])


def igmp_group(mac: str) -> IPv4Address | None:
    """Return the administratively scoped group (RFC 2365) whose packets travel to ``mac``, if it has one."""
    raw = mac_bytes(mac)
    if raw[:3] != b"\x01\x00\x5e" or raw[3] & 0x80:
        return None
    return IPv4Address(bytes((239, *raw[3:])))


def mac_bytes(mac: str) -> bytes:
    """Return the six bytes of ``"01:00:5e:7f:02:64"``.

    Raises:
        UsageError: It is not written like that.
    """
    if not _MAC.fullmatch(mac):
        raise UsageError(f"{mac!r} is not a MAC address; write six bytes like 01:00:5e:7f:02:64")
    return bytes.fromhex(mac.replace(":", ""))


def mac_text(mac: bytes) -> str:
    """Write six bytes as ``"01:00:5e:7f:02:64"``."""
    return mac.hex(":")
