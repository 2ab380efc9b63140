"""Servers on loopback for the tests of checkers, and what such a test may not leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from nlbfarm.interfaces import Checker, CheckResult

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

SHORT = 0.2  # a timeout that is meant to run out
LONG = 20.0  # one that is not


@contextlib.contextmanager
def wired(prefix: str) -> Iterator[tuple[str, str]]:
    """Make two namespaces; what is eth0 in the first is the other end of eth0 in the second."""
    from tests.netns.vip_support import ip

    names = f"{prefix}-{os.getpid()}-1", f"{prefix}-{os.getpid()}-2"
    try:
        for name in names:
            ip("netns", "add", name)
        peer = ("peer", "name", "eth0", "netns", names[1])
        ip("-netns", names[0], "link", "add", "eth0", "type", "veth", *peer)
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def sockets() -> int:
    """Count this process's sockets."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(entry).startswith("socket:")
    return found


@contextlib.asynccontextmanager
async def server(handler: Handler, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[int]:
    """Run a server on loopback that treats each connection with ``handler``; yield its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def treat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await handler(reader, writer)
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    running = await asyncio.start_server(treat, "127.0.0.1", port, ssl=tls)
    try:
        yield running.sockets[0].getsockname()[1]
    finally:
        running.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await running.wait_closed()


def answering(answer: bytes, requests: list[bytes] | None = None) -> Handler:
    """Read a request's head, answer, close."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if requests is not None:
            requests.append(head)
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        await reader.read()

    return handler


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfine\n"


async def look(checker: Checker) -> CheckResult:
    try:
        return await checker.check()
    finally:
        await checker.close()
