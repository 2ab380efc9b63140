"""Joins a group MAC on an interface for as long as this process lives.

Both memberships belong to sockets. The kernel counts them together with everybody else's and takes them
back when the sockets are closed, also by ``kill -9``: nothing to put into the journal, and nothing of
what somebody else joined can be removed by mistake (``ip maddr add`` is one flag for the whole host).

1. The MAC, by ``PACKET_ADD_MEMBERSHIP`` (packet(7)): the network card lets frames to it in.
2. The IPv4 group that travels to this MAC, where there is one, by ``IP_ADD_MEMBERSHIP`` (ip(7)): the kernel
   answers IGMP queries, so that switches with IGMP snooping forward the MAC to this port.
"""

from __future__ import annotations

import socket
import struct

from nlbfarm.core.group_mac import igmp_group, mac_bytes
from nlbfarm.errors import HostError

__all__ = ["Membership"]

_SOL_PACKET = 263  # linux/socket.h
_PACKET_ADD_MEMBERSHIP = 1  # linux/if_packet.h
_PACKET_MR_MULTICAST = 0
_PACKET_MREQ = struct.Struct("iHH8s")
_IP_MREQN = struct.Struct("=4s4si")


class Membership:
    """One group MAC joined on one interface, until ``close``.

    Args:
        interface: Its name, for messages.
        index: Its index.
        mac: The group MAC.

    Raises:
        HostError: The interface is gone, the right is missing, or a limit of the host is reached.
    """

    def __init__(self, interface: str, index: int, mac: str) -> None:
        self.interface = interface
        self.index = index
        self.mac = mac
        self._sockets: list[socket.socket] = []
        raw = mac_bytes(mac)
        group = igmp_group(mac)
        try:
            # Protocol 0: the socket receives nothing, it only holds the membership.
            link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            self._sockets.append(link)
            request = _PACKET_MREQ.pack(index, _PACKET_MR_MULTICAST, len(raw), raw.ljust(8, b"\0"))
            link.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
            if group is not None:
                network = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._sockets.append(network)
                member = _IP_MREQN.pack(group.packed, bytes(4), index)
                network.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        except OSError as error:
            self.close()
            raise HostError(f"cannot join the group MAC {mac} on {interface}: {error.strerror}") from error

    def close(self) -> None:
        """Leave the group. May be called twice."""
        while self._sockets:
            self._sockets.pop().close()
