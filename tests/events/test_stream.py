"""The stream and the log: order, numbers, readers that are slow, threads."""

from __future__ import annotations

import asyncio
import enum
import threading
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from structlog.testing import capture_logs

from nlbfarm.events import EventLog, EventStream, NodeEvent, Severity
from nlbfarm.events.model import plain
from nlbfarm.events.stream import RECENT
from nlbfarm.testing.clock import FakeClock


@pytest.fixture
def stream() -> EventStream:
    return EventStream()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def log(stream: EventStream, clock: FakeClock) -> EventLog:
    return EventLog(stream, clock=clock)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as found:
        yield found


def event(name: str = "peer.heard") -> NodeEvent:
    return NodeEvent(0, 1.0, name, Severity.INFO, "text")


def numbers(events: list[NodeEvent]) -> list[int]:
    return [one.sequence for one in events]


# -- the stream ----------------------------------------------------------------------------


def test_events_are_numbered_and_remembered(stream: EventStream) -> None:
    assert numbers([stream.publish(event()) for _ in range(3)]) == [1, 2, 3]
    assert numbers(stream.recent(2)) == [2, 3]
    assert numbers(stream.recent(99)) == [1, 2, 3]
    assert stream.recent(0) == []
    for _ in range(RECENT):
        stream.publish(event())
    assert numbers(stream.recent(RECENT + 5))[0] == 4


def test_a_thread_takes_all_that_waits(stream: EventStream) -> None:
    reader = stream.subscribe()
    assert reader.take(timeout=0) == []
    for _ in range(3):
        stream.publish(event())
    assert numbers(reader.take()) == [1, 2, 3]
    reader.wake()
    assert reader.take() == []
    stream.publish(event())
    reader.close()
    reader.close()
    stream.publish(event())
    assert numbers(reader.take()) == [4]  # nothing after close, but what waited
    assert reader.take() == []


def test_the_past_can_come_first(stream: EventStream) -> None:
    stream.publish(event())
    reader = stream.subscribe(past=True)
    stream.publish(event())
    assert numbers(reader.take()) == [1, 2]


def test_a_slow_reader_loses_the_oldest_and_is_told(stream: EventStream) -> None:
    slow, fast = stream.subscribe(limit=3), stream.subscribe(limit=100)
    for _ in range(10):
        stream.publish(event())
    told, *rest = slow.take()
    assert (told.name, told.severity, told.fields) == ("events.dropped", Severity.WARNING, {"count": 7})
    assert told.sequence == 7  # it stands where the last lost one stood
    assert numbers(rest) == [8, 9, 10]
    stream.publish(event())
    assert numbers(slow.take()) == [11]
    assert numbers(fast.take()) == list(range(1, 12))


async def test_a_task_reads_as_events_come(stream: EventStream) -> None:
    reader = stream.subscribe(limit=2)
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    assert not waiting.done()
    stream.publish(event())
    assert (await waiting).sequence == 1
    for _ in range(4):
        stream.publish(event())
    reader.close()
    assert [(one.name, one.sequence) async for one in reader] == [
        ("events.dropped", 3),
        ("peer.heard", 4),
        ("peer.heard", 5),
    ]


async def test_close_ends_a_task_that_waits(stream: EventStream) -> None:
    reader = stream.subscribe()
    waiting = asyncio.ensure_future(anext(reader, None))
    await asyncio.sleep(0)
    reader.close()
    async with asyncio.timeout(10):
        assert await waiting is None


async def test_a_task_that_was_cancelled_can_be_followed_by_another(stream: EventStream) -> None:
    reader = stream.subscribe()
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    waiting.cancel()
    stream.publish(event())
    async with asyncio.timeout(10):
        assert (await anext(reader)).sequence == 1


def test_a_reader_whose_loop_is_gone_holds_up_nobody(stream: EventStream) -> None:
    reader = stream.subscribe()

    async def begin() -> None:
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(begin())
    stream.publish(event())
    assert numbers(reader.take()) == [1]


