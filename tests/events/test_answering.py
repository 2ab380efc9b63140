"""The verb ``events``: from a node's events to a client, through a real control socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nlbfarm.api.control import ControlServer, NodeNotRunningError, stream
from nlbfarm.errors import UsageError
from nlbfarm.events import EventLog, EventStream, Journal, answer_events
from nlbfarm.events.answering import MOST
from nlbfarm.testing.clock import FakeClock

pytestmark = pytest.mark.posix("Unix sockets")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def log(clock: FakeClock) -> EventLog:
    return EventLog(EventStream(), clock=clock)


@pytest.fixture
async def journal(tmp_path: Path, log: EventLog) -> AsyncIterator[Journal]:
    found = Journal(tmp_path / "events.jsonl", log, max_bytes=1_000_000, files=2)
    found.open()
    yield found
    found.close(timeout=10)


@pytest.fixture
async def path(tmp_path: Path, log: EventLog, journal: Journal) -> AsyncIterator[Path]:
    path = tmp_path / "control.sock"
    verbs = {"events": answer_events(log.stream, journal), "memory": answer_events(log.stream, None)}
    server = ControlServer(path, verbs)
    await server.open()
    yield path
    await server.close()


async def ask(path: Path, verb: str = "events", **args: Any) -> list[dict[str, Any]]:
    return await asyncio.to_thread(lambda: list(stream(path, verb, args)))


def numbers(found: list[dict[str, Any]]) -> list[int]:
    return [one["fields"]["number"] for one in found]


@pytest.mark.parametrize("verb", ["events", "memory"])
async def test_the_last_and_those_since(path: Path, log: EventLog, clock: FakeClock, verb: str) -> None:
    for number in range(30):
        log.info("test.event", number=number)
        clock.advance(1)
    assert numbers(await ask(path, verb)) == list(range(10, 30))
    assert numbers(await ask(path, verb, last=2)) == [28, 29]
    assert numbers(await ask(path, verb, since=clock.wall() - 25)) == list(range(5, 30))
    assert numbers(await ask(path, verb, since=clock.wall() - 25, last=3)) == [27, 28, 29]
    assert await ask(path, verb, last=0) == []


@pytest.mark.parametrize(
    "args",
    [
        {"last": -1},
        {"last": MOST + 1},
        {"last": True},
        {"last": "3"},
        {"since": "now"},
        {"since": True},
        {"follow": 1},
    ],
)
async def test_what_cannot_be_meant(path: Path, log: EventLog, args: dict[str, Any]) -> None:
    before = len(log.stream._subscriptions)
    with pytest.raises(UsageError, match="of events must be"):
        await ask(path, **args)
    assert len(log.stream._subscriptions) == before


class Follower:
    """Follows in a thread, and gives what it gets to the loop."""

    def __init__(self, path: Path, **args: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._found: asyncio.Queue[dict[str, Any] | BaseException] = asyncio.Queue()
        self._task = asyncio.create_task(asyncio.to_thread(self._follow, path, args))

    def _follow(self, path: Path, args: dict[str, Any]) -> None:
        try:
            for one in stream(path, "events", {"follow": True, **args}):
                self._loop.call_soon_threadsafe(self._found.put_nowait, one)
        except NodeNotRunningError as error:
            self._loop.call_soon_threadsafe(self._found.put_nowait, error)

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            return await self._found.get()

    async def ended(self) -> None:
        async with asyncio.timeout(10):
            await self._task


async def test_following_begins_with_the_past_and_tells_each_event_once(
    tmp_path: Path, path: Path, log: EventLog
) -> None:
    log.info("test.event", number=0)
    follower = Follower(path, last=5)
    assert (await follower.next())["fields"] == {"number": 0}
    for number in range(1, 200):
        log.info("test.event", number=number)
        if number % 20 == 0:
            await asyncio.sleep(0)
    assert [(await follower.next())["fields"]["number"] for _ in range(1, 200)] == list(range(1, 200))


async def test_events_while_the_past_is_looked_up_are_told_once(
    log: EventLog, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_back = journal.look_back

    async def slow(last: int, since: float | None) -> Any:
        log.info("test.event", number=1)  # subscribed already: it is in both
        found = await look_back(last, since)
        log.info("test.event", number=2)  # and this one in the subscription alone
        return found

    monkeypatch.setattr(journal, "look_back", slow)
    log.info("test.event", number=0)
    items = await answer_events(log.stream, journal)({"follow": True})
    log.info("test.event", number=3)
    async with asyncio.timeout(10):
        assert numbers([await anext(items) for _ in range(4)]) == [0, 1, 2, 3]


async def test_who_does_not_follow_any_more_is_forgotten(path: Path, log: EventLog) -> None:
    before = len(log.stream._subscriptions)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"verb": "events", "args": {"follow": true, "last": 0}}\n')
    async with asyncio.timeout(10):
        assert await reader.readline() == b'{"ok":true,"begin":true}\n'
        assert len(log.stream._subscriptions) == before + 1
        writer.close()
        while len(log.stream._subscriptions) > before:
            await asyncio.sleep(0.005)


async def test_a_stream_that_is_never_begun_is_forgotten_too(log: EventLog) -> None:
    before = len(log.stream._subscriptions)
    items: Any = await answer_events(log.stream, None)({"follow": True})
    await items.aclose()
    assert len(log.stream._subscriptions) == before


async def test_the_end_of_the_node_is_told(tmp_path: Path, log: EventLog) -> None:
    server = ControlServer(tmp_path / "other.sock", {"events": answer_events(log.stream, None)})
    await server.open()
    log.info("test.event", number=0)
    follower = Follower(tmp_path / "other.sock")
    await follower.next()
    await server.close()
    assert "has ended" in str(await follower.next())
    await follower.ended()
