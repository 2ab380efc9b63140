"""What must hold in every simulated run, checked after every step: I1, I3, I4; and I2 when all is quiet.

Each invariant is one method of ``Invariants`` with its full wording; those of applications, A1 to A8, are in
``nlbfarm.testing.applications.invariants``. A step that changes neither a filter nor a lease is judged only
while two nodes accept one bucket; so a check costs little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlbfarm.core.buckets import ALL, Bitmap
from nlbfarm.core.placement import worst_accepted
from nlbfarm.core.wire import Fitness, Heartbeat, NodeState

if TYPE_CHECKING:
    from nlbfarm.testing.hosts import SimulatedHost
    from nlbfarm.testing.world import World

__all__ = ["GAP_INTERVALS", "Invariants", "ViolationError"]

GAP_INTERVALS = 2.5
"""Nodes hear each other while there is no longer gap than this between the arrivals of the heartbeats that
they handle."""

_ROUNDING_S = 1e-6

Conflict = tuple[int, "SimulatedHost", "SimulatedHost"]


class ViolationError(AssertionError):
    """An invariant does not hold; the message has the seed, the time and the newest events.

    Args:
        rule: Its name: ``I1`` to ``I4``, ``A1`` to ``A8``, or ``STUCK``, ``FLOOD``, ``ERROR``.
        message: What was seen.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class Invariants:
    """Watches one farm.

    Args:
        farm: Whom to watch. Its ``strict`` and ``planned`` say what may happen in the run.
    """

    def __init__(self, farm: World) -> None:
        self.strict = False
        """No link is ever cut in this run: then no bucket is accepted by two, whoever is frozen (I1, I4)."""
        self.planned = False
        """Only planned things happen in this run: then no connection breaks (I3)."""
        self.due = True
        """Whether the next step has to be judged."""
        self._farm = farm
        self._streaks: dict[tuple[int, int], tuple[float, float]] = {}
        self._newest: dict[tuple[int, int], tuple[int, int]] = {}
        self._conflicts: list[Conflict] = []
        settings = farm.settings[1]
        self._gap = GAP_INTERVALS * settings.interval
        self._detection = settings.detection
        self._fenced = (settings.detection - settings.interval / 2) * 1.03
        self._drain_timeout = settings.drain_timeout

    # -- what the farm tells ---------------------------------------------------------------

    def heard(self, word: Heartbeat, target: int, arrived: float) -> None:
        """Take note that ``target`` has handled a heartbeat; a repeated or overtaken one proves nothing.

        Args:
            word: The heartbeat.
            target: Who has handled it.
            arrived: When it reached that host; a slow process handles it later.
        """
        pair, age = (word.sender, target), (word.incarnation, word.sequence)
        if age <= self._newest.get(pair, (0, 0)):
            return
        self._newest[pair] = age
        now = self._farm.now
        begun, last = self._streaks.get(pair, (now, arrived))
        self._streaks[pair] = (begun if arrived - last <= self._gap else now, arrived)

    def said(self, word: Heartbeat) -> None:
        """Judge what a node says of itself: A3, each state but *up and sound* has its reason."""
        if (word.state is not NodeState.UP or word.fitness) and not word.reason:
            self._farm.fail("A3", f"node {word.sender} says that it is {word.state.name}, and why?")

    def begins(self, host: SimulatedHost) -> None:
        """Take note that a new process starts: it has heard nobody, and nobody has heard it."""
        host.trusted = frozenset()
        for pair in [pair for pair in self._streaks if host.node_id in pair]:
            del self._streaks[pair]
        # A life that begins with a lower incarnation is heard of when it has jumped above the last one.
        self.due = True

    def stands_still(self, host: SimulatedHost) -> None:
        """Take note that a process is frozen, or gone, from now on."""
        host.trusted = frozenset(
            node
            for node in self._farm.hosts
            if node != host.node_id and self._hear_each_other(node, host.node_id)
        )
        self.due = True

    def leased(self, host: SimulatedHost, before: float) -> None:
        """Judge a lease that was just set; ``before`` is when the one until now ends, or ended.

        I4: no lease is longer than configured. I3: in a planned run it is never interrupted while the node
        holds established connections.
        """
        farm = self._farm
        longest = farm.settings[host.node_id].lease / host.clock.rate
        if host.lease_until > farm.now + longest + _ROUNDING_S:
            farm.fail("I4", f"node {host.node_id} takes a lease of {host.lease_until - farm.now:.3f} s")
        if self.planned and not host.returning and before >= 0 and self._to_keep(host):
            if host.lease_until <= farm.now:
                farm.fail("I3", f"node {host.node_id} ends its lease with established connections")
            if before <= farm.now:
                farm.fail("I3", f"node {host.node_id} had no lease from {before:.4f} on, with connections")

    def ends(self, host: SimulatedHost) -> None:
        """Judge a process that says that it has left: nothing is left to drain then, or it returns (I3)."""
        if self.planned and not host.returning and self._to_keep(host):
            self._farm.fail("I3", f"node {host.node_id} ends with established connections")

    # -- after a step ----------------------------------------------------------------------

    def after_step(self) -> None:
        """Judge the state of the farm after something has happened.

        Raises:
            ViolationError: An invariant does not hold.
        """
        self._conflicts = self._find_conflicts()
        for group, one, other in self._conflicts:
            self.one_server(group, one, other)
            self.fencing(group, one, other)
        self.no_broken_connection()
        for host in self._farm.hosts.values():
            self._farm.applications.up_before_serving(host)
        # What two accept is judged again at every step: they may come to hear each other.
        self.due = bool(self._conflicts)

    def _find_conflicts(self) -> list[Conflict]:
        """Return the pairs of hosts that accept new flows of one bucket, by group."""
        now = self._farm.now
        able = [host for host in self._farm.hosts.values() if host.leased(now)]
        found: list[Conflict] = []
        for group in range(len(self._farm.groups)):
            taken = double = 0
            for host in able:
                fresh = host.fresh[group]
                double |= taken & fresh
                taken |= fresh
            if double:
                found += [
                    (group, one, other)
                    for index, one in enumerate(able)
                    for other in able[index + 1 :]
                    if one.fresh[group] & other.fresh[group]
                ]
        return found

    def one_server(self, group: int, one: SimulatedHost, other: SimulatedHost) -> None:
        """I1: no bucket is accepted for new flows by two nodes that hear each other.

        They hear each other when both have handled the other's heartbeats for a detection time, with no gap
        above 2.5 intervals between arrivals. In a run in which no link is ever cut, by no two nodes at all.
        """
        if self.strict or self._hear_each_other(one.node_id, other.node_id):
            buckets = (one.fresh[group] & other.fresh[group]).bit_count()
            self._farm.fail(
                "I1",
                f"group {group}: {buckets} buckets are accepted by nodes {one.node_id} and {other.node_id}",
            )

    def fencing(self, group: int, one: SimulatedHost, other: SimulatedHost) -> None:
        """I4: a node that is frozen, or not acknowledged by a live peer, accepts nothing when that peer may.

        *Frozen*: its process does not run, and when it last did it and the peer heard each other. *Not
        acknowledged*: it hears the peer well, and the peer has not heard it for a detection time less half an
        interval (and 3 %, for clocks).
        """
        now = self._farm.now
        for fenced, peer in ((one, other), (other, one)):
            if not peer.runs(now):
                continue
            if not fenced.runs(now):
                wrong = "stands still" if peer.node_id in fenced.trusted else ""
            else:
                newest = self._streaks.get((fenced.node_id, peer.node_id), (0.0, -self._detection))[1]
                deaf = now - newest > self._fenced
                unheard = deaf and self._hears(peer.node_id, fenced.node_id)
                wrong = "is not acknowledged" if unheard else ""
            if wrong:
                self._farm.fail(
                    "I4",
                    f"group {group}: node {fenced.node_id} {wrong} and accepts what node {peer.node_id} does",
                )

    def no_broken_connection(self) -> None:
        """I3: in a planned change no packet of an established connection is dropped, nor answered by another.

        The node that holds a connection accepts the established flows of its bucket all the time (until
        ``drain_timeout``), with a lease; no other node accepts every packet of that bucket. In runs in which
        other things happen, connections that are answered by another node are broken, and counted.
        """
        farm, now = self._farm, self._farm.now
        for host in farm.hosts.values():
            if host.returning:
                host.returning = not self._is_back(host)
            if not any(host.established):
                continue
            for group, established in enumerate(host.established):
                if not established:
                    continue
                dropped = established & ~host.known[group]
                if dropped:
                    self._judge_dropped(host, group, dropped)
                for other in farm.hosts.values():
                    answered = established & other.owns(group, now) if other is not host else 0
                    if not answered:
                        continue
                    wrong = answered & ~self._drained_long(host, group)
                    if self.planned and wrong:
                        farm.fail(
                            "I3",
                            f"group {group}: node {other.node_id} answers {wrong.bit_count()} buckets "
                            f"of which node {host.node_id} holds connections",
                        )
                    farm.clients.cut_off(host, group, answered)

    def _is_back(self, host: SimulatedHost) -> bool:
        """Whether the process that was to follow is there and serves the connections of the one before."""
        return (
            host.core is not None
            and host.life != host.returning_from
            and host.leased(self._farm.now)
            and not any(flows & ~known for flows, known in zip(host.established, host.known, strict=True))
        )

    def _judge_dropped(self, host: SimulatedHost, group: int, dropped: Bitmap) -> None:
        """Judge established flows whose bucket is ``FOREIGN``: only the end of a drain may do that."""
        if host.core is None or host.returning or not host.powered:
            return
        over = self._drained_long(host, group)
        if self.planned and dropped & ~over:
            self._farm.fail(
                "I3",
                f"group {group}: node {host.node_id} drops the connections of "
                f"{(dropped & ~over).bit_count()} buckets",
            )
        self._farm.clients.cut_off(host, group, dropped & over)

    def _drained_long(self, host: SimulatedHost, group: int) -> Bitmap:
        """Return the buckets that are or were in ``DRAIN`` for ``drain_timeout``, with connections."""
        # A drain counts from its decision on; a slow turn or a slow filter may be between that and its begin.
        enough = self._drain_timeout * 0.97 - self._farm.apply_s[1] - self._farm.slow_turns[1]
        now, over = self._farm.now, 0
        took = {key: now - since for key, since in host.drained_since.items()}
        for (of, bucket), seconds in (host.drain_took | took).items():
            if of == group and seconds >= enough:
                over |= 1 << bucket
        return over

    def _to_keep(self, host: SimulatedHost) -> bool:
        """Whether a host has connections that it must not break: all but those drained for long enough."""
        return any(
            established and established & ~self._drained_long(host, group)
            for group, established in enumerate(host.established)
        )

    # -- when all is quiet -----------------------------------------------------------------

    def no_hole(self, nodes: set[int] | None = None) -> None:
        """I2: once the network has been quiet for a bounded time, every bucket of every group has one server.

        And who can serve does: no node that is meant to run is without a bucket, unless it still drains
        before it starts anew, or is less fit than another; then it has none.

        Args:
            nodes: A set of nodes that all hear one another, and of which one at least can serve; by
                default all.
        """
        problem = self.hole(nodes)
        if problem:
            self._farm.fail("I2", problem)

    def hole(self, nodes: set[int] | None = None) -> str:
        """Return what I2 finds wrong now; empty if nothing."""
        farm = self._farm
        for group in range(len(farm.groups)):
            seen = 0
            worst = self._worst(group, nodes)
            for node, host in farm.hosts.items():
                if nodes is not None and node not in nodes:
                    continue
                bitmap = host.accepts(group, farm.now)
                if seen & bitmap:
                    return f"group {group}: a bucket of node {node} is accepted by another too"
                fit = host.core is not None and host.core.fitness <= worst
                if bitmap and not fit:
                    return f"group {group}: node {node} accepts buckets, though others are fitter"
                if not bitmap and self._should_serve(host) and fit:
                    return f"group {group}: node {node} accepts nothing, though it could"
                seen |= bitmap
            if seen != ALL and self._anybody(nodes):
                return f"group {group}: {(ALL & ~seen).bit_count()} buckets are accepted by nobody"
        return ""

    def _worst(self, group: int, nodes: set[int] | None) -> Fitness:
        """Return with what fitness, at worst, a node may have buckets of a group."""
        farm = self._farm
        return worst_accepted(
            host.core.fitness
            for node, host in farm.hosts.items()
            if (nodes is None or node in nodes)
            and host.core is not None
            and not host.leaves
            and (self._should_serve(host) or host.accepts(group, farm.now))
        )

    def _should_serve(self, host: SimulatedHost) -> bool:
        """Whether a node is meant to have buckets when all is quiet, if it is fit enough.

        A node whose applications are simulated: if they let it. Else whatever was wrong has been put right.
        """
        if host.node_id not in self._farm.keep_running or host.leaves or host.core is None:
            return False
        return host.supervised is None or host.core.able

    def _anybody(self, nodes: set[int] | None) -> bool:
        """Whether somebody is left to serve: where applications decide on it that may be nobody."""
        hosts = [host for node, host in self._farm.hosts.items() if nodes is None or node in nodes]
        return any(host.apps is None or self._should_serve(host) for host in hosts)

    def connections_kept(self) -> None:
        """I3, when all is quiet: a process that was to follow another serves the connections of that one."""
        problem = self.waiting()
        if self.planned and problem:
            self._farm.fail("I3", problem)

    def waiting(self) -> str:
        """Return whose connections still wait for the process that was to follow; empty if nobody's."""
        for node, host in self._farm.hosts.items():
            if host.returning and any(host.established) and not self._is_back(host):
                return f"node {node} does not serve the connections from before its restart"
        return ""

    # -- hearing ---------------------------------------------------------------------------

    def _hears(self, source: int, target: int) -> bool:
        """Whether ``target`` has heard ``source`` for a detection time, with no gap above 2.5 intervals."""
        begun, newest = self._streaks.get((source, target), (self._farm.now, -1.0))
        return self._farm.now - newest <= self._gap and newest - begun >= self._detection

    def _hear_each_other(self, one: int, other: int) -> bool:
        return self._hears(one, other) and self._hears(other, one)
