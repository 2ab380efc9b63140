"""Release, then acquire; adopt and drain (rule 3): what one node's filter does with each bucket, and next.

I1, one server, is enforced here: a bucket is acquired only when nobody who is heard may still accept new
flows of it, and everybody who could be given it has heard of the plan that gives it to us. I3, no broken
connection, is enforced here: a bucket that is given away is drained, and one that is gained is adopted while
its former owner drains it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nlbfarm.core.buckets import ALL, Bitmap, BucketState, BucketStates
from nlbfarm.core.commands import ApplyFilter, AskFlows
from nlbfarm.core.hearing import Peer
from nlbfarm.core.settings import Settings
from nlbfarm.core.wire import Epoch, Plan

__all__ = [
    "TRANSITIONS",
    "Handoff",
    "Transition",
    "acquirable",
    "everybody_knows",
    "next_states",
]

FLOWS_AGAIN_S = 0.5
"""How long after an answer the flow table is asked again."""

FLOWS_LOST_S = 5.0
"""An answer that takes longer is not awaited any more; the question is asked again."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table of bucket states; ``None`` in a condition: whatever it is.

    Args:
        before: The states that the row is for.
        kept: The lease has not lapsed, and the plan leaves it here or not everybody knows the plan yet.
        gained: The plan gives it to this node, and ``acquirable`` says that it may be accepted now.
        contested: Another node announces that it drains or holds it, or fell silent with it lately.
        flows: Established flows of it may be left here, and ``drain_timeout`` is not over.
        after: The state that follows.
    """

    before: frozenset[BucketState]
    kept: bool | None
    gained: bool | None
    contested: bool | None
    flows: bool | None
    after: BucketState


_HELD = frozenset({BucketState.OWN, BucketState.ADOPT})
_NOT_HELD = frozenset({BucketState.FOREIGN, BucketState.DRAIN})

TRANSITIONS = (
    Transition(_HELD, True, None, False, None, BucketState.OWN),
    Transition(_HELD, True, None, True, None, BucketState.ADOPT),
    Transition(_HELD, False, False, None, True, BucketState.DRAIN),
    Transition(_HELD, False, False, None, False, BucketState.FOREIGN),
    Transition(_NOT_HELD, None, True, False, None, BucketState.OWN),
    Transition(_NOT_HELD, None, True, True, None, BucketState.ADOPT),
    Transition(_NOT_HELD, None, False, None, True, BucketState.DRAIN),
    Transition(_NOT_HELD, None, False, None, False, BucketState.FOREIGN),
)
"""Every step of a bucket. ``next_states`` does the same for 256 at once; a test holds them together.

