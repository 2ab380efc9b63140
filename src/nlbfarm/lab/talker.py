"""The client of planned changes: holds connections that keep talking, and opens new ones beside them.

``python -m nlbfarm.lab.talker OPTIONS`` in the client's namespace; a process of its own, as the prober is.
Unlike the prober it behaves as a browser does: it is patient for seconds, its kernel repeats a
lost SYN after a second, and it closes connections in good order. Every 100 ms it writes one JSON line:

- ``at``, ``oldest``: when it was written, and when the oldest thing began that is still going on
- ``standing``: held connections that stand
- ``held``: those that were opened: ``[connection, bucket, at, node]``; a held connection belongs to the node
  that answered it first
- ``broken``: those that broke: ``[connection, bucket, at, node, why]``. Broken means a reset, an end in the
  middle, no answer for ``--timeout`` seconds, or an answer by another node
- ``answers``, ``longest``: answered requests on held connections, and the longest time that one of these
  took or is taking, seconds
- ``fresh``: new connections that came to an end: ``[bucket, start, answered, node, why, SYNs repeated]``;
  ``why`` is empty when the page and then the end of the connection had arrived

Times are seconds on the monotonic clock, which all namespaces share. At ``SIGUSR1`` every held connection
says with its next request that it is the last one, ends in good order, and is opened anew: what the clients
of a real farm do within minutes. Broken ones are opened anew only then.
"""

from __future__ import annotations

import argparse
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
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab import endpoints

__all__ = ["main"]

_REPORT = 0.1
_LATE = 0.05  # seconds of arrears that are made up for; what a busy machine loses beyond is not
_HELD_PORTS = range(10_000, 30_000)
_PORTS = range(30_000, 60_000)
_NEXT = b"GET / HTTP/1.1\r\nHost: farm\r\n\r\n"
_LAST = b"GET / HTTP/1.1\r\nHost: farm\r\nConnection: close\r\n\r\n"

# struct tcp_info (linux/tcp.h): eight bytes, then 32-bit numbers, the 24th of which counts retransmissions.
# Until the connection stands there is nothing but the SYN that can have been repeated.
_TOTAL_RETRANS = 8 + 4 * 23


class _Flow:
    """A connection; ``number`` is -1 for a new one, else the place of a held one."""

    __slots__ = (
        "asked",
        "bucket",
        "complete",
        "connected",
        "data",
        "last",
        "node",
        "number",
        "repeated",
        "sock",
    )

    def __init__(self, sock: socket.socket, number: int, bucket: int, now: float) -> None:
        self.sock = sock
        self.number = number
        self.bucket = bucket
        self.asked = now  # when what is under way began; 0: nothing is
        self.connected = False
        self.last = number < 0  # whether the request under way says that it is the last one
        self.complete = False  # whether only the end of the connection is to come
        self.node = ""
        self.data = b""
        self.repeated = 0


