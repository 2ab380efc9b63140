"""The checker ``http`` against real servers on loopback: healthy, refusing, hanging, babbling."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from tests.checkers.support import LONG, OK, SHORT, answering, hang, look, server

from nlbfarm.checkers import HttpChecker
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import CheckResult


async def test_http_ok_and_what_is_asked() -> None:
    requests: list[bytes] = []
    async with server(answering(OK, requests)) as port:
        url = f"http://127.0.0.1:{port}/health?deep=1#top"
        result = await look(HttpChecker(url))
        named = await look(HttpChecker(f"http://127.0.0.1:{port}", host="shop.example"))
    assert result == CheckResult(True, f"HTTP 200 from {url}")
    assert named.ok
    lines = requests[0].decode().lower().split("\r\n")
    assert lines[0] == "get /health?deep=1 http/1.1"
    assert {f"host: 127.0.0.1:{port}", "connection: close"} <= set(lines)
    assert requests[1].lower().startswith(b"get / http/1.1\r\nhost: shop.example\r\n")


@pytest.mark.parametrize(
    ("answer", "ok", "status"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", False, 503),
        (b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n", True, 302),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", False, 404),
        (b"HTTP/1.1 204 No Content\r\n\r\n", True, 204),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil it closes", True, 200),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", True, 200),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, True, 200),
    ],
)
async def test_http_statuses(answer: bytes, ok: bool, status: int) -> None:
    async with server(answering(answer)) as port:
        url = f"http://127.0.0.1:{port}/"
        assert await look(HttpChecker(url, timeout=LONG)) == CheckResult(ok, f"HTTP {status} from {url}")


async def test_http_wanted_statuses_are_the_healthy_ones() -> None:
    async with server(answering(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")) as port:
        assert (await look(HttpChecker(f"http://127.0.0.1:{port}/", status=(401,)))).ok
        assert not (await look(HttpChecker(f"http://127.0.0.1:{port}/", status=(200,)))).ok


async def test_http_goes_to_the_address_whatever_the_url_says() -> None:
    requests: list[bytes] = []
    async with server(answering(OK, requests)) as port:
        url = f"http://shop.invalid:{port}/"
        result = await look(HttpChecker(url, address="127.0.0.1"))
    assert result == CheckResult(True, f"HTTP 200 from {url} (at 127.0.0.1)")
    assert f"host: shop.invalid:{port}\r\n".encode() in requests[0].lower()


PAGE = b'{"name": "shop", "status": "up", "note": "gr\xc3\xbcn"}'
PAGE_OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE)


@pytest.mark.parametrize("wanted", ['"status": "(ok|up)"', "grün", r'"status":\s*"up"', "(?i)STATUS"])
async def test_http_body_that_is_wanted(wanted: str) -> None:
    async with server(answering(PAGE_OK)) as port:
        result = await look(HttpChecker(f"http://127.0.0.1:{port}/", body=wanted))
    assert result == CheckResult(True, f'HTTP 200 from http://127.0.0.1:{port}/, with "{wanted}" in the body')


@pytest.mark.parametrize("wanted", ['"status": "(ok|ready)"', r'"status":\s*"ok"'])
async def test_http_body_that_is_not_there(wanted: str) -> None:
    async with server(answering(PAGE_OK)) as port:
        url = f"http://127.0.0.1:{port}/"
        result = await look(HttpChecker(url, body=wanted))
        refused = await look(HttpChecker(url, body=wanted, status=(204,)))
    assert result == CheckResult(False, f'HTTP 200 from {url}, but the body has no "{wanted}"')
    assert refused == CheckResult(False, f"HTTP 200 from {url}")


@pytest.mark.parametrize(("before", "ok"), [(250_000, True), (300_000, False)])
async def test_http_body_is_searched_up_to_a_limit(before: int, ok: bool) -> None:
    body = b"x" * before + b"ready"
    async with server(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    ) as port:
        result = await look(HttpChecker(f"http://127.0.0.1:{port}/", body="ready", timeout=LONG))
    assert result.ok is ok
    assert ok or result.detail.endswith('but the first 256 KiB of the body has no "ready"')


async def test_http_body_that_takes_for_ever_to_search() -> None:
    """In this process the search would hold up the event loop for hours."""
    body = b"x" * 200_000
    async with server(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    ) as port:
        url = f"http://127.0.0.1:{port}/"
        checker = HttpChecker(url, body="(x+x+)+y", timeout=5 * SHORT)
        looking = asyncio.create_task(look(checker))
        turns = 0
        while not looking.done():
            await asyncio.sleep(0.001)
            turns += 1
        result = await looking
    assert turns > 20
    assert not result.ok
    assert result.detail.startswith(f"{url}: ")
    assert "(x+x+)+y" in result.detail
    assert "within 1 s" in result.detail or "takes longer than" in result.detail


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"220 mail.example ESMTP\r\n",
        b"\x15\x03\x03\x00\x02\x02\x50",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\ncut short",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n",
    ],
    ids=["nothing", "smtp", "tls", "ssh", "header", "short", "chunk", "length", "endless-head"],
)
async def test_http_garbage(answer: bytes) -> None:
    async with server(answering(answer)) as port:
        result = await look(HttpChecker(f"http://127.0.0.1:{port}/", timeout=LONG))
    assert not result.ok
    assert result.detail.startswith(f"no valid HTTP from http://127.0.0.1:{port}/: ")
    assert "\n" not in result.detail


async def test_http_refused(free_port: int) -> None:
    result = await look(HttpChecker(f"http://127.0.0.1:{free_port}/"))
    assert result == CheckResult(False, f"connection refused by 127.0.0.1:{free_port}")


@pytest.mark.posix("an event loop that closes sockets without shutting them down first")
async def test_http_reset() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async with server(reset) as port:
        result = await look(HttpChecker(f"http://127.0.0.1:{port}/", timeout=LONG))
    assert result == CheckResult(False, f"connection reset by 127.0.0.1:{port}")


async def test_http_hang_after_accept() -> None:
    async with server(hang) as port:
        url = f"http://127.0.0.1:{port}/"
        result = await look(HttpChecker(url, timeout=SHORT))
    assert result == CheckResult(False, f"no answer from {url} within 0.2 s")


async def test_http_slow_head() -> None:
    """Each byte is in time, the answer is not."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            writer.write(b"z")
            await asyncio.sleep(0.01)

    async with server(drip) as port:
        result = await look(HttpChecker(f"http://127.0.0.1:{port}/", timeout=SHORT))
    assert not result.ok
    assert result.detail.startswith("no answer from")


