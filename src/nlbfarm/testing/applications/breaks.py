"""Rules of the supervision that can be disabled: what replaces its functions (``nlbfarm.testing.breaks``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nlbfarm.core.supervision.model import Placed

__all__ = [
    "as_if_not_paused",
    "as_if_others_served",
    "forgetting_earlier_lives",
    "held_for_ever",
    "needing_nothing",
    "never_staying",
    "whatever_asks_for_restart",
    "without_detail",
]


def forgetting_earlier_lives(init: Callable[..., Any]) -> Callable[..., Any]:
    """Count no restart of before (``Supervision.__init__``)."""
    return lambda self, settings, restarts=None, **options: init(self, settings, None, **options)


def needing_nothing(init: Callable[..., Any]) -> Callable[..., Any]:
    """Let no service need another (``Supervision.__init__``)."""

    def wrong(self: Any, settings: Any, *rest: Any, **options: Any) -> None:
        services = tuple(replace(spec, after=()) for spec in settings.services)
        init(self, replace(settings, services=services), *rest, **options)

    return wrong


def as_if_not_paused(step: Callable[..., Any]) -> Callable[..., Any]:
    """Do during maintenance what is done at other times (``Supervision._step``)."""

    def wrong(self: Any, now: float) -> None:
        paused, self.paused = self.paused, False
        step(self, now)
        self.paused = paused

    return wrong


def as_if_others_served(take_out: Callable[..., Any]) -> Callable[..., Any]:
    """Do not wait until others have the clients (``Supervision._take_out``)."""

    def wrong(self: Any, now: float) -> None:
        placed, self._placed = self._placed, Placed(serving=False, others=True)
        take_out(self, now)
        self._placed = placed

    return wrong


def never_staying(init: Callable[..., Any]) -> Callable[..., Any]:
    """Take what has failed for a reason not to serve, whoever else can (``Concern.__init__``)."""
    return lambda self, *specified, last_stays: init(self, *specified, last_stays=False)


def whatever_asks_for_restart(recovers: Callable[..., Any]) -> Callable[..., Any]:
    """Take one that was given up for well as soon as its own checkers do (``Supervision._recovers``)."""
    return lambda self, service: bool(self._attached[service.spec.name])


def held_for_ever(resource: Callable[..., Any]) -> Callable[..., Any]:
    """Take a service that is restarted for well all the while (``Supervision._resource``)."""
    return lambda self, service, now: resource(self, service, min(now, service.lost_at))


def without_detail(learn: Callable[..., Any]) -> Callable[..., Any]:
    """Forget why something is bad (``Concern.learn``)."""
    return lambda self, ok, detail, now: learn(self, ok, "", now)
