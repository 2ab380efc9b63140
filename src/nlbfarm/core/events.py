"""What goes into the state machine of a node; ``now`` comes beside each event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nlbfarm.core.settings import Admin, Settings
from nlbfarm.core.wire import VERSION, Fitness, Message

__all__ = [
    "AdminChanged",
    "Event",
    "FailbackRequested",
    "FilterApplied",
    "FilterDamaged",
    "FilterRepaired",
    "FlowsLeft",
    "MessageArrived",
    "PeerRefused",
    "PowersChanged",
    "Reachability",
    "ResourceChanged",
    "SettingsChanged",
    "StopRequested",
    "TimerFired",
]


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """An authenticated message; ``at`` is when it arrived, not later than ``now``.

    ``version`` is the wire version that it was written in.
    """

    message: Message
    network: int
    at: float
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time that ``Node.timer`` named has come (or has passed: the node sees how late it is).

    Every datagram that had arrived by then has been handed in before.
    """


@dataclass(frozen=True, slots=True)
class FilterApplied:
    """The filter has done what ``ApplyFilter(serial, …)`` asked; it holds for every packet from now on."""

    serial: int


@dataclass(frozen=True, slots=True)
class FilterDamaged:
    """Somebody changed the filter: nothing may be accepted until ``FilterRepaired``."""

    reason: str


@dataclass(frozen=True, slots=True)
class FilterRepaired:
    """The filter is back: closed, with the last applied states, no lease; the VIPs are up."""


@dataclass(frozen=True, slots=True)
class ResourceChanged:
    """Something that this node needs in order to serve is there (``ok``) or not (``reason`` says why).

    Args:
        name: Which resource.
        ok: Whether it is there; ``None``: not known yet, the node waits for it.
        reason: Why not.
        fitness: A resource that is not there and has a fitness here makes the node no more than less fit:
            it serves on while no other node is fitter. Without one the node cannot serve.
    """

    name: str
    ok: bool | None
    reason: str = ""
    fitness: Fitness | None = None


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """A peer's host answers that no process listens there (not authenticated: a hint)."""

    node: int


@dataclass(frozen=True, slots=True)
class Reachability:
    """Answer to ``ProbeReachability``: the peers that answer ARP on a VIP's interface."""

    nodes: frozenset[int]


@dataclass(frozen=True, slots=True)
class FlowsLeft:
    """Answer to ``AskFlows(serial, …)``.

    Args:
        serial: Of the question.
        flows: For each group, by bucket, how many established flows are left; buckets without one are
            left out.
    """

    serial: int
    flows: Mapping[str, Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class AdminChanged:
    """The administrator wants something else of this node.

    Args:
        admin: What.
        at_once: Without waiting for connections.
        reason: Why, where it is not the administrator who wants it, but a checker or a service.
    """

    admin: Admin
    at_once: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PowersChanged:
    """This node's powers are these from now on, one per group, 0..65535."""

    powers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    """The configuration was loaded anew: other nodes, powers, graces and timeouts.

    Node id, groups, modes, digests and heartbeat timings must be as they were. Nodes that are no longer
    named are retired: they get no buckets, and are forgotten when they neither hold nor drain any.

    Raises (``Node.handle``):
        ValueError: Something else has changed, too; nothing was done.
    """

    settings: Settings


@dataclass(frozen=True, slots=True)
class FailbackRequested:
    """Buckets of these failover groups go to the node with the highest priority now; for the leader alone."""

    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The process is to end; ``Stopped`` says when the node has left.

    Args:
        at_once: Do not wait for established connections.
        returning: A new process takes over here soon: do not wait for connections either, but announce
            their buckets as draining to the last, so that the peers leave these connections alone for
            ``restart_grace``.
    """

    at_once: bool = False
    returning: bool = False


Event = (
    MessageArrived
    | TimerFired
    | FilterApplied
    | FilterDamaged
    | FilterRepaired
    | FlowsLeft
    | AdminChanged
    | PowersChanged
    | SettingsChanged
    | ResourceChanged
    | PeerRefused
    | Reachability
    | FailbackRequested
    | StopRequested
)
