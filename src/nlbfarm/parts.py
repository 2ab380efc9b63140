"""What a runtime is built from, so that a vendor can put parts of its own in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nlbfarm.core.judging import BucketFunction
from nlbfarm.core.policy import FilterPolicy, IPAddress
from nlbfarm.core.settings import Settings
from nlbfarm.core.wire import Codec
from nlbfarm.interfaces import Checker, Clock, FilterBackend, Heartbeat, VIPManager

__all__ = ["Check", "Parts", "SystemClock"]


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
    """

    name: str
    kind: str
    checker: Checker
    interval: float
    timeout: float
    rise: int
    fall: int


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
        checks: The checkers.
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
    checks: Sequence[Check] = ()
    backend_detail: str = ""
    delivery: str = "multicast"
    function: BucketFunction | None = None
    clock: Clock = field(default_factory=SystemClock)
    on_turn: Callable[[], None] = lambda: None
