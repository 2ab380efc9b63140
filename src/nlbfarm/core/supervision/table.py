"""The phases of a service, and what moves it from one to another: one table.

``Supervision`` decides what has occurred; what follows from it stands here and nowhere else, and the
diagram in ``docs/health.md`` is made from it. An occurrence that a phase does not list changes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["RUNNING", "TRANSITIONS", "Occurrence", "Phase", "Step", "Transition"]


class Phase(enum.StrEnum):
    """What a service is doing."""

    STOPPED = "stopped"
    """It does not run, and shall not."""
    QUEUED = "queued"
    """It is to be started as soon as the services before it are up."""
    STARTING = "starting"
    """It is being started."""
    CHECKING = "checking"
    """It runs; its checkers have not all answered well yet."""
    UP = "up"
    """It runs, and its checkers are content."""
    RESTARTING = "restarting"
    """It is being stopped, to be started again."""
    BACKOFF = "backoff"
    """It is stopped, and waits until it is tried again."""
    STOPPING = "stopping"
    """It is being stopped."""
    GIVEN_UP = "given up"
    """It may not be restarted any more; an administrator has to see to it."""


RUNNING = frozenset(
    {Phase.STARTING, Phase.CHECKING, Phase.UP, Phase.RESTARTING, Phase.STOPPING, Phase.GIVEN_UP}
)
"""Phases in which something of the service may run: what it needs is not stopped before."""


class Occurrence(enum.StrEnum):
    """What happens to a service."""

    WANTED = "it shall run"
    UNWANTED = "it shall stop"
    READY = "the services before it are up"
    STARTED = "it has been started"
    ANSWERS = "its checkers are content"
    FAILS = "it fails, and may be restarted"
    EXHAUSTED = "it fails, and may not be restarted any more"
    UNSETTLED = "a service before it is down"
    STOPPED = "it has been stopped"
    OVER = "its pause is over"
    FORGIVEN = "an administrator starts the node"


class Step(enum.StrEnum):
    """What is done on the way."""

    START = "start it"
    STOP = "stop it"
    LOOK = "look at its checkers anew"
    COUNT = "count a restart"
    GIVE_UP = "take the node out"


@dataclass(frozen=True, slots=True)
class Transition:
    """Where an occurrence leads.

    Args:
        to: The phase that follows.
        steps: What is done, in order.
    """

    to: Phase
    steps: tuple[Step, ...] = ()


def _table() -> dict[tuple[Phase, Occurrence], Transition]:
    table = {
        (Phase.STOPPED, Occurrence.WANTED): Transition(Phase.QUEUED),
        (Phase.QUEUED, Occurrence.READY): Transition(Phase.STARTING, (Step.START,)),
        (Phase.QUEUED, Occurrence.UNWANTED): Transition(Phase.STOPPED),
        (Phase.STARTING, Occurrence.STARTED): Transition(Phase.CHECKING, (Step.LOOK,)),
        (Phase.CHECKING, Occurrence.ANSWERS): Transition(Phase.UP),
        (Phase.RESTARTING, Occurrence.STOPPED): Transition(Phase.BACKOFF),
        (Phase.RESTARTING, Occurrence.UNWANTED): Transition(Phase.STOPPING),
        (Phase.BACKOFF, Occurrence.OVER): Transition(Phase.QUEUED),
        (Phase.BACKOFF, Occurrence.UNWANTED): Transition(Phase.STOPPED),
        (Phase.STOPPING, Occurrence.STOPPED): Transition(Phase.STOPPED),
        (Phase.STOPPING, Occurrence.WANTED): Transition(Phase.RESTARTING),
        (Phase.GIVEN_UP, Occurrence.ANSWERS): Transition(Phase.UP),
        (Phase.GIVEN_UP, Occurrence.FORGIVEN): Transition(Phase.RESTARTING, (Step.STOP,)),
        (Phase.GIVEN_UP, Occurrence.UNWANTED): Transition(Phase.STOPPING, (Step.STOP,)),
    }
    for running in (Phase.STARTING, Phase.CHECKING, Phase.UP):
        table |= {
            (running, Occurrence.FAILS): Transition(Phase.RESTARTING, (Step.COUNT, Step.STOP)),
            (running, Occurrence.EXHAUSTED): Transition(Phase.GIVEN_UP, (Step.GIVE_UP,)),
            (running, Occurrence.UNSETTLED): Transition(Phase.RESTARTING, (Step.STOP,)),
            (running, Occurrence.UNWANTED): Transition(Phase.STOPPING, (Step.STOP,)),
        }
    return table


TRANSITIONS: Mapping[tuple[Phase, Occurrence], Transition] = _table()
"""By phase and occurrence: where it leads."""
