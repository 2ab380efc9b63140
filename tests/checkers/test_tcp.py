"""The checker ``tcp``: real servers on loopback, and names that a resolver does not know, or never tells."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any

import pytest
from tests.checkers.support import LONG, SHORT, hang, look, server

from nlbfarm.checkers import TcpChecker
from nlbfarm.interfaces import CheckResult


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
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    result = await look(TcpChecker("app.invalid", 80))
    assert result == CheckResult(False, "cannot resolve app.invalid: Name or service not known")


async def test_a_resolver_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs its checker alone: nobody else's look waits, nor the executor of the event loop."""
    answer, asked = threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def hangs(host: Any, *rest: Any, **more: Any) -> Any:
        if host != "app.invalid":
            return real(host, *rest, **more)
        asked.set()
        answer.wait(LONG)
        return real("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    async with server(hang) as port:
        checker, others = TcpChecker("app.invalid", port, timeout=SHORT), TcpChecker("localhost", port)
        first = await checker.check()
        second = await checker.check()
        assert asked.is_set()
        assert first.detail == "cannot resolve app.invalid: no answer within 0.2 s"
        assert second.detail.startswith("cannot resolve app.invalid: the look before has not come back for ")
        assert not first.ok
        assert not second.ok
        assert (await look(others)).ok
        assert await asyncio.to_thread(lambda: 7) == 7
        answer.set()
        assert (await TcpChecker.check(checker)).ok
        await checker.close()


async def test_tcp_network_that_is_not_there() -> None:
    result = await look(TcpChecker("255.255.255.255", 80, timeout=LONG))
    assert not result.ok
    assert result.detail.startswith("cannot reach 255.255.255.255:80: ")
