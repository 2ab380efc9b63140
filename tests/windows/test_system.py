"""What is different on Windows, seen there."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import psutil
import pytest

import nlbfarm
from nlbfarm import backends
from nlbfarm.backends.windivert import WinDivertBackend, engine
from nlbfarm.core.policy import FilterPolicy, Vip
from nlbfarm.errors import HostError
from nlbfarm.heartbeat.udp import UdpHeartbeat
from nlbfarm.interfaces import Received
from nlbfarm.parts import SystemClock

pytestmark = pytest.mark.windows

LINUX_ONLY = ("nlbfarm.lab", "nlbfarm.cli.demo", "nlbfarm.services.keeper")
LOCALHOST = IPv4Address("127.0.0.1")


def test_everything_but_the_lab_can_be_imported() -> None:
    refused: list[str] = []
    for module in pkgutil.walk_packages(nlbfarm.__path__, "nlbfarm.", onerror=refused.append):
        if not module.name.endswith(".__main__"):
            try:
                importlib.import_module(module.name)
            except ImportError:
                refused.append(module.name)
    assert [name for name in refused if not name.startswith(LINUX_ONLY)] == []


async def test_every_backend_says_whether_it_can_work_here() -> None:
    survey = dict(await backends.survey())
    assert survey["memory"].usable
    assert not survey["nftables"].usable
    assert "Linux" in survey["nftables"].detail
    with pytest.raises(HostError, match="'nftables' cannot work on this host"):
        await backends.choose("nftables")


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nlbfarm.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("verb", "said"), [("demo", "the demo needs Linux"), ("run", "inside a program")])
def test_a_verb_that_needs_linux_says_so(verb: str, said: str, tmp_path: Path) -> None:
    config = tmp_path / "farm.toml"
    config.write_text("")
    done = node(verb, *(["--config", str(config)] if verb == "run" else []))
    assert done.returncode == 4, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_and_configurations_are_made_and_checked_here(tmp_path: Path) -> None:
    assert node("keygen", str(tmp_path / "farm.key")).returncode == 0
    config = tmp_path / "farm.toml"
    config.write_text(
        '[farm]\nname = "shop"\nkey_file = "farm.key"\n'
        '[[nodes]]\nid = 1\nname = "a"\naddresses = ["192.0.2.11"]\n'
        '[[nodes]]\nid = 2\nname = "b"\naddresses = ["192.0.2.12"]\n'
        '[[vips]]\naddress = "192.0.2.100"\ninterface = "Ethernet 2"\ndelivery = "multicast"\n'
        '[[rules]]\nname = "web"\nvip = "192.0.2.100"\nports = [80]\n'
    )
    done = node("check", str(config))
    assert done.returncode == 0, done.stdout + done.stderr


# -- heartbeats: one socket, since Wine binds a UDP port once, whatever the address --------------------


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(LOCALHOST), 0))
        return int(sock.getsockname()[1])


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_thread_reads_the_socket_and_the_loop_delivers(port: int) -> None:
    received: list[Received] = []
    heartbeat = UdpHeartbeat([LOCALHOST], {2: [LOCALHOST]}, port=port, clock=SystemClock())
    await heartbeat.open(received.append, lambda _: None)
    try:
        assert "the event loop cannot watch sockets: a thread reads them" in heartbeat.stats().notes
        before = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"one", (str(LOCALHOST), port))
            peer.sendto(b"two", (str(LOCALHOST), port))
        await eventually(lambda: len(received) == 2)
        assert [one.data for one in received] == [b"one", b"two"]
        assert all(before <= one.at <= time.monotonic() for one in received)
    finally:
        await heartbeat.close()


async def test_strangers_are_counted_and_dropped(port: int) -> None:
    received: list[Received] = []
    peers = {2: [IPv4Address("127.0.0.2")]}
    heartbeat = UdpHeartbeat([LOCALHOST], peers, port=port, clock=SystemClock())
    await heartbeat.open(received.append, lambda _: None)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"x", (str(LOCALHOST), port))
        await eventually(lambda: heartbeat.stats().networks[0].foreign == 1)
        assert received == []
    finally:
        await heartbeat.close()


async def test_nobody_shares_the_port(port: int) -> None:
    first, second = (UdpHeartbeat([LOCALHOST], {}, port=port, clock=SystemClock()) for _ in range(2))
    await first.open(lambda _: None, lambda _: None)
    try:
        with pytest.raises(HostError, match=f"{LOCALHOST} port {port}/udp: another program has the port"):
            await second.open(lambda _: None, lambda _: None)
    finally:
        await first.close()
        await second.close()


# -- WinDivert's surroundings ----------------------------------------------------------------------------


def on(interface: str) -> FilterPolicy:
    return FilterPolicy("unit", (Vip(IPv4Address("192.0.2.100"), interface),), (), ())


def test_interfaces_are_known_by_the_name_that_administrators_see() -> None:
    names = [name for name, items in psutil.net_if_addrs().items() if items]
    assert names
    indexes = [engine.interface_indexes(on(name))[name] for name in names]
    assert all(index > 0 for index in indexes)
    assert len(set(indexes)) == len(names)
    with pytest.raises(HostError, match=r"interface 'none', which this host does not have \(there are: "):
        engine.interface_indexes(on("none"))


async def test_a_driver_that_cannot_be_opened_is_an_error_and_leaves_nothing() -> None:
    """In Wine, which loads no driver; Windows itself would open it."""
    interface = next(name for name, items in psutil.net_if_addrs().items() if items)
    backend = WinDivertBackend()
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with pytest.raises(HostError, match="windivert: the driver cannot be opened"):
        await backend.open(on(interface), lambda _: None)
    await backend.close()
    await eventually(lambda: {process.pid for process in psutil.Process().children(recursive=True)} <= before)
