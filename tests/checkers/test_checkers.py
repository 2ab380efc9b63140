"""Checkers against real servers on loopback: healthy, refusing, hanging, babbling."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from nlbfarm.checkers import HttpChecker, TcpChecker, build
from nlbfarm.errors import PluginError, UsageError
from nlbfarm.interfaces import Checker, CheckResult

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

SHORT = 0.2  # a timeout that is meant to run out
LONG = 20.0  # one that is not


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """A socket that a checker forgets is a ResourceWarning, and that an error; count them all the same."""
    gc.collect()
    before = sockets()
    yield
    gc.collect()
    assert sockets() <= before


def sockets() -> int:
    """Count this process's sockets."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(entry).startswith("socket:")
    return found


@contextlib.asynccontextmanager
async def server(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
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

    running = await asyncio.start_server(treat, "127.0.0.1", 0, ssl=tls)
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


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# --- tcp --------------------------------------------------------------------------------------


async def test_tcp_accepted() -> None:
    async with server(hang) as port:
        result = await look(TcpChecker("127.0.0.1", port))
        assert result == CheckResult(True, f"connection accepted by 127.0.0.1:{port}")


async def test_tcp_refused(free_port: int) -> None:
    result = await look(TcpChecker("127.0.0.1", free_port))
    assert result == CheckResult(False, f"connection refused by 127.0.0.1:{free_port}")


async def test_tcp_no_answer_in_time() -> None:
    """A backlog that is full: the kernel ignores further SYNs, as a host that is gone would."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            result = await look(TcpChecker("127.0.0.1", port, timeout=SHORT))
    assert result == CheckResult(False, f"no answer from 127.0.0.1:{port} within 0.2 s")


async def test_tcp_by_name_tries_every_address() -> None:
    async with server(hang) as port:  # localhost may be ::1 first, where nobody listens
        assert (await look(TcpChecker("localhost", port))).ok


async def test_tcp_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    result = await look(TcpChecker("app.invalid", 80))
    assert result == CheckResult(False, "cannot resolve app.invalid: Name or service not known")


async def test_tcp_network_that_is_not_there() -> None:
    result = await look(TcpChecker("255.255.255.255", 80, timeout=LONG))
    assert not result.ok
    assert result.detail.startswith("cannot reach 255.255.255.255:80: ")


# --- http -------------------------------------------------------------------------------------


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


# --- https ------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make a certificate")
    pem, cert = tmp_path / "server.pem", tmp_path / "cert.pem"
    ask = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=shop -keyout {pem} -out {cert}"
    subprocess.run(
        ["openssl", *ask.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True
    )
    with pem.open("ab") as file:
        file.write(cert.read_bytes())
    return pem


def test_https(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))

    async def run() -> tuple[CheckResult, CheckResult, int]:
        async with server(answering(OK), context) as port:
            url = f"https://127.0.0.1:{port}/"
            good = await look(HttpChecker(url, timeout=LONG, tls=trusting))
            return good, await look(HttpChecker(url, timeout=LONG)), port

    good, bad, port = asyncio.run(run())
    assert good == CheckResult(True, f"HTTP 200 from https://127.0.0.1:{port}/")
    assert not bad.ok
    assert bad.detail.startswith(f"the certificate of 127.0.0.1:{port} is not valid: self")


async def test_https_where_nobody_speaks_tls() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with server(plain) as port:
        result = await look(HttpChecker(f"https://127.0.0.1:{port}/", timeout=LONG))
    assert not result.ok
    assert result.detail.startswith(f"no TLS with 127.0.0.1:{port}: ")


# --- cancelled, built -------------------------------------------------------------------------


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


LOOPBACK = IPv4Address("127.0.0.1")


@dataclass
class Config:
    type: str
    name: str = "page"
    timeout: timedelta = timedelta(seconds=LONG)
    address: IPv4Address = LOOPBACK
    port: int = 0
    url: str = ""
    status: tuple[int, ...] = (200,)
    options: Mapping[str, Any] = field(default_factory=dict)


async def test_build() -> None:
    async with server(answering(OK)) as port:
        tcp = build(Config("tcp", port=port))
        http = build(Config("http", url=f"http://127.0.0.1:{port}/"))
        assert isinstance(tcp, TcpChecker)
        assert isinstance(http, HttpChecker)
        assert (await look(tcp)).ok
        assert (await look(http)).ok
    with pytest.raises(PluginError, match=r'nothing called "ping" is installed for nlbfarm.checkers'):
        build(Config("ping"))
