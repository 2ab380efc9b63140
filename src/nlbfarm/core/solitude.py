"""Alone or deaf? What a node that hears nobody may make of it (rule 5).

With three nodes or more, peers whose hosts all answer ARP while none of them is heard are more
likely alive than dead: then it is this node that is deaf (a firewall, a wrong address), and it
waits rather than fence everybody else. A host that refuses our datagrams has no node process
and serves nothing, whatever its ARP says.
"""

from __future__ import annotations

from collections.abc import Mapping

from nlbfarm.core.commands import Report
from nlbfarm.core.hearing import Peer
from nlbfarm.core.settings import Partition, Settings

__all__ = ["Solitude"]

PROBE_WAIT_S = 0.4
"""How long the answer to a reachability probe is awaited before it counts as: nobody answered."""

PROBE_AGAIN_S = 1.0
"""How often a node that takes itself for deaf looks again."""

REFUSED_S = 3.0
"""How long an ICMP port unreachable counts; Linux sends at most one a second to each destination
(``icmp_ratelimit``, Documentation/networking/ip-sysctl.rst)."""

SILENCE_BEFORE_PROBE = 3
"""Silent intervals of all peers after which reachability is probed, to have the answer when they are lost."""


class Solitude:
    """Judges the silence around one node."""

    def __init__(self, settings: Settings) -> None:
        self.probe_wanted = False
        """The shell is to find out who answers ARP."""
        self.deaf = False
        self.reports: list[Report] = []
        self._probed_at: float | None = None
        self._reachable: frozenset[int] | None = None
        self._refused: dict[int, float] = {}
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Go by these settings from now on."""
        self._settings = settings
        self._asks = len(settings.nodes) >= 3 and settings.partition is Partition.SERVE
        self.deaf &= self._asks

    def refused(self, node: int, now: float) -> None:
        """Take note that a peer's host says that nothing listens there."""
        self._refused[node] = now

    def reachability(self, nodes: frozenset[int]) -> None:
        """Take note of the peers that answered ARP just now."""
        self._reachable = nodes

    def watch(self, heard: Mapping[int, Peer], serving_alone: bool, now: float) -> None:
        """Ask for a probe in time when all peers fall silent, and again while deaf."""
        if heard and self.deaf:
            self.deaf = False
            self.reports.append(Report("node.hears_again", {"peers": sorted(heard)}))
        if not self._asks:
            return
        quiet = SILENCE_BEFORE_PROBE * self._settings.interval
        if any(now - peer.last_heard < quiet for peer in heard.values()):
            self._probed_at = None
            return
        if not heard and serving_alone:
            return
        if self._probed_at is None or (self.deaf and now - self._probed_at >= PROBE_AGAIN_S):
            self._probed_at = now
            self._reachable = None
            self.probe_wanted = True

    def alone(self, now: float) -> bool:
        """Whether a node that hears nobody may take itself for the only one left; sets ``deaf``."""
        if not self._asks:
            return True
        if self._probed_at is None:
            return False
        if self._reachable is None:
            return not self.deaf and now - self._probed_at >= PROBE_WAIT_S
        peers = set(self._settings.nodes) - {self._settings.node}
        answering = {
            node for node in self._reachable & peers if now - self._refused.get(node, -REFUSED_S) >= REFUSED_S
        }
        if answering < peers:
            self.deaf = False
            return True
        if not self.deaf:
            self.deaf = True
            self.reports.append(Report("node.deaf", {"peers": sorted(peers)}, warning=True))
        return False

    def deadline(self) -> float | None:
        """Return when the wait for an answer is over; ``None`` if none is awaited."""
        if self._probed_at is None or self._reachable is not None:
            return None
        return self._probed_at + PROBE_WAIT_S