async def test_many_threads_publish_and_every_reader_sees_one_order(stream: EventStream) -> None:
    task_reader, thread_reader = stream.subscribe(10_000), stream.subscribe(10_000)
    barrier = threading.Barrier(4)

    def publish() -> None:
        barrier.wait(10)
        for _ in range(500):
            stream.publish(event(threading.current_thread().name))

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen: list[NodeEvent] = []
    async with asyncio.timeout(20):
        async for one in task_reader:
            seen.append(one)
            if len(seen) == 2000:
                break
    for thread in threads:
        thread.join(10)
    assert numbers(seen) == list(range(1, 2001))
    taken: list[NodeEvent] = []
    while len(taken) < 2000:
        taken += thread_reader.take(timeout=10)
    assert taken == seen


# -- the log -------------------------------------------------------------------------------


def test_the_log_is_written_as_before_and_the_event_published(
    log: EventLog, stream: EventStream, clock: FakeClock, logged: list[Any]
) -> None:
    clock.advance(5)
    log.info("peer.heard", peer=2, name="web2")
    assert logged == [{"event": "peer.heard", "log_level": "info", "peer": 2, "name": "web2"}]
    assert stream.recent(9) == [
        NodeEvent(
            1, clock.wall(), "peer.heard", Severity.INFO, "Node web2 is heard", {"peer": 2, "name": "web2"}
        )
    ]


def test_an_event_may_be_worse_than_the_log_says_but_never_better(
    log: EventLog, stream: EventStream, logged: list[Any]
) -> None:
    log.warning("filter.damaged", reason="gone")
    log.warning("peer.heard", name="web2")
    log.error("peer.heard", name="web2")
    log.info("vendor.thing")
    assert [one.severity.value for one in stream.recent(9)] == ["error", "warning", "error", "info"]
    assert [one["log_level"] for one in logged] == ["warning", "warning", "error", "info"]


def test_bound_fields_go_to_both(log: EventLog, stream: EventStream, logged: list[Any]) -> None:
    bound = log.bind(peer=2).bind(verb="drain")
    bound.info("order.carried_out", detail="drains")
    assert (logged[0]["peer"], logged[0]["verb"]) == (2, "drain")
    assert stream.recent(1)[0].text == "Node 2 told this node: drain. drains"
    log.info("drain.ended")
    assert stream.recent(1)[0].fields == {}


def test_an_exception_is_told_by_what_it_says(log: EventLog, stream: EventStream, logged: list[Any]) -> None:
    try:
        raise ValueError("x")
    except ValueError:
        log.exception("node.failed", event_kind="TimerFired")
    assert logged[0]["exc_info"] is True
    assert "error" not in logged[0]
    (told,) = stream.recent(1)
    assert (told.severity, told.fields["error"]) == (Severity.ERROR, "ValueError: x")
    assert told.text == "This node fails over an error in nlbfarm (TimerFired): ValueError: x"


# -- JSON ----------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


def test_fields_become_json() -> None:
    listed = [1]
    value = {
        "address": ip_address("192.0.2.1"),
        1: {Colour.RED},
        "list": listed,
        "inf": float("inf"),
        "span": timedelta(1),
        "none": None,
        "yes": True,
    }
    found = plain(value)
    listed.append(2)
    assert found == {
        "address": "192.0.2.1",
        "1": ["red"],
        "list": [1],
        "inf": "inf",
        "span": "1 day, 0:00:00",
        "none": None,
        "yes": True,
    }


def test_an_event_survives_json() -> None:
    one = NodeEvent(3, 1.5, "peer.lost", Severity.WARNING, "Grüße", {"peer": 2})
    assert "\n" not in one.line()
    assert NodeEvent.from_json(one.as_json() | {"later": "more"}) == one
    assert list(one.as_json()) == ["sequence", "time", "name", "severity", "text", "fields"]


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {**event().as_json(), "severity": "bad"},
        {**event().as_json(), "time": "inf"},
        {**event().as_json(), "time": float("nan")},
        {**event().as_json(), "time": 1e15},
        {**event().as_json(), "sequence": float("inf")},
        {**event().as_json(), "fields": 1},
    ],
)
def test_what_is_no_event(data: object) -> None:
    with pytest.raises(ValueError, match="not an event"):
        NodeEvent.from_json(data)
