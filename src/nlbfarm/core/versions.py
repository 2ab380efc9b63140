"""Which wire version to speak to which peer, so that a farm is updated node by node.

A node speaks to each peer in the newest version in which the peer's present life has been heard, and in the
oldest to a peer that has not been heard yet. Two nodes that both speak a newer one would so never find out:
therefore copies of heartbeats go out in the newest version beside the older one. A peer that does not know
it refuses the copy unread; one that does has shown, with its next word, that it does.

A version is a fact about a life: within one, the newest heard counts, however the datagrams were mixed,
delayed or repeated; a new life starts with what it is heard in. A replay of an earlier life changes nothing
here but one copy a second in the oldest version (see ``heard``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from nlbfarm.core.wire import OLDEST, VERSION, AnyMessage, Fitness, Heartbeat, NodeState

__all__ = ["Versions", "spoken"]

FITNESS = 3
"""The version that says how fit a node is."""

COPY_S = 1.0
"""Seconds between two copies for one peer."""

EAGER_COPIES = 5
"""So many copies go with the first heartbeats for each life of a peer: who joins is understood at once."""

SETTLED_S = 3.0
"""A peer that has not been heard in the newest version for so long in its life does not speak it."""


def spoken(message: AnyMessage, version: int) -> AnyMessage:
    """Return ``message`` as it is said in ``version``.

    Earlier versions have no fitness: a node that is not fit says that it waits, and so has no buckets while
    a leader of an earlier version places them.
    """
    if version >= FITNESS or not isinstance(message, Heartbeat) or not message.fitness:
        return message
    state = NodeState.WAIT if message.fitness >= Fitness.DEGRADED else message.state
    return replace(message, state=state, fitness=Fitness.SOUND)


class _Peer:
    """What is known of one peer; times are seconds on the monotonic clock."""

    __slots__ = ("copied_at", "eager", "heard_since", "incarnation", "lagging_at", "version")

    def __init__(self) -> None:
        self.incarnation = -1
        self.version = OLDEST
        self.heard_since = 0.0
        self.eager = EAGER_COPIES
        self.copied_at = float("-inf")
        self.lagging_at = float("-inf")
        """When an earlier life was last heard in an older version."""


class Versions:
    """The wire versions between one node and its peers.

    Args:
        peers: Ids of the configured peers; others are ignored.
        newest: Newest version that this node speaks.
    """

    def __init__(self, peers: Iterable[int], newest: int = VERSION) -> None:
        self._newest = newest
        self._peers = {node: _Peer() for node in peers}

    @property
    def peers(self) -> frozenset[int]:
        """The peers that are counted with."""
        return frozenset(self._peers)

    def configure(self, peers: Iterable[int]) -> None:
        """Take these as the peers from now on; what is known of those that stay is kept."""
        self._peers = {node: self._peers.get(node) or _Peer() for node in peers}

    def heard(self, node: int, incarnation: int, version: int, now: float) -> None:
        """Take in that an authentic datagram of ``node`` in that life was written in ``version``.

        For every datagram that the codec has accepted, also one that came twice. One of an earlier life is
        not news. It may come from a node that lost its file of incarnations, and learns of that only from
        our heartbeats: if it speaks an older version, copies go out in the oldest so that it can read them.
        """
        peer = self._peers.get(node)
        if peer is None:
            return
        if incarnation > peer.incarnation:
            peer.incarnation = incarnation
            peer.version = version
            peer.heard_since = now
            peer.eager = EAGER_COPIES
        elif incarnation == peer.incarnation:
            peer.version = max(peer.version, version)
        elif version < peer.version:
            peer.lagging_at = now

    def of(self, node: int) -> int:
        """Return the version to speak to ``node``."""
        peer = self._peers.get(node)
        return peer.version if peer is not None else OLDEST

    def speak(
        self, message: AnyMessage, nodes: Iterable[int], now: float
    ) -> list[tuple[int, tuple[int, ...]]]:
        """Return in which versions to send ``message`` now, and to whom each.

        The newest comes first: who reads both takes the first as news and the second as a repetition.

        Args:
            message: Of a heartbeat copies may be sent, of other messages not.
            nodes: For whom it is.
            now: The present, seconds on the monotonic clock.
        """
        copies = isinstance(message, Heartbeat)
        groups: dict[int, list[int]] = {}
        for node in nodes:
            peer = self._peers.get(node)
            version = peer.version if peer is not None else OLDEST
            groups.setdefault(version, []).append(node)
            if copies and peer is not None:
                also = self._copy(peer, now)
                if also is not None:
                    groups.setdefault(also, []).append(node)
        return [(version, tuple(groups[version])) for version in sorted(groups, reverse=True)]

    def behind(self, now: float) -> Mapping[int, int]:
        """Return the peers that do not speak the newest version, with the one they speak.

        Only those that were heard first, in their present life, some seconds ago: right after a start nobody
        knows. Whether they are still heard is not looked at.
        """
        return {
            node: peer.version
            for node, peer in sorted(self._peers.items())
            if peer.incarnation >= 0 and peer.version < self._newest and now - peer.heard_since >= SETTLED_S
        }

    def _copy(self, peer: _Peer, now: float) -> int | None:
        """Return the version in which a copy for ``peer`` is due, and note that it goes out."""
        if peer.version < self._newest:
            also = self._newest
        elif peer.version > OLDEST and now - peer.lagging_at <= COPY_S:
            also = OLDEST
        else:
            return None
        if peer.eager == 0 and now - peer.copied_at < COPY_S:
            return None
        peer.eager = max(0, peer.eager - 1)
        peer.copied_at = now
        return also
