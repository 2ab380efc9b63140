"""What the supervision of a node is told, and what it wants done."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from nlbfarm.core.messages import Fitness
from nlbfarm.core.supervision.expressions import Expression

__all__ = [
    "Action",
    "CheckSpec",
    "Checked",
    "Command",
    "Ended",
    "Event",
    "Forgiven",
    "Halt",
    "Look",
    "PauseChanged",
    "Placed",
    "RuleSpec",
    "Run",
    "SaveRestarts",
    "ServiceSpec",
    "SetResource",
    "Start",
    "StartFailed",
    "Started",
    "Stop",
    "Stopped",
    "SupervisionSettings",
    "TakeOut",
    "Tell",
    "TimerFired",
]


class Action(enum.StrEnum):
    """What is done when a checker fails, a rule holds or a service ends."""

    NONE = "none"
    """It is shown."""
    WAIT = "wait"
    """The node gives its clients away until it is well again."""
    RESTART = "restart"
    """The service is restarted."""
    RESTART_ALL = "restart-all"
    """Every service is restarted."""
    DRAIN = "drain"
    """The node gives its clients away, until an administrator starts it."""
    STOP = "stop"
    """The node gives its clients away and leaves the farm, until an administrator starts it."""


RESTARTS = frozenset({Action.RESTART, Action.RESTART_ALL})
LEAVES = frozenset({Action.DRAIN, Action.STOP})


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service as the configuration has it; times in seconds.

    Args:
        name: Its name.
        after: Services that are up before it is started, and stopped after it; no cycles.
        on_exit: What is done when it ends by itself.
        start_timeout: From its start until its checkers answer; then the start has failed.
        hold: So long the node keeps its clients while the service is restarted.
        max_restarts: In ``within`` seconds; then the node leaves.
        within: See there.
        backoff: The pause before the second restart in a row; each further one waits twice as long.
        longest_backoff: But no longer than this.
    """

    name: str
    after: tuple[str, ...] = ()
    on_exit: Action = Action.RESTART
    start_timeout: float = 30.0
    hold: float = 3.0
    max_restarts: int = 3
    within: float = 86400.0
    backoff: float = 1.0
    longest_backoff: float = 60.0


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A checker.

    Args:
        name: Its name.
        action: What is done when it fails.
        service: Which service it looks at; with ``RESTART`` there is one.
        confirm: Seconds for which a failure is announced before the node gives its clients away, so that
            the other nodes have the time to find the same.
    """

    name: str
    action: Action = Action.WAIT
    service: str | None = None
    confirm: float = 0.0


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A failover rule.

    Args:
        name: Its name.
        when: It holds when this does; of checkers that have not looked yet nothing is assumed.
        action, service, confirm: As for ``CheckSpec``.
    """

    name: str
    when: Expression
    action: Action = Action.WAIT
    service: str | None = None
    confirm: float = 0.0


@dataclass(frozen=True, slots=True)
class SupervisionSettings:
    """All that is supervised on a node.

    Args:
        services, checks, rules: By unique names; what they name is there.
        last_stays: The last node that serves goes on, whatever its checkers say (``last_node = "stay"``).
        salt: What makes the pauses of nodes differ; the node's name.
    """

    services: tuple[ServiceSpec, ...] = ()
    checks: tuple[CheckSpec, ...] = ()
    rules: tuple[RuleSpec, ...] = ()
    last_stays: bool = True
    salt: str = ""


# -- events --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """The services shall run: the node starts, or is started."""

    reason: str


@dataclass(frozen=True, slots=True)
class Halt:
    """The services shall stop: the node has left and its virtual IPs are gone."""

    reason: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A checker has made up its mind (rise and fall), or says so again; ``detail`` is for a person."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Started:
    """What ``Start`` asked for is done."""

    service: str


@dataclass(frozen=True, slots=True)
class StartFailed:
    """What ``Start`` asked for cannot be done; nothing of the service runs."""

    service: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """What ``Stop`` asked for is done; ``problem`` says what could not be stopped, if anything."""

    service: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A service that ran has ended by itself."""

    service: str
    reason: str


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the clients are.

    Args:
        serving: Whether this node has buckets.
        others: Whether other nodes have all of them, and one of those is fitter than this one.
    """

    serving: bool
    others: bool


@dataclass(frozen=True, slots=True)
class PauseChanged:
    """Maintenance begins or ends: meanwhile checkers look, and nothing is done about it."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Forgiven:
    """An administrator started the node: restarts are counted anew."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time that ``Supervision.timer`` named has come."""


Event = (
    Run
    | Halt
    | Checked
    | Started
    | StartFailed
    | Stopped
    | Ended
    | Placed
    | PauseChanged
    | Forgiven
    | TimerFired
)


# -- commands ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start the service; answer ``Started`` or ``StartFailed``, later ``Ended``."""

    service: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the service, also while it is being started (that is cancelled); answer ``Stopped``."""

    service: str
    reason: str


@dataclass(frozen=True, slots=True)
class Look:
    """Forget what these checkers said. With ``wanted`` look again: at once, and often until they are well."""

    checkers: tuple[str, ...]
    wanted: bool


@dataclass(frozen=True, slots=True)
class SetResource:
    """Tell the protocol's state machine: ``nlbfarm.core.events.ResourceChanged``, the same fields."""

    name: str
    ok: bool | None
    reason: str = ""
    fitness: Fitness | None = None


@dataclass(frozen=True, slots=True)
class SaveRestarts:
    """Persist when each service was restarted: times of ``now``, by service, oldest first."""

    times: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class TakeOut:
    """Drain or stop this node as an administrator would, for this reason; it stays so until it is started."""

    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Log an event: a stable name and its fields."""

    event: str
    fields: Mapping[str, object] = field(default_factory=dict)
    warning: bool = False


Command = Start | Stop | Look | SetResource | SaveRestarts | TakeOut | Tell
