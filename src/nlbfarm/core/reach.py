"""Who reaches whom, and who may be in a view with whom (rule 2)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from nlbfarm.core.hearing import Hearing, Peer
from nlbfarm.core.settings import Settings
from nlbfarm.core.views import disjoint
from nlbfarm.core.wire import Heartbeat, Member, NodeState, Plan

__all__ = ["FRESH_INTERVALS", "agrees", "broken_links", "hear_each_other", "joiners_of", "lowest"]

FRESH_INTERVALS = 2.5
"""Only the word of a peer heard this recently can show that a link between two others is broken:
an older word may predate the death of one of them."""


def agrees(word: Heartbeat, settings: Settings) -> bool:
    """Whether a peer that says ``word`` was configured as this node was."""
    return (
        word.config_digest == settings.config_digest
        and word.secret_digest == settings.secret_digest
        and len(word.powers) == len(settings.groups)
    )


def joiners_of(
    hearing: Hearing,
    settings: Settings,
    kept: set[int],
    heard: Mapping[int, Peer],
    plan: Plan | None,
    retired: Collection[int],
    now: float,
) -> tuple[int, ...]:
    """Return the outsiders to take in: those that every kept node hears and that hear every kept node."""
    joiners: list[int] = []
    for node, peer in heard.items():
        word = peer.heartbeat
        if node in kept or node in retired or word.inside or word.state is NodeState.STOP:
            continue
        if not agrees(word, settings):
            continue
        if word.view is not None and (plan is None or disjoint(word.view, plan.view)):
            continue
        if not hearing.hears_us(peer, now):
            continue
        others = [heard[other] for other in (*kept, *joiners) if other != settings.node]
        if all(hear_each_other(peer, other) for other in others):
            joiners.append(node)
    return tuple(joiners)


def broken_links(
    hearing: Hearing,
    settings: Settings,
    live: Mapping[int, Peer],
    member_since: Mapping[Member, float],
    inside_since: float,
    now: float,
) -> dict[int, set[int]]:
    """Return the pairs of live members of which one no longer hears the other, as fresh words say.

    Args:
        hearing, settings: This node's.
        live: The other live members.
        member_since: Since when each has been a member.
        inside_since: Since when this node has been inside a view: the others need time to answer it.
        now: The present.
    """
    me = settings.node
    fresh = FRESH_INTERVALS * settings.interval
    broken: dict[int, set[int]] = {}

    def settled(peer: Peer) -> bool:
        """Whether others have had the time to hear it, and we to hear of that."""
        since = max(member_since.get(Member(peer.node, peer.incarnation), now), peer.first_heard)
        return now - since >= settings.detection and now - peer.last_heard <= fresh

    speakers = [peer for peer in live.values() if settled(peer)]
    for peer in speakers:
        if now - inside_since >= settings.detection and not hearing.hears_us(peer, now):
            broken.setdefault(me, set()).add(peer.node)
        for other in speakers:
            if other is not peer and not peer.hears(other.node, other.incarnation):
                broken.setdefault(peer.node, set()).add(other.node)
    return broken


def hear_each_other(one: Peer, other: Peer) -> bool:
    """Whether each of two peers says that it hears the other in its present life."""
    return one.hears(other.node, other.incarnation) and other.hears(one.node, one.incarnation)


def lowest(states: Mapping[int, NodeState]) -> int:
    """Return the lowest node that is ``UP``; if none is, the lowest that is not ``STOP``; else the lowest."""
    for wanted in (
        {NodeState.UP},
        {NodeState.STARTING, NodeState.WAIT, NodeState.UP, NodeState.DRAINING},
        set(NodeState),
    ):
        able = [node for node, state in states.items() if state in wanted]
        if able:
            return min(able)
    raise ValueError("no nodes")
