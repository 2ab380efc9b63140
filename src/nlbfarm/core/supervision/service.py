"""What is known of one service."""

from __future__ import annotations

from math import inf

from nlbfarm.core.supervision.model import ServiceSpec, SetResource
from nlbfarm.core.supervision.table import Phase

__all__ = ["ServiceState"]


class ServiceState:
    """What is known of one service; others only read it."""

    def __init__(self, spec: ServiceSpec) -> None:
        self.spec = spec
        self.phase = Phase.STOPPED
        self.reason = "not started yet"
        """Why it is in its phase, for a person."""
        self.cause = ""
        """Why it is started next."""
        self.since = -inf
        self.started_at = -inf
        """When its newest start began."""
        self.was_up = False
        """Whether it has been up since it was last started on purpose."""
        self.lost_at = inf
        """When it was last up; infinity while it is."""
        self.deadline = inf
        """When its start has taken too long, or its pause is over."""
        self.pause = 0.0
        """Seconds to wait before it is started again."""
        self.failure = ""
        """Why it failed last since it was started on purpose; empty once it is up."""
        self.started = False
        """What the newest ``Start`` asked for is done."""
        self.ended = ""
        """Why it ended by itself; empty while it runs."""
        self.stop_due = False
        """It is to be stopped as soon as nothing that needs it runs."""
        self.told: SetResource | None = None

    @property
    def resource(self) -> str:
        """Its name among the resources of the node."""
        return f"service {self.spec.name}"
