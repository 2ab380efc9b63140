"""Release, then acquire (rule 3): which buckets this node may accept, given everybody's newest word.

I1, one server, is enforced here: a bucket is acquired only when nobody who is heard may still
accept it, and everybody who could be given it has heard of the plan that gives it to us.
"""

from __future__ import annotations

from collections.abc import Mapping

from nlbfarm.core.buckets import ALL, Bitmap
from nlbfarm.core.hearing import Peer
from nlbfarm.core.settings import Settings
from nlbfarm.core.wire import Epoch, Plan

__all__ = ["acquirable", "everybody_knows"]


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
        for index, (holding, draining) in enumerate(zip(word.holding, word.draining, strict=True)):
            if index < len(free):
                free[index] &= ~(holding | draining)
    return tuple(given & mask for given, mask in zip(mine, free, strict=True))
