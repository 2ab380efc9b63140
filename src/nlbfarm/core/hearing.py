"""Who is heard, and who hears us (rule 1).

A heartbeat proves that its sender reaches us. Its echo of one of our own recent heartbeats proves
that we reach it. Both are kept for each peer, in its present life only.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from operator import or_

from nlbfarm.core.buckets import ALL, Bitmap
from nlbfarm.core.settings import Settings
from nlbfarm.core.wire import OLDEST, VERSION, Heartbeat, NodeState

__all__ = ["Arrival", "Hearing", "Peer"]

SENT_KEPT = 512
"""How many send times are remembered: more than five seconds of the busiest exchange."""


class Arrival(enum.Enum):
    """What a heartbeat turned out to be."""

    NEWS = "news"
    """The newest word of this peer, and something in it, or in how we stand to it, has changed."""
    SAME = "same"
    """The newest word of this peer, in time; only its numbers have grown: nothing has to be judged anew."""
    DUPLICATE = "duplicate"
    """Already known, or overtaken: it came over another network, or the network reordered it."""
    OLD_LIFE = "old-life"
    """From an earlier incarnation: a replay, or very late."""


class Peer:
    """What is known of one peer in its present life; times are seconds on the monotonic clock."""

    __slots__ = (
        "acked_at",
        "acked_sequence",
        "claims",
        "first_heard",
        "heartbeat",
        "last_heard",
        "lives_heard",
        "lost_since",
        "networks",
        "node",
        "version",
    )

    def __init__(self, node: int, heartbeat: Heartbeat, at: float) -> None:
        self.node = node
        self.heartbeat = heartbeat
        self.first_heard = at
        self.last_heard = at
        self.acked_at: float | None = None
        """When we sent the newest heartbeat of ours that it has echoed."""
        self.acked_sequence = 0
        self.networks: dict[int, tuple[int, float]] = {}
        """For each heartbeat network: the newest sequence heard there, and when."""
        self.learn(heartbeat)
        self.lost_since: float | None = None
        """Since when it counts as lost; ``None`` while it is heard."""
        self.version = OLDEST
        """Newest wire version in which this life has been heard."""

    def learn(self, heartbeat: Heartbeat) -> None:
        """Work out once what is asked often of a word that says something new."""
        self.claims = _claims(heartbeat)
        """For each group what it announces as held or drained; empty if that is nothing."""
        self.lives_heard = frozenset([echo[:2] for echo in heartbeat.echoes])
        """The nodes, each in its life, that it hears."""

    @property
    def incarnation(self) -> int:
        """The peer's present incarnation."""
        return self.heartbeat.incarnation

    @property
    def holds_nothing_outside(self) -> bool:
        """Whether it is outside any view and holds no bucket.

        Such a peer must hear itself named by a view, and then wait for a detection time, before
        it accepts a new flow; until then it limits nobody. It may drain: without a view it has no lease.
        """
        word = self.heartbeat
        return not word.inside and not any(word.holding)

    def hears(self, node: int, incarnation: int) -> bool:
        """Whether it said, in its newest heartbeat, that it hears ``node`` in that life."""
        return (node, incarnation) in self.lives_heard


