"""A node with a filter, and the wires that lead to it, in network namespaces."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import struct
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager

from nlbfarm.core.policy import FilterPolicy, IPAddress, Protocol
from nlbfarm.errors import HostError
from nlbfarm.nft import Nft
from nlbfarm.testing.conformance import scene, wire
from nlbfarm.testing.conformance.namespaces import Namespace, cable
from nlbfarm.testing.conformance.observer import Observer
from nlbfarm.testing.conformance.packet import Packet
from nlbfarm.testing.conformance.sightings import Sightings

__all__ = ["Bench", "has_vlan"]

_INTERFACES = ("eth0", "eth1")
_NODE_MACS = {"eth0": "02:00:00:00:00:01", "eth1": "02:00:00:00:01:01"}
_WIRE_MACS = {"eth0": "02:00:00:00:00:02", "eth1": "02:00:00:00:01:02"}
_GROUP_MAC = "01:00:5e:7f:02:64"
_GATEWAYS = {4: "192.0.2.254", 6: "2001:db8::fe"}
_MARKERS = 4
"""Markers at a time on each wire: a filter with several queues judges some of them in each."""
_BACKLOG = 4096
_BUFFER = 8 << 20
_SYN_ACK = wire.SYN | wire.ACK
ARRIVES_WITHIN_S = 5.0
"""How long a packet that nobody drops may take, on a busy host."""
_AGAIN_AFTER_S = 0.3

_REASSEMBLY = """
table {family} reassembly {{
    chain first {{
        type filter hook prerouting priority -199; policy accept;
        ct state invalid counter accept
    }}
}}
"""

_Connection = tuple[bytes, int, bytes, int]


def has_vlan() -> bool:
    """Say whether this host has VLAN devices, by making one."""
    try:
        namespace = Namespace()
    except HostError:
        return False
    try:
        namespace.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire0")
        namespace.run("ip", "link", "add", "link", "eth0", "name", "tagged", "type", "vlan", "id", "7")
    except HostError:
        return False
    finally:
        namespace.close()
    return True


class Bench:
    """A node with all VIPs, two wires to it, and an observer behind the place where its filter will be.

    Args:
        policy: What the filter is to enforce.
        listening: Whether somebody listens on the ports of conversations.

    Raises:
        HostError: It cannot be made here, and why.
    """

    def __init__(self, policy: FilterPolicy, *, listening: bool = True) -> None:
        self.sightings = Sightings()
        self._families = sorted({vip.address.version for vip in policy.vips})
        self._numbers = itertools.count(0xF000)
        self._markers: set[bytes] = set()
        self._sockets: list[socket.socket] = []
        self._wires: dict[str, socket.socket] = {}
        self._first_answers: dict[_Connection, int] = {}
        self._observer: Observer | None = None
        self._node, self._outside = Namespace(), Namespace()
        try:
            self._connect(policy)
            with self._outside.entered():
                for interface in _INTERFACES:
                    self._wires[interface] = self._wire(f"wire{interface[-1]}")
            with self._node.entered():
                self._observer = Observer()
                if listening:
                    self._listen()
        except BaseException:
            self.close()
            raise

    def inside(self) -> AbstractContextManager[None]:
        """Be on the node with the calling thread."""
        return self._node.entered()

    def _connect(self, policy: FilterPolicy) -> None:
        node, outside = self._node, self._outside
        outside.sysctl("net/ipv6/conf/all/disable_ipv6", "1")
        outside.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
        node.sysctl("net/ipv6/conf/default/accept_dad", "0")
        node.sysctl("net/ipv6/conf/default/router_solicitations", "0")
        # Lest a connection that nobody completes takes the place of another for minutes.
        node.sysctl("net/ipv4/tcp_synack_retries", "2")
        for interface in _INTERFACES:
            cable(node, interface, outside, f"wire{interface[-1]}")
            node.run("ip", "link", "set", interface, "address", _NODE_MACS[interface])
            outside.run("ip", "link", "set", f"wire{interface[-1]}", "address", _WIRE_MACS[interface])
            # Every client shall reach the stack, whatever its address.
            for setting in ("all", interface):
                node.sysctl(f"net/ipv4/conf/{setting}/rp_filter", "0")
        if any("." in vip.interface for vip in policy.vips):
            tagged = f"eth0.{scene.VLAN}"
            node.run(
                "ip", "link", "add", "link", "eth0", "name", tagged, "type", "vlan", "id", str(scene.VLAN)
            )
            node.run("ip", "link", "set", tagged, "up")
            node.sysctl(f"net/ipv4/conf/{tagged.replace('.', '/')}/rp_filter", "0")
        for family in self._families:
            host = f"{scene.NODE[family]}/{24 if family == 4 else 64}"
            node.run("ip", "address", "add", host, "dev", "eth0", *(["nodad"] if family == 6 else []))
            node.run("ip", "neighbour", "add", _GATEWAYS[family], "lladdr", _WIRE_MACS["eth0"], "dev", "eth0")
            node.run("ip", f"-{family}", "route", "add", "default", "via", _GATEWAYS[family])
        for vip in policy.vips:
            flags = ["nodad"] if vip.address.version == 6 else []
            place = f"{vip.address}/{vip.address.max_prefixlen}"
            node.run("ip", "address", "add", place, "dev", vip.interface, *flags)

    def _wire(self, interface: str) -> socket.socket:
        found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(3))
        self._sockets.append(found)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        found.bind((interface, 0))
        found.setblocking(False)
        return found

    def _listen(self) -> None:
        for port in scene.HELD_PORTS:
            listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            self._sockets.append(listener)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(("::", port))
            listener.listen(_BACKLOG)

    def reassemble(self, families: Collection[int]) -> None:
        """Let the host put fragments together before the observer sees them, as connection tracking does."""
        with self.inside():
            nft = Nft()
            try:
                for family in families:
                    nft.run(_REASSEMBLY.format(family="ip" if family == 4 else "ip6"))
            finally:
                nft.close()

    def send(self, packet: Packet) -> bytes:
        """Put a packet on its wire; returns its bytes, which may depend on what the node answered."""
        data = packet.data
        if packet.transport is not None:
            facts = packet.facts
            assert facts.source_port is not None
            assert facts.destination_port is not None
            key = facts.source.packed, facts.source_port, facts.destination.packed, facts.destination_port
            answered = self._first_answers.get(key)
            if answered is not None:
                data = wire.acknowledge(data, packet.transport, (answered + 1) % (1 << 32))
        self.sightings.sent(packet, data)
        interface = packet.facts.interface.partition(".")[0]
        mac = _GROUP_MAC if packet.to_group else _NODE_MACS[interface]
        self._put(interface, wire.frame(data, packet.version, mac, _WIRE_MACS[interface], packet.tag))
        return data

    def _put(self, interface: str, data: bytes) -> None:
        until = time.monotonic() + ARRIVES_WITHIN_S
        while True:
            try:
                self._wires[interface].send(data)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS) or time.monotonic() > until:
                    raise

    def look(self) -> None:
        """Take note of what the observer saw and what the node answered."""
        assert self._observer is not None
        for data in self._observer.read():
            if data in self._markers:
                self._markers.discard(data)
            else:
                self.sightings.see(data)
        if self._observer.lost:
            raise HostError("the observer was too slow: the kernel threw copies of packets away")
        for socket_ in self._wires.values():
            self._read_answers(socket_)

    def _read_answers(self, from_wire: socket.socket) -> None:
        while True:
            try:
                frame = from_wire.recv(4096)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue
                raise
            found = _syn_ack(frame)
            if found is not None:
                self._first_answers[found[0]] = found[1]

    async def settle(self, *, filtered: bool, renew: Sequence[Callable[[], object]] = ()) -> bool:
        """Wait until all packets sent so far have been judged: a marker behind each of them has passed.

        Args:
            filtered: Whether the markers go the filter's way and are to be accepted. Otherwise they are for
                the node's own address.
            renew: Called, each, before markers are sent (again).

        Returns:
            ``False`` if they did not come within ``ARRIVES_WITHIN_S``.
        """
        end = time.monotonic() + ARRIVES_WITHIN_S
        while time.monotonic() < end:
            for call in renew:
                call()
            self._markers.clear()
            for family in self._families:
                self._mark(family, filtered=filtered)
            again = time.monotonic() + _AGAIN_AFTER_S
            while time.monotonic() < again:
                self.look()
                if not self._markers:
                    return True
                await asyncio.sleep(0.0005)
        return False

    def _mark(self, family: int, *, filtered: bool) -> None:
        if not filtered:
            self._send_marker(scene.NODE[family], "eth0")
            return
        for _ in range(_MARKERS):
            self._send_marker(scene.VIP[family], "eth0")
            self._send_marker(scene.OTHER_INTERFACE[family], "eth1")

    def _send_marker(self, to: IPAddress, interface: str) -> None:
        number = next(self._numbers)
        client = scene.marker_client(to.version, number)
        ports = number % 60_000 + 1024, scene.MARKER_PORT
        payload = wire.udp(client, to, ports, struct.pack("!I", number))
        if to.version == 4:
            data = wire.ipv4(client, to, Protocol.UDP, payload, number=number % 0x1000 + 0xF000)
        else:
            data = wire.ipv6(client, to, Protocol.UDP, payload, number=0xFFFFF)
        self._markers.add(data)
        self._put(interface, wire.frame(data, to.version, _NODE_MACS[interface], _WIRE_MACS[interface]))

    def close(self) -> None:
        """Take everything down."""
        if self._observer is not None:
            self._observer.close()
        for found in self._sockets:
            found.close()
        self._node.close()
        self._outside.close()


def _syn_ack(frame: bytes) -> tuple[_Connection, int] | None:
    """Return what connection a SYN-ACK answers, client first, and its sequence number."""
    data = frame[14:]
    if frame[12:14] == b"\x08\x00" and len(data) >= 40 and data[9] == Protocol.TCP:
        source, destination, header = data[12:16], data[16:20], data[(data[0] & 15) * 4 :]
    elif frame[12:14] == b"\x86\xdd" and len(data) >= 60 and data[6] == Protocol.TCP:
        source, destination, header = data[8:24], data[24:40], data[40:]
    else:
        return None
    if len(header) < 20 or header[13] & _SYN_ACK != _SYN_ACK:
        return None
    port, client_port, sequence = struct.unpack_from("!HHI", header)
    return (destination, client_port, source, port), sequence
