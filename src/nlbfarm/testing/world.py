"""Time, hosts and network of a simulated farm: carries out each node's commands, and brings it events."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import cast

from nlbfarm.core.buckets import BucketStates, bits
from nlbfarm.core.commands import (
    ApplyFilter,
    AskFlows,
    Command,
    Halted,
    ProbeReachability,
    Report,
    SaveIncarnation,
    Send,
    SetLease,
    Stopped,
)
from nlbfarm.core.events import (
    Event,
    FilterApplied,
    FilterRepaired,
    FlowsLeft,
    MessageArrived,
    PeerRefused,
    Reachability,
    TimerFired,
)
from nlbfarm.core.policy import Mode
from nlbfarm.core.settings import Partition, Settings
from nlbfarm.core.versions import spoken
from nlbfarm.core.wire import VERSION, Codec, Heartbeat, Keyring, Message
from nlbfarm.testing.applications.host import HostApplications
from nlbfarm.testing.applications.invariants import ApplicationInvariants
from nlbfarm.testing.applications.model import Applications
from nlbfarm.testing.clients import Clients
from nlbfarm.testing.hosts import SimulatedClock, SimulatedHost, Turn
from nlbfarm.testing.invariants import Invariants
from nlbfarm.testing.network import SimulatedNetwork
from nlbfarm.testing.timeline import Timeline

__all__ = ["World"]

FLOWS_S = (0.001, 0.02)
"""How long the question about established flows takes."""

SLOW_FLOWS_S = 0.7
"""How long it takes, at most, in ``UNREADABLE_SHARE`` of the cases: a large table, a busy host."""

UNREADABLE_SHARE = 0.05
"""Share of the questions about established flows that cannot be answered."""

REPLAY_S = 0.07
"""How often a recorded heartbeat is repeated."""

FLOOD = 200
"""So many datagrams a second, from each node to each, mean that they do nothing but answer one another."""

STUCK = 20_000
"""So many steps without time passing mean that somebody goes round in circles."""


class World(Timeline):
    """Nodes 1..``nodes`` on simulated time, none of them started.

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
        networks: How many heartbeat networks there are.
        clock_error: How much faster or slower than real a node's clock may run: 0.0005 is 500 ppm.
        slow_turns: Share of the turns of a node's loop that come late, and the longest they do, seconds.
        apply_s: Shortest and longest time that a change of the filter takes.
        connections_per_s, connection_life_s: How many connections the clients open a second, and the
            mean life of one.
        applications: What is supervised on each host; ``None``: nothing.
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
        networks: int = 1,
        clock_error: float = 0.0,
        slow_turns: tuple[float, float] = (0.0, 0.0),
        apply_s: tuple[float, float] = (0.0001, 0.003),
        connections_per_s: float = 0.0,
        connection_life_s: float = 1.0,
        applications: Applications | None = None,
        **settings: object,
    ) -> None:
        super().__init__(seed)
        self.datagrams = 0
        """Datagrams sent so far."""
        self.keep_running: frozenset[int] = frozenset()
        """Nodes whose process is started again when it ends."""
        self.restarted_at = 0.0
        """When a process that had ended was last started again."""
        self.wild = True
        """Whether applications do by chance what nobody wants."""
        self.slow_turns = slow_turns
        self.apply_s = apply_s
        self._flood = FLOOD * nodes * nodes
        self._flood_since = -1.0
        self._recorded: dict[int, Heartbeat] = {}
        self._codec = Codec("simulated", Keyring({1: bytes(32)}, active=1)) if codec else None
        self.groups = tuple(f"group{index}" for index in range(groups))
        names = {node: f"node{node}" for node in range(1, nodes + 1)}
        self.settings = {
            node: Settings(
                node=node,
                nodes=names,
                groups=self.groups,
                modes=(Mode.BALANCED,) * groups,
                powers=(1,) * groups,
                partition=partition,
                **settings,  # type: ignore[arg-type]
            )
            for node in names
        }
        self.hosts = {node: SimulatedHost(node, groups) for node in names}
        if clock_error:
            for host in self.hosts.values():
                error = self.random.uniform(-clock_error, clock_error)
                host.clock = SimulatedClock(1 + error, self.random.uniform(0, 1000))
        self.network = SimulatedNetwork(
            self.random, delay_s, loss, duplicate, ordered=ordered, networks=networks
        )
        if applications is not None:
            for host in self.hosts.values():
                host.apps = HostApplications(self, applications)
        self.applications = ApplicationInvariants(self)
        self.invariants = Invariants(self)
        self.clients = Clients(self, connections_per_s, connection_life_s)

    # -- time ------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        """Let time pass, checking the invariants after every step.

        Raises:
            ViolationError: One does not hold.
        """
        heap, check, pop = self.agenda, self.invariants, heapq.heappop
        steps, begun = 0, self.now
        while heap and heap[0][0] <= until:
            self.now, _, action, arguments = pop(heap)
            action(*arguments)
            if check.due:
                check.after_step()
            steps += 1
            if self.now > begun:
                steps, begun = 0, self.now
            elif steps > STUCK:
                self.fail("STUCK", f"{STUCK} steps, and no time has passed")
            if self.datagrams > self._flood:
                self._judge_flood()
        self.now = until
        check.after_step()

    def _judge_flood(self) -> None:
        """See whether nodes do nothing but answer each other."""
        nodes = len(self.hosts)
        since, self._flood_since = self._flood_since, self.now
        if self.now - since < 1.0:
            self.fail("FLOOD", f"more than {FLOOD} datagrams a second from each node to each")
        self._flood = self.datagrams + FLOOD * nodes * nodes

    # -- the host --------------------------------------------------------------------------

    def _end(self, host: SimulatedHost) -> None:
        """The process is gone."""
        self.invariants.stands_still(host)
        host.core = host.supervised = None
        host.life += 1
        self.invariants.due = True

    def _hold_up(self, host: SimulatedHost, seconds: float) -> None:
        until = self.now + seconds
        if host.core is None or until <= host.frozen_until:
            return
        if self.now >= host.frozen_until:
            self.invariants.stands_still(host)
        host.frozen_until = until
        self.at(until, self._thaw, host, host.life)

    def _thaw(self, host: SimulatedHost, life: int) -> None:
        """Wake up: first every datagram that waits, then the timer, as an event loop does it."""
        if host.life != life or self.now < host.frozen_until:
            return
        host.deaf = False
        waiting, host.queue = host.queue, []
        for event in waiting:
            if host.life == life:
                self.handle(host, event)
        if host.life == life:
            self._wake(host)

    def _arm(self, host: SimulatedHost) -> None:
        assert host.core is not None
        due = host.core.timer()
        if due == inf:
            return
        when = max(host.clock.when(due), self.now)
        if when < host.armed:
            host.armed = when
            self.at(when, self._fire, host, host.life, when)

    def _fire(self, host: SimulatedHost, life: int, when: float) -> None:
        if host.life == life and host.armed == when:
            host.armed = inf
            if self.now >= host.frozen_until:
                self._wake(host)

    def _wake(self, host: SimulatedHost) -> None:
        assert host.core is not None
        if host.clock.visit(host.core.timer(), self.now):
            self._feed(host, TimerFired(), host.life)
        else:
            self._arm(host)

    def _feed(self, host: SimulatedHost, event: Event | Turn, life: int) -> None:
        if host.core is None or host.life != life:
            return
        if self.now < host.frozen_until:
            host.queue.append(event)
            return
        share, longest = self.slow_turns
        if share and self.random.random() < share:
            host.queue.append(event)
            self._hold_up(host, longest * self.random.random())
            return
        self.handle(host, event)

    def handle(self, host: SimulatedHost, event: Event | Turn) -> None:
        """Let a host's process, which runs, handle an event in this turn of its loop."""
        if isinstance(event, Turn):
            event.act()
            return
        assert host.core is not None
        life = host.life
        if type(event) is MessageArrived and type(event.message) is Heartbeat:
            word = event.message
            self.invariants.heard(word, host.node_id, host.clock.when(event.at))
            host.versions.heard(word.sender, word.incarnation, event.version, host.clock.local(self.now))
        for command in host.core.handle(event, host.clock.local(self.now)):
            self._do(host, command, life)
        if host.life == life:
            self._arm(host)
            if host.supervised is not None:
                host.supervised.turned()

    def turn(self, host: SimulatedHost, act: Callable[[], None], life: int) -> None:
        """Do something in a turn of the loop of a process, if it still is in that life."""
        self._feed(host, Turn(act), life)

    def _do(self, host: SimulatedHost, command: Command, life: int) -> None:
        match command:
            case Send():
                self._send(host, command)
            case SetLease():
                self._lease(host, command.until)
            case ApplyFilter():
                self.at(self.now + self.random.uniform(*self.apply_s), self._applied, host, command, life)
            case AskFlows():
                took = self.random.uniform(*FLOWS_S)
                if self.random.random() < UNREADABLE_SHARE:
                    took += SLOW_FLOWS_S * self.random.random()
                self.at(self.now + took, self._flows, host, command, life)
            case ProbeReachability():
                up = frozenset(n for n, other in self.hosts.items() if other.powered and n != host.node_id)
                self.at(self.now + 0.1, self._feed, host, Reachability(up), life)
            case SaveIncarnation():
                host.incarnation = command.incarnation
            case Report():
                self.trace.append((self.now, host.node_id, command.event, command.fields))
            case Halted():
                self.tell(host.node_id, "halted")
                if host.supervised is not None:
                    host.supervised.halted()
            case Stopped():
                self.tell(host.node_id, "stopped")
                self.invariants.ends(host)
                host.lease_until = -1.0
                if host.supervised is None or host.returning:
                    self._exit(host)
                else:
                    host.supervised.end(partial(self._exit, host))

    def _exit(self, host: SimulatedHost) -> None:
        """The process ends by itself."""
        self._end(host)
        if host.apps is not None:
            host.apps.left(killed=False)
        after = host.back_after
        if after is None and host.node_id in self.keep_running:
            after = 0.01
        if after is not None:
            self.at(self.now + after, self._again, host, host.life)

    def start(self, node: int, incarnation: int = 0) -> None:
        """Start the node's process."""
        raise NotImplementedError

    def _again(self, host: SimulatedHost, life: int) -> None:
        if host.life == life:
            if host.back_after is not None:
                host.version = VERSION
            host.back_after = None
            self.restarted_at = self.now
            self.start(host.node_id)

    def _lease(self, host: SimulatedHost, until: float) -> None:
        before = host.lease_until
        if before <= self.now:
            host.lapses += any(host.fresh)
            self.invariants.due = True
        host.lease_until = host.clock.when(until)
        self.invariants.leased(host, before)

    def _applied(self, host: SimulatedHost, command: ApplyFilter, life: int) -> None:
        """The kernel has the change; the process, if it stands still, hears of that later."""
        if host.life != life:
            return
        closed = BucketStates()
        host.apply([command.states.get(name, closed) for name in self.groups], self.now)
        self.invariants.due = True
        self._feed(host, FilterApplied(command.serial), life)

    def _flows(self, host: SimulatedHost, command: AskFlows, life: int) -> None:
        """Answer from the flow table; one that cannot be read, now and then, has a flow in every bucket."""
        found: Mapping[str, Mapping[int, int]] = host.flows_in(self.groups, command.buckets)
        if self.random.random() < UNREADABLE_SHARE:
            found = {group: dict.fromkeys(bits(buckets), 1) for group, buckets in command.buckets.items()}
        self._feed(host, FlowsLeft(command.serial, found), life)

    def _repaired(self, host: SimulatedHost, life: int) -> None:
        if host.life == life:
            host.damaged = False
            self._feed(host, FilterRepaired(), life)

    # -- the network -----------------------------------------------------------------------

    def _send(self, host: SimulatedHost, command: Send) -> None:
        message = command.message
        if self._codec is not None:
            message = cast(Message, self._codec.decode(self._codec.encode(message)))
        arrivals = self.network.arrivals
        source = host.node_id
        if type(message) is Heartbeat:
            self._recorded[source] = message
            self.invariants.said(message)
        for version, nodes in host.versions.speak(message, command.nodes, host.clock.local(self.now)):
            said = cast(Message, spoken(message, version))
            for target in nodes:
                self.datagrams += 1
                for when, network in arrivals(source, target, self.now):
                    self.at(when, self._deliver, source, target, said, network, version)

    def _deliver(self, source: int, target: int, message: Message, network: int, version: int) -> None:
        host = self.hosts[target]
        if not host.powered or not self.network.carries(source, target, network):
            return
        if host.core is None:
            sender = self.hosts[source]
            if self.network.carries(target, source, network):
                self._feed(sender, PeerRefused(target), sender.life)
            return
        if version > host.version or (host.deaf and self.now < host.frozen_until):
            return
        arrived = MessageArrived(message, network, host.clock.local(self.now), version)
        self._feed(host, arrived, host.life)

    def _replay(self, node: int, life: int) -> None:
        """Send what was recorded of a node to everybody else, again and again, until a new process speaks."""
        if self.hosts[node].life != life:
            return
        message = self._recorded[node]
        for target in self.hosts:
            if target != node:
                self._deliver(node, target, message, 0, self.hosts[target].version)
        self.at(self.now + REPLAY_S, self._replay, node, life)
