"""What a node makes of its own late turns (rule 1): it doubts itself before it doubts others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nlbfarm.core.commands import Report
from nlbfarm.core.hearing import Hearing, Peer
from nlbfarm.core.settings import Settings

__all__ = ["Lateness"]


class Lateness:
    """How late this node was, and whether it has made sure since that its peers still count with it.

    Args:
        settings: This node's.
        hearing: Its peers; own lateness is added to the time after which they are lost.
        now: The present.
    """

    def __init__(self, settings: Settings, hearing: Hearing, now: float) -> None:
        self._settings = settings
        self._hearing = hearing
        self._woke_at: float | None = None
        self._patience_ends = now

    def configure(self, settings: Settings) -> None:
        """Go by other settings from now on."""
        self._settings = settings

    @property
    def doubtful(self) -> bool:
        """Whether the node has been late by a lease and has not made sure of its peers since."""
        return self._woke_at is not None

    def judge(self, late: float, now: float) -> Report | None:
        """See how late a turn is: the first one after a pause, whichever event it brings."""
        settings = self._settings
        report = None
        # From here on the lease may have lapsed: a turn renews it, and the next is due an interval later.
        if late >= max(settings.lease - settings.interval, settings.interval):
            self._woke_at = now
            report = Report("node.late", {"late_ms": round(late * 1e3)}, warning=True)
        if late > settings.interval:
            self._hearing.patience = max(self._hearing.patience, late)
            self._patience_ends = now + settings.detection
        elif now >= self._patience_ends:
            self._hearing.patience = 0.0
        return report

    def made_sure(self, heard: Mapping[int, Peer], now: float) -> bool:
        """Whether every peer heard has acknowledged a heartbeat that was sent since the node was late.

        Without any that could serve, it is whether the node has listened for a detection time since: one that
        began to serve meanwhile may not have been heard yet.
        """
        woke = self._woke_at
        if woke is None:
            return True
        # What was said before the pause, "outside" too, may have been true then only.
        limiting = [p for p in heard.values() if not (p.holds_nothing_outside and p.last_heard >= woke)]
        if limiting:
            if any(peer.acked_at is None or peer.acked_at < woke for peer in limiting):
                return False
        elif now - woke < self._settings.detection:
            return False
        self._woke_at = None
        return True

    def deadlines(self) -> Iterator[float]:
        """Yield when a wait ends without an event."""
        if self._woke_at is not None:
            yield self._woke_at + self._settings.detection
        if self._hearing.patience:
            yield self._patience_ends
