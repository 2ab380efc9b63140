"""One heartbeat network's UDP socket: what the kernel knows about its datagrams.

Linux gives more than other systems: the time at which a datagram arrived (``SO_TIMESTAMPNS``), so
that a late turn of our loop does not make a peer look late, and the ICMP errors that answered
ours (``IP_RECVERR``), so that a dead process is seen before its silence is. Where these are
missing, the time is that of reading and refusals are not seen; a note says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from typing import Any, NamedTuple

from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError
from nlbfarm.interfaces import Clock, NetworkStats

__all__ = ["Datagram", "Link", "sockaddr"]

# From asm-generic/socket.h, linux/in.h, in6.h and errqueue.h (include/uapi); Python 3.11 names few of them.
_SO_PRIORITY = 12
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_TIMESPEC = struct.Struct("@ll")
_EXTENDED_ERROR = struct.Struct("@IBBBBII")
_ORIGINS_ICMP = (2, 3)  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6
_MSG_ERRQUEUE = getattr(socket, "MSG_ERRQUEUE", 0)

_RECEIVE_BUFFER = 1 << 20  # about 450 datagrams with the kernel's overhead: 32 nodes, 1.4 seconds
_READ = 2048  # more than a valid datagram has: a longer one is cut, and then refused as malformed
_ANCILLARY = 256
_PRIORITY = 6  # TC_PRIO_INTERACTIVE; 7 would need CAP_NET_ADMIN (net/core/sock.c)
_CLOCK_SLACK = 0.005  # seconds; the clocks are read one after the other, and interrupts wait
_REBIND_EVERY = 1.0
_GONE = frozenset({errno.EINVAL, errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENXIO, errno.EBADF})
_ERRORS_A_DRAIN = 64

SocketAddress = tuple[Any, ...]


class Datagram(NamedTuple):
    """One datagram of a peer: its bytes, where it came from, and when it arrived (monotonic)."""

    data: bytes
    source: str
    at: float


def sockaddr(address: IPAddress, port: int) -> SocketAddress:
    """Return ``address`` and ``port`` as the socket calls want them (IPv6: with the scope)."""
    found = socket.getaddrinfo(
        str(address), port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    )
    return found[0][4]


class Link:
    """The socket of one heartbeat network.

    Args:
        index: Which network, from 0.
        local: This node's address there.
        peers: Each peer's address there.
        port: UDP port, the same on all nodes.
        dscp: DSCP of what is sent, 0..63.
        clock: Gives the arrival times.
    """

    def __init__(
        self, index: int, local: IPAddress, peers: Mapping[int, IPAddress], port: int, dscp: int, clock: Clock
    ) -> None:
        self.index = index
        self.notes: list[str] = []
        self.sent = self.received = self.send_errors = self.foreign = 0
        self.last_error = ""
        self._local = local
        self._port = port
        self._dscp = dscp
        self._clock = clock
        self._targets: dict[int, SocketAddress] = {}
        self._nodes: dict[str, int] = {}
        self.set_peers(peers)
        self._socket: socket.socket | None = None
        self._errors_queued = False
        self._next_bind = 0.0
        self._drained = 0.0  # the queue was seen empty at this (monotonic) time
        self._refused: set[int] = set()

    def set_peers(self, peers: Mapping[int, IPAddress]) -> None:
        """Replace the peers and their addresses."""
        self._targets = {node: sockaddr(address, self._port) for node, address in peers.items()}
        self._nodes = {_host(target): node for node, target in self._targets.items()}

    def open(self) -> None:
        """Bind the socket.

        Raises:
            HostError: The address is not on this host, or the port is taken.
        """
        try:
            self._bind()
        except OSError as error:
            where = f"{self._local} port {self._port}/udp"
            raise HostError(f"cannot listen for heartbeats on {where}: {_why(error)}") from error

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 without one."""
        return self._socket.fileno() if self._socket is not None else -1

    def send(self, data: bytes, node: int) -> None:
        """Send ``data`` to ``node``; an error is counted, never raised."""
        if self._socket is None:
            self.send_errors += 1
            return
        target = self._targets[node]
        for attempt in (1, 2):
            try:
                self._socket.sendto(data, target)
            except OSError as error:
                # What an earlier datagram met (an ICMP error, of another peer perhaps) is reported
                # by the next call on the socket: take it off and try again, once.
                if attempt == 1 and self._drain_errors():
                    continue
                self._failed(error, f"to node {node} at {target[0]}")
                return
            self.sent += 1
            return

    def drain(self, limit: int) -> Iterator[Datagram]:
        """Yield what is queued from peers, in order of arrival; never blocks.

        Args:
            limit: Datagrams looked at, at most: a flood of strangers must not hold the event loop.
        """
        for _ in range(limit):
            if self._socket is None:
                return
            before = self._clock.monotonic()
            try:
                data, ancillary, source = self._receive()
            except BlockingIOError:
                self._drained = before
                self._drain_errors()
                return
            except OSError as error:
                # A pending ICMP error, or the interface went down: what is queued behind is still good.
                if not self._drain_errors():
                    self._note_error(error, "while receiving")
                continue
            if _host(source) in self._nodes:
                self.received += 1
                yield Datagram(data, f"{source[0]}:{source[1]}", self._arrival(ancillary))
            else:
                self.foreign += 1

    def has_refused(self) -> bool:
        """Say whether ``refused`` has something to return."""
        return bool(self._refused)

    def refused(self) -> set[int]:
        """Return, once, the nodes whose hosts said since the last call that nothing listens there."""
        refused, self._refused = self._refused, set()
        return refused & self._targets.keys()

    def wants_binding(self) -> bool:
        """Say whether the address or its interface was lost, and it is time to try again."""
        return self._next_bind > 0 and self._clock.monotonic() >= self._next_bind

    def rebind(self) -> None:
        """Make the socket anew; when that fails, it is tried again a second later."""
        self.close()
        try:
            self._bind()
        except OSError as error:
            self._note_error(error, f"binding {self._local} port {self._port}")
            self._next_bind = self._clock.monotonic() + _REBIND_EVERY

    def stats(self) -> NetworkStats:
        """Return the counts."""
        return NetworkStats(
            sent=self.sent,
            received=self.received,
            send_errors=self.send_errors,
            last_error=self.last_error,
            foreign=self.foreign,
        )

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._next_bind = 0.0

    def _bind(self) -> None:
        family = socket.AF_INET if isinstance(self._local, IPv4Address) else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows lets others share a bound port otherwise
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._options(sock, family)
            sock.bind(sockaddr(self._local, self._port))
        except BaseException:
            sock.close()
            raise
        self._socket = sock
        self._next_bind = 0.0
        self._drained = self._clock.monotonic()

    def _options(self, sock: socket.socket, family: int) -> None:
        """Set what makes heartbeats better but not possible; a refusal is a note."""
        self.notes = []
        four = family == socket.AF_INET
        level = socket.IPPROTO_IP if four else socket.IPPROTO_IPV6
        tos = socket.IP_TOS if four else getattr(socket, "IPV6_TCLASS", 67)
        self._option(sock, level, tos, self._dscp << 2, f"DSCP {self._dscp}")
        if os.name == "nt":
            self.notes.append("kernel receive times and ICMP errors are not used on this system")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            return
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)  # needs CAP_NET_ADMIN
        except OSError:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        # After the TOS, which sets a priority of its own.
        self._option(sock, socket.SOL_SOCKET, _SO_PRIORITY, _PRIORITY, "socket priority")
        self._option(sock, socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1, "kernel receive times")
        received_errors = _IP_RECVERR if four else _IPV6_RECVERR
        self._errors_queued = self._option(sock, level, received_errors, 1, "ICMP errors")

    def _option(self, sock: socket.socket, level: int, option: int, value: int, what: str) -> bool:
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:
            self.notes.append(f"{what} not used on {self._local}: {error.strerror}")
            return False
        return True

    def _receive(self) -> tuple[bytes, list[tuple[int, int, bytes]], SocketAddress]:
        assert self._socket is not None
        if hasattr(self._socket, "recvmsg"):
            data, ancillary, _, source = self._socket.recvmsg(_READ, _ANCILLARY)
            return data, ancillary, source
        data, source = self._socket.recvfrom(_READ)
        return data, [], source

    def _arrival(self, ancillary: list[tuple[int, int, bytes]]) -> float:
        """Return when a datagram arrived, on the monotonic clock.

        The kernel stamps with the wall clock, which may jump. A stamp that says more than we
        know otherwise (earlier than the queue was last seen empty, or in the future) is not used.
        """
        now = self._clock.monotonic()
        wall = self._clock.wall()
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(content) >= _TIMESPEC.size:
                seconds, nanoseconds = _TIMESPEC.unpack_from(content)
                at: float = now - (wall - (seconds + nanoseconds * 1e-9))
                if self._drained - _CLOCK_SLACK <= at <= now + _CLOCK_SLACK:
                    return min(at, now)
        return now

    def _drain_errors(self) -> bool:
        """Take ICMP errors off the error queue, which would fail the next call; ``True`` if there was one."""
        if self._socket is None or not self._errors_queued:
            return False
        found = False
        for _ in range(_ERRORS_A_DRAIN):
            try:
                _, ancillary, _, target = self._socket.recvmsg(_READ, _ANCILLARY, _MSG_ERRQUEUE)
            except OSError:
                break
            found = True
            for level, kind, content in ancillary:
                if (level, kind) in ((socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)):
                    self._undeliverable(content, target)
        return found

    def _undeliverable(self, content: bytes, target: SocketAddress) -> None:
        """Judge one ``struct sock_extended_err``; ``target`` is where our datagram went."""
        number, origin, *_ = _EXTENDED_ERROR.unpack_from(content)
        node = self._nodes.get(_host(target))
        if node is None or origin not in _ORIGINS_ICMP:
            return
        if number == errno.ECONNREFUSED:  # ICMP(v6) port unreachable
            self._refused.add(node)
        self.last_error = f"node {node} at {target[0]}: {os.strerror(number)}"

    def _failed(self, error: OSError, where: str) -> None:
        self.send_errors += 1
        self._note_error(error, where)
        if error.errno in _GONE and not self._next_bind:
            self._next_bind = self._clock.monotonic() + _REBIND_EVERY

    def _note_error(self, error: OSError, where: str) -> None:
        self.last_error = f"{error.strerror or error} ({where})"


def _host(address: SocketAddress) -> str:
    """Return the address's text without a scope: link-local peers are told apart by network."""
    host: str = address[0]
    return host.partition("%")[0]


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "the address is not on this host; compare `addresses` of this node with the host's"
    if error.errno == errno.EADDRINUSE:
        return "another program has the port; is this farm's node running already? Else set heartbeat.port"
    return f"{error.strerror or error}"
