"""The word that a node spreads: its heartbeats, and when one goes out at once."""

from __future__ import annotations

from collections.abc import Mapping

from nlbfarm.core.handoff import Handoff
from nlbfarm.core.hearing import Peer
from nlbfarm.core.membership import Membership
from nlbfarm.core.messages import clip_reason
from nlbfarm.core.wire import Echo, Fitness, Heartbeat, NodeState, Plan, plan_digest

__all__ = ["Word"]


class Word:
    """Composes heartbeats from what a node is in.

    Args:
        membership: The view that it follows or defers to.
        handoff: Its buckets.
        incarnation: Its life.
    """

    def __init__(self, membership: Membership, handoff: Handoff, incarnation: int) -> None:
        self.incarnation = incarnation
        self.sequence = 0
        """Of the newest heartbeat of this life."""
        self._membership = membership
        self._handoff = handoff
        self._digest: tuple[Plan, bytes] | None = None

    def begin(self, incarnation: int) -> None:
        """Begin another life."""
        self.incarnation = incarnation
        self.sequence = 0

    def urgent(
        self, state: tuple[NodeState, str], fitness: Fitness, powers: tuple[int, ...]
    ) -> tuple[object, ...]:
        """Return what, when it changes, is told to everybody at once."""
        membership, handoff = self._membership, self._handoff
        plan = membership.plan
        view = membership.deferral if plan is None else plan.view.epoch
        known = membership.known_epoch
        condition = state, fitness, powers
        return condition, known, plan is None, view, handoff.holding, handoff.draining, self.incarnation

    def digest(self, plan: Plan) -> bytes:
        """Return the digest by which ``plan`` is announced, worked out once a plan."""
        if self._digest is None or self._digest[0] is not plan:
            self._digest = (plan, plan_digest(plan))
        return self._digest[1]

    def heartbeat(
        self,
        state: tuple[NodeState, str],
        fitness: Fitness,
        powers: tuple[int, ...],
        heard: Mapping[int, Peer],
        *,
        answer_now: bool,
    ) -> Heartbeat:
        """Return the heartbeat of this moment, with the next number.

        Args:
            state: State and reason.
            fitness: How fit the node is, if it is ``UP``.
            powers: One per group.
            heard: The peers to echo, in the order of their ids.
            answer_now: Whether the receivers are to answer at once.
        """
        membership, settings = self._membership, self._membership.settings
        plan = membership.plan
        self.sequence += 1
        return Heartbeat(
            sender=settings.node,
            incarnation=self.incarnation,
            sequence=self.sequence,
            config_digest=settings.config_digest,
            secret_digest=settings.secret_digest,
            state=state[0],
            reason=clip_reason(state[1]),
            answer_now=answer_now,
            known_epoch=membership.known_epoch,
            inside=plan is not None,
            view=plan.view if plan is not None else membership.deferral,
            plan=plan,
            plan_digest=self.digest(plan) if plan is not None else None,
            echoes=tuple(
                Echo(peer.node, peer.incarnation, peer.heartbeat.sequence) for peer in heard.values()
            ),
            powers=powers,
            holding=self._handoff.holding,
            draining=self._handoff.draining,
            fitness=fitness if state[0] is NodeState.UP else Fitness.SOUND,
        )
