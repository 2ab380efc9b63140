"""The state machine of one node: events in, commands out.

``handle(event, now)`` returns what the shell is to do, in order; ``timer()`` says when the machine
wants a ``TimerFired``. The order of commands matters: a heartbeat that announces a bucket as
*holding* stands before the command that makes the filter accept it, and a bucket stays announced
until the filter has said that it no longer accepts it. So what the farm is told always covers
what the filter may do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf

from nlbfarm.core.buckets import ALL, Bitmap, BucketStates, owned_by
from nlbfarm.core.commands import (
    ApplyFilter,
    Command,
    Forgotten,
    Halted,
    ProbeReachability,
    Report,
    Send,
    SetLease,
    Stopped,
)
from nlbfarm.core.condition import Condition, shown
from nlbfarm.core.events import (
    AdminChanged,
    Event,
    FailbackRequested,
    FilterApplied,
    FilterDamaged,
    FilterRepaired,
    FlowsLeft,
    MessageArrived,
    PeerRefused,
    PowersChanged,
    Reachability,
    ResourceChanged,
    SettingsChanged,
    StopRequested,
    TimerFired,
)
from nlbfarm.core.handoff import Handoff, acquirable, everybody_knows
from nlbfarm.core.hearing import Hearing, Peer
from nlbfarm.core.lateness import Lateness
from nlbfarm.core.lease import lease_end
from nlbfarm.core.leaving import Leaving
from nlbfarm.core.membership import Membership, Own
from nlbfarm.core.policy import Mode
from nlbfarm.core.reception import Reception
from nlbfarm.core.reporting import Reporter
from nlbfarm.core.retiring import Roster, merge, without_gone
from nlbfarm.core.settings import Admin, Settings
from nlbfarm.core.versions import FITNESS
from nlbfarm.core.wire import Fitness, Heartbeat, NodeState, Plan
from nlbfarm.core.word import Word

__all__ = ["Node"]

SLACK_S = 0.0005
"""A deadline is visited this much after it, so that rounding never visits it just before."""

ADOPTS = 2
"""Wire version from which on a node adopts what another drains; earlier ones wait for the drain's end."""

FAREWELLS = 3
"""How often a node that leaves says so: one lost datagram must not cost its peers a detection time."""