``FOREIGN`` to ``DRAIN`` happens once in the life of a node, at its start: with flows that an earlier process
accepted.
"""


def next_states(
    has: BucketStates, *, kept: Bitmap, gained: Bitmap, contested: Bitmap, flows: Bitmap
) -> BucketStates:
    """Return the states that follow from ``has``, as ``TRANSITIONS`` says for each bucket."""
    held = ((has.own | has.adopt) & kept) | gained
    return BucketStates(own=held & ~contested, adopt=held & contested, drain=flows & ~held)


class Handoff:
    """The buckets of one node: as the filter has them, as they shall be, and what is drained.

    Args:
        settings: This node's.
        flows: Established flows that an earlier process left here, by group and bucket; they are drained.
        now: The present.
    """

    def __init__(self, settings: Settings, flows: Mapping[str, Mapping[int, int]], now: float) -> None:
        self._settings = settings
        closed = BucketStates()
        self.applied: tuple[BucketStates, ...] = (closed,) * len(settings.groups)
        """What the filter does."""
        self.pending: tuple[int, tuple[BucketStates, ...]] | None = None
        """The change under way: its serial, and what the filter will do."""
        self.holding: tuple[Bitmap, ...] = (0,) * len(settings.groups)
        """For each group the buckets of which the filter may accept new flows, now or after ``pending``."""
        self.draining: tuple[Bitmap, ...] = self.holding
        """For each group the buckets of which the filter accepts established flows only."""
        self.flows_left: Mapping[str, Mapping[int, int]] = {
            name: dict(flows.get(name, {})) for name in settings.groups
        }
        """The newest answer about flows, of the buckets that are drained."""
        self._serial = 0
        self._question = 0
        self._asked: tuple[int, Mapping[str, Bitmap]] | None = None
        self._ask_at = now
        self._batches: list[list[tuple[int, float, Bitmap]]] = []
        """For each group what is drained: by which change, since when, and which buckets."""
        for name in settings.groups:
            found = sum(1 << bucket for bucket in self.flows_left[name])
            self._batches.append([(0, now, found)] if found else [])

    def configure(self, settings: Settings) -> None:
        """Go by other settings from now on; the groups are the same."""
        self._settings = settings

    @property
    def held(self) -> tuple[Bitmap, ...]:
        """For each group the buckets of which the filter accepts new flows, as far as is known."""
        return tuple(states.own | states.adopt for states in self.applied)

    @property
    def idle(self) -> bool:
        """Whether the filter accepts nothing, and nothing is under way or waits to be drained."""
        closed = BucketStates()
        return (
            self.pending is None
            and not any(self._batches)
            and all(states == closed for states in self.applied)
        )

    def filter_applied(self, serial: int, now: float) -> None:
        """Take note that the filter has done what was asked.

        Raises:
            ValueError: Nothing with this serial is under way.
        """
        if self.pending is None or self.pending[0] != serial:
            raise ValueError(f"no filter change {serial} is under way")
        before, self.applied, self.pending = self.applied, self.pending[1], None
        self._tell()
        if any(new.drain & ~old.drain for new, old in zip(self.applied, before, strict=True)):
            self._ask_at = now

    def change(
        self,
        kept: tuple[Bitmap, ...],
        gained: tuple[Bitmap, ...],
        contested: tuple[Bitmap, ...],
        now: float,
        *,
        drain: bool = True,
        give_up: bool = False,
    ) -> ApplyFilter | None:
        """Return the change of the filter that is due, if any; none while one is under way.

        Args:
            kept: For each group what stays of the buckets held.
            gained: What may be acquired.
            contested: What others drain or hold, or held lately.
            now: The present.
            drain: Whether buckets that are given away are drained; if not, their connections break.
            give_up: Do not drain any longer what is drained already.
        """
        if self.pending is not None:
            return None
        wanted = []
        for index, has in enumerate(self.applied):
            held = (has.own | has.adopt) & kept[index] | gained[index]
            lost = (has.own | has.adopt) & ~held
            batches = self._batches[index]
            own, adopt = held & ~contested[index], held & contested[index]
            if not batches and (has.own, has.adopt, has.drain) == (own, adopt, 0):
                wanted.append(has)  # by far the most frequent case
                continue
            if lost and drain:
                batches.append((self._serial + 1, now, lost))
            if batches:
                timeout = self._settings.drain_timeout
                left = [
                    (serial, since, bitmap & ~held)
                    for serial, since, bitmap in batches
                    if bitmap & ~held and now < since + timeout and not give_up
                ]
                batches[:] = left
            flows = 0
            for _, _, bitmap in batches:
                flows |= bitmap
            wanted.append(
                next_states(
                    has, kept=kept[index], gained=gained[index], contested=contested[index], flows=flows
                )
            )
        states = tuple(wanted)
        if states == self.applied:
            return None
        self._serial += 1
        self.pending = (self._serial, states)
        self._tell()
        return ApplyFilter(self._serial, dict(zip(self._settings.groups, states, strict=True)))

    def _tell(self) -> None:
        """Bring what is announced up to date: it covers what the filter does and what it may do next."""
        after = self.pending[1] if self.pending is not None else self.applied
        pairs = tuple(zip(self.applied, after, strict=True))
        self.holding = tuple(one.own | one.adopt | two.own | two.adopt for one, two in pairs)
        self.draining = tuple(
            (one.drain | two.drain) & ~held for (one, two), held in zip(pairs, self.holding, strict=True)
        )

    # -- established flows -----------------------------------------------------------------

    def question(self, now: float) -> AskFlows | None:
        """Return the question about flows that is due, if any."""
        if self.pending is not None or now < self._ask_at or not any(one.drain for one in self.applied):
            return None
        self._question += 1
        names = self._settings.groups
        asked = {name: one.drain for name, one in zip(names, self.applied, strict=True) if one.drain}
        self._asked = (self._serial, asked)
        self._ask_at = now + FLOWS_LOST_S
        return AskFlows(self._question, asked)

    def flows_answered(self, serial: int, flows: Mapping[str, Mapping[int, int]], now: float) -> None:
        """Take in an answer; what was asked about and has no flow left is drained no longer.

        An answer to an earlier question says nothing new and is ignored.
        """
        if self._asked is None or serial != self._question:
            return
        (newest, asked), self._asked = self._asked, None
        self._ask_at = now + FLOWS_AGAIN_S
        left: dict[str, dict[int, int]] = {}
        for index, name in enumerate(self._settings.groups):
            found = {bucket: count for bucket, count in flows.get(name, {}).items() if count > 0}
            empty = asked.get(name, 0)
            for bucket in found:
                empty &= ~(1 << bucket)
            self._batches[index] = [
                # What was given away since the question was asked was held then: it was not asked about.
                (change, since, bitmap if change > newest else bitmap & ~empty)
                for change, since, bitmap in self._batches[index]
                if change > newest or bitmap & ~empty
            ]
            drained = 0
            for _, _, bitmap in self._batches[index]:
                drained |= bitmap
            left[name] = {bucket: found[bucket] for bucket in sorted(found) if drained >> bucket & 1}
        self.flows_left = left

    def deadlines(self) -> Iterable[float]:
        """Yield when a drain ends for good, and when flows are asked about again."""
        for batches in self._batches:
            for _, since, _ in batches:
                yield since + self._settings.drain_timeout
        if any(one.drain for one in self.applied):
            yield self._ask_at


def everybody_knows(plan: Plan, me: int, heard: Mapping[int, Peer]) -> bool:
    """Whether every live member has announced that it knows the plan's epoch: then buckets are released."""
    for member in plan.view.members:
        peer = heard.get(member.node)
        if member.node == me or peer is None or peer.incarnation != member.incarnation:
            continue
        if peer.heartbeat.known_epoch < plan.view.epoch:
            return False
    return True


