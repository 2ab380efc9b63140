"""Frames made from packet facts, put on a wire, and what a filter let through of them.

Every packet carries a number of its own (IPv4: identification, IPv6: flow label). A table of the test's,
which looks at what arrives after the filter, writes down the numbers it sees. A last packet that no filter
touches says that all before it have been judged: one wire, one queue, one order.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tests.netns.support import Namespace, cable

from nlbfarm.core.decision import ICMP, ICMPV6, IcmpKind, PacketFacts
from nlbfarm.core.policy import IPAddress, Protocol
from nlbfarm.nft import Nft

NODE_MAC = "02:00:00:00:00:01"
WIRE_MAC = "02:00:00:00:00:02"
_FIN, _SYN, _RST, _PSH, _ACK = 1, 2, 4, 8, 16
_ICMP_TYPES = {
    4: {IcmpKind.ECHO_REQUEST: (8,), IcmpKind.ERROR: (3, 11, 12), IcmpKind.OTHER: (0, 4, 5, 13, 17)},
    6: {
        IcmpKind.ECHO_REQUEST: (128,),
        IcmpKind.ERROR: (1, 2, 3, 4),
        IcmpKind.OTHER: (129, 100),
        IcmpKind.NEIGHBOUR: (135, 136),
    },
}
_NOT_FILTERED: dict[int, IPAddress] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("2001:db8::1")}
_NOT_FILTERED_CLIENTS: dict[int, IPAddress] = {
    4: IPv4Address("198.51.100.9"),
    6: IPv6Address("2001:db8:9::9"),
}

OBSERVER = """
table inet observer {
    set seen4 { typeof ip id; size 65535; flags dynamic; }
    set seen6 { typeof ip6 flowlabel; size 65535; flags dynamic; }
    set marked { typeof ip id; size 65535; flags dynamic; }
    chain after {
        type filter hook prerouting priority 500; policy accept;
        iifname "eth0" add @seen4 { ip id }
        iifname "eth0" add @seen6 { ip6 flowlabel }
        iifname "eth0" meta mark != 0 add @marked { ip id }
    }
    chain mute {
        type filter hook postrouting priority 500; policy accept;
        oifname "eth0" tcp flags & rst != 0 drop
        oifname "eth0" meta l4proto { icmp, udp } drop
    }
}
"""


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


@dataclass(frozen=True)
class Tcp:
    """What of a TCP header is not among the facts."""

    sequence: int
    acknowledge: int = 0
    fin: bool = False
    rst: bool = False
    payload: bytes = b""


def frame(
    facts: PacketFacts, number: int, rng: random.Random, tcp: Tcp | None = None, *, mac: str = NODE_MAC
) -> bytes:
    """Return an Ethernet frame with a packet of these facts; what they leave open is random."""
    version = facts.destination.version
    protocol = facts.protocol
    pseudo = facts.source.packed + facts.destination.packed
    body = _body(facts, rng, tcp)
    if protocol in (Protocol.TCP, Protocol.UDP, ICMPV6) and len(body) >= 8:
        place = {Protocol.TCP: 16, Protocol.UDP: 6, ICMPV6: 2}[protocol]
        total = checksum(pseudo + struct.pack("!II", len(body), protocol) + body)
        body = body[:place] + struct.pack("!H", total) + body[place + 2 :]
    elif protocol == ICMP and len(body) >= 8:
        body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    if version == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), number, 0, 64, protocol, 0) + pseudo
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    else:
        header = struct.pack("!IHBB", 6 << 28 | number, len(body), protocol, 64) + pseudo
    kind = b"\x08\x00" if version == 4 else b"\x86\xdd"
    ethernet = bytes.fromhex((mac + WIRE_MAC).replace(":", "")) + kind
    return ethernet + header + body


def _body(facts: PacketFacts, rng: random.Random, tcp: Tcp | None) -> bytes:
    version = facts.destination.version
    if facts.protocol in (Protocol.TCP, Protocol.UDP):
        if facts.source_port is None or facts.destination_port is None:
            return rng.randbytes(rng.choice((0, 1, 2, 3)))
        ports = struct.pack("!HH", facts.source_port, facts.destination_port)
        if facts.protocol == Protocol.UDP:
            payload = rng.randbytes(rng.randrange(40))
            return ports + struct.pack("!HH", 8 + len(payload), 0) + payload
        tcp = tcp or Tcp(rng.getrandbits(32), rng.getrandbits(32) if facts.ack else 0)
        flags = (
            _SYN * facts.syn | _ACK * facts.ack | _FIN * tcp.fin | _RST * tcp.rst | _PSH * bool(tcp.payload)
        )
        return (
            ports
            + struct.pack("!IIBBHHH", tcp.sequence, tcp.acknowledge, 0x50, flags, 64240, 0, 0)
            + tcp.payload
        )
    if facts.is_icmp:
        if facts.icmp is None:
            return b""
        kind = rng.choice(_ICMP_TYPES[version][facts.icmp])
        inner = frame(PacketFacts("", facts.destination, facts.source, 6, 80, 40000, ack=True), 7, rng)[14:]
        return struct.pack("!BBHHH", kind, 0, 0, rng.getrandbits(16), 1400) + inner
    return rng.randbytes(24)


def fragments(data: bytes, size: int) -> list[bytes]:
    """Cut a frame with an IPv4 packet into fragments of ``size`` bytes of payload, a multiple of 8."""
    ethernet, header, payload = data[:14], data[14:34], data[34:]
    pieces = []
    for offset in range(0, len(payload), size):
        piece = payload[offset : offset + size]
        more = 0x2000 if offset + size < len(payload) else 0
        start = header[:2] + struct.pack(
            "!HHH", 20 + len(piece), *struct.unpack("!H", header[4:6]), more | offset // 8
        )
        cut = start + header[8:10] + b"\0\0" + header[12:]
        pieces.append(ethernet + cut[:10] + struct.pack("!H", checksum(cut)) + cut[12:] + piece)
    return pieces


class Bench:
    """A node with the interface eth0, and the wire that leads to it."""

    def __init__(self, vips: Sequence[IPAddress], ports: Iterable[int], rng: random.Random) -> None:
        self.node, self.outside, self.rng = Namespace(), Namespace(), rng
        self._number = 0
        self._listeners: list[socket.socket] = []
        cable(self.node, "eth0", self.outside, "wire")
        run = self.node.run
        for setting in ("all", "eth0"):
            self.node.sysctl(f"net.ipv4.conf.{setting}.rp_filter", "0")
        # Every random client shall reach the stack, and its answers the wire.
        self.node.sysctl("net.ipv6.conf.eth0.accept_dad", "0")
        run("ip", "link", "set", "eth0", "address", NODE_MAC)
        self.outside.run("ip", "link", "set", "wire", "address", WIRE_MAC)
        run("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
        run("ip", "address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
        for vip in vips:
            length = vip.max_prefixlen
            run(
                "ip",
                "address",
                "add",
                f"{vip}/{length}",
                "dev",
                "eth0",
                *(["nodad"] if vip.version == 6 else []),
            )
        for family, gateway in (("-4", "192.0.2.254"), ("-6", "2001:db8::fe")):
            run(
                "ip",
                family,
                "neighbour",
                "add",
                gateway,
                "lladdr",
                WIRE_MAC,
                "dev",
                "eth0",
                "nud",
                "permanent",
            )
            run("ip", family, "route", "add", "default", "via", gateway)
        run("nft", "-f", "-", stdin=OBSERVER)
        with self.outside.entered():
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._wire.bind(("wire", 0))
            self._wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            self._wire.setblocking(False)
        with self.node.entered():
            self._nft = Nft()
            for port in ports:
                listener = socket.socket(socket.AF_INET6)
                listener.bind(("::", port))
                listener.listen(4096)
                self._listeners.append(listener)

    def close(self) -> None:
        self._wire.close()
        self._nft.close()
        for listener in self._listeners:
            listener.close()
        self.node.close()
        self.outside.close()

    def number(self) -> int:
        """Return the next packet's number."""
        self._number = self._number % 65_000 + 1
        return self._number

    def send(self, facts: PacketFacts, tcp: Tcp | None = None, *, mac: str = NODE_MAC) -> int:
        """Put one packet on the wire; returns its number."""
        number = self.number()
        self.put(frame(facts, number, self.rng, tcp, mac=mac))
        return number

    def put(self, data: bytes) -> None:
        """Put a frame on the wire."""
        while True:
            try:
                self._wire.send(data)
                return
            except (BlockingIOError, OSError) as error:
                if not isinstance(error, BlockingIOError) and error.errno != 105:  # ENOBUFS
                    raise

    def settle(self) -> None:
        """Return when every packet sent so far has been judged."""
        for version, address in _NOT_FILTERED.items():
            source = _NOT_FILTERED_CLIENTS[version]
            number = self.send(PacketFacts("eth0", source, address, 253))
            deadline = time.monotonic() + 5
            while number not in self.seen(version):
                assert time.monotonic() < deadline, "a packet that nobody filters did not arrive"

    def seen(self, version: int, name: str = "seen") -> set[int]:
        """Return the numbers of the packets that got past the filter."""
        for item in self._nft.read(f"list set inet observer {name}{version}"):
            if "set" in item:
                return {int(element) for element in item["set"].get("elem", [])}
        raise AssertionError("no observer")

    def forget(self) -> None:
        """Forget all numbers, so that they can be used again."""
        self._nft.run("flush set inet observer seen4\nflush set inet observer seen6")

    def ignored_mark(self) -> bool:
        """Whether no packet kept a mark behind the filter."""
        return not self.node.run("nft", "list", "set", "inet", "observer", "marked").count("elements")

    def answers(self) -> dict[tuple[IPAddress, int, int], tuple[int, int]]:
        """Return sequence and acknowledge number of every SYN-ACK that came out, by client and both ports."""
        found: dict[tuple[IPAddress, int, int], tuple[int, int]] = {}
        while True:
            try:
                data = self._wire.recv(2048)
            except BlockingIOError:
                return found
            packet = data[14:]
            if data[12:14] != b"\x08\x00" or packet[9] != Protocol.TCP:
                continue
            header = packet[(packet[0] & 15) * 4 :]
            port, client_port, sequence, acknowledge = struct.unpack_from("!HHII", header)
            if header[13] & (_SYN | _ACK) == _SYN | _ACK:
                found[IPv4Address(packet[16:20]), client_port, port] = sequence, acknowledge
