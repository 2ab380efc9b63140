"""Nodes that the configuration no longer names, but that still run: counted with until they have stopped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from nlbfarm.core.hearing import Peer
from nlbfarm.core.settings import Settings
from nlbfarm.core.wire import NodeState

__all__ = ["Roster", "merge", "without_gone"]


SILENT_S = 600.0
"""A retired node that was silent for so long has been switched off."""


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


def without_gone(
    settings: Settings, retired: frozenset[int], peers: Mapping[int, Peer], now: float
) -> Roster:
    """Return the roster without the retired nodes that stopped and were lost, or were silent for very long.

    One that merely serves nothing stays: unanswered, its process would take itself for the only one left.
    Nor is one forgotten at its good-bye: whoever has not heard that yet would take the link for broken.

    Args:
        settings, retired: As they are.
        peers: Every peer ever heard.
        now: The present.
    """
    gone = [node for node in sorted(retired) if node not in peers or _gone(peers[node], settings, now)]
    if not gone:
        return Roster(settings, retired)
    nodes = {node: name for node, name in settings.nodes.items() if node not in gone}
    return Roster(replace(settings, nodes=nodes), retired - set(gone), tuple(gone))


def _gone(peer: Peer, settings: Settings, now: float) -> bool:
    stopped = peer.heartbeat.state is NodeState.STOP and not peer.claims
    return now - peer.last_heard >= (settings.detection if stopped else SILENT_S)