def acquirable(
    plan: Plan,
    mine: tuple[Bitmap, ...],
    known_epoch: Epoch,
    inside_since: float,
    heard: Mapping[int, Peer],
    settings: Settings,
    now: float,
) -> tuple[Bitmap, ...]:
    """Return for each group the buckets that this node may accept now.

    Args:
        plan: The newest plan that names this node.
        mine: For each group the buckets that the plan gives to this node.
        known_epoch: The newest epoch it has heard of; a newer one than the plan's stops all acquiring.
        inside_since: Since when it has been inside a view without a break. A node just come from
            outside waits for a detection time of its own: until then others need not count with it.
        heard: The peers that are not lost.
        settings: This node's.
        now: The present.
    """
    nothing = (0,) * len(mine)
    if known_epoch > plan.view.epoch or now - inside_since < settings.detection:
        return nothing
    for member in plan.view.members:
        peer = heard.get(member.node)
        if member.node != settings.node and (peer is None or peer.incarnation != member.incarnation):
            return nothing
    free = [ALL] * len(mine)
    for peer in heard.values():
        if peer.holds_nothing_outside:
            continue
        word = peer.heartbeat
        if word.known_epoch < plan.view.epoch:
            return nothing
        for index, holding in enumerate(word.holding):
            if index < len(free):
                free[index] &= ~holding
    return tuple(given & mask for given, mask in zip(mine, free, strict=True))