class Node:
    """One node of a farm.

    Args:
        settings: Its share of the configuration.
        incarnation: Higher than in any earlier life of this node.
        now: The present, seconds on the monotonic clock.
        resources: Names of what must be there before the node serves; unknown until
            ``ResourceChanged`` tells of each.
        admin: What the administrator wanted last.
        admin_reason: Why, where it was not the administrator who wanted it.
        flows: Established flows that an earlier process left on this host, by group and bucket.
    """

    def __init__(
        self,
        settings: Settings,
        incarnation: int,
        now: float,
        resources: Iterable[str] = (),
        *,
        admin: Admin = Admin.RUN,
        admin_reason: str = "",
        flows: Mapping[str, Mapping[int, int]] | None = None,
    ) -> None:
        self.settings = settings
        self.hearing = Hearing(settings, now)
        self.membership = Membership(settings, self.hearing, now)
        self.condition = Condition(settings.node, resources, admin, admin_reason)
        self.powers = settings.powers
        """What it announces, one per group."""
        self.handoff = Handoff(settings, flows or {}, now)
        self._word = Word(self.membership, self.handoff, incarnation)
        self._reception = Reception(settings, self.hearing, self.membership, self.condition, self._word)
        self._lateness = Lateness(settings, self.hearing, now)
        self._leaving = Leaving(self.condition, self.membership, self.handoff, now)
        self._reporter = Reporter(settings, self.membership.agrees)
        self.lease_until = now
        self.stopped = False
        self._now = now
        self._next_beat = now
        self._due = now
        self._damaged = False
        self._farewells = FAREWELLS
        self._spoken: object = None
        self._mine: tuple[Plan, tuple[Bitmap, ...]] | None = None
        self._out: list[Command] = []
        self._news = True
        """Whether the event at hand may change anything; only a heartbeat can be without news."""

    # -- what others read ------------------------------------------------------------------

    @property
    def incarnation(self) -> int:
        """The node's present life."""
        return self._word.incarnation

    @property
    def sequence(self) -> int:
        """The number of the newest heartbeat sent in this life."""
        return self._word.sequence

    @property
    def state(self) -> NodeState:
        """The state that the administrator sees."""
        return self._shown()[0]

    @property
    def reason(self) -> str:
        """Why the node is in its state; empty if there is nothing to say."""
        return self._shown()[1]

    @property
    def fitness(self) -> Fitness:
        """How fit this node is, as long as it can serve."""
        return self.condition.fitness

    def best(self) -> Fitness:
        """Return the fitness of the fittest node of this view that can serve, this one included."""
        other = self.best_other()
        found = [other] if other is not None else []
        return min([*found, self.fitness] if self.able else found, default=Fitness.SOUND)

    @property
    def able(self) -> bool:
        """Whether this node can serve at all, however fit it is."""
        return self._state()[0] is NodeState.UP

    def best_other(self) -> Fitness | None:
        """Return the fitness of the fittest other node of this view that can serve; ``None``: none can."""
        return min((word.fitness for word in self._able_others()), default=None)

    def others_serve(self) -> bool:
        """Whether other nodes of this view that can serve hold every bucket, but those of blocked groups."""
        words = list(self._able_others())
        for index, mode in enumerate(self.settings.modes):
            held = 0
            for word in words:
                held |= word.holding[index]
            if held != ALL and mode is not Mode.BLOCKED:
                return False
        return True

    def _able_others(self) -> Iterator[Heartbeat]:
        """Yield the newest words of the other nodes of this view that can serve."""
        for peer in self.hearing.heard(self._now):
            word = peer.heartbeat
            if (
                word.inside
                and word.state is NodeState.UP
                and peer.node not in self.membership.retired
                and self.membership.agrees(word)
            ):
                yield word

    @property
    def admin(self) -> Admin:
        """What the administrator wants of this node."""
        return self.condition.admin

    @property
    def applied(self) -> tuple[BucketStates, ...]:
        """For each group what the filter does."""
        return self.handoff.applied

    @property
    def holding(self) -> tuple[Bitmap, ...]:
        """For each group the buckets of which the filter may accept new flows, now or soon."""
        return self.handoff.holding

    @property
    def draining(self) -> tuple[Bitmap, ...]:
        """For each group the buckets of which the filter accepts established flows only."""
        return self.handoff.draining

    @property
    def flows_left(self) -> Mapping[str, Mapping[int, int]]:
        """For each group, by bucket, how many flows were left in what is drained, when last asked."""
        return self.handoff.flows_left

    @property
    def retired(self) -> frozenset[int]:
        """Nodes that the configuration no longer names, and that still serve."""
        return self.membership.retired

    def leader(self, now: float) -> int | None:
        """Return the leader of the view, as this node sees it; ``None`` outside."""
        heard = {peer.node: peer for peer in self.hearing.heard(now)}
        return self.membership.leader(self._own(), heard)

    def timer(self) -> float:
        """Return when ``TimerFired`` is wanted next, monotonic seconds; infinity once it has left."""
        return self._due if not self.stopped else inf

    # -- events ----------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in one event; return the commands to carry out, in order."""
        self._out = []
        if self.stopped:
            return self._out
        self._now = now
        beat = False
        answer_to: int | None = None
        self._news = True
        late = now - self._due > self.settings.interval
        if late and not isinstance(event, TimerFired):
            # What was queued meanwhile is read first and judged as a whole when the timer fires (rule 1).
            self._absorb(event, now)
            return self._out
        report = self._lateness.judge(now - self._due, now)
        if report is not None:
            self._out.append(report)
        match event:
            case TimerFired():
                beat = self._beat_due(now)
            case _:
                answer_to = self._absorb(event, now)
        if not self._news and not self._lateness.doubtful and self.lease_until > now:
            # Most heartbeats say what the last one said. The next turn judges everything anyway.
            if answer_to is not None:
                heard = {peer.node: peer for peer in self.hearing.heard(now)}
                self._answer(answer_to, heard, now)
            return self._out
        self._step(now, beat, answer_to)
        self._due = self._deadline(now)
        return self._out

    def _absorb(self, event: Event, now: float) -> int | None:
        """Take note of an event; return the peer that wants an answer at once, if any."""
        match event:
            case MessageArrived():
                taken = self._reception.take(event, now, self._out)
                self._news = taken.news
                return taken.answer_to
            case FilterApplied():
                self.handoff.filter_applied(event.serial, now)
            case FlowsLeft():
                self.handoff.flows_answered(event.serial, event.flows, now)
            case AdminChanged():
                self._admin(event, now)
            case PowersChanged():
                self._set_powers(event.powers)
            case SettingsChanged():
                self._configure(event.settings)
            case FilterDamaged():
                self._damaged = True
            case FilterRepaired():
                self._damaged = False
            case ResourceChanged():
                self.condition.learn(event.name, event.ok, event.reason, event.fitness)
            case FailbackRequested():
                groups = self.settings.groups
                self.membership.failback |= {groups.index(group) for group in event.groups}
            case PeerRefused():
                self.membership.solitude.refused(event.node, now)
            case Reachability():
                self.membership.solitude.reachability(event.nodes)
            case StopRequested():
                self._leaving.stop(now, at_once=event.at_once, returning=event.returning)
            case TimerFired():
                pass
        return None

    def _beat_due(self, now: float) -> bool:
        """Return whether a heartbeat is due, and set the time of the next."""
        if now < self._next_beat:
            return False
        last_words = self.membership.closed and self.condition.stopping
        gap = self.settings.interval / 5 if last_words else self.settings.interval
        self._next_beat = max(self._next_beat + gap, now + gap / 2)
        return True

    # -- what the administrator wants ------------------------------------------------------

    def _admin(self, event: AdminChanged, now: float) -> None:
        self._leaving.admin(event.admin, now, at_once=event.at_once, reason=event.reason)
        fields = {"admin": event.admin.value, "at_once": event.at_once, "reason": event.reason}
        self._out.append(Report("node.admin", fields))

    def _set_powers(self, powers: tuple[int, ...]) -> None:
        if len(powers) != len(self.settings.groups) or not all(0 <= power <= 65535 for power in powers):
            raise ValueError(f"powers {powers} for {len(self.settings.groups)} groups")
        self.powers = powers
        fields = {"powers": dict(zip(self.settings.groups, powers, strict=True))}
        self._out.append(Report("node.powers", fields))

    def _configure(self, settings: Settings) -> None:
        """Go by other settings; nodes that they do not name are retired as long as they serve."""
        before = self.settings.powers
        self._use(merge(self.settings, settings, self.hearing.peers))
        if settings.powers != before:
            self._set_powers(settings.powers)

    def _use(self, roster: Roster) -> None:
        self.settings = roster.settings
        self.hearing.configure(roster.settings)
        self.membership.configure(roster.settings, roster.retired)
        self._reception.configure(roster.settings)
        self._lateness.configure(roster.settings)
        self._reporter.configure(roster.settings)
        self.handoff.configure(roster.settings)
        self._out.extend(Forgotten(node) for node in roster.forgotten)

    # -- after each event ------------------------------------------------------------------

    def _step(self, now: float, beat: bool, answer_to: int | None) -> None:
        if self.membership.retired:
            roster = without_gone(self.settings, self.membership.retired, self.hearing.peers, now)
            if roster.forgotten:
                self._use(roster)
        heard = self.hearing.judge(now)
        self.membership.step(self._own(), heard, now)
        change = self._handoff(heard, now)
        for told in (self.membership.reports, self.membership.solitude.reports):
            if told:
                self._out.extend(told)
                told.clear()
        state = self._state()
        self._out.extend(self._reporter.changes(self._shown(), self.fitness, heard))
        if beat:
            self._out.extend(self._reporter.networks(self.hearing.silent_networks(now)))
        spoken = self._word.urgent(state, self.fitness, self.powers)
        if beat or spoken != self._spoken:
            overdue = beat and any(self.hearing.overdue(peer, now) for peer in heard.values())
            everybody = tuple(sorted(set(self.settings.nodes) - {self.settings.node}))
            self._send(everybody, overdue, heard, now, state)
            self._spoken = spoken
        elif answer_to is not None:
            self._answer(answer_to, heard, now)
        if change is not None:
            self._out.append(change)
        self._set_lease(heard, now, beat)
        question = self.handoff.question(now)
        if question is not None:
            self._out.append(question)
        request = self._reception.wanted(now)
        if request is not None:
            self._out.append(request)
        if self.membership.solitude.probe_wanted:
            self.membership.solitude.probe_wanted = False
            self._out.append(ProbeReachability())
        if self.membership.closed and self.condition.stopping and beat:
            self._farewells -= 1
            if self._farewells <= 0:
                self.stopped = True
                self._out.append(Stopped())

    def _handoff(self, heard: dict[int, Peer], now: float) -> ApplyFilter | None:
        """Release what the plan takes and acquire what it gives, as far as rule 3 allows."""
        handoff = self.handoff
        if handoff.pending is not None:
            return None
        was_closed = self.membership.closed
        leaving = self._leaving.step(heard, now)
        if self.membership.closed and not was_closed and not self.condition.stopping:
            self._out.append(Halted())
        membership, settings = self.membership, self.settings
        plan, held = membership.plan, handoff.held
        running = self.lease_until > now
        kept: tuple[Bitmap, ...] = (0,) * len(held)
        gained = kept
        # After a lapse of the lease others may serve what we held: it is acquired anew (I4).
        if plan is not None and not leaving and (running or not any(held)):
            mine = self._given(plan)
            kept = mine if everybody_knows(plan, settings.node, heard) else (ALL,) * len(mine)
            able = self._state()[0] is NodeState.UP  # else the next plan takes it anyway
            if running and able and any(given & ~has for given, has in zip(mine, held, strict=True)):
                gained = acquirable(
                    plan, mine, membership.known_epoch, membership.inside_since, heard, settings, now
                )
        # An earlier version waits for the end of a drain: the bucket would be served by nobody. First words
        # may come in an earlier version than a node speaks; none is given a bucket before that is known.
        adopted = all(
            peer.version >= ADOPTS or now - peer.first_heard < settings.detection for peer in heard.values()
        )
        cut = self._leaving.cut(now)
        contested = self.hearing.contested(now)
        return handoff.change(
            kept, gained, contested, now, drain=adopted and not cut, give_up=cut or not adopted
        )

    def _given(self, plan: Plan) -> tuple[Bitmap, ...]:
        """Return for each group the buckets that ``plan`` gives to this node, worked out once a plan."""
        if self._mine is None or self._mine[0] is not plan:
            self._mine = (plan, tuple(owned_by(owners, self.settings.node) for owners in plan.placements))
        return self._mine[1]

    def _set_lease(self, heard: dict[int, Peer], now: float, beat: bool) -> None:
        """Renew the lease on a healthy turn; shorten or end it at once when it must be (rule 4)."""
        until = now
        running = self.lease_until > now
        # An acknowledgement that came late, between two turns, must not wait for the next one.
        beat = beat or now < self.lease_until < self._next_beat + self.settings.interval / 2
        lapsed = not running and any(self.handoff.holding)
        if (
            self.membership.plan is not None
            and not self._damaged
            and self._lateness.made_sure(heard, now)
            and not lapsed
        ):
            until = max(now, lease_end(heard.values(), now, self.settings))
        if (beat and until > now) or (until < self.lease_until and running) or (until > now and not running):
            self.lease_until = until
            self._out.append(SetLease(until))

    # -- the word that it spreads ----------------------------------------------------------

    def _name(self, node: int) -> str:
        return self.settings.nodes.get(node, f"node {node}")

    def _own(self) -> Own:
        idle = not any(self.handoff.holding) and not any(self.handoff.draining)
        return Own(self.incarnation, self._state()[0], self.powers, self.fitness, idle)

    def _state(self) -> tuple[NodeState, str]:
        membership = self.membership
        state, reason = self.condition.state(closed=membership.closed, deaf=membership.solitude.deaf)
        if state is NodeState.UP and self.fitness >= Fitness.DEGRADED and self._plain():
            return NodeState.WAIT, reason
        if membership.differs is not None and state is NodeState.UP:
            reason = f"outside: configured otherwise than {self._name(membership.differs)}"
        return state, reason

    def _plain(self) -> bool:
        """Whether a peer is heard that knows nothing of fitness: who is not fit waits then, for everybody.

        If only that peer were told so, it and this node would go by different leaders.
        """
        detection = self.settings.detection
        return any(
            peer.version < FITNESS and self._now - peer.first_heard >= detection
            for peer in self.hearing.heard(self._now)
        )

    def _shown(self) -> tuple[NodeState, str]:
        """Return state and reason as the administrator sees them."""
        fitness = self.fitness
        if fitness < Fitness.DEGRADED:
            return self._state()
        other = self.best_other()
        return shown(*self._state(), fitness, fitness if other is None else min(fitness, other))

    def _answer(self, node: int, heard: dict[int, Peer], now: float) -> None:
        """Send a heartbeat to one node alone, with an echo of it even if it counts as lost."""
        known = {node: self.hearing.peers[node]} if node in self.hearing.peers else {}
        self._send((node,), False, dict(sorted((heard | known).items())), now, self._state())

    def _send(
        self,
        nodes: tuple[int, ...],
        answer_now: bool,
        heard: dict[int, Peer],
        now: float,
        state: tuple[NodeState, str],
    ) -> None:
        beat = self._word.heartbeat(state, self.fitness, self.powers, heard, answer_now=answer_now)
        self.hearing.sent(beat.sequence, now)
        if nodes:
            self._out.append(Send(beat, nodes))

    # -- time ------------------------------------------------------------------------------

    def _deadline(self, now: float) -> float:
        """Return when something can next change without an event: a loss, an end of a wait, a heartbeat."""
        membership, detection = self.membership, self.settings.detection
        times = [*self.hearing.deadlines(), *self.handoff.deadlines(), *self._lateness.deadlines()]
        eligible = membership.eligible_at(now)
        if eligible is not None:
            times.append(eligible)
        times.append(
            (membership.outside_since if membership.plan is None else membership.inside_since) + detection
        )
        if self._leaving.deadline is not None:
            times.append(self._leaving.deadline)
        probed = membership.solitude.deadline()
        if probed is not None:
            times.append(probed)
        soonest = min((at for at in times if at > now), default=self._next_beat)
        return min(self._next_beat, soonest + SLACK_S)
