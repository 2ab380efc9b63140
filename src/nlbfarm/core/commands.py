"""What the state machine of a node wants done; the shell does it in the order given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nlbfarm.core.buckets import Bitmap, BucketStates
from nlbfarm.core.wire import Message

__all__ = [
    "ApplyFilter",
    "AskFlows",
    "Command",
    "Forgotten",
    "Halted",
    "ProbeReachability",
    "Report",
    "SaveIncarnation",
    "Send",
    "SetLease",
    "Stopped",
]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to these nodes on every heartbeat network, now."""

    message: Message
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ApplyFilter:
    """Make these the bucket states of every group, then answer ``FilterApplied(serial)``."""

    serial: int
    states: Mapping[str, BucketStates]


@dataclass(frozen=True, slots=True)
class AskFlows:
    """Find out in which of these buckets established flows are left; answer ``FlowsLeft(serial, …)``.

    Who cannot find out answers that there is one in each of them: ``drain_timeout`` ends it then.
    """

    serial: int
    buckets: Mapping[str, Bitmap]


@dataclass(frozen=True, slots=True)
class SetLease:
    """Let the filter accept until ``until`` (monotonic seconds); a time that has passed ends the lease."""

    until: float


@dataclass(frozen=True, slots=True)
class ProbeReachability:
    """Find out which peers answer ARP on a VIP's interface; answer ``Reachability``."""


@dataclass(frozen=True, slots=True)
class SaveIncarnation:
    """Persist this incarnation: no later life may use it or a lower one."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Report:
    """Log an event: a stable name and its fields."""

    event: str
    fields: Mapping[str, object] = field(default_factory=dict)
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Forgotten:
    """This retired node is no longer counted with: heartbeats to and from it end."""

    node: int


@dataclass(frozen=True, slots=True)
class Halted:
    """The administrator stopped the node, and it serves nothing: the VIPs come down, the process stays."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The node has left: it holds nothing and has said so; the shell may end."""


Command = (
    Send
    | ApplyFilter
    | AskFlows
    | SetLease
    | ProbeReachability
    | SaveIncarnation
    | Report
    | Forgotten
    | Halted
    | Stopped
)
