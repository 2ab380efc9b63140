"""What a node's state machine is told at its start."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nlbfarm.core.policy import Mode

__all__ = ["Admin", "Partition", "Settings"]


class Admin(enum.StrEnum):
    """What the administrator wants of a node; it stays so across a restart of the process and of the host."""

    RUN = "run"
    DRAIN = "drain"
    """Own nothing, and serve the connections that are there to their end; stay in the view."""
    STOP = "stop"
    """Drain, then leave the view and take the VIPs away; the process stays, to be started again."""


class Partition(enum.StrEnum):
    """What a node does that is cut off from the others."""

    SERVE = "serve"
    MAJORITY = "majority"


@dataclass(frozen=True, slots=True)
class Settings:
    """One node's share of the configuration; times in seconds.

    Args:
        node: This node's id, 1..255.
        nodes: Every configured node: id to name.
        groups: Names of the groups, in the order of the policy.
        modes: Their modes, in the same order.
        powers: This node's power in each group, 0..65535, in the same order. In a failover group
            the live node with the highest power (then the lowest id) takes all.
        sticky: For each group whether its owner keeps it when a node of higher priority is back
            (``failback = "manual"``); empty: none.
        config_digest, secret_digest: 8 bytes each; nodes serve together only if both agree.
        interval: Time between heartbeats.
        lost_after: Silent intervals after which a peer is lost.
        lease: Longest time the filter may accept without renewal.
        takeover_grace: How long buckets of a silent node stay ``ADOPT``.
        restart_grace: The same, of a node that left saying that it will be back (a new process, an upgrade).
        drain_timeout: How long a node serves the established connections of buckets that it gave away.
        partition: What to do when cut off.
    """

    node: int
    nodes: Mapping[int, str]
    groups: tuple[str, ...]
    modes: tuple[Mode, ...]
    powers: tuple[int, ...]
    sticky: tuple[bool, ...] = ()
    config_digest: bytes = bytes(8)
    secret_digest: bytes = bytes(8)
    interval: float = 0.1
    lost_after: int = 5
    lease: float = 0.3
    takeover_grace: float = 2.0
    restart_grace: float = 15.0
    drain_timeout: float = 60.0
    partition: Partition = Partition.SERVE

    detection: float = field(init=False)
    """Seconds of silence after which a peer is lost."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "detection", self.interval * self.lost_after)
        if not self.sticky:
            object.__setattr__(self, "sticky", (False,) * len(self.groups))

    def renewed(self, other: Settings) -> Settings:
        """Return ``other``, after making sure that a running node can go by it.

        Raises:
            ValueError: More differs than nodes, powers and the times of the handoff.
        """
        same = replace(
            other,
            nodes=self.nodes,
            powers=self.powers,
            takeover_grace=self.takeover_grace,
            restart_grace=self.restart_grace,
            drain_timeout=self.drain_timeout,
        )
        if same != self or len(other.powers) != len(self.powers):
            raise ValueError("more has changed than nodes, powers and the times of the handoff")
        if self.node not in other.nodes:
            raise ValueError(f"node {self.node} itself is no longer configured")
        return other
