"""What goes into the state machine of a node; ``now`` comes beside each event."""

from __future__ import annotations

from dataclasses import dataclass

from nlbfarm.core.wire import Message

__all__ = [
    "Event",
    "FilterApplied",
    "FilterDamaged",
    "FilterRepaired",
    "MessageArrived",
    "PeerRefused",
    "Reachability",
    "ResourceChanged",
    "StopRequested",
    "TimerFired",
]


@dataclass(frozen=True, slots=True)
class MessageArrived:
    """An authenticated message; ``at`` is when it arrived, not later than ``now``."""

    message: Message
    network: int
    at: float


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
    """Something that this node needs in order to serve is there (``ok``) or not (``reason`` says why)."""

    name: str
    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """A peer's host answers that no process listens there (not authenticated: a hint)."""

    node: int


@dataclass(frozen=True, slots=True)
class Reachability:
    """Answer to ``ProbeReachability``: the peers that answer ARP on a VIP's interface."""

    nodes: frozenset[int]


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The node is to leave the farm in good order; ``Stopped`` says when it has."""


Event = (
    MessageArrived
    | TimerFired
    | FilterApplied
    | FilterDamaged
    | FilterRepaired
    | ResourceChanged
    | PeerRefused
    | Reachability
    | StopRequested
)
