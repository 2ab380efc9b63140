"""``[heartbeat]``: how fast a lost node is seen, and how it is fenced."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator

from nlbfarm.config.plugged import installed
from nlbfarm.config.types import Bool, Duration, Port, Section, between, whole
from nlbfarm.plugins import Kind

__all__ = ["MAX_INTERVAL", "MAX_LEASE", "MIN_INTERVAL", "Heartbeat"]

MIN_INTERVAL = timedelta(milliseconds=10)
"""Shorter than this, timers of an ordinary kernel under load are noise."""

MAX_INTERVAL = timedelta(seconds=10)
"""Longer than this, a lost node would be missed for most of a minute."""

MAX_LEASE = timedelta(seconds=1)
"""What a filter backend must be able to promise (``FilterBackend.lease``)."""


class Heartbeat(Section):
    """``[heartbeat]``; the same on every node.

    Attributes:
        interval: Time between two heartbeats.
        lost_after: A node is lost after this many silent intervals (the detection time).
        lease: Longest time a node's filter accepts without renewal.
        transport: What carries them: ``udp``, or the name of an installed plug-in.
        port: UDP port on every heartbeat address.
        dscp: Code point of the heartbeats, 0..63 (RFC 2474); 48 is network control.
        realtime: Ask the host for real-time priority and locked memory, where it allows.
    """

    interval: Annotated[Duration, between(MIN_INTERVAL, MAX_INTERVAL)] = timedelta(milliseconds=100)
    lost_after: Annotated[int, BeforeValidator(whole(3, 255, "a number of intervals"))] = 5
    lease: Annotated[Duration, between(2 * MIN_INTERVAL, MAX_LEASE)] = timedelta(milliseconds=300)
    transport: Annotated[str, installed(Kind.HEARTBEAT)] = "udp"
    port: Port = 4804
    dscp: Annotated[int, BeforeValidator(whole(0, 63, "a DSCP code point"))] = 48
    realtime: Bool = True

    @property
    def detection(self) -> timedelta:
        """Silence after which a node is lost."""
        return self.interval * self.lost_after
