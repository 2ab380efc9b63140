"""What a runtime is built from, so that a vendor can put parts of its own in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nlbfarm.core.judging import BucketFunction
from nlbfarm.core.policy import FilterPolicy, IPAddress
from nlbfarm.core.settings import Settings
from nlbfarm.core.supervision import Action, RuleSpec, ServiceSpec
from nlbfarm.core.wire import Codec
from nlbfarm.interfaces import Checker, Clock, FilterBackend, Heartbeat, Service, VIPManager

__all__ = ["Check", "Parts", "Supervised", "SystemClock"]


class SystemClock(Clock):
    """The clocks of the host."""

    def monotonic(self) -> float:
        """Return ``CLOCK_MONOTONIC``, the clock of the event loop."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since 1970."""
        return time.time()


@dataclass(frozen=True, slots=True)
class Check:
    """A checker and how its results count.

    Args:
        name, kind: Its name, and its type for ``status``.
        checker: What looks.
        interval, timeout: Seconds.
        rise, fall: Results in a row to change one's mind.
        initial_delay: Seconds from the start of the node, or of its service, to the first look.
        action: What is done when it fails.
        service: Which service it looks at; ``None``: none in particular.
        confirm: Seconds that other nodes have to find the same before this one gives its clients away.
    """

    name: str
    kind: str
    checker: Checker
    interval: float
    timeout: float
    rise: int
    fall: int
    initial_delay: float = 0.0
    action: Action = Action.WAIT
    service: str | None = None
    confirm: float = 0.0


@dataclass(frozen=True, slots=True)
class Supervised:
    """A service and how it is supervised.

    Args:
        kind: ``"systemd"``, ``"command"``, …, for ``status``.
        service: What starts and stops it.
        spec: Its name, order and restarts.
        stop_timeout: Seconds that it may take to end politely; what stops it is not waited for much longer.
    """

    kind: str
    service: Service
    spec: ServiceSpec
    stop_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a runtime is built from; it closes all of them.

    Args:
        settings, policy, codec: What the core, the filter and the wire are told.
        backend, vips, heartbeat: The implementations.
        peers: Addresses of the peers, by id, one for each heartbeat network.
        former_digest: The configuration's digest in heartbeats of wire version 1; empty: the same.
        peer_powers: What the configuration says of their powers, by id and group; for ``status`` only.
        incarnation_file: Where the incarnation is kept.
        admin_file: Where what the administrator wants is kept; ``None``: nowhere, every start begins anew.
        starts_file: Where failures are counted; ``None``: nowhere, a node that keeps failing never waits.
        restarts_file: Where restarts of services are counted; ``None``: every process counts anew.
        checks: The checkers.
        services: The services.
        failover_rules: What is done when several checkers say so.
        last_stays: Whether the last node that serves goes on, whatever its checkers say.
        backend_detail: Why this backend was chosen.
        delivery: How packets for the VIPs reach the nodes, for ``status``.
        function: The bucket function of a vendor's own that the backend goes by, for ``explain``.
        on_turn: Called on every healthy turn (a watchdog).
    """

    settings: Settings
    policy: FilterPolicy
    codec: Codec
    backend: FilterBackend
    vips: VIPManager
    heartbeat: Heartbeat
    peers: Mapping[int, Sequence[IPAddress]]
    incarnation_file: Path
    former_digest: bytes = b""
    peer_powers: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    admin_file: Path | None = None
    starts_file: Path | None = None
    restarts_file: Path | None = None
    checks: Sequence[Check] = ()
    services: Sequence[Supervised] = ()
    failover_rules: Sequence[RuleSpec] = ()
    last_stays: bool = True
    backend_detail: str = ""
    delivery: str = "multicast"
    function: BucketFunction | None = None
    clock: Clock = field(default_factory=SystemClock)
    on_turn: Callable[[], None] = lambda: None
