"""``[handoff]``: how long nodes are patient with established connections when buckets move."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from nlbfarm.config.types import Duration, Section, between

__all__ = ["MAX_DRAIN", "MAX_GRACE", "Handoff"]

MAX_GRACE = timedelta(minutes=10)
"""Longer than this, clients of a dead node would wait for ever for the RST that ends their connection."""

MAX_DRAIN = timedelta(days=1)
"""A connection that lasts longer is not worth a node that cannot be serviced."""


class Handoff(Section):
    """``[handoff]``; nodes need not agree on it: each goes by its own.

    Attributes:
        takeover_grace: How long packets of unknown connections are dropped silently, not answered with a
            reset, after buckets were taken from a silent node: one that returns finds its connections alive.
        restart_grace: The same for a node that said that its process will be back at once (an upgrade).
        drain_timeout: How long a node serves the established connections of buckets that it gave away.
    """

    takeover_grace: Annotated[Duration, between(timedelta(0), MAX_GRACE)] = timedelta(seconds=2)
    restart_grace: Annotated[Duration, between(timedelta(0), MAX_GRACE)] = timedelta(seconds=15)
    drain_timeout: Annotated[Duration, between(timedelta(0), MAX_DRAIN)] = timedelta(seconds=60)
