"""Heartbeats over UDP: to every peer on every heartbeat network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import UsageError
from nlbfarm.heartbeat.link import Datagram, Link
from nlbfarm.heartbeat.reader import ThreadReader
from nlbfarm.interfaces import Clock, Heartbeat, HeartbeatStats, Received

__all__ = ["UdpHeartbeat"]

_MAX_DATAGRAM = 1200  # nlbfarm.core.wire.MAX_DATAGRAM, which is none of a transport's business
_A_TURN = 256  # datagrams read in one turn of the event loop
_A_POLL = 4096


class UdpHeartbeat(Heartbeat):
    """Carries heartbeats as unicast UDP; each network is a socket of its own, and fails on its own.

    A datagram that does not come from a configured address of a peer on that network is dropped
    unread and counted as foreign: a stranger's flood costs no HMAC. Arrival times are the
    kernel's, and a peer's host that says "port unreachable" is reported, where the system can.

    Args:
        local: This node's address on each heartbeat network.
        peers: For each other node its address on each of them, in the same order.
        port: UDP port, the same on all nodes.
        dscp: DSCP of what is sent, 0..63; 48 is CS6, network control (RFC 2474 section 4.2.2).
        clock: Gives the arrival times.

    Raises:
        UsageError: The networks of this node and of a peer do not match.
    """

    def __init__(
        self,
        local: Sequence[IPAddress],
        peers: Mapping[int, Sequence[IPAddress]],
        *,
        port: int = 4804,
        dscp: int = 48,
        clock: Clock,
    ) -> None:
        if not local:
            raise UsageError("a node needs an address on at least one heartbeat network")
        if not 1 <= port <= 65535 or not 0 <= dscp <= 63:
            raise UsageError(f"port {port} is not in 1..65535, or DSCP {dscp} not in 0..63")
        self._versions = [address.version for address in local]
        self._refuse_misfits(peers)
        self._links = [
            Link(index, mine, {node: its[index] for node, its in peers.items()}, port, dscp, clock)
            for index, mine in enumerate(local)
        ]
        self._peers = frozenset(peers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: ThreadReader | None = None
        self._deliver: Callable[[Received], None] = _nobody
        self._on_refused: Callable[[int], None] = _nobody

    async def open(self, deliver: Callable[[Received], None], on_refused: Callable[[int], None]) -> None:
        if self._loop is not None:
            raise UsageError("the heartbeat is open already")
        try:
            for link in self._links:
                link.open()
        except BaseException:
            self._close_links()
            raise
        self._deliver = deliver
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        try:
            for link in self._links:
                self._loop.add_reader(link.fileno(), self._readable, link)
        except NotImplementedError:
            self._reader = ThreadReader(self._links, self._ready_in_thread)

    def send(self, data: bytes, nodes: Collection[int]) -> None:
        if len(data) > _MAX_DATAGRAM:
            raise UsageError(f"a heartbeat of {len(data)} bytes; at most {_MAX_DATAGRAM} can be sent")
        if not self._peers.issuperset(nodes):
            raise UsageError(f"unknown node {min(set(nodes) - self._peers)}")
        if self._loop is None:
            raise UsageError("the heartbeat is not open")
        if self._reader is not None:
            with self._reader.lock:
                self._send(self._loop, data, nodes)
        else:
            self._send(self._loop, data, nodes)

    def set_peers(self, peers: Mapping[int, Sequence[IPAddress]]) -> None:
        self._refuse_misfits(peers)
        with self._reader.lock if self._reader is not None else contextlib.nullcontext():
            for link in self._links:
                link.set_peers({node: its[link.index] for node, its in peers.items()})
        self._peers = frozenset(peers)

    def poll(self) -> int:
        count = 0
        for _ in self._delivering(self._links, _A_POLL):
            count += 1
        self._report_refused()
        return count

    def stats(self) -> HeartbeatStats:
        notes = dict.fromkeys(note for link in self._links for note in link.notes)
        if self._reader is not None:
            notes["the event loop cannot watch sockets: a thread reads them"] = None
        return HeartbeatStats(networks=tuple(link.stats() for link in self._links), notes=tuple(notes))

    async def close(self) -> None:
        loop, self._loop = self._loop, None
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
        elif loop is not None:
            for link in self._links:
                loop.remove_reader(link.fileno())
        self._close_links()
        self._deliver = _nobody
        self._on_refused = _nobody

    def _refuse_misfits(self, peers: Mapping[int, Sequence[IPAddress]]) -> None:
        for node, addresses in peers.items():
            if [address.version for address in addresses] != self._versions:
                raise UsageError(f"the addresses of node {node} are not on the networks of this node")

    def _send(self, loop: asyncio.AbstractEventLoop, data: bytes, nodes: Collection[int]) -> None:
        for link in self._links:
            if link.wants_binding():
                self._rebind(loop, link)
            for node in nodes:
                link.send(data, node)
            if link.has_refused():
                # Not from within: whoever sends is in the middle of something.
                loop.call_soon(self._report_refused)

    def _rebind(self, loop: asyncio.AbstractEventLoop, link: Link) -> None:
        """Make the socket of a network anew whose address or interface was lost."""
        if self._reader is None and link.fileno() >= 0:
            loop.remove_reader(link.fileno())
        link.rebind()
        if self._reader is not None:
            self._reader.wake()
        elif link.fileno() >= 0:
            loop.add_reader(link.fileno(), self._readable, link)

    def _readable(self, link: Link) -> None:
        for _ in self._delivering([link], _A_TURN):
            pass
        self._report_refused()

    def _ready_in_thread(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._deliver_queued)

    def _deliver_queued(self) -> None:
        if self._reader is not None:
            for network, datagram in _taken(self._reader):
                self._hand_over(network, datagram)
        self._report_refused()

    def _delivering(self, links: Sequence[Link], limit: int) -> Iterator[None]:
        """Deliver what is queued, one step a datagram; stops when a callback has closed us."""
        reader = self._reader
        if reader is not None:
            reader.read(limit)
            for network, datagram in _taken(reader):
                self._hand_over(network, datagram)
                yield
            return
        for link in links:
            for datagram in link.drain(limit):
                self._hand_over(link.index, datagram)
                yield

    def _hand_over(self, network: int, datagram: Datagram) -> None:
        self._deliver(Received(datagram.data, network, datagram.source, datagram.at))

    def _report_refused(self) -> None:
        for link in self._links:
            for node in sorted(link.refused()):
                self._on_refused(node)

    def _close_links(self) -> None:
        for link in self._links:
            link.close()


def _taken(reader: ThreadReader) -> Iterator[tuple[int, Datagram]]:
    """Take off the queue what is on it now, and not what keeps coming."""
    for _ in range(len(reader.queue)):
        if reader.queue:
            yield reader.queue.popleft()


def _nobody(_: object) -> None:
    """Stand in for the callbacks of a heartbeat that is not open."""
