"""Every checker of nlbfarm passes the conformance check, with the real thing that it looks at."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from tests.checkers.support import LONG, OK, answering, server

from nlbfarm.api.control import ControlServer
from nlbfarm.checkers import (
    CertificateChecker,
    HttpChecker,
    InterfaceChecker,
    IpChecker,
    Limits,
    ModuleChecker,
    PingChecker,
    ProcessChecker,
    ResourcesChecker,
    ScriptChecker,
    Selection,
    TcpChecker,
)
from nlbfarm.core.policy import IPAddress
from nlbfarm.testing.checker import check_checker

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="lack of Linux")


class Switched:
    """A server on one port that can be stopped and started."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def on(self) -> None:
        if self._task is None:
            ready = asyncio.Event()
            self._stop.clear()
            self._task = asyncio.create_task(self._serve(ready))
            await ready.wait()

    async def off(self) -> None:
        if self._task is not None:
            self._stop.set()
            await self._task
            self._task = None

    async def _serve(self, ready: asyncio.Event) -> None:
        async with server(answering(OK), port=self.port):
            ready.set()
            await self._stop.wait()


@asynccontextmanager
async def switched(port: int) -> AsyncIterator[Switched]:
    found = Switched(port)
    try:
        yield found
    finally:
        await found.off()


async def test_tcp(free_port: int) -> None:
    async with switched(free_port) as site:
        await check_checker(
            lambda: TcpChecker("127.0.0.1", free_port), healthy=site.on, unhealthy=site.off, timeout=LONG
        )


async def test_tcp_by_name(free_port: int) -> None:
    async with switched(free_port) as site:
        await check_checker(
            lambda: TcpChecker("localhost", free_port), healthy=site.on, unhealthy=site.off, timeout=LONG
        )


@pytest.mark.parametrize("body", ["", "fine", "fi+ne"])
async def test_http(free_port: int, body: str) -> None:
    async with switched(free_port) as site:
        url = f"http://localhost:{free_port}/"
        await check_checker(
            lambda: HttpChecker(url, body=body, timeout=LONG),
            healthy=site.on,
            unhealthy=site.off,
            timeout=LONG,
        )


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="lack of root")
async def test_ping() -> None:
    async def on() -> None:
        """Loopback is always there."""

    await check_checker(lambda: PingChecker(IPv4Address("127.0.0.1"), timeout=LONG), healthy=on, timeout=LONG)
    # Nobody has this address; whether the host has a way there makes no difference.
    await check_checker(lambda: PingChecker(IPv4Address("192.0.2.1"), timeout=0.1), timeout=LONG)


@linux
async def test_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    await check_checker(lambda: InterfaceChecker(["lo"]), timeout=LONG)
    there = True

    async def plug() -> None:
        nonlocal there
        there = True

    async def unplug() -> None:
        nonlocal there
        there = False

    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"eth0": SimpleNamespace(isup=there, flags="up")})
    await check_checker(lambda: InterfaceChecker(["eth0"]), healthy=plug, unhealthy=unplug, timeout=LONG)


async def test_ip() -> None:
    vip: IPAddress = IPv4Address("192.0.2.100")
    claims: dict[IPAddress, str] = {}

    async def claimed() -> Mapping[IPAddress, str]:
        await asyncio.sleep(0.001)
        return claims

    async def leave() -> None:
        claims.clear()

    async def intrude() -> None:
        claims[vip] = "02:00:00:00:00:99"

    await check_checker(
        lambda: IpChecker([vip], present=lambda _: True, claimed=claimed), healthy=leave, unhealthy=intrude
    )


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """A process that runs; returns its pid file."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        path = tmp_path / "shop.pid"
        path.write_text(f"{process.pid}\n")
        yield path


@pytest.mark.parametrize("arguments", ["input", "inp.*t"])
async def test_process(running: Path, arguments: str) -> None:
    text = running.read_text()

    async def on() -> None:
        running.write_text(text)

    async def off() -> None:
        running.unlink(missing_ok=True)

    selection = Selection(pid_file=running, arguments=arguments)
    await check_checker(
        lambda: ProcessChecker(selection, timeout=LONG), healthy=on, unhealthy=off, timeout=LONG
    )


async def test_resources(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlbfarm.checkers.resources._WINDOW_S", 0.02)
    everything = Limits(cpu_percent=100, memory_percent=100, disk_path=running.parent, disk_free=0)
    await check_checker(lambda: ResourcesChecker(everything, timeout=LONG), timeout=LONG)
    of_process = Selection(pid_file=running)
    await check_checker(
        lambda: ResourcesChecker(
            Limits(cpu_percent=100, memory=1, open_files=1000), selection=of_process, timeout=0.3
        ),
        timeout=LONG,
    )


async def test_certificate(tmp_path: Path) -> None:
    from tests.checkers.certificates import DAY, issue

    path = tmp_path / "shop.pem"
    good, bad = issue("shop").pem, issue("shop", ends=DAY).pem

    async def renew() -> None:
        path.write_bytes(good)

    async def neglect() -> None:
        path.write_bytes(bad)

    await check_checker(lambda: CertificateChecker(file=path), healthy=renew, unhealthy=neglect, timeout=LONG)


@pytest.mark.posix("programs with a shebang")
async def test_script(tmp_path: Path) -> None:
    flag = tmp_path / "flag"

    async def on() -> None:
        flag.touch()

    async def off() -> None:
        flag.unlink(missing_ok=True)

    command = ["/bin/sh", "-c", f"sleep 1000 & echo looking; test -e {flag}"]
    await check_checker(lambda: ScriptChecker(command, timeout=LONG), healthy=on, unhealthy=off, timeout=LONG)


@pytest.mark.posix("Unix sockets")
async def test_module(tmp_path: Path) -> None:
    state = "UP"

    async def status(_: object) -> object:
        return {"state": state}

    async def on() -> None:
        nonlocal state
        state = "UP"

    async def off() -> None:
        nonlocal state
        state = "WAIT"

    path = tmp_path / "control.sock"
    node = ControlServer(path, {"status": status})
    await node.open()
    try:
        await check_checker(lambda: ModuleChecker("db", path), healthy=on, unhealthy=off, timeout=LONG)
    finally:
        await node.close()
