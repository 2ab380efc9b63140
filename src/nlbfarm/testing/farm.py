"""A whole farm in one process, on simulated time: seeded, and checked against the invariants.

Every node is the real ``nlbfarm.core.node.Node``; the network, the filter, the host and the
clock are simulated. The same seed gives the same run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.commands import (
    ApplyFilter,
    Command,
    ProbeReachability,
    Report,
    Send,
    SetLease,
    Stopped,
)
from nlbfarm.core.events import (
    Event,
    FilterApplied,
    MessageArrived,
    PeerRefused,
    Reachability,
    ResourceChanged,
    StopRequested,
    TimerFired,
)
from nlbfarm.core.node import Node
from nlbfarm.core.policy import Mode
from nlbfarm.core.settings import Partition, Settings
from nlbfarm.core.wire import Codec, Heartbeat, Keyring, Message

__all__ = ["SimulatedFarm", "SimulatedHost", "ViolationError"]


class ViolationError(AssertionError):
    """An invariant does not hold; the message has the seed, the time and the newest events."""


@dataclass
class SimulatedHost:
    """One server: what its kernel does goes on while its process is frozen or gone.

    ``lapses`` counts the leases that ran out while buckets were held.
    """

    node_id: int
    powered: bool = True
    core: Node | None = None
    frozen_until: float = -1.0
    deaf: bool = False
    lapses: int = 0
    own: tuple[int, ...] = ()
    lease_until: float = -1.0
    incarnation: int = 0
    life: int = 0
    queue: list[Event] = field(default_factory=list)

    def accepts(self, group: int, now: float) -> int:
        """Return the bitmap of the buckets that its filter accepts now."""
        if not self.powered or self.lease_until <= now or not self.own:
            return 0
        return self.own[group]


class SimulatedFarm:
    """A farm of nodes 1..``nodes`` on simulated time.

    Args:
        nodes: How many, 1..32.
        seed: Of everything that is random.
        delay_s: Shortest and longest time a datagram takes.
        loss: Share of datagrams lost, 0..1.
        duplicate: Share of datagrams that arrive twice.
        groups: Number of groups.
        partition: As in the configuration.
        codec: Whether every message is encoded and decoded as on the wire: plans that do not fit are then
            fetched, as they are in life. Slower.
        ordered: Whether a link keeps the order of its datagrams.
        settings: Overrides for every node's ``Settings``.
    """

    def __init__(
        self,
        nodes: int,
        seed: int,
        *,
        delay_s: tuple[float, float] = (0.0001, 0.001),
        loss: float = 0.0,
        duplicate: float = 0.0,
        groups: int = 1,
        partition: Partition = Partition.SERVE,
        codec: bool = False,
        ordered: bool = False,
        **settings: object,
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.delay_s = delay_s
        self.loss = loss
        self.duplicate = duplicate
        self.cuts: set[tuple[int, int]] = set()
        """Directed links (from, to) that carry nothing."""
        self.trace: list[str] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._codec = Codec("simulated", Keyring({1: bytes(32)}, active=1)) if codec else None
        self._ordered = ordered
        self._arrives: dict[tuple[int, int], float] = {}
        self.datagrams = 0
        """Datagrams sent so far."""
        self._streak: dict[tuple[int, int], tuple[float, float]] = {}
        self.strict = False
        """No link is ever cut in this run: then no bucket is accepted twice, whoever is frozen."""
        names = {node: f"node{node}" for node in range(1, nodes + 1)}
        labels = tuple(f"group{index}" for index in range(groups))
        self.settings = {
            node: Settings(
                node=node,
                nodes=names,
                groups=labels,
                modes=(Mode.BALANCED,) * groups,
                powers=(1,) * groups,
                partition=partition,
                **settings,  # type: ignore[arg-type]
            )
            for node in names
        }
        self.hosts = {node: SimulatedHost(node) for node in names}

    # -- what happens ----------------------------------------------------------------------

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do ``action`` at ``when``, seconds of simulated time."""
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, action))

    def start(self, node: int, incarnation: int = 0) -> None:
        """Start the node's process: a new life, its filter closed first.

        Args:
            node: Its id.
            incarnation: Of this life; by default one more than the last (a lost file: anything lower).
        """
        host = self.hosts[node]
        settings = self.settings[node]
        host.powered = True
        host.own = (0,) * len(settings.groups)
        host.lease_until = -1.0
        host.incarnation = incarnation or host.incarnation + 1
        host.life += 1
        host.frozen_until = -1.0
        host.deaf = False
        host.queue = []
        host.core = Node(settings, host.incarnation, self.now, ("application",))
        self.trace.append(f"{self.now:.4f} start {node}")
        self._feed(host, ResourceChanged("application", True), host.life)
        self._arm(host)

    def crash(self, node: int) -> None:
        """The machine is gone at once."""
        host = self.hosts[node]
        host.powered = False
        host.core = None
        host.life += 1
        self.trace.append(f"{self.now:.4f} crash {node}")

    def kill(self, node: int) -> None:
        """The process is gone; the kernel keeps its filter until the lease runs out."""
        host = self.hosts[node]
        host.core = None
        host.life += 1
        self.trace.append(f"{self.now:.4f} kill {node}")

    def freeze(self, node: int, seconds: float) -> None:
        """The process does not run for so long; datagrams wait in its socket."""
        host = self.hosts[node]
        host.frozen_until = self.now + seconds
        self.trace.append(f"{self.now:.4f} freeze {node} {seconds:.3f}")
        life = host.life
        self.at(host.frozen_until, lambda: self._thaw(host, life))

    def pause(self, node: int, seconds: float) -> None:
        """The machine stands still for so long (a suspended VM): what is sent to it meanwhile is lost."""
        self.hosts[node].deaf = True
        self.freeze(node, seconds)

    def stop(self, node: int) -> None:
        """The node is asked to leave in good order."""
        self.trace.append(f"{self.now:.4f} stop {node}")
        host = self.hosts[node]
        self._feed(host, StopRequested(), host.life)

    def healthy(self, node: int, ok: bool) -> None:
        """The application of a node answers, or no longer."""
        self.trace.append(f"{self.now:.4f} healthy {node} {ok}")
        host = self.hosts[node]
        self._feed(host, ResourceChanged("application", ok, "" if ok else "no answer"), host.life)

    def cut(self, source: int, target: int) -> None:
        """From now on nothing gets from ``source`` to ``target``."""
        self.trace.append(f"{self.now:.4f} cut {source}->{target}")
        self.cuts.add((source, target))

    def heal(self) -> None:
        """Every link carries again."""
        self.trace.append(f"{self.now:.4f} heal")
        self.cuts.clear()

    def run(self, until: float) -> None:
        """Let time pass, checking the invariants after every step.

        Raises:
            ViolationError: One does not hold.
        """
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            self._check()
        self.now = until

    # -- the host --------------------------------------------------------------------------

    def _arm(self, host: SimulatedHost) -> None:
        if host.core is None:
            return
        due, life = max(host.core.timer(), self.now), host.life

        def fire() -> None:
            core = host.core if host.life == life else None
            if core is not None and self.now >= host.frozen_until and self.now >= core.timer():
                self._feed(host, TimerFired(), life)

        self.at(due, fire)

    def _thaw(self, host: SimulatedHost, life: int) -> None:
        if host.life != life or self.now < host.frozen_until:
            return
        host.deaf = False
        waiting, host.queue = host.queue, []
        for event in waiting:
            self._feed(host, event, life)
        self._feed(host, TimerFired(), life)

    def _feed(self, host: SimulatedHost, event: Event, life: int) -> None:
        if host.core is None or host.life != life:
            return
        if self.now < host.frozen_until:
            host.queue.append(event)
            return
        commands = host.core.handle(event, self.now)
        for command in commands:
            self._do(host, command, life)
        self._arm(host)

    def _do(self, host: SimulatedHost, command: Command, life: int) -> None:
        match command:
            case Send():
                for node in command.nodes:
                    self._transmit(host.node_id, node, command.message)
            case SetLease():
                host.lapses += host.lease_until <= self.now and any(host.own)
                host.lease_until = command.until
            case ApplyFilter():
                self.at(
                    self.now + self.random.uniform(0.0001, 0.003),
                    lambda: self._applied(host, command, life),
                )
            case ProbeReachability():
                up = frozenset(n for n, other in self.hosts.items() if other.powered and n != host.node_id)
                self.at(self.now + 0.1, lambda: self._feed(host, Reachability(up), life))
            case Report():
                self.trace.append(f"{self.now:.4f} {host.node_id} {command.event} {dict(command.fields)}")
            case Stopped():
                self.trace.append(f"{self.now:.4f} {host.node_id} stopped")
                host.core = None
                host.life += 1
                host.lease_until = -1.0
            case _:
                pass

    def _applied(self, host: SimulatedHost, command: ApplyFilter, life: int) -> None:
        if host.life != life:
            return
        if self.now < host.frozen_until:
            self.at(host.frozen_until, lambda: self._applied(host, command, life))
            return
        closed = BucketStates()
        names = self.settings[host.node_id].groups
        host.own = tuple(command.states.get(name, closed).own for name in names)
        self._feed(host, FilterApplied(command.serial), life)

    def _transmit(self, source: int, target: int, message: Message) -> None:
        self.datagrams += 1
        if self._codec is not None:
            message = self._codec.decode(self._codec.encode(message))
        copies = 2 if self.random.random() < self.duplicate else 1
        for _ in range(copies):
            if (source, target) in self.cuts or self.random.random() < self.loss:
                continue
            arrives = self.now + self.random.uniform(*self.delay_s)
            if self._ordered:
                arrives = self._arrives[source, target] = max(
                    arrives, self._arrives.get((source, target), 0.0) + 1e-9
                )
            self.at(arrives, lambda: self._deliver(source, target, message))

    def _deliver(self, source: int, target: int, message: Message) -> None:
        host = self.hosts[target]
        if (source, target) in self.cuts or not host.powered or (host.deaf and self.now < host.frozen_until):
            return
        if host.core is None:
            sender = self.hosts[source]
            if (target, source) not in self.cuts:
                self._feed(sender, PeerRefused(target), sender.life)
            return
        if isinstance(message, Heartbeat):
            start, last = self._streak.get((source, target), (self.now, self.now))
            gap = 2.5 * self.settings[target].interval
            self._streak[source, target] = (start if self.now - last <= gap else self.now, self.now)
        self._feed(host, MessageArrived(message, 0, self.now), host.life)

    # -- invariants ------------------------------------------------------------------------

    def _hear_each_other(self, one: int, other: int) -> bool:
        """Whether both have heard each other for a detection time, with no gap above 2.5 intervals."""
        settings = self.settings[one]
        for pair in ((one, other), (other, one)):
            start, last = self._streak.get(pair, (self.now, -1.0))
            if self.now - last > 2.5 * settings.interval or last - start < settings.detection:
                return False
        return True

    def _check(self) -> None:
        """I1: no bucket is accepted by two nodes that hear each other (by any two, in a strict run)."""
        for group in range(len(self.settings[1].groups)):
            taken = 0
            double = 0
            accepting = [(n, host.accepts(group, self.now)) for n, host in self.hosts.items()]
            for _, bitmap in accepting:
                double |= taken & bitmap
                taken |= bitmap
            if not double:
                continue
            able = [(node, bitmap) for node, bitmap in accepting if bitmap]
            for index, (one, first) in enumerate(able):
                for other, second in able[index + 1 :]:
                    if first & second and (self.strict or self._hear_each_other(one, other)):
                        self.fail(f"I1: group {group} is accepted by {one} and {other}")

    def check_whole(self, nodes: set[int] | None = None) -> None:
        """I2: every bucket of every group is accepted by exactly one of ``nodes`` (default: all that run)."""
        for group in range(len(self.settings[1].groups)):
            seen = 0
            for node, host in self.hosts.items():
                if nodes is not None and node not in nodes:
                    continue
                bitmap = host.accepts(group, self.now)
                if seen & bitmap:
                    self.fail(f"I2: group {group}: a bucket of node {node} is accepted by another too")
                seen |= bitmap
            if seen != ALL:
                self.fail(f"I2: group {group}: {(ALL & ~seen).bit_count()} buckets are accepted by nobody")

    def fail(self, message: str) -> None:
        """Raise a ``ViolationError`` with the seed and the newest events."""
        recent = "\n".join(self.trace[-60:])
        raise ViolationError(f"seed {self.seed}, t={self.now:.4f}: {message}\n{recent}")
