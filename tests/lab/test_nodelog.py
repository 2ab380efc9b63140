"""A node's log and its journal are read as events on the monotonic clock."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

from nlbfarm.events import NodeEvent, Severity
from nlbfarm.lab import nodelog


def test_lines_become_events_and_what_is_no_json_is_left_out() -> None:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {"timestamp": now, "level": "warning", "event": "peer.lost", "peer": 2, "name": "web2"}
    cut = '"level": "info"}'
    text = "\n".join([cut, json.dumps(line), "Traceback (most recent call last):", "[]", "{}"])
    (event,) = nodelog.parse(text)
    assert (event.name, event.level) == ("peer.lost", "warning")
    assert event.fields == {"peer": 2, "name": "web2"}
    assert abs(event.at - time.monotonic()) < 60


def test_a_journal_becomes_events_and_half_a_line_is_left_out() -> None:
    fields = {"checker": "page", "ok": False}
    line = NodeEvent(
        1, time.time(), "checker.changed", Severity.WARNING, "Checker page is down", fields
    ).line()
    (event,) = nodelog.parse_journal(f"{line[40:]}\n{line}\n{line[:-5]}")
    assert (event.name, event.level, event.fields) == ("checker.changed", "warning", fields)
    assert abs(event.at - time.monotonic()) < 60
