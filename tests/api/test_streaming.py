"""Streams on the control socket: as long as they last, to clients that read slowly, or not at all, or go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nlbfarm.api import control
from nlbfarm.api.control import ControlServer, NodeNotRunningError, call, stream
from nlbfarm.errors import HostError, NlbfarmError, UsageError

pytestmark = pytest.mark.posix("Unix sockets")


class Source:
    """A stream under the control of a test."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = asyncio.Event()

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> Any:
        item = await self.items.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self) -> None:
        self.closed.set()


class Node:
    """A server whose verb ``source`` answers with a new ``Source``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sources: list[Source] = []
        self.server = ControlServer(path, {"source": self.source, "echo": self.echo, "count": self.count})

    async def source(self, args: Mapping[str, Any]) -> Source:
        if args.get("wrong"):
            raise UsageError("this cannot be meant")
        self.sources.append(Source())
        for item in args.get("items", []):
            self.sources[-1].items.put_nowait(item)
        return self.sources[-1]

    async def echo(self, args: Mapping[str, Any]) -> Any:
        return dict(args)

    async def count(self, args: Mapping[str, Any]) -> AsyncIterator[int]:
        async def numbers() -> AsyncIterator[int]:
            for number in range(args["to"]):
                yield number

        return numbers()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    found = Node(tmp_path / "control.sock")
    await found.server.open()
    yield found
    await found.server.close()


async def connect(node: Node, args: Mapping[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Begin a stream; return the connection after its first line."""
    reader, writer = await asyncio.open_unix_connection(node.path)
    writer.write(json.dumps({"verb": "source", "args": args}).encode() + b"\n")
    async with asyncio.timeout(10):
        assert json.loads(await reader.readline()) == {"ok": True, "begin": True}
    return reader, writer


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def test_a_stream_with_an_end(node: Node) -> None:
    found = await asyncio.to_thread(lambda: list(stream(node.path, "count", {"to": 3})))
    assert found == [0, 1, 2]


async def test_lines_of_a_stream(node: Node) -> None:
    reader, writer = await connect(node, {"items": ["ü", None]})
    async with asyncio.timeout(10):
        assert json.loads(await reader.readline()) == {"ok": True, "item": "ü"}
        assert json.loads(await reader.readline()) == {"ok": True, "end": True}
        assert await reader.read() == b""  # a stream is the last thing on a connection
        await node.sources[0].closed.wait()
    await close(writer)


async def test_it_lasts_longer_than_an_answer_may_take(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HANDLER_SECONDS", 0.02)
    monkeypatch.setattr(control, "IDLE_SECONDS", 0.02)
    reader, writer = await connect(node, {})
    async with asyncio.timeout(10):
        idle_reader, idle = await asyncio.open_unix_connection(node.path)
        assert await idle_reader.read() == b""  # who says nothing is shown out by now, who follows is not
        await close(idle)
        node.sources[0].items.put_nowait(1)
        assert json.loads(await reader.readline()) == {"ok": True, "item": 1}
    await close(writer)


async def test_others_are_answered_meanwhile(node: Node) -> None:
    _, writer = await connect(node, {})
    assert await asyncio.to_thread(call, node.path, "echo", {"a": 1}) == {"a": 1}
    await close(writer)


async def test_a_client_that_goes_ends_the_stream(node: Node) -> None:
    _, writer = await connect(node, {})
    assert not node.sources[0].closed.is_set()
    await close(writer)
    async with asyncio.timeout(10):
        await node.sources[0].closed.wait()


async def test_a_client_that_does_not_read_is_cut_off(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE_SECONDS", 0.1)
    _, writer = await connect(node, {})
    (serving,) = node.server._tasks
    for _ in range(64):
        node.sources[0].items.put_nowait("x" * 100_000)
    async with asyncio.timeout(10):
        await node.sources[0].closed.wait()
        await asyncio.wait({serving})
    assert await asyncio.to_thread(call, node.path, "echo") == {}
    await close(writer)


async def test_errors_before_a_stream_and_in_it(node: Node) -> None:
    with pytest.raises(UsageError, match="this cannot be meant"):
        await asyncio.to_thread(lambda: list(stream(node.path, "source", {"wrong": True})))
    reader, writer = await connect(node, {"items": [1]})
    node.sources[0].items.put_nowait(HostError("the disk is gone"))
    async with asyncio.timeout(10):
        await reader.readline()
        answer = json.loads(await reader.readline())
    assert answer == {"ok": False, "error": "the disk is gone", "kind": "failed"}
    await close(writer)
    reader, writer = await connect(node, {})
    node.sources[1].items.put_nowait(KeyError("x"))
    async with asyncio.timeout(10):
        answer = json.loads(await reader.readline())
    assert answer["error"] == "the stream failed inside the node: KeyError: 'x'"
    await close(writer)


async def test_streams_leave_connections_to_others(node: Node) -> None:
    many = [await connect(node, {}) for _ in range(control.MAX_STREAMS)]
    with pytest.raises(NlbfarmError, match="more than 8 clients follow at once"):
        await asyncio.to_thread(lambda: list(stream(node.path, "source")))
    assert node.sources[-1].closed.is_set()
    assert await asyncio.to_thread(call, node.path, "echo") == {}
    for _, writer in many:
        await close(writer)
    async with asyncio.timeout(10):
        await asyncio.gather(*(source.closed.wait() for source in node.sources))
        while node.server._streams:
            await asyncio.sleep(0.005)
    await close((await connect(node, {}))[1])


async def test_close_ends_streams(node: Node) -> None:
    def follow() -> Any:
        items = stream(node.path, "source", {"items": [1]})
        first = next(items)
        with pytest.raises(NodeNotRunningError, match="has ended"):
            next(items)
        return first

    following = asyncio.create_task(asyncio.to_thread(follow))
    async with asyncio.timeout(10):
        while not node.sources or node.sources[0].items.qsize():
            await asyncio.sleep(0.005)
        await node.server.close()
        assert await following == 1
    assert node.sources[0].closed.is_set()


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(NodeNotRunningError, match="no node is running here: there is no"):
        next(stream(tmp_path / "none.sock", "events"))
