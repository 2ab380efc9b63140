"""What a node tells its log: changes of its own state, and of what it hears of each peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from nlbfarm.core.commands import Report
from nlbfarm.core.hearing import Peer
from nlbfarm.core.settings import Settings
from nlbfarm.core.wire import Fitness, Heartbeat, NodeState

__all__ = ["Reporter"]


class Reporter:
    """Remembers what has been told, so that each change is told once.

    Args:
        settings: For the names of the peers.
        agrees: Whether a peer that says this was configured as this node was.
    """

    def __init__(self, settings: Settings, agrees: Callable[[Heartbeat], bool]) -> None:
        self._names = settings.nodes
        self._agrees = agrees
        self._state: tuple[NodeState, str] | None = None
        self._fitness = Fitness.SOUND
        self._heard: frozenset[int] = frozenset()
        self._differing: frozenset[int] = frozenset()
        self._leaving: set[int] = set()
        self._silent: set[tuple[int, int]] = set()

    def configure(self, settings: Settings) -> None:
        """Go by other settings from now on; names of nodes that are gone are kept."""
        self._names = {**self._names, **settings.nodes}

    def changes(
        self, state: tuple[NodeState, str], fitness: Fitness, heard: Mapping[int, Peer]
    ) -> Iterator[Report]:
        """Yield what has changed: the node's state and reason, who is heard, who is configured otherwise."""
        now_heard = frozenset(heard)
        for node in sorted(now_heard - self._heard):
            yield self._peer("peer.heard", node)
        for node in sorted(self._heard - now_heard):
            if node in self._leaving:
                yield self._peer("peer.left", node)
            else:
                yield self._peer("peer.lost", node, warning=True)
        self._leaving = {node for node, peer in heard.items() if peer.heartbeat.state is NodeState.STOP}
        self._heard = now_heard
        differing = frozenset(node for node, peer in heard.items() if not self._agrees(peer.heartbeat))
        for node in sorted(differing - self._differing):
            yield self._peer("peer.configured_otherwise", node, warning=True)
        self._differing = differing
        if state != self._state:
            self._state = state
            fields = {"state": state[0].name, "reason": state[1]}
            yield Report("node.state", fields, warning=state[0] is NodeState.WAIT)
        if fitness is not self._fitness:
            self._fitness = fitness
            fields = {"fitness": fitness.name.lower(), "reason": state[1]}
            yield Report("node.fitness", fields, warning=fitness is not Fitness.SOUND)

    def networks(self, silent: set[tuple[int, int]]) -> Iterator[Report]:
        """Yield which (peer, network) pairs fell silent or are back; nothing else changes meanwhile."""
        for node, network in sorted(silent - self._silent):
            yield self._peer("peer.network_lost", node, warning=True, network=network)
        for node, network in sorted(self._silent - silent):
            if node in self._heard:
                yield self._peer("peer.network_back", node, network=network)
        self._silent = silent

    def _peer(self, event: str, node: int, *, warning: bool = False, **fields: object) -> Report:
        return Report(event, {"peer": node, "name": self._names[node], **fields}, warning=warning)
