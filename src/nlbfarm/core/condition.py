"""In what condition a node is: what it needs, what is missing, and the state that follows."""

from __future__ import annotations

from collections.abc import Iterable

from nlbfarm.core.placement import worst_accepted
from nlbfarm.core.settings import Admin
from nlbfarm.core.wire import Fitness, NodeState

__all__ = ["Condition", "shown"]

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
        admin_reason: Why, where it was not the administrator who wanted it.
    """

    def __init__(
        self, node: int, resources: Iterable[str], admin: Admin = Admin.RUN, admin_reason: str = ""
    ) -> None:
        self._node = node
        self._jumps: list[float] = []
        self.resources: dict[str, tuple[bool | None, str, Fitness | None]] = dict.fromkeys(
            resources, (None, "", None)
        )
        """What is known of each: whether it is there (``None``: not known), why not, and what that means."""
        self.fitness = Fitness.SOUND
        """How fit the node is, as far as it can serve at all."""
        self.stopping = False
        """The process is to end."""
        self.at_once = False
        """It shall not wait for established connections."""
        self.returning = False
        """A new process will take over its connections."""
        self.admin = admin
        self.admin_reason = admin_reason

    @property
    def leaving(self) -> bool:
        """Whether the node is to leave the view: the process ends, or the administrator stopped it."""
        return self.stopping or self.admin is Admin.STOP

    def learn(self, name: str, ok: bool | None, reason: str, fitness: Fitness | None = None) -> None:
        """Take note of a resource that is there (``ok``) or not (``events.ResourceChanged``)."""
        self.resources[name] = (ok, reason, fitness)
        found = (fitness for ok, _, fitness in self.resources.values() if ok is False and fitness is not None)
        self.fitness = max(found, default=Fitness.SOUND)

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
            return NodeState.STOP, self._stopped()
        if self.stopping:
            return NodeState.DRAINING, "restarting" if self.returning else "stopping"
        if self.admin is not Admin.RUN:
            what = "drain" if self.admin is Admin.DRAIN else "stop"
            asked = f"asked to {what} by the administrator"
            return NodeState.DRAINING, self.admin_reason or asked
        if deaf:
            return NodeState.WAIT, DEAF
        known = self.resources.values()
        missing = [reason for ok, reason, fitness in known if ok is False and fitness is None]
        if missing:
            return NodeState.WAIT, "; ".join(missing)
        unknown = [name for name, (ok, _, _) in self.resources.items() if ok is None]
        if unknown:
            return NodeState.STARTING, "waiting for " + ", ".join(unknown)
        return NodeState.UP, "; ".join(reason for ok, reason, _ in known if ok is False)

    def _stopped(self) -> str:
        if self.admin is not Admin.STOP:
            return "stopped"
        return f"stopped: {self.admin_reason}" if self.admin_reason else "stopped by the administrator"


def shown(state: NodeState, reason: str, fitness: Fitness, best: Fitness) -> tuple[NodeState, str]:
    """Return state and reason of a node as the administrator sees them.

    Args:
        state, reason, fitness: What the node announces.
        best: The fitness of the fittest node that could serve, this one included.
    """
    if state is not NodeState.UP or fitness < Fitness.DEGRADED:
        return state, reason
    if fitness > worst_accepted([best]):
        return NodeState.WAIT, reason
    return NodeState.UP, f"degraded: {reason}; no other node is better"
