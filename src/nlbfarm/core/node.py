"""The state machine of one node: events in, commands out.

``handle(event, now)`` returns what the shell is to do, in order; ``timer()`` says when the machine
wants a ``TimerFired``. The order of commands matters: a heartbeat that announces a bucket as
*holding* stands before the command that makes the filter accept it, and a bucket stays announced
until the filter has said that it no longer accepts it. So what the farm is told always covers
what the filter may do.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from nlbfarm.core.buckets import ALL, Bitmap, BucketStates, owned_by
from nlbfarm.core.commands import (
    ApplyFilter,
    Command,
    ProbeReachability,
    Report,
    SaveIncarnation,
    Send,
    SetLease,
    Stopped,
)
from nlbfarm.core.condition import Condition
from nlbfarm.core.events import (
    Event,
    FilterApplied,
    FilterDamaged,
    FilterRepaired,
    MessageArrived,
    PeerRefused,
    Reachability,
    ResourceChanged,
    StopRequested,
    TimerFired,
)
from nlbfarm.core.fetch import PlanFetch, answer
from nlbfarm.core.handoff import acquirable, everybody_knows
from nlbfarm.core.hearing import Arrival, Hearing, Peer
from nlbfarm.core.lease import lease_end
from nlbfarm.core.membership import Membership, Own
from nlbfarm.core.messages import clip_reason
from nlbfarm.core.reporting import Reporter
from nlbfarm.core.settings import Settings
from nlbfarm.core.wire import Echo, Heartbeat, NodeState, Plan, PlanChunk, PlanRequest, plan_digest
from nlbfarm.errors import PeerError

__all__ = ["Node"]

SLACK_S = 0.0005
"""A deadline is visited this much after it, so that rounding never visits it just before."""

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
    """

    def __init__(
        self, settings: Settings, incarnation: int, now: float, resources: Iterable[str] = ()
    ) -> None:
        self.settings = settings
        self.incarnation = incarnation
        self.sequence = 0
        self.hearing = Hearing(settings)
        self.membership = Membership(settings, self.hearing, now)
        self.condition = Condition(settings.node, resources)
        self._reporter = Reporter(settings, self.membership.agrees)
        self.applied: tuple[Bitmap, ...] = (0,) * len(settings.groups)
        self.pending: tuple[int, tuple[Bitmap, ...]] | None = None
        self.lease_until = now
        self.stopped = False
        self._serial = 0
        self._fetch = PlanFetch(settings.node, 2 * settings.interval)
        self._next_beat = now
        self._due = now
        self._damaged = False
        self._woke_at: float | None = None
        self._patience_ends = now
        self._stop_deadline = 0.0
        self._farewells = FAREWELLS
        self._spoken: object = None
        self._digest: tuple[Plan, bytes] | None = None
        self._corrected: dict[int, tuple[int, float]] = {}
        self._mine: tuple[Plan, tuple[Bitmap, ...]] | None = None
        self._out: list[Command] = []
        self._news = True
        """Whether the event at hand may change anything; only a heartbeat can be without news."""

    # -- what others read ------------------------------------------------------------------

    @property
    def state(self) -> NodeState:
        """The state that the administrator sees."""
        return self._state()[0]

    @property
    def reason(self) -> str:
        """Why the node is in its state; empty if there is nothing to say."""
        return self._state()[1]

    @property
    def holding(self) -> tuple[Bitmap, ...]:
        """For each group the buckets that the filter may accept, now or after the command under way."""
        if self.pending is None:
            return self.applied
        return tuple(done | asked for done, asked in zip(self.applied, self.pending[1], strict=True))

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
        beat = False
        answer_to: int | None = None
        self._news = True
        late = now - self._due > self.settings.interval
        if late and not isinstance(event, TimerFired):
            # What was queued meanwhile is read first and judged as a whole when the timer fires (rule 1).
            self._absorb(event, now)
            return self._out
        self._judge_lateness(now)
        match event:
            case TimerFired():
                beat = self._beat_due(now)
            case _:
                answer_to = self._absorb(event, now)
        if not self._news and self._woke_at is None and self.lease_until > now:
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
                return self._message(event, now)
            case FilterApplied():
                self._filter_applied(event)
            case FilterDamaged():
                self._damaged = True
            case FilterRepaired():
                self._damaged = False
            case ResourceChanged():
                self.condition.learn(event.name, event.ok, event.reason)
            case PeerRefused():
                self.membership.solitude.refused(event.node, now)
            case Reachability():
                self.membership.solitude.reachability(event.nodes)
            case StopRequested():
                if not self.condition.stopping:
                    self.condition.stopping = True
                    self._stop_deadline = now + 2 * self.settings.detection
            case TimerFired():
                pass
        return None

    def _message(self, event: MessageArrived, now: float) -> int | None:
        """Take in a message; return the peer to answer at once, if it asks for that."""
        message = event.message
        if message.sender == self.settings.node or message.sender not in self.settings.nodes:
            return None
        if isinstance(message, PlanRequest):
            plan = self.membership.plan
            if plan is not None and self._plan_digest(plan) == message.digest:
                for chunk in answer(message, plan, self.settings.node, self.incarnation):
                    self._out.append(Send(chunk, (message.sender,)))
            return None
        if isinstance(message, PlanChunk):
            try:
                whole = self._fetch.take(message)
            except PeerError as error:
                fields = {"peer": message.sender, "error": str(error)}
                self._out.append(Report("plan.unreadable", fields, warning=True))
                return None
            if whole is not None:
                self.membership.plans = {message.digest: whole}
            return None
        before = self.incarnation
        for echo in message.echoes:
            if echo.node == self.settings.node and echo.incarnation > self.incarnation:
                self._jump(echo.incarnation + 1, now)
        arrival = self.hearing.arrived(message, event.network, event.at, self.incarnation)
        self._news = arrival is Arrival.NEWS or self.incarnation != before
        if arrival is Arrival.OLD_LIFE:
            return self._correct(message, now)
        if arrival is Arrival.DUPLICATE:
            return None
        self.membership.learn_epoch(message)
        return message.sender if message.answer_now else None

    def _correct(self, word: Heartbeat, now: float) -> int | None:
        """Answer a node that speaks with an old incarnation: our echo of the higher one makes it jump.

        It may be a replay of an earlier life; then the answer goes to the node itself, which ignores it.
        """
        said = self._corrected.get(word.sender)
        if said is None or said[0] != word.incarnation:
            fields = {"peer": word.sender, "incarnation": word.incarnation}
            self._out.append(Report("peer.old_life", fields, warning=True))
        elif now - said[1] < self.settings.interval:
            return None
        self._corrected[word.sender] = (word.incarnation, now)
        return word.sender

    def _jump(self, incarnation: int, now: float) -> None:
        """Start a new life above one that a peer remembers: our clock went back, or our file was lost."""
        self.incarnation = incarnation
        self.sequence = 0
        self.hearing.forget_sent()
        self.membership.leave(now, "new_incarnation", self.settings.node)
        self._out.append(SaveIncarnation(incarnation))
        self._out.append(Report("node.incarnation_raised", {"incarnation": incarnation}, warning=True))
        self.condition.jumped(now)

    def _judge_lateness(self, now: float) -> None:
        """See how late this turn is: the first one after a pause, whichever event it brings."""
        late = now - self._due
        settings = self.settings
        if late >= settings.lease:
            self._woke_at = now
            self._out.append(Report("node.late", {"late_ms": round(late * 1e3)}, warning=True))
        if late > settings.interval:
            self.hearing.patience = max(self.hearing.patience, late)
            self._patience_ends = now + settings.detection
        elif now >= self._patience_ends:
            self.hearing.patience = 0.0

    def _beat_due(self, now: float) -> bool:
        """Return whether a heartbeat is due, and set the time of the next."""
        if now < self._next_beat:
            return False
        gap = self.settings.interval / 5 if self.membership.closed else self.settings.interval
        self._next_beat = max(self._next_beat + gap, now + gap / 2)
        return True

    def _filter_applied(self, event: FilterApplied) -> None:
        if self.pending is None or self.pending[0] != event.serial:
            raise ValueError(f"no filter change {event.serial} is under way")
        self.applied = self.pending[1]
        self.pending = None

    # -- after each event ------------------------------------------------------------------

    def _step(self, now: float, beat: bool, answer_to: int | None) -> None:
        self.membership.step(self._own(), now)
        heard = {peer.node: peer for peer in self.hearing.heard(now)}
        change = self._handoff(heard, now)
        for told in (self.membership.reports, self.membership.solitude.reports):
            self._out.extend(told)
            told.clear()
        self._out.extend(self._reporter.changes(self._state(), heard))
        if beat:
            self._out.extend(self._reporter.networks(self.hearing.silent_networks(now)))
        spoken = self._word()
        if beat or spoken != self._spoken:
            overdue = beat and any(self.hearing.overdue(peer, now) for peer in heard.values())
            self._send(tuple(sorted(set(self.settings.nodes) - {self.settings.node})), overdue, heard, now)
            self._spoken = spoken
        elif answer_to is not None:
            self._answer(answer_to, heard, now)
        if change is not None:
            self._out.append(change)
        self._set_lease(heard, now, beat)
        if self.membership.wanted is not None:
            digest, node = self.membership.wanted
            request = self._fetch.ask(digest, self.incarnation, now)
            if request is not None:
                self._out.append(Send(request, (node,)))
        if self.membership.solitude.probe_wanted:
            self.membership.solitude.probe_wanted = False
            self._out.append(ProbeReachability())
        if self.membership.closed and beat:
            self._farewells -= 1
            if self._farewells <= 0:
                self.stopped = True
                self._out.append(Stopped())

    def _handoff(self, heard: dict[int, Peer], now: float) -> ApplyFilter | None:
        """Release what the plan takes and acquire what it gives, as far as rule 3 allows."""
        if self.pending is not None:
            return None
        membership, settings = self.membership, self.settings
        plan = membership.plan
        if self.condition.stopping and plan is not None and self._may_go(plan, heard, now):
            if any(self.applied):
                plan = None
            else:
                membership.leave(now, "stopping", settings.node)
                plan = None
        if self.condition.stopping and membership.plan is None and not any(self.applied):
            membership.closed = True
        running = self.lease_until > now
        if plan is None or (not running and any(self.applied)):
            # After a lapse of the lease others may serve what we held: it is acquired anew (I4).
            wanted: tuple[Bitmap, ...] = (0,) * len(self.applied)
        else:
            mine = self._given(plan)
            keep = mine if everybody_knows(plan, settings.node, heard) else (ALL,) * len(mine)
            gain: tuple[Bitmap, ...] = (0,) * len(mine)
            if running and any(given & ~has for given, has in zip(mine, self.applied, strict=True)):
                gain = acquirable(
                    plan, mine, membership.known_epoch, membership.inside_since, heard, settings, now
                )
            wanted = tuple(
                (has & keeps) | gains for has, keeps, gains in zip(self.applied, keep, gain, strict=True)
            )
        if wanted == self.applied:
            return None
        self._serial += 1
        self.pending = (self._serial, wanted)
        states = {name: BucketStates(own=own) for name, own in zip(settings.groups, wanted, strict=True)}
        return ApplyFilter(self._serial, states)

    def _given(self, plan: Plan) -> tuple[Bitmap, ...]:
        """Return for each group the buckets that ``plan`` gives to this node, worked out once a plan."""
        if self._mine is None or self._mine[0] is not plan:
            self._mine = (plan, tuple(owned_by(owners, self.settings.node) for owners in plan.placements))
        return self._mine[1]

    def _may_go(self, plan: Plan, heard: dict[int, Peer], now: float) -> bool:
        """Whether a stopping node may let go: it holds nothing, nobody else can serve, or time is up."""
        if not any(self._given(plan)) and not any(self.applied):
            return True
        others = (peer for peer in heard.values() if peer.heartbeat.inside)
        return now >= self._stop_deadline or all(p.heartbeat.state is not NodeState.UP for p in others)

    def _set_lease(self, heard: dict[int, Peer], now: float, beat: bool) -> None:
        """Renew the lease on a healthy turn; shorten or end it at once when it must be (rule 4)."""
        until = now
        running = self.lease_until > now
        # An acknowledgement that came late, between two turns, must not wait for the next one.
        beat = beat or now < self.lease_until < self._next_beat + self.settings.interval / 2
        lapsed = not running and any(self.holding)
        if self.membership.plan is not None and not self._damaged and self._awake(heard, now) and not lapsed:
            until = max(now, lease_end(heard.values(), now, self.settings))
        if (beat and until > now) or (until < self.lease_until and running) or (until > now and not running):
            self.lease_until = until
            self._out.append(SetLease(until))

    def _awake(self, heard: dict[int, Peer], now: float) -> bool:
        """Whether the node has made sure, after a late turn, that its peers still count with it (rule 1)."""
        woke = self._woke_at
        if woke is None:
            return True
        if heard:
            # What was said before the pause, "outside" too, may have been true then only.
            limiting = [p for p in heard.values() if not (p.holds_nothing_outside and p.last_heard >= woke)]
            if any(peer.acked_at is None or peer.acked_at < woke for peer in limiting):
                return False
        elif now - woke < self.settings.detection:
            return False
        self._woke_at = None
        return True

    # -- the word that it spreads ----------------------------------------------------------

    def _own(self) -> Own:
        return Own(self.incarnation, self._state()[0], self.settings.powers)

    def _state(self) -> tuple[NodeState, str]:
        membership = self.membership
        state, reason = self.condition.state(closed=membership.closed, deaf=membership.solitude.deaf)
        if membership.differs is not None and state is NodeState.UP:
            reason = f"outside: configured otherwise than {self.settings.nodes[membership.differs]}"
        return state, reason

    def _word(self) -> object:
        """Return what, when it changes, is told to everybody at once."""
        membership = self.membership
        plan = membership.plan
        view = membership.deferral if plan is None else plan.view.epoch
        return self._state(), membership.known_epoch, plan is None, view, self.holding, self.incarnation

    def _plan_digest(self, plan: Plan) -> bytes:
        if self._digest is None or self._digest[0] is not plan:
            self._digest = (plan, plan_digest(plan))
        return self._digest[1]

    def _answer(self, node: int, heard: dict[int, Peer], now: float) -> None:
        """Send a heartbeat to one node alone, with an echo of it even if it counts as lost."""
        known = {node: self.hearing.peers[node]} if node in self.hearing.peers else {}
        self._send((node,), False, dict(sorted((heard | known).items())), now)

    def _send(self, nodes: tuple[int, ...], answer_now: bool, heard: dict[int, Peer], now: float) -> None:
        settings, membership = self.settings, self.membership
        self.sequence += 1
        plan = membership.plan
        state, reason = self._state()
        heartbeat = Heartbeat(
            sender=settings.node,
            incarnation=self.incarnation,
            sequence=self.sequence,
            config_digest=settings.config_digest,
            secret_digest=settings.secret_digest,
            state=state,
            reason=clip_reason(reason),
            answer_now=answer_now,
            known_epoch=membership.known_epoch,
            inside=plan is not None,
            view=plan.view if plan is not None else membership.deferral,
            plan=plan,
            plan_digest=self._plan_digest(plan) if plan is not None else None,
            echoes=tuple(
                Echo(peer.node, peer.incarnation, peer.heartbeat.sequence) for peer in heard.values()
            ),
            powers=settings.powers,
            holding=self.holding,
            draining=(0,) * len(settings.groups),
        )
        self.hearing.sent(self.sequence, now)
        if nodes:
            self._out.append(Send(heartbeat, nodes))

    # -- time ------------------------------------------------------------------------------

    def _deadline(self, now: float) -> float:
        """Return when something can next change without an event: a loss, an end of a wait, a heartbeat."""
        membership, detection = self.membership, self.settings.detection
        times = [self.hearing.lost_at(peer) for peer in self.hearing.peers.values()]
        eligible = membership.eligible_at(now)
        if eligible is not None:
            times.append(eligible)
        times.append(
            (membership.outside_since if membership.plan is None else membership.inside_since) + detection
        )
        if self._woke_at is not None:
            times.append(self._woke_at + detection)
        if self.hearing.patience:
            times.append(self._patience_ends)
        if self.condition.stopping:
            times.append(self._stop_deadline)
        probed = membership.solitude.deadline()
        if probed is not None:
            times.append(probed)
        soonest = min((at for at in times if at > now), default=self._next_beat)
        return min(self._next_beat, soonest + SLACK_S)
