"""What got past the filter: copies of packets, taken at the end of the prerouting hook (NFLOG).

That is behind every place where a filter of this node can stand: tc and XDP, netfilter's own hooks at ingress
and prerouting, NFQUEUE. It is before routing, so the host's stack has only looked at the IP header.
"""

from __future__ import annotations

import errno
import socket
import struct

from nlbfarm.backends.netlink import NETLINK_NETFILTER, attribute, attributes, message, messages
from nlbfarm.errors import HostError
from nlbfarm.nft import Nft

__all__ = ["Observer"]

_GROUP = 0x4E4C
_SUBSYSTEM = 4  # NFNL_SUBSYS_ULOG
_PACKET, _CONFIG = _SUBSYSTEM << 8 | 0, _SUBSYSTEM << 8 | 1  # NFULNL_MSG_*
_REQUEST, _ACKNOWLEDGE, _ERROR = 1, 4, 2  # NLM_F_REQUEST, NLM_F_ACK, NLMSG_ERROR
_COMMAND, _MODE = 1, 2  # NFULA_CFG_*
_BIND, _COPY_PACKET = 1, 2  # NFULNL_CFG_CMD_BIND, NFULNL_COPY_PACKET
_PAYLOAD = 9  # NFULA_PAYLOAD
_GENERIC_SIZE = 4
_SO_RCVBUFFORCE = 33
_BUFFER = 16 << 20
_LARGEST = 0xFFFF
_ANSWER_S = 5.0

# The node's own answers are of no interest and would only be noise on the wire, but for SYN-ACKs. They are
# dropped behind everything that a filter might want to learn from them.
_TABLE = f"""
table inet observer {{
    chain after {{
        type filter hook prerouting priority 500; policy accept;
        iifname != "lo" log group {_GROUP} snaplen {_LARGEST} queue-threshold 1
    }}
    chain mute {{
        type filter hook postrouting priority 500; policy accept;
        oifname "lo" accept
        tcp flags & (syn | ack) != (syn | ack) drop
        meta l4proto {{ icmp, udp }} drop
    }}
}}
"""


class Observer:
    """Sees what passes in the network namespace that the calling thread is in.

    Raises:
        HostError: This host's kernel or user space has no nftables, or no NFLOG.
    """

    def __init__(self) -> None:
        self.lost = False
        """Whether the kernel had to throw copies away."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
        try:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._socket.settimeout(_ANSWER_S)
            self._configure(attribute(_COMMAND, bytes([_BIND])))
            self._configure(attribute(_MODE, struct.pack("!IBx", _LARGEST, _COPY_PACKET)))
            self._socket.setblocking(False)
            nft = Nft()
            try:
                nft.run(_TABLE)
            finally:
                nft.close()
        except BaseException:
            self._socket.close()
            raise

    def _configure(self, payload: bytes) -> None:
        self._socket.send(message(_CONFIG, _REQUEST | _ACKNOWLEDGE, 1, 0, _GROUP, payload))
        for kind, _, _, _, answer in messages(self._socket.recv(1 << 16)):
            number = struct.unpack_from("=i", answer)[0] if kind == _ERROR else 0
            if number:
                raise HostError(
                    f"packets cannot be observed ({errno.errorcode.get(-number, -number)}): it needs NFLOG "
                    "(CONFIG_NETFILTER_NETLINK_LOG)"
                )

    def read(self) -> list[bytes]:
        """Return the packets seen since the last call, from the IP header on; never blocks."""
        found: list[bytes] = []
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True
                continue
            for kind, _, _, _, payload in messages(data):
                if kind == _PACKET:
                    for name, value in attributes(payload[_GENERIC_SIZE:]):
                        if name == _PAYLOAD:
                            found.append(value)

    def close(self) -> None:
        """Stop to look."""
        self._socket.close()
