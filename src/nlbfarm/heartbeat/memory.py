"""A network in the process: for tests, and for embedding trials without sockets.

Everything that a network does wrong comes from one seeded generator, so a run can be repeated.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Collection, Mapping, Sequence

from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import Clock, Heartbeat, HeartbeatStats, NetworkStats, Received

__all__ = ["MemoryHeartbeat", "SimulatedNetwork"]

_MAX_DATAGRAM = 1200
_TIMER_SLACK = 0.001  # an event loop may run a timer a little early


class SimulatedNetwork:
    """Connects every ``MemoryHeartbeat`` made from it, on one event loop, badly if asked to.

    Args:
        clock: Gives the arrival times; delays run on the event loop's own clock.
        networks: How many heartbeat networks there are.
        seed: Of everything random.
        loss: Part of the datagrams that get lost, 0..1.
        duplicate: Part that arrives twice.
        delay: Seconds that a datagram takes, at most; above 0 they overtake one another.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        networks: int = 1,
        seed: int = 0,
        loss: float = 0.0,
        duplicate: float = 0.0,
        delay: float = 0.0,
    ) -> None:
        self.clock = clock
        self.networks = networks
        self.loss = loss
        self.duplicate = duplicate
        self.delay = delay
        self._random = random.Random(seed)
        self._nodes: dict[int, MemoryHeartbeat] = {}
        self._cuts: set[tuple[int, int, int]] = set()

    def heartbeat(self, node: int) -> MemoryHeartbeat:
        """Return the heartbeat of a new node; all others are its peers.

        Raises:
            UsageError: There is one of that id.
        """
        if node in self._nodes:
            raise UsageError(f"node {node} has a heartbeat on this network already")
        self._nodes[node] = MemoryHeartbeat(self, node)
        return self._nodes[node]

    def cut(self, sender: int, receiver: int, network: int = 0) -> None:
        """Lose everything from ``sender`` to ``receiver`` on ``network`` until ``heal``; one way only."""
        self._cuts.add((sender, receiver, network))

    def heal(self) -> None:
        """Undo every cut."""
        self._cuts.clear()

    def known(self, nodes: Collection[int], sender: int) -> bool:
        """Say whether ``nodes`` are all peers of ``sender``."""
        return all(node in self._nodes and node != sender for node in nodes)

    def carry(self, data: bytes, sender: int, receiver: int, network: int) -> bool:
        """Take one datagram on its way; ``False`` if nothing listens at the other end."""
        if (sender, receiver, network) in self._cuts or self._random.random() < self.loss:
            return True
        target = self._nodes.get(receiver)
        if target is None or not target.listening:
            return False
        for _ in range(2 if self._random.random() < self.duplicate else 1):
            delay = self._random.uniform(0.0, self.delay) if self.delay else 0.0
            target.arrive(data, sender, network, delay)
        return True


class MemoryHeartbeat(Heartbeat):
    """One node's end of a ``SimulatedNetwork``; made by its ``heartbeat``."""

    def __init__(self, network: SimulatedNetwork, node: int) -> None:
        self._network = network
        self._node = node
        self._peers: frozenset[int] | None = None
        """Set by ``set_peers``; ``None``: all others on the network."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deliver: Callable[[Received], None] | None = None
        self._on_refused: Callable[[int], None] | None = None
        self._queue: list[tuple[float, int, bytes, str, int]] = []
        self._arrivals = 0
        self._sent = [0] * network.networks
        self._received = [0] * network.networks

    @property
    def listening(self) -> bool:
        """Whether it is open."""
        return self._loop is not None

    async def open(self, deliver: Callable[[Received], None], on_refused: Callable[[int], None]) -> None:
        if self._loop is not None:
            raise UsageError("the heartbeat is open already")
        self._deliver = deliver
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()

    def send(self, data: bytes, nodes: Collection[int]) -> None:
        if len(data) > _MAX_DATAGRAM:
            raise UsageError(f"a heartbeat of {len(data)} bytes; at most {_MAX_DATAGRAM} can be sent")
        known = (
            self._network.known(nodes, self._node) if self._peers is None else self._peers.issuperset(nodes)
        )
        if not known:
            raise UsageError(f"an unknown node among {sorted(nodes)}")
        if self._loop is None:
            raise UsageError("the heartbeat is not open")
        for index in range(self._network.networks):
            for node in nodes:
                self._sent[index] += 1
                if not self._network.carry(data, self._node, node, index):
                    self._loop.call_soon(self._refused, node)

    def set_peers(self, peers: Mapping[int, Sequence[IPAddress]]) -> None:
        for node, addresses in peers.items():
            if node == self._node or len(addresses) != self._network.networks:
                raise UsageError(f"the addresses of node {node} are not on the networks of this node")
        self._peers = frozenset(peers)

    def arrive(self, data: bytes, sender: int, network: int, delay: float) -> None:
        """Queue a datagram that arrives ``delay`` seconds from now."""
        if self._loop is None or (self._peers is not None and sender not in self._peers):
            return
        source = f"node {sender}"
        due = self._loop.time() + delay
        self._arrivals += 1
        heapq.heappush(self._queue, (due, self._arrivals, data, source, network))
        if delay:
            self._loop.call_at(due, self.poll)
        else:
            self._loop.call_soon(self.poll)

    def poll(self) -> int:
        count = 0
        while (
            self._loop is not None and self._queue and self._queue[0][0] <= self._loop.time() + _TIMER_SLACK
        ):
            _, _, data, source, network = heapq.heappop(self._queue)
            self._received[network] += 1
            count += 1
            if self._deliver is not None:
                self._deliver(Received(data, network, source, self._network.clock.monotonic()))
        return count

    def stats(self) -> HeartbeatStats:
        counts = zip(self._sent, self._received, strict=True)
        return HeartbeatStats(tuple(NetworkStats(sent=sent, received=received) for sent, received in counts))

    async def close(self) -> None:
        self._loop = None
        self._deliver = None
        self._on_refused = None
        self._queue.clear()

    def _refused(self, node: int) -> None:
        if self._on_refused is not None and (self._peers is None or node in self._peers):
            self._on_refused(node)
