"""Nodes that the configuration no longer names, but that still serve: counted with until they do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from nlbfarm.core.hearing import Peer
from nlbfarm.core.settings import Settings
from nlbfarm.core.wire import Plan

__all__ = ["Roster", "merge", "without_idle"]


@dataclass(frozen=True, slots=True)
class Roster:
    """Whom a node counts with.

    Args:
        settings: Names every node that is counted with, the retired ones too.
        retired: Those that get no buckets any more.
        forgotten: Those that were just dropped.
    """

    settings: Settings
    retired: frozenset[int]
    forgotten: tuple[int, ...] = ()


def merge(before: Settings, after: Settings, known: Collection[int]) -> Roster:
    """Return the roster after a reload: nodes that are gone and ``known`` (ever heard) are retired.

    Raises:
        ValueError: ``after`` differs in more than a running node can go by.
    """
    after = before.renewed(after)
    gone = {node: name for node, name in before.nodes.items() if node not in after.nodes}
    retired = {node: name for node, name in gone.items() if node in known}
    nodes = dict(sorted({**after.nodes, **retired}.items()))
    forgotten = tuple(sorted(gone.keys() - retired.keys()))
    return Roster(replace(after, nodes=nodes), frozenset(retired), forgotten)


def without_idle(
    settings: Settings, retired: frozenset[int], heard: Mapping[int, Peer], plan: Plan | None
) -> Roster | None:
    """Return the roster without the retired nodes that serve no longer; ``None`` if all of them still do."""
    idle = [node for node in sorted(retired) if not _serves(heard.get(node), plan)]
    if not idle:
        return None
    nodes = {node: name for node, name in settings.nodes.items() if node not in idle}
    return Roster(replace(settings, nodes=nodes), retired - set(idle), tuple(idle))


def _serves(peer: Peer | None, plan: Plan | None) -> bool:
    """Whether a peer holds or drains a bucket, or is about to."""
    if peer is None:
        return False
    owns = plan is not None and any(peer.node in placement for placement in plan.placements)
    return bool(peer.claims) or (peer.heartbeat.inside and owns)
