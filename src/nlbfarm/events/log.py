"""Writes events to the log and publishes them, in one call."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import structlog

from nlbfarm.events.model import NodeEvent, Severity, plain
from nlbfarm.events.sentences import sentence, severity
from nlbfarm.events.stream import EventStream
from nlbfarm.interfaces import Clock

__all__ = ["EventLog"]


class EventLog:
    """The log of a node, whose events are published, too; to be used like a logger of ``structlog``.

    What the log leaves out because of its level (``log.level``) is published nevertheless.

    Args:
        stream: Where events are published.
        logger: The logger; ``None``: that of the node.
        clock: Where the time of an event comes from.
    """

    def __init__(self, stream: EventStream, logger: Any = None, *, clock: Clock) -> None:
        self.stream = stream
        self._logger = structlog.get_logger("nlbfarm.node") if logger is None else logger
        self._clock = clock
        self._bound: Mapping[str, object] = {}

    def bind(self, **fields: object) -> EventLog:
        """Return the same log with fields that all of its events have."""
        bound = EventLog(self.stream, self._logger.bind(**fields), clock=self._clock)
        bound._bound = {**self._bound, **fields}
        return bound

    def info(self, event: str, /, **fields: object) -> None:
        """Tell what is in order."""
        self._logger.info(event, **fields)
        self._publish(event, Severity.INFO, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Tell what somebody should know."""
        self._logger.warning(event, **fields)
        self._publish(event, Severity.WARNING, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Tell what somebody has to do something about."""
        self._logger.error(event, **fields)
        self._publish(event, Severity.ERROR, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Tell of the exception that is being handled: the log has all of it, the event what it says."""
        self._logger.exception(event, **fields)  # noqa: LOG004 - whoever calls it handles one
        raised = sys.exc_info()[1]
        if raised is not None and "error" not in fields:
            fields["error"] = f"{type(raised).__name__}: {raised}"
        self._publish(event, Severity.ERROR, fields)

    def _publish(self, event: str, said: Severity, fields: Mapping[str, object]) -> None:
        known = plain({**self._bound, **fields})
        least = severity(event, known)
        worse = said if said.rank >= least.rank else least
        self.stream.publish(NodeEvent(0, self._clock.wall(), event, worse, sentence(event, known), known))
