"""Views: who is in, who leads, and which view wins (rules 2 and 5).

A node is *inside*, following the plan of a view that names it, or *outside*, deferring to the
greatest view that it hears, or to none. ``step`` is called after every event; it looks at the
newest word of every peer and moves at most as far as those words allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nlbfarm.core.buckets import BUCKETS, NOBODY
from nlbfarm.core.commands import Report
from nlbfarm.core.hearing import Hearing, Peer
from nlbfarm.core.lease import died
from nlbfarm.core.placement import place, worst_accepted
from nlbfarm.core.reach import FRESH_INTERVALS, agrees, broken_links, joiners_of, lowest
from nlbfarm.core.settings import Settings
from nlbfarm.core.solitude import Solitude
from nlbfarm.core.views import disjoint, greater, largest_clique, names
from nlbfarm.core.wire import Epoch, Fitness, Heartbeat, Member, NodeState, Plan, View

__all__ = ["Membership", "Own"]


@dataclass(frozen=True, slots=True)
class Own:
    """This node's part of the word that it spreads."""

    incarnation: int
    state: NodeState
    powers: tuple[int, ...]
    fitness: Fitness = Fitness.SOUND
    idle: bool = True
    """Its filter accepts nothing: there is no connection that a lease would have to be kept for."""


class Membership:
    """The view that one node follows, or defers to."""

    def __init__(self, settings: Settings, hearing: Hearing, now: float) -> None:
        self.settings = settings
        """This node's."""
        self._hearing = hearing
        self.known_epoch = Epoch()
        self.plan: Plan | None = None
        self.deferral: View | None = None
        self.differs: int | None = None
        """Outside: a node inside a view that was configured otherwise; such a view never takes us in."""
        self.outside_since = now
        self.inside_since = now
        self.left_epoch = Epoch()
        self.plans: dict[bytes, Plan] = {}
        """Plans fetched in chunks, by digest."""
        self.wanted: tuple[bytes, int] | None = None
        """A plan to fetch: its digest and who has it."""
        self.solitude = Solitude(settings)
        self.closed = False
        """Set when the node has left for good: it follows and forms no view."""
        self.reports: list[Report] = []
        self._member_since: dict[Member, float] = {}
        self._now = now
        self._came: set[Member] = set()
        """Members of this view that have been heard inside since they were taken in."""
        self._settled: object = None
        self._kept_out: dict[int, float] = {}
        """Nodes that could serve and are not in the view that this node leads, and since when."""
        self.failback: frozenset[int] = frozenset()
        """Indexes of failover groups that go to the node with the highest priority with the next plan."""
        self.retired: frozenset[int] = frozenset()
        """Nodes that the configuration no longer names: they get no buckets."""

    def configure(self, settings: Settings, retired: frozenset[int]) -> None:
        """Go by other settings from now on."""
        self.settings = settings
        self.retired = retired
        self.differs = None
        self._settled = None
        self.solitude.configure(settings)

    # -- what is known ---------------------------------------------------------------------

    def learn_epoch(self, heartbeat: Heartbeat) -> None:
        """Take note of the newest epoch that a peer has heard of."""
        newest = heartbeat.known_epoch
        if heartbeat.view is not None:
            newest = max(newest, heartbeat.view.epoch)
        self.known_epoch = max(self.known_epoch, newest)

    def current(self, member: Member, heard: Mapping[int, Peer]) -> Peer | None:
        """Return the peer that is ``member``, if it is heard in that very life."""
        peer = heard.get(member.node)
        return peer if peer is not None and peer.incarnation == member.incarnation else None

    def leader(self, own: Own, heard: Mapping[int, Peer]) -> int | None:
        """Return the leader of the view that this node follows, as it sees it; ``None`` outside.

        The lowest live member that can serve; if none can, the lowest live member.
        """
        if self.plan is None:
            return None
        live = {self.settings.node: own.state}
        for peer in self._live_members(self.plan, heard):
            live[peer.node] = peer.heartbeat.state
        return lowest(live)

    def _live_members(self, plan: Plan, heard: Mapping[int, Peer]) -> Iterator[Peer]:
        """Yield the other members that are heard and have not announced that they left this view."""
        for member in plan.view.members:
            peer = self.current(member, heard)
            if peer is not None and not self._has_left(member, peer, plan):
                yield peer

    def _has_left(self, member: Member, peer: Peer, plan: Plan) -> bool:
        """Whether a member has announced itself outside at this plan's epoch or later.

        One that was just taken in may know the epoch before it has the plan: it has a detection time to come.
        """
        word = peer.heartbeat
        if word.inside or word.known_epoch < plan.view.epoch:
            return False
        waited = self._now - self._member_since.get(member, self._now)
        return member in self._came or waited >= self.settings.detection

    # -- the step --------------------------------------------------------------------------

    def step(self, own: Own, heard: Mapping[int, Peer], now: float) -> None:
        """Follow, give up, defer, form or lead, as the newest words of all peers say."""
        self._now = now
        self.wanted = None
        alone = self.plan is not None and len(self.plan.view.members) == 1
        self.solitude.watch(heard, alone, now)
        for node, peer in heard.items():
            if peer.heartbeat.inside:
                self._came.add(Member(node, peer.incarnation))
        if not self.closed:
            self._follow(own, heard, now)
        if self.plan is not None:
            self._give_up(own, heard, now)
        if self.plan is None:
            self._defer(own, heard)
            if not self.closed:
                self._form(own, heard, now)
        if self.plan is not None:
            self._lead(own, heard, now)

    def _follow(self, own: Own, heard: Mapping[int, Peer], now: float) -> None:
        """Follow the newest plan that names this node in this life (rule 3)."""
        newest = self.plan.view.epoch if self.plan is not None else self.left_epoch
        found: Heartbeat | None = None
        # Those that hear us come last, so that of equals one of them is asked for the plan.
        for peer in sorted(heard.values(), key=lambda peer: self._hearing.hears_us(peer, now)):
            word = peer.heartbeat
            if (
                word.inside
                and word.view is not None
                and word.view.epoch >= newest
                and (found is not None or word.view.epoch > newest)
                and names(word.view, self.settings.node, own.incarnation)
            ):
                newest, found = word.view.epoch, word
        if found is None or found.plan_digest is None:
            return
        plan = found.plan or self.plans.get(found.plan_digest)
        if plan is None:
            self.wanted = (found.plan_digest, found.sender)
        elif plan.view == found.view and len(plan.placements) == len(self.settings.groups):
            self._enter(plan, now)

    def _give_up(self, own: Own, heard: Mapping[int, Peer], now: float) -> None:
        """Leave a view that is over, or that has met a greater one (rule 5)."""
        assert self.plan is not None
        view = self.plan.view
        for peer in heard.values():
            later = peer.heartbeat.view
            if (
                later is not None
                and peer.heartbeat.inside
                and later.epoch > view.epoch
                and not names(later, self.settings.node, own.incarnation)
                # Who is in both will follow the later one. Its leader may be the first to say so: if both
                # leaders waited to hear it of the member, each would outbid the other for ever.
                and ((peer.node, peer.incarnation) in view.members or not disjoint(later, view))
            ):
                self.leave(now, "left_out", by=peer.node)
                return
        for other, source in self._views_heard(own, heard):
            if other.epoch != view.epoch and disjoint(other, view) and greater(other, view):
                self.leave(now, "greater_view", by=source)
                return

    def _views_heard(self, own: Own, heard: Mapping[int, Peer]) -> Iterator[tuple[View, int]]:
        """Yield the views that peers follow, and those that outsiders hear and defer to.

        A deferral counts only while its teller hears a member of that view who is not known to
        have left: else two outsiders could keep a dead view alive for each other. Nor does it count when
        a later view with a member of that one is followed: two outsiders that hear different members of the
        later one would go back and forth between the two, each time because of the other.
        """
        for peer in heard.values():
            word = peer.heartbeat
            if word.view is None:
                continue
            if word.inside or (
                not _superseded(word.view, heard)
                and any(
                    peer.hears(member.node, member.incarnation)
                    and not self._known_outside(member, word.view, own, heard)
                    for member in word.view.members
                )
            ):
                yield word.view, peer.node

    def _known_outside(self, member: Member, view: View, own: Own, heard: Mapping[int, Peer]) -> bool:
        """Whether a member is known to have left ``view``: for another life, a later view, or none."""
        if member == (self.settings.node, own.incarnation):
            return True
        peer = heard.get(member.node)
        if peer is None:
            return False
        follows = peer.heartbeat.view if peer.heartbeat.inside else None
        return peer.incarnation > member.incarnation or follows is None or follows.epoch > view.epoch

    def _defer(self, own: Own, heard: Mapping[int, Peer]) -> None:
        """Defer to the greatest view heard, directly or through an outsider."""
        best: View | None = None
        for view, _ in self._views_heard(own, heard):
            if best is None or greater(view, best):
                best = view
        self.deferral = best
        followers = (node for node, peer in heard.items() if peer.heartbeat.inside)
        self.differs = next((node for node in followers if not self.agrees(heard[node].heartbeat)), None)

    def _form(self, own: Own, heard: Mapping[int, Peer], now: float) -> None:
        """Form a view from outside, when none is heard and this is the node to do it (rule 2)."""
        me = self.settings.node
        if self.deferral is not None or now - self.outside_since < self.settings.detection:
            return
        able = own.state is NodeState.UP  # a view that nobody serves in would only be in the way
        if not heard:
            # Who waits because it is deaf looks again: its peers may be gone by now.
            if (able or self.solitude.deaf) and self.solitude.alone(now) and able:
                self._propose(own, {}, frozenset(), (), now)
            return
        if not able:
            return
        pool = {node: peer for node, peer in heard.items() if self._hearing.hears_us(peer, now)}
        idle = all(
            peer.holds_nothing_outside and peer.heartbeat.state is not NodeState.UP for peer in heard.values()
        )
        if not pool and not idle:
            return  # somebody is there who does not hear us
        rivals = {n: p.heartbeat.state for n, p in pool.items() if self.agrees(p.heartbeat)}
        if lowest({me: own.state} | rivals) != me:
            return
        self.solitude.deaf = False
        joiners = joiners_of(self._hearing, self.settings, {me}, pool, None, self.retired, now)
        self._propose(own, heard, frozenset({me, *joiners}), (), now)

    def _lead(self, own: Own, heard: Mapping[int, Peer], now: float) -> None:
        """Keep the view true, if this node leads it: members, powers, placements."""
        assert self.plan is not None
        plan, me = self.plan, self.settings.node
        if self.leader(own, heard) != me:
            self.failback = frozenset()  # it was asked of who led then
            return
        # One that died acknowledged to the last: it does not ignore us, and will be lost in a moment.
        limiting = [
            peer
            for peer in heard.values()
            if not peer.holds_nothing_outside and not died(peer, now, self.settings)
        ]
        if limiting and not any(self._hearing.hears_us(peer, now) for peer in heard.values()):
            if all(now - peer.first_heard >= self.settings.detection for peer in limiting):
                self.leave(now, "unacknowledged", by=me)
            return
        if heard and all(
            now - peer.last_heard > FRESH_INTERVALS * self.settings.interval for peer in heard.values()
        ):
            return  # all are falling silent, one after the other: the first to be lost is not the news yet
        live = {peer.node: peer for peer in self._live_members(plan, heard)}
        for node in self.retired & live.keys():
            if not live[node].claims and not any(node in placement for placement in plan.placements):
                del live[node]
        if not heard and len(plan.view.members) > 1 and not self.solitude.alone(now):
            if self.solitude.deaf:
                self.leave(now, "deaf", by=me)
            return
        kept = largest_clique(
            {me, *live},
            broken_links(self._hearing, self.settings, live, self._member_since, self.inside_since, now),
        )
        if me not in kept:
            self.leave(now, "links_broken", by=me)
            return
        joiners = joiners_of(self._hearing, self.settings, set(kept), heard, plan, self.retired, now)
        members = frozenset({*kept, *joiners})
        states = {own.state, *(heard[node].heartbeat.state for node in members - {me})}
        self._kept_out = {
            node: self._kept_out.get(node, now)
            for node, peer in heard.items()
            if node not in members | self.retired and peer.heartbeat.state is NodeState.UP
        }
        # Who could serve will be taken in, if it can be: until then a node that drains keeps its lease.
        patience = 0.0 if own.idle else 2 * self.settings.detection
        kept_out = any(now - since >= patience for since in self._kept_out.values())
        if NodeState.UP not in states and ((not heard and own.idle) or kept_out):
            self.leave(now, "cannot_serve", by=me)
            return
        if (
            joiners
            or {member.node for member in plan.view.members} != members
            or self.known_epoch > plan.view.epoch
        ):
            self._propose(own, heard, members, plan.placements, now, joiners)
            return
        powers = self._powers(own, heard, members, now)
        if self._settled == (plan.view.epoch, powers) and not self.failback:
            return
        if self._placements(powers, plan.placements) != plan.placements:
            self._propose(own, heard, members, plan.placements, now)
        else:
            self._settled = (plan.view.epoch, powers)
            self.failback = frozenset()

    # -- members ---------------------------------------------------------------------------

    def agrees(self, word: Heartbeat) -> bool:
        """Whether a peer was configured as this node was; only then may they serve together."""
        return agrees(word, self.settings)

    def _powers(
        self, own: Own, heard: Mapping[int, Peer], members: frozenset[int], now: float
    ) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Return for each group the (node, power) pairs that may own buckets now: of the fittest that can."""
        words: dict[int, tuple[NodeState, tuple[int, ...], int, Fitness]] = {
            self.settings.node: (own.state, own.powers, own.incarnation, own.fitness)
        }
        for node in members - {self.settings.node}:
            word = heard[node].heartbeat
            words[node] = (word.state, word.powers, word.incarnation, word.fitness)
        able = [
            (node, powers, fitness)
            for node, (state, powers, incarnation, fitness) in sorted(words.items())
            if state is NodeState.UP
            and len(powers) == len(self.settings.groups)
            and node not in self.retired
            and now - self._member_since.get(Member(node, incarnation), now) >= self.settings.detection
        ]

        def fit(index: int) -> tuple[tuple[int, int], ...]:
            worst = worst_accepted(fitness for _, powers, fitness in able if powers[index])
            return tuple((node, powers[index]) for node, powers, fitness in able if fitness <= worst)

        return tuple(map(fit, range(len(self.settings.groups))))

    def _placements(
        self, powers: tuple[tuple[tuple[int, int], ...], ...], previous: tuple[tuple[int, ...], ...]
    ) -> tuple[tuple[int, ...], ...]:
        empty = (NOBODY,) * BUCKETS
        return tuple(
            place(
                previous[index] if previous else empty,
                dict(powers[index]),
                mode,
                sticky=self.settings.sticky[index] and index not in self.failback,
            )
            for index, mode in enumerate(self.settings.modes)
        )

    def eligible_at(self, now: float) -> float | None:
        """Return when the next member will have been one for a detection time; ``None`` if all have."""
        times = [since + self.settings.detection for since in self._member_since.values()]
        return min((at for at in times if at > now), default=None)

    # -- changes ---------------------------------------------------------------------------

    def _propose(
        self,
        own: Own,
        heard: Mapping[int, Peer],
        members: frozenset[int],
        previous: tuple[tuple[int, ...], ...],
        now: float,
        joiners: tuple[int, ...] = (),
    ) -> None:
        """Propose a view and its plan under a new epoch, above every one heard of, and follow it."""
        me = self.settings.node
        ids = members | {me}
        tuples = tuple(
            Member(node, own.incarnation if node == me else heard[node].incarnation) for node in sorted(ids)
        )
        before = self.plan.view.members if self.plan is not None else ()
        for member in tuples:
            if member.node in joiners or member not in before:
                self._member_since.pop(member, None)
                self._came.discard(member)
        if self.plan is None:
            self._member_since.clear()
        powers = self._powers(own, heard, ids, now)
        epoch = Epoch(self.known_epoch.counter + 1, me)
        self._enter(Plan(View(epoch, tuples), self._placements(powers, previous)), now)

    def _enter(self, plan: Plan, now: float) -> None:
        if self.plan is None:
            self.inside_since = now
        self.plan = plan
        self.deferral = None
        self.differs = None
        self.solitude.deaf = False
        self.known_epoch = max(self.known_epoch, plan.view.epoch)
        owners = {owner for placement in plan.placements for owner in placement}
        # Who owns buckets has been a member for long, whatever this node has seen of it itself.
        unseen = now - self.settings.detection
        self._came &= set(plan.view.members)
        self._member_since = {
            member: self._member_since.get(member, unseen if member.node in owners else now)
            for member in plan.view.members
        }
        self.reports.append(
            Report(
                "view.entered",
                {
                    "epoch": list(plan.view.epoch),
                    "members": [member.node for member in plan.view.members],
                    "buckets": {
                        name: {node: placement.count(node) for node in sorted(set(placement))}
                        for name, placement in zip(self.settings.groups, plan.placements, strict=True)
                    },
                },
            )
        )

    def reopen(self, now: float) -> None:
        """Take part again after having left for good."""
        self.closed = False
        self.outside_since = now

    def leave(self, now: float, reason: str, by: int) -> None:
        """Be outside, to release everything; only a view later than all known ones can bring it back."""
        if self.plan is None:
            return
        epoch = self.plan.view.epoch
        self.plan = None
        self.outside_since = now
        self.left_epoch = self.known_epoch
        self._member_since.clear()
        self._came.clear()
        self.reports.append(Report("view.left", {"epoch": list(epoch), "reason": reason, "by": by}))


def _superseded(view: View, heard: Mapping[int, Peer]) -> bool:
    """Whether somebody follows a later view with a member of ``view``."""
    followed = (peer.heartbeat.view for peer in heard.values() if peer.heartbeat.inside)
    return any(
        later is not None and later.epoch > view.epoch and not disjoint(later, view) for later in followed
    )
