"""In what condition a node is: what it needs, what is missing, and the state that follows."""

from __future__ import annotations

from collections.abc import Iterable

from nlbfarm.core.settings import Admin
from nlbfarm.core.wire import NodeState

__all__ = ["Condition"]

DEAF = "hears no peer, though all their hosts answer ARP: is a firewall in the way?"

JUMPS = 3
"""So many jumps above a higher incarnation of ours within a minute mean that another node uses our id."""

JUMPS_WITHIN_S = 60.0


class Condition:
    """The resources of one node, and whether it is leaving.

    Args:
        node: Its id, for messages.
        resources: Names of what must be there before it serves; unknown until ``learn`` tells of each.
        admin: What the administrator wants.
    """

    def __init__(self, node: int, resources: Iterable[str], admin: Admin = Admin.RUN) -> None:
        self._node = node
        self._jumps: list[float] = []
        self.resources: dict[str, tuple[bool, str] | None] = dict.fromkeys(resources)
        self.stopping = False
        """The process is to end."""
        self.at_once = False
        """It shall not wait for established connections."""
        self.returning = False
        """A new process will take over its connections."""
        self.admin = admin

    @property
    def leaving(self) -> bool:
        """Whether the node is to leave the view: the process ends, or the administrator stopped it."""
        return self.stopping or self.admin is Admin.STOP

    def learn(self, name: str, ok: bool, reason: str) -> None:
        """Take note of a resource that is there (``ok``) or not."""
        self.resources[name] = (ok, reason)

    def jumped(self, now: float) -> None:
        """Take note that the incarnation had to jump above one that a peer had heard of our id."""
        self._jumps = [*(at for at in self._jumps if now - at < JUMPS_WITHIN_S), now]
        if len(self._jumps) >= JUMPS:
            self.learn(
                "identity",
                False,
                f"another node of this farm runs with id {self._node}: check [[nodes]] and --node there",
            )

    def state(self, *, closed: bool, deaf: bool) -> tuple[NodeState, str]:
        """Return the state and its reason.

        Args:
            closed: The node has left for good.
            deaf: It hears no peer, though they seem to be there.
        """
        if closed:
            return (
                NodeState.STOP,
                "stopped" if self.admin is not Admin.STOP else "stopped by the administrator",
            )
        if self.stopping:
            return NodeState.DRAINING, "restarting" if self.returning else "stopping"
        if self.admin is not Admin.RUN:
            what = "drain" if self.admin is Admin.DRAIN else "stop"
            return NodeState.DRAINING, f"asked to {what} by the administrator"
        if deaf:
            return NodeState.WAIT, DEAF
        missing = [known[1] for known in self.resources.values() if known is not None and not known[0]]
        if missing:
            return NodeState.WAIT, "; ".join(missing)
        unknown = [name for name, known in self.resources.items() if known is None]
        if unknown:
            return NodeState.STARTING, "waiting for " + ", ".join(unknown)
        return NodeState.UP, ""
