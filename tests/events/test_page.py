"""docs/events.md: what it shows is what happens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from tests.events.examples import EXAMPLES

from nlbfarm.events import NodeEvent, Severity, sentence
from nlbfarm.events.sentences import EVENTS, severity
from nlbfarm.notify import Message

PAGE = (Path(__file__).parent.parent.parent / "docs" / "events.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_all_events() -> None:
    def row(name: str) -> str:
        fields = ", ".join(f"`{field}`" for field in EXAMPLES[name]) or "–"
        return (
            f"| `{name}` | {severity(name, EXAMPLES[name])} | {fields} | {sentence(name, EXAMPLES[name])} |"
        )

    rows = [line for line in PAGE.splitlines() if re.match(r"\| `[a-z]+\.", line)]
    assert rows == [row(name) for name in EVENTS], "\n".join(map(row, EVENTS))


def test_an_event_in_the_journal() -> None:
    data = json.loads(blocks("json")[0])
    event = NodeEvent.from_json(data)
    assert event.as_json() == data
    assert event.text == sentence(event.name, event.fields)
    keys = re.findall(r"^\| `(\w+)` \|", PAGE.split("## The journal")[1].split("\n## ")[0], re.MULTILINE)
    assert keys == list(data)


def test_a_message() -> None:
    shown = json.loads(blocks("json")[1])
    time = datetime.fromisoformat("2025-06-01T12:31:07+00:00").timestamp()
    event = NodeEvent(1, time, "peer.lost", Severity.WARNING, sentence("peer.lost", EXAMPLES["peer.lost"]))
    message = Message("shop", "web1", (event,))
    assert shown["title"] == message.subject
    assert shown["message"][25:] == message.body[25:]  # the time may be another one in this part of the world
    keys = re.findall(
        r"^\| ((?:`\w+`,? ?)+) \|", PAGE.split("### Scripts")[1].split("\n## ")[0], re.MULTILINE
    )
    assert re.findall(r"\w+", " ".join(keys)) == [
        "farm",
        "node",
        "subject",
        "severity",
        "events",
        "left_out",
        "missed",
    ]
    assert list(message.as_json()) == re.findall(r"\w+", " ".join(keys))


def test_the_program_runs() -> None:
    (program,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "warning Node web2 is lost: it is not heard on any network"
