"""Datagrams that were refused, by whom they seem to come from, in words that say what to do.

Where a datagram claims to come from is not proved: it is good for a hint and for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import PeerError

__all__ = ["Rejections"]

LOG_AGAIN_S = 60.0
"""A cause that lasts is logged this often."""

RECENT_S = 10.0
"""So long after the newest refused datagram ``status`` warns of it."""

MOST_SOURCES = 64
"""So many sources are told apart; they can be forged without end."""

_ADVICE = {
    "forged": "signed with another key: compare the key files of both (sha256sum) and copy one of them",
    "key": "signed with a key that this node's key file lacks: copy the newer key file to both",
    "farm": "of another farm: is [farm] name the same on both, or do two farms share the port?",
    "version": "of another version of the protocol: run the same nlbfarm on all nodes",
    "malformed": "that are no heartbeats: does another program send to this port?",
}


@dataclass(slots=True)
class _Cause:
    count: int = 0
    newest: float = float("-inf")
    logged: float = float("-inf")


class Rejections:
    """Counts refused datagrams and says what they mean.

    Args:
        peers: Addresses of the peers, by id.
        names: Names of the nodes, by id.
    """

    def __init__(self, peers: Mapping[int, Sequence[IPAddress]], names: Mapping[int, str]) -> None:
        self._names: Mapping[str, str] = {}
        self.configure(peers, names)
        self._causes: dict[tuple[str, str], _Cause] = {}
        self.counts: dict[str, int] = {}
        """Refused datagrams by kind of error."""

    def configure(self, peers: Mapping[int, Sequence[IPAddress]], names: Mapping[int, str]) -> None:
        """Go by other peers from now on; arguments as for the class."""
        self._names = {str(address): names[node] for node, known in peers.items() for address in known}

    def add(self, error: PeerError, source: str, now: float) -> str | None:
        """Count one; return a sentence if it is time to log it.

        Args:
            error: Why it was refused.
            source: Address and port that it claims to come from.
            now: The present, seconds on the monotonic clock.
        """
        self.counts[error.kind] = self.counts.get(error.kind, 0) + 1
        host = source.rpartition(":")[0].strip("[]") or source
        key = (error.kind, host)
        if key not in self._causes and len(self._causes) >= MOST_SOURCES:
            del self._causes[min(self._causes, key=lambda one: self._causes[one].newest)]
        cause = self._causes.setdefault(key, _Cause())
        cause.count += 1
        cause.newest = now
        if now - cause.logged < LOG_AGAIN_S:
            return None
        cause.logged = now
        return self._sentence(*key)

    def warnings(self, now: float) -> list[str]:
        """Return a sentence for each cause that was seen in the last seconds."""
        return [
            f"{self._sentence(*key)} ({cause.count} so far)"
            for key, cause in sorted(self._causes.items())
            if now - cause.newest <= RECENT_S
        ]

    def _sentence(self, kind: str, host: str) -> str:
        name = self._names.get(host)
        who = f"{name} ({host})" if name else host
        return f"{who} sends datagrams {_ADVICE.get(kind, kind)}"
