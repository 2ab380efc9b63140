"""The client of the lab: asks for the VIP's page on new and on held connections, all buckets all the time.

``python -m nlbfarm.lab.prober OPTIONS`` in the client's namespace; a process of its own, so that its
timing does not depend on whoever looks at the results. Every 100 ms it writes one JSON line with what has
come to an end:

- ``probes``: each a fresh connection from a port that the client never used before (or not for many
  seconds), so that neither TIME_WAIT nor an old conntrack entry plays a part.
  ``[bucket, start, answered, node, error, client address]``
- ``held``: requests on connections that are kept open, the same six values
- ``doubles``: SYN-ACKs for one SYN that came from two MACs: ``[bucket, at, first MAC, second MAC]``

Times are seconds on the monotonic clock (``null``: not answered), which all namespaces share. A probe
whose SYN is not answered within 50 ms (``--abandon``) is abandoned, so that the client's retry after one
second cannot hide in the result, and its bucket is asked again at once from another port.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import random
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from ipaddress import IPv4Address

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.core.hashing import bucket_of, flow_key
from nlbfarm.core.policy import Affinity
from nlbfarm.lab import endpoints

__all__ = ["main"]

_ANSWER = 1.0  # seconds for the page, once the connection stands; a busy machine is no lost node
_MOST_AGAIN = 4
_REPORT = 0.1
_TALK = 0.1
_PORTS = range(10_000, 60_000)
_HELD_PORTS = range(10_000, 20_000)
_LINGER_RESET = struct.pack("ii", 1, 0)
_REQUEST = b"GET / HTTP/1.1\r\nHost: farm\r\n\r\n"

_ETH_P_IP = 0x0800
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h

Result = tuple[int, float, float | None, str, str, str]


class _Connection:
    """One connection of the client; ``held`` ones are used again and again."""

    __slots__ = ("address", "again", "bucket", "connected", "data", "held", "retire", "sock", "start")

    def __init__(
        self,
        sock: socket.socket,
        bucket: int,
        address: str,
        start: float,
        retire: float,
        *,
        held: bool,
        again: bool,
    ) -> None:
        self.sock = sock
        self.bucket = bucket
        self.address = address
        self.held = held
        self.start = start
        self.connected = False
        self.again = again
        self.data = b""
        self.retire = retire


class _Prober:
    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self._target = (options.vip, options.port)
        self._rate: float = options.rate
        self._abandon: float = options.abandon
        addresses = [IPv4Address(address) for address in options.address]
        self._endpoints = endpoints.Endpoints(seed, addresses[:-1], _PORTS, 256)
        self._held_endpoints = endpoints.Endpoints(seed, addresses[-1:], _HELD_PORTS, 16)
        self._epoll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._waiting: deque[_Connection] = deque()  # in the order of their SYNs, which is that of giving up
        asked = options.bucket or range(BUCKETS)
        self._order = random.sample(asked, len(asked))
        self._position = 0
        self._again: deque[tuple[float, int]] = deque()  # (when, bucket): buckets whose last probe failed
        self._failing: set[int] = set()
        self._seed = seed
        self._answers: dict[tuple[str, int], tuple[bytes, int]] = {}
        self._capture = _capture_syn_acks(IPv4Address(options.vip), options.interface)
        self._epoll.register(self._capture, select.EPOLLIN)
        self._probes: list[Result] = []
        self._held: list[Result] = []
        self._doubles: list[tuple[int, float, str, str]] = []
        step = BUCKETS / max(1, options.held)
        now = time.monotonic()
        # (when to talk next, bucket, its connection)
        self._talks: deque[tuple[float, int, _Connection | None]] = deque(
            (now + _TALK * number / max(1, options.held), int(number * step), None)
            for number in range(options.held)
        )

    def run(self) -> None:
        now = time.monotonic()
        due, report = now, now + _REPORT
        while True:
            wait = min(due, report, self._talks[0][0] if self._talks else report)
            if self._waiting:
                wait = min(wait, self._waiting[0].retire)
            if self._again:
                wait = min(wait, self._again[0][0])
            for fd, events in self._epoll.poll(max(0.0, wait - time.monotonic()), 256):
                if fd == self._capture.fileno():
                    self._watch()
                elif fd in self._open:
                    self._ready(self._open[fd], events)
            now = time.monotonic()
            while self._waiting and self._waiting[0].retire <= now:
                self._expire(self._waiting.popleft(), now)
            # A few a turn, so that a farm that is down does not get a flood.
            for _ in range(_MOST_AGAIN):
                if not self._again or self._again[0][0] > now:
                    break
                self._probe(self._again.popleft()[1], now, again=True)
            due = max(due, now - 0.05)
            while due <= now:
                if self._order[self._position] not in self._failing:
                    self._probe(self._order[self._position], now)
                self._position = (self._position + 1) % len(self._order)
                due += 1 / self._rate
            while self._talks and self._talks[0][0] <= now:
                self._talk(now)
            if now >= report:
                self._report(now)
                report = now + _REPORT

    def _probe(self, bucket: int, now: float, *, again: bool = False) -> None:
        self._connect(bucket, self._endpoints.next(bucket), now, again=again)

    def _connect(
        self, bucket: int, endpoint: tuple[str, int], now: float, *, held: bool = False, again: bool = False
    ) -> _Connection | None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Closing with a reset: no TIME_WAIT here or there.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._answers.pop(endpoint, None)
        connection = _Connection(sock, bucket, endpoint[0], now, now + self._abandon, held=held, again=again)
        try:
            sock.bind(endpoint)
            code = sock.connect_ex(self._target)
        except OSError as error:
            code = error.errno or errno.EIO
        if code not in (0, errno.EINPROGRESS):
            self._done(connection, None, "", endpoints.name_of(code))
            return None
        self._open[sock.fileno()] = connection
        self._epoll.register(sock, select.EPOLLOUT)
        self._waiting.append(connection)
        return connection

    def _ready(self, connection: _Connection, events: int) -> None:
        now = time.monotonic()
        sock = connection.sock
        if not connection.connected:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._done(connection, None, "", endpoints.name_of(code))
                return
            connection.connected = True
            self._epoll.modify(sock, select.EPOLLIN)
            self._ask(connection)
            return
        try:
            chunk = sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._done(connection, None, "", endpoints.name_of(error.errno or 0))
            return
        if not chunk and connection.start == 0.0:
            # Between two requests, in good order: the next request opens another connection.
            del self._open[sock.fileno()]
            sock.close()
            return
        connection.data += chunk
        page = endpoints.body(connection.data)
        if page is not None:
            self._done(connection, now, page, "")
        elif not chunk:
            self._done(connection, None, "", "closed")

    def _ask(self, connection: _Connection) -> None:
        connection.data = b""
        try:
            connection.sock.send(_REQUEST)
        except OSError as error:
            self._done(connection, None, "", endpoints.name_of(error.errno or 0))

    def _done(self, connection: _Connection, answered: float | None, node: str, error: str) -> None:
        result = (connection.bucket, connection.start, answered, node, error, connection.address)
        (self._held if connection.held else self._probes).append(result)
        if connection.held and answered is not None:
            connection.start = 0.0  # between two requests
            return
        self._open.pop(connection.sock.fileno(), None)
        connection.sock.close()
        if connection.held:
            return
        if answered is not None:
            self._failing.discard(connection.bucket)
        elif connection.bucket not in self._failing or connection.again:
            # One chain of further probes a bucket; a refusal comes back at once and must not be repeated
            # at once.
            self._failing.add(connection.bucket)
            self._again.append((connection.start + self._abandon, connection.bucket))

    def _expire(self, connection: _Connection, now: float) -> None:
        if connection.sock.fileno() < 0 or connection.start == 0.0:
            return
        if not connection.connected:
            self._done(connection, None, "", "no SYN-ACK")
        elif now >= connection.start + _ANSWER:
            self._done(connection, None, "", "no answer")
        else:
            # Rare: connected, and the page takes longer; looked at again with the next ones.
            connection.retire = now + self._abandon
            self._waiting.append(connection)

    def _talk(self, now: float) -> None:
        at, bucket, connection = self._talks.popleft()
        if connection is None or connection.sock.fileno() < 0:
            connection = self._connect(bucket, self._held_endpoints.next(bucket), now, held=True)
        elif connection.start == 0.0:
            connection.start = now
            connection.retire = now + self._abandon
            self._waiting.append(connection)
            self._ask(connection)
        self._talks.append((max(at + _TALK, now), bucket, connection))

    def _watch(self) -> None:
        """Note which machine answered which SYN."""
        now = time.monotonic()
        while True:
            try:
                frame = self._capture.recv(128)
            except BlockingIOError:
                return
            header = 14 + (frame[14] & 0x0F) * 4
            endpoint = (socket.inet_ntoa(frame[30:34]), int.from_bytes(frame[header + 2 : header + 4], "big"))
            acknowledged = int.from_bytes(frame[header + 8 : header + 12], "big")
            earlier = self._answers.get(endpoint)
            # The same acknowledgement number: an answer to the same SYN, not to a later one from this port.
            if earlier and earlier[0] != frame[6:12] and earlier[1] == acknowledged:
                key = flow_key(Affinity.CLIENT_PORT, IPv4Address(endpoint[0]), endpoint[1])
                self._doubles.append(
                    (bucket_of(key, self._seed), now, earlier[0].hex(":"), frame[6:12].hex(":"))
                )
            self._answers[endpoint] = (frame[6:12], acknowledged)

    def _report(self, now: float) -> None:
        line = {"at": now, "probes": self._probes, "held": self._held, "doubles": self._doubles}
        sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
        sys.stdout.flush()
        self._probes, self._held, self._doubles = [], [], []


def _capture_syn_acks(vip: IPv4Address, interface: str) -> socket.socket:
    """Open a packet socket that sees nothing but SYN-ACKs from the VIP (classic BPF in the kernel)."""
    program = [
        (0x28, 0, 0, 12),  # ldh ethertype
        (0x15, 0, 8, _ETH_P_IP),
        (0x30, 0, 0, 23),  # ldb protocol
        (0x15, 0, 6, socket.IPPROTO_TCP),
        (0x20, 0, 0, 26),  # ld source address
        (0x15, 0, 4, int(vip)),
        (0xB1, 0, 0, 14),  # ldxb 4*(IP header length)
        (0x50, 0, 0, 14 + 13),  # ldb TCP flags
        (0x54, 0, 0, 0x12),  # and SYN|ACK
        (0x15, 1, 0, 0x12),
        (0x06, 0, 0, 0),  # ret 0
        (0x06, 0, 0, 128),  # ret 128 bytes
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    filtered = struct.pack("HL", len(program), ctypes.addressof(code))
    capture.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtered)
    capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    capture.bind((interface, _ETH_P_IP))  # receives from here on, filtered
    return capture


def main() -> None:
    """Probe until killed."""
    parser = argparse.ArgumentParser(prog="nlbfarm.lab.prober", description=__doc__.splitlines()[0])
    parser.add_argument("--interface", default="eth0")
    parser.add_argument(
        "--address", action="append", required=True, help="a client address; the last one holds connections"
    )
    parser.add_argument("--rate", type=float, default=1000.0, help="new connections a second")
    parser.add_argument("--held", type=int, default=32, help="connections that are kept open")
    parser.add_argument("--abandon", type=float, default=0.050, help="seconds to wait for a SYN-ACK")
    parser.add_argument(
        "--bucket", type=int, action="append", help="ask this one, and none but such; else all"
    )
    options, seed = endpoints.parse(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _Prober(options, seed).run()


if __name__ == "__main__":
    main()
