"""Leaving in good order (rule 6): ask, hand over, drain, go."""

from __future__ import annotations

from collections.abc import Mapping

from nlbfarm.core.condition import Condition
from nlbfarm.core.handoff import Handoff
from nlbfarm.core.hearing import Peer
from nlbfarm.core.membership import Membership
from nlbfarm.core.settings import Admin
from nlbfarm.core.wire import NodeState

__all__ = ["Leaving"]

PATIENCE = 2
"""Detection times that a leaving node waits for a plan that takes its buckets; then it lets go of them."""


class Leaving:
    """Takes a node out of its view when its process ends or the administrator stopped it.

    Args:
        condition: Whether it is leaving, and how.
        membership: Its view.
        handoff: Its buckets.
        now: The present.
    """

    def __init__(self, condition: Condition, membership: Membership, handoff: Handoff, now: float) -> None:
        self._condition = condition
        self._membership = membership
        self._handoff = handoff
        self._deadline = 0.0
        if condition.leaving:
            self._deadline = now + PATIENCE * membership.settings.detection

    def stop(self, now: float, *, at_once: bool, returning: bool) -> None:
        """The process is to end (``StopRequested``)."""
        self._begin(now)
        self._condition.stopping = True
        self._condition.at_once |= at_once
        self._condition.returning |= returning

    def admin(self, admin: Admin, now: float, *, at_once: bool, reason: str = "") -> None:
        """The administrator wants something else (``AdminChanged``)."""
        condition = self._condition
        if admin is Admin.STOP:
            self._begin(now)
        elif self._membership.closed and not condition.stopping:
            self._membership.reopen(now)
        condition.admin, condition.admin_reason = admin, reason
        wanted = at_once and admin is not Admin.RUN
        condition.at_once = wanted or (condition.stopping and condition.at_once)

    def _begin(self, now: float) -> None:
        if not self._condition.leaving:
            self._deadline = now + PATIENCE * self._membership.settings.detection

    @property
    def deadline(self) -> float | None:
        """When patience ends; ``None`` if the node is not leaving."""
        return self._deadline if self._condition.leaving else None

    def cut(self, now: float) -> bool:
        """Whether established connections are not waited for.

        Outside there is no lease to serve them with: a node that has inherited some has to be taken in first.
        """
        condition = self._condition
        outside = condition.leaving and self._membership.plan is None and now >= self._deadline
        return (condition.at_once or outside) and not condition.returning

    def step(self, heard: Mapping[int, Peer], now: float) -> bool:
        """Leave the view, and close, as soon as that may be; return whether all buckets are released now."""
        membership, handoff, condition = self._membership, self._handoff, self._condition
        if not condition.leaving:
            return False
        plan = membership.plan
        if plan is not None:
            me = membership.settings.node
            held = any(handoff.held)
            given = any(me in placement for placement in plan.placements)
            # Nobody else can serve, or it takes too long: then nothing is gained by waiting.
            others = (peer for peer in heard.values() if peer.heartbeat.inside)
            forced = now >= self._deadline or all(p.heartbeat.state is not NodeState.UP for p in others)
            drained = condition.at_once or condition.returning or not any(handoff.draining)
            if held or (given and not forced) or not drained:
                return forced
            membership.leave(now, "stopping", me)
        if not any(handoff.held) and (handoff.idle or condition.returning):
            membership.closed = True
        return True
