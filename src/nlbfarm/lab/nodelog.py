"""The log and the journal of a node in the lab as events on the clock of all measurements."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nlbfarm.events import NodeEvent

__all__ = ["LogEvent", "parse", "parse_journal"]


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A line of a node's log, or of its journal.

    Args:
        at: Seconds on the monotonic clock.
        name: The event, such as ``peer.lost``.
        level: ``info``, ``warning`` and so on.
        fields: What else the line says.
    """

    at: float
    name: str
    level: str
    fields: Mapping[str, Any]


def parse(text: str) -> list[LogEvent]:
    """Read a log; lines that are no JSON (a traceback, a first line that was cut) are left out.

    The log has the time of day: it is converted by what the two clocks of this host say now, so that it is
    wrong by what the time of day was set meanwhile.
    """
    offset = _offset()
    events = []
    for line in text.splitlines():
        try:
            fields = json.loads(line)
            at = datetime.fromisoformat(fields.pop("timestamp")).timestamp() - offset
            events.append(LogEvent(at, fields.pop("event"), fields.pop("level"), fields))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return events


def parse_journal(text: str) -> list[LogEvent]:
    """Read a journal of events; lines that are none are left out. The clocks are as for ``parse``."""
    offset = _offset()
    events = []
    for line in text.splitlines():
        try:
            event = NodeEvent.from_json(json.loads(line))
        except ValueError:
            continue
        events.append(LogEvent(event.time - offset, event.name, event.severity.value, event.fields))
    return events


def _offset() -> float:
    # Whatever comes between the two calls on a busy machine makes it smaller.
    return max(time.time() - time.monotonic() for _ in range(10))