class _Talker:
    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self._target = (options.vip, options.port)
        address = [IPv4Address(options.address)]
        self._new_ports = endpoints.Endpoints(seed, address, _PORTS, 90)
        self._held_ports = endpoints.Endpoints(seed, address, _HELD_PORTS, 32)
        self._pace = 1 / options.rate if options.rate else 0.0
        self._held_pace = options.interval / options.held if options.held else 0.0
        self._timeout: float = options.timeout
        self._epoll = select.epoll()
        self._open: dict[int, _Flow] = {}
        # By the start of what is under way. An entry is stale when its flow has gone on since.
        self._pending: deque[tuple[float, _Flow]] = deque()
        self._places: list[_Flow | None] = [None] * options.held
        self._wanted = [True] * options.held
        self._leaving = [False] * options.held
        self._buckets = [number * BUCKETS // options.held for number in range(options.held)]
        random.shuffle(self._buckets)  # places speak in turn; buckets must not
        self._order = random.sample(range(BUCKETS), BUCKETS)
        self._position = self._place = self._standing = self._answers = 0
        self._longest = 0.0
        self._held: list[tuple[int, int, float, str]] = []
        self._broken: list[tuple[int, int, float, str, str]] = []
        self._fresh: list[tuple[int, float, float | None, str, str, int]] = []
        signal.signal(signal.SIGUSR1, self._turn_over)

    def run(self) -> None:
        now = time.monotonic()
        new_due = now if self._pace else float("inf")
        held_due = now if self._held_pace else float("inf")
        report = now + _REPORT
        while True:
            wait = min(new_due, held_due, report) - time.monotonic()
            for fd, _events in self._epoll.poll(max(0.0, wait), 512):
                if fd in self._open:
                    self._ready(self._open[fd])
            now = time.monotonic()
            new_due, held_due = max(new_due, now - _LATE), max(held_due, now - _LATE)
            while new_due <= now:
                bucket = self._order[self._position]
                self._position = (self._position + 1) % BUCKETS
                self._connect(-1, bucket, self._new_ports.next(bucket), now)
                new_due += self._pace
            while held_due <= now:
                self._speak(self._place, now)
                self._place = (self._place + 1) % len(self._places)
                held_due += self._held_pace
            self._give_up(now)
            if now >= report:
                self._report(now)
                report = now + _REPORT

    def _turn_over(self, *_: object) -> None:
        self._wanted = [True] * len(self._places)
        self._leaving = [flow is not None for flow in self._places]

    def _speak(self, number: int, now: float) -> None:
        flow, bucket = self._places[number], self._buckets[number]
        if flow is None:
            if self._wanted[number]:
                self._wanted[number] = False
                self._places[number] = self._connect(number, bucket, self._held_ports.next(bucket), now)
        elif not flow.asked:
            flow.last, self._leaving[number] = self._leaving[number], False
            self._ask(flow, now)

    def _connect(self, number: int, bucket: int, endpoint: tuple[str, int], now: float) -> _Flow | None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        flow = _Flow(sock, number, bucket, now)
        try:
            sock.bind(endpoint)
            code = sock.connect_ex(self._target)
        except OSError as error:
            code = error.errno or errno.EIO
        self._open[sock.fileno()] = flow
        self._epoll.register(sock, select.EPOLLOUT)
        self._pending.append((now, flow))
        if code not in (0, errno.EINPROGRESS):
            self._end(flow, endpoints.name_of(code))
            return None
        return flow

    def _ready(self, flow: _Flow) -> None:
        sock = flow.sock
        if not flow.connected:
            flow.repeated = _repeated(sock)
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._end(flow, endpoints.name_of(code))
                return
            flow.connected = True
            self._epoll.modify(sock, select.EPOLLIN)
            self._ask(flow, flow.asked)
            return
        try:
            chunk = sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(flow, endpoints.name_of(error.errno or 0))
            return
        if not chunk:
            self._end(flow, "" if flow.complete else "closed")
            return
        flow.data += chunk
        page = endpoints.body(flow.data)
        if page is not None:
            self._answered(flow, page)

    def _answered(self, flow: _Flow, page: str) -> None:
        now = time.monotonic()
        if not flow.asked or flow.complete:
            self._end(flow, f"an answer by {page} that nobody asked for")
            return
        if flow.node and page != flow.node:
            self._end(flow, f"answered by {page} instead of {flow.node}")
            return
        if flow.number >= 0 and not flow.node:
            self._held.append((flow.number, flow.bucket, now, page))
            self._standing += 1
        elif flow.number >= 0:
            self._longest = max(self._longest, now - flow.asked)
            self._answers += 1
        flow.node, flow.data, flow.complete = page, b"", flow.last
        if not flow.last:
            flow.asked = 0.0

    def _ask(self, flow: _Flow, since: float) -> None:
        flow.asked, flow.data = since, b""
        if flow.connected and flow.node:
            self._pending.append((since, flow))
        try:
            flow.sock.send(_LAST if flow.last else _NEXT)
        except OSError as error:
            self._end(flow, endpoints.name_of(error.errno or 0))

    def _end(self, flow: _Flow, why: str) -> None:
        if flow.sock.fileno() < 0:
            return
        now = time.monotonic()
        if flow.number < 0:
            answered = None if why else now
            self._fresh.append((flow.bucket, flow.asked, answered, flow.node, why, flow.repeated))
        else:
            self._places[flow.number] = None
            self._wanted[flow.number] = not why
            self._standing -= bool(flow.node)
            if why:
                self._broken.append((flow.number, flow.bucket, now, flow.node, why))
        flow.asked = 0.0
        del self._open[flow.sock.fileno()]
        flow.sock.close()

    def _give_up(self, now: float) -> None:
        while self._pending:
            since, flow = self._pending[0]
            if flow.asked == since:
                if now < since + self._timeout:
                    return
                if not flow.connected:
                    flow.repeated = _repeated(flow.sock)
                self._end(flow, "no answer" if flow.connected else "no connection")
            self._pending.popleft()

    def _report(self, now: float) -> None:
        held = (since for since, flow in self._pending if flow.node and flow.asked == since and not flow.last)
        line: dict[str, Any] = {
            "at": now,
            "oldest": self._pending[0][0] if self._pending else now,
            "standing": self._standing,
            "held": self._held,
            "broken": self._broken,
            "answers": self._answers,
            "longest": max(self._longest, now - next(held, now)),
            "fresh": self._fresh,
        }
        sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
        sys.stdout.flush()
        self._held, self._broken, self._fresh = [], [], []
        self._answers, self._longest = 0, 0.0


def _repeated(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOTAL_RETRANS + 4)
    return int(struct.unpack_from("=I", info, _TOTAL_RETRANS)[0])


def main() -> None:
    """Talk until killed."""
    parser = argparse.ArgumentParser(prog="nlbfarm.lab.talker", description=__doc__.splitlines()[0])
    parser.add_argument("--address", required=True, help="the client address")
    parser.add_argument("--held", type=int, default=512, help="connections that are held")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two requests on each")
    parser.add_argument("--rate", type=float, default=200.0, help="new connections a second")
    parser.add_argument(
        "--timeout", type=float, default=10.0, help="seconds without an answer that break a connection"
    )
    options, seed = endpoints.parse(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _Talker(options, seed).run()


if __name__ == "__main__":
    main()