class Hearing:
    """The peers of one node.

    Args:
        settings: This node's.
        now: The present: it listens from now on.
    """

    def __init__(self, settings: Settings, now: float) -> None:
        self._settings = settings
        self._listens_since = now
        self._sent: dict[int, float] = {}
        self.peers: dict[int, Peer] = {}
        """Every peer ever heard, by rising id."""
        self._counted: dict[int, tuple[int, int]] = {}
        self.patience = 0.0
        """Seconds added to the detection time while we ourselves run late."""

    def configure(self, settings: Settings) -> None:
        """Go by other settings from now on; who is no longer configured is forgotten.

        Not how far it had counted: should it come back, an old datagram of it is no news.
        """
        self._settings = settings
        for node in set(self.peers) - set(settings.nodes):
            word = self.peers.pop(node).heartbeat
            self._counted[node] = (word.incarnation, word.sequence)

    def forget_sent(self) -> None:
        """Start a new life: echoes of the earlier one prove nothing."""
        self._sent.clear()
        for peer in self.peers.values():
            peer.acked_at = None
            peer.acked_sequence = 0

    def sent(self, sequence: int, now: float) -> None:
        """Remember when our heartbeat ``sequence`` went out."""
        self._sent[sequence] = now
        if len(self._sent) > SENT_KEPT:
            del self._sent[next(iter(self._sent))]

    def arrived(
        self, heartbeat: Heartbeat, network: int, at: float, incarnation: int, version: int = VERSION
    ) -> Arrival:
        """Take in an authenticated heartbeat.

        Args:
            heartbeat: What arrived.
            network: The heartbeat network that it came over.
            at: When it arrived.
            incarnation: Our own, for the echo.
            version: The wire version that it was written in.
        """
        peer = self.peers.get(heartbeat.sender)
        if peer is not None and heartbeat.incarnation < peer.incarnation:
            return Arrival.OLD_LIFE
        if peer is None and (heartbeat.incarnation, heartbeat.sequence) <= self._counted.get(
            heartbeat.sender, ()
        ):
            return Arrival.DUPLICATE
        if peer is None or heartbeat.incarnation > peer.incarnation:
            peer = Peer(heartbeat.sender, heartbeat, at)
            self.peers = dict(sorted({**self.peers, peer.node: peer}.items()))
            fresh = True
        else:
            fresh = heartbeat.sequence > peer.heartbeat.sequence
        peer.version = max(peer.version, version)
        newest_there = peer.networks.get(network)
        if newest_there is None or heartbeat.sequence > newest_there[0]:
            peer.networks[network] = (heartbeat.sequence, at)
        if not fresh:
            return Arrival.DUPLICATE
        before, acked_before = peer.heartbeat, peer.acked_at
        gap = at - peer.last_heard
        if gap > self._settings.detection:
            peer.first_heard = at
            peer.acked_at = None
        peer.heartbeat = heartbeat
        peer.last_heard = max(peer.last_heard, at)
        for echo in heartbeat.echoes:
            if echo.node == self._settings.node and echo.incarnation == incarnation:
                sent_at = self._sent.get(echo.sequence)
                if sent_at is not None and echo.sequence > peer.acked_sequence:
                    peer.acked_sequence = echo.sequence
                    peer.acked_at = sent_at
        interval = self._settings.interval
        prompt = gap < 2 * interval and acked_before is not None and at - acked_before < 2 * interval
        if prompt and _says_the_same(heartbeat, before):
            return Arrival.SAME
        peer.learn(heartbeat)
        return Arrival.NEWS

    def grace(self, peer: Peer) -> float:
        """Return for how many seconds the buckets of a silent peer are adopted rather than owned."""
        word = peer.heartbeat
        returning = word.state is NodeState.STOP and any(word.draining)
        return self._settings.restart_grace if returning else self._settings.takeover_grace

    def contested(self, now: float) -> tuple[Bitmap, ...]:
        """Return for each group the buckets whose established flows may be another node's.

        Those are the buckets that a peer announces as draining or holding, and for a grace those that a
        silent peer was last known to hold or drain. A peer that speaks again, in whichever life, announces
        what it found by itself. Who has not listened for the longest grace cannot know: then it is all of
        them.
        """
        if now < self._listens_since + self._settings.restart_grace:
            return (ALL,) * len(self._settings.groups)
        found = [0] * len(self._settings.groups)
        for peer in self.peers.values():
            if peer.claims and (peer.lost_since is None or now < peer.lost_since + self.grace(peer)):
                for index, bitmap in enumerate(peer.claims[: len(found)]):
                    found[index] |= bitmap
        return tuple(found)

    def judge(self, now: float) -> dict[int, Peer]:
        """Return the peers that are not lost, by id, and take note since when the others are."""
        heard = {}
        for node, peer in self.peers.items():
            if now < self.lost_at(peer):
                peer.lost_since = None
                heard[node] = peer
            elif peer.lost_since is None:
                peer.lost_since = now
        return heard

    def deadlines(self) -> Iterator[float]:
        """Yield when a peer is lost, and when a lost one is remembered no longer."""
        yield self._listens_since + self._settings.restart_grace
        for peer in self.peers.values():
            if peer.lost_since is None:
                yield self.lost_at(peer)
            elif peer.claims:
                yield peer.lost_since + self.grace(peer)

    def lost_at(self, peer: Peer) -> float:
        """Return when ``peer`` counts as lost unless it is heard before."""
        return peer.last_heard + (self._settings.detection + self.patience)

    def heard(self, now: float) -> Iterator[Peer]:
        """Yield the peers that are not lost, by rising id."""
        wait = self._settings.detection + self.patience
        for peer in self.peers.values():
            if now < peer.last_heard + wait:
                yield peer

    def silent_networks(self, now: float) -> set[tuple[int, int]]:
        """Return the (peer, network) pairs that fell silent while the peer is heard over another network."""
        detection = self._settings.detection + self.patience
        return {
            (peer.node, network)
            for peer in self.heard(now)
            for network, (_, at) in peer.networks.items()
            if now - at >= detection
        }

    def hears_us(self, peer: Peer, now: float) -> bool:
        """Whether ``peer`` has echoed a heartbeat that we sent within the detection time."""
        return peer.acked_at is not None and now - peer.acked_at <= self._settings.detection + self.patience

    def overdue(self, peer: Peer, now: float) -> bool:
        """Whether the newest acknowledgement of ``peer`` is older than two intervals (rule 4)."""
        since = peer.acked_at if peer.acked_at is not None else peer.first_heard
        return now - since > 2 * self._settings.interval


def _claims(word: Heartbeat) -> tuple[Bitmap, ...]:
    claims = tuple(map(or_, word.holding, word.draining))
    return claims if any(claims) else ()


def _says_the_same(word: Heartbeat, before: Heartbeat) -> bool:
    """Whether two words of one life differ in nothing but sequences and the wish for an answer."""
    return (
        word is not before
        and word.incarnation == before.incarnation
        and word.state is before.state
        and word.fitness is before.fitness
        and word.known_epoch == before.known_epoch
        and word.inside is before.inside
        and word.view == before.view
        and word.plan_digest == before.plan_digest
        and word.powers == before.powers
        and word.holding == before.holding
        and word.draining == before.draining
        and word.reason == before.reason
        and word.config_digest == before.config_digest
        and word.secret_digest == before.secret_digest
        and [echo[:2] for echo in word.echoes] == [echo[:2] for echo in before.echoes]
    )
