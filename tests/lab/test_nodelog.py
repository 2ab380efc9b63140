"""A node's log is read as events on the monotonic clock."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

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
