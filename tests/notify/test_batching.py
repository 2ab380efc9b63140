"""What is worth a message, when it is due, and what stands in it; no clock and no thread."""

from __future__ import annotations

from math import inf

from nlbfarm.events import NodeEvent, Severity
from nlbfarm.notify import Message
from nlbfarm.notify.batching import MOST, Batcher, Selection

INFO, WARNING, ERROR = Severity


def event(
    name: str = "peer.lost", severity: Severity = WARNING, text: str = "Node web2 is lost"
) -> NodeEvent:
    return NodeEvent(1, 1_700_000_000.5, name, severity, text, {"peer": 2})


def test_selection() -> None:
    selection = Selection(["peer.*", "node.state"], WARNING)
    assert selection.wants(event())
    assert selection.wants(event("node.state", ERROR))
    assert not selection.wants(event("node.states"))
    assert not selection.wants(event("peer.heard", INFO))
    assert not selection.wants(event("filter.damaged", ERROR))
    assert not Selection([], INFO).wants(event())


def test_the_own_events_are_never_wanted() -> None:
    assert not Selection(["*"], INFO).wants(event("notify.failed"))
    assert Selection(["*"], INFO).wants(event("vendor.thing", INFO))


def test_the_first_event_of_a_quiet_time_is_told_soon_then_one_message_a_batch() -> None:
    batcher = Batcher(batch=60, settle=2)
    assert batcher.due == inf
    batcher.add(event(), 100)
    batcher.add(event(), 101)
    assert batcher.due == 102
    assert len(batcher.take(102)[0]) == 2
    assert batcher.due == inf
    batcher.add(event(), 110)
    assert batcher.due == 162
    batcher.add(event(), 161)
    assert len(batcher.take(163)[0]) == 2
    batcher.add(event(), 500)
    assert batcher.due == 502


def test_a_message_has_an_end() -> None:
    batcher = Batcher(batch=60, settle=2)
    for number in range(MOST + 7):
        batcher.add(event(text=str(number)), 0)
    events, left_out = batcher.take(2)
    assert (len(events), left_out) == (MOST, 7)
    message = Message("shop", "web1", events, left_out)
    assert message.subject == "[shop/web1] 207 events: 0"
    assert message.body.splitlines()[-1] == "and 7 more: nlbfarm-node events --last 207"
    assert batcher.take(3) == ((), 0)


def test_a_message() -> None:
    events = (event("peer.heard", INFO, "one"), event(severity=WARNING, text="two"), event(text="three"))
    message = Message("shop", "web1", events, missed=4)
    assert message.severity is WARNING
    assert message.subject == "[shop/web1] 3 events: two"  # the first of the worst
    lines = message.body.splitlines()
    assert [line[26:] for line in lines[:3]] == ["info: one", "warning: two", "warning: three"]
    assert lines[3] == "4 events before these could not be told: nlbfarm-node events"
    assert message.as_json() == {
        "farm": "shop",
        "node": "web1",
        "subject": "[shop/web1] 3 events: two",
        "severity": "warning",
        "events": [one.as_json() for one in events],
        "left_out": 0,
        "missed": 4,
    }


def test_subjects_are_short() -> None:
    assert Message("shop", "web1", (event(),)).subject == "[shop/web1] Node web2 is lost"
    assert len(Message("shop", "web1", (event(text="x" * 500),)).subject) == 150