async def test_http_body_that_does_not_end() -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")
        await asyncio.Event().wait()

    async with server(stall) as port:
        url = f"http://127.0.0.1:{port}/"
        result = await look(HttpChecker(url, timeout=SHORT))
    assert result == CheckResult(False, f"HTTP 200 without its end from {url} within 0.2 s")


async def test_http_huge_body_is_not_read_to_its_end() -> None:
    written = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            written += 65536

    async with server(flood) as port:
        result = await look(HttpChecker(f"http://127.0.0.1:{port}/", timeout=LONG))
    assert result.ok
    assert written < 64 << 20  # what sockets buffer beyond the 1 MiB that is read


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/",
        "127.0.0.1/health",
        "http:///health",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/ä",
        "x",
    ],
)
def test_http_wrong_urls(url: str) -> None:
    with pytest.raises(UsageError):
        HttpChecker(url)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_cancelled_look_leaves_nothing_behind(scheme: str) -> None:
    accepted = asyncio.Event()
    gone = asyncio.Event()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        with contextlib.suppress(OSError):
            await reader.read()
        gone.set()

    async with server(watch) as port, asyncio.timeout(LONG):
        checker = HttpChecker(f"{scheme}://127.0.0.1:{port}/", timeout=LONG)
        task = asyncio.create_task(checker.check())
        await accepted.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()
        await checker.close()


def test_http_body_that_is_no_expression() -> None:
    with pytest.raises(UsageError, match=r"body: '\(' is not a regular expression: missing \)"):
        HttpChecker("http://127.0.0.1/", body="(")
