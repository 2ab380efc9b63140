"""Until when the filter may accept (rule 4).

I4, fencing, is enforced here: a peer takes our buckets over when it has not heard us for a
detection time. It acknowledged the heartbeat that we sent at ``acked_at``, so it will not do so
before ``acked_at + detection``; the lease ends half an interval earlier.
"""

from __future__ import annotations

from collections.abc import Iterable

from nlbfarm.core.hearing import Peer
from nlbfarm.core.settings import Partition, Settings

__all__ = ["died", "lease_end", "peer_limit"]

SILENT_INTERVALS = 2.5
"""A peer silent for this long that acknowledged us to the last is taken for dead, not for deaf to us."""


def died(peer: Peer, now: float, settings: Settings) -> bool:
    """Whether ``peer`` fell silent while it still acknowledged us: it died, it does not ignore us.

    So did one that was heard too shortly to acknowledge anything; or its word was a stray from before.
    """
    quiet = SILENT_INTERVALS * settings.interval
    return now - peer.last_heard >= quiet and peer.last_heard - _acked(peer) <= quiet


def peer_limit(peer: Peer, now: float, settings: Settings) -> float | None:
    """Return the time at which ``peer`` ends our lease, or ``None`` if it does not limit it."""
    if peer.holds_nothing_outside or died(peer, now, settings):
        return None
    return _acked(peer) + settings.detection - settings.interval / 2


def _acked(peer: Peer) -> float:
    """Return when we sent what ``peer`` acknowledged last, or when it was first heard if that is later.

    What it acknowledges first may be a stray copy of something sent long before its life began.
    """
    return max(peer.acked_at, peer.first_heard) if peer.acked_at is not None else peer.first_heard


def lease_end(heard: Iterable[Peer], now: float, settings: Settings) -> float:
    """Return when the lease ends, on the monotonic clock; a time not after ``now`` means: accept nothing.

    Args:
        heard: The peers that are not lost.
        now: The present.
        settings: Interval, detection time and the longest lease.
    """
    end = now + settings.lease
    heard = list(heard)
    if settings.partition is Partition.MAJORITY:
        end = min(end, _majority_end(heard, now, settings))
    for peer in heard:
        limit = peer_limit(peer, now, settings)
        if limit is not None and limit < end:
            end = limit
    return end


def _majority_end(heard: Iterable[Peer], now: float, settings: Settings) -> float:
    """Return when too few acknowledgements are fresh for a majority of the configured nodes."""
    needed = len(settings.nodes) // 2
    acknowledged = sorted((peer.acked_at for peer in heard if peer.acked_at is not None), reverse=True)
    if needed == 0:
        return now + settings.lease
    if len(acknowledged) < needed:
        return now
    return acknowledged[needed - 1] + settings.detection - settings.interval / 2
