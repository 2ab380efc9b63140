"""The parts of the windivert backend that need no driver: processes, memory, errors, events, leftovers."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from nlbfarm import plugins
from nlbfarm.backends.windivert import VipRemoval, WinDivertBackend, channel, engine, leftovers, removal
from nlbfarm.backends.windivert.channel import Channel, UnansweredError, Worker
from nlbfarm.backends.windivert.loop import flow_end
from nlbfarm.backends.windivert.shared import Shared, Word, clock
from nlbfarm.backends.windivert.watching import ProcessWatch
from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.policy import FilterPolicy, Group, Rule, Vip
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import VIPManager

NEEDS_SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="processes are stopped by a POSIX signal")


FOUR = bytes.fromhex("450000000001000040000000c6336407c0000264")
SIX = bytes.fromhex("600000000000004020010db8000c0000000000000000000720010db8000000000000000000000100")
"""IP headers with room for length and protocol."""


def bucket_by_port(packet: PacketFacts, rule: Rule, group: Group) -> int:
    """A vendor's function as it should be."""
    return (packet.source_port or 0) % 256


class Ended:
    """Says how often a worker reported its end."""

    def __init__(self) -> None:
        self.times = 0
        self.told = threading.Event()

    def __call__(self, worker: Worker) -> None:
        self.times += 1
        self.told.set()


@pytest.fixture
def ended() -> Ended:
    return Ended()


@pytest.fixture
def guard(ended: Ended) -> Iterator[Worker]:
    """A guard that was told nothing yet: it needs neither driver nor rights for that."""
    worker = Worker("guard", "unit", ended)
    try:
        yield worker
    finally:
        worker.end()


def policy(interface: str = "lo", address: str = "192.0.2.100") -> FilterPolicy:
    return FilterPolicy("unit", (Vip(ip_address(address), interface),), (), ())


def test_messages_cross_a_channel() -> None:
    written = io.BytesIO()
    sender = Channel(io.BytesIO(), written)
    for message in ("a", {"b": 1 << 300}, None):
        sender.send(message)
    receiver = Channel(io.BytesIO(written.getvalue()), io.BytesIO())
    assert [receiver.receive() for _ in range(3)] == ["a", {"b": 1 << 300}, None]
    with pytest.raises(EOFError):
        receiver.receive()
    cut = Channel(io.BytesIO(written.getvalue()[:-1]), io.BytesIO())
    assert cut.receive() == "a"
    with pytest.raises(EOFError):
        [cut.receive() for _ in range(2)]


def test_a_worker_is_found_ends_and_says_nothing_of_it(guard: Worker, ended: Ended) -> None:
    assert [process.pid for process in leftovers.find("unit")["guard"]] == [guard.pid]
    assert not leftovers.find("unit")["loop"]
    assert not leftovers.find("another")["guard"]
    assert not leftovers.alone()
    assert not leftovers.find("unit", except_for=[guard.pid])["guard"]
    assert guard.end()
    assert not guard.alive
    assert ended.times == 0


def test_a_worker_that_is_killed_is_reported(guard: Worker, ended: Ended) -> None:
    watch = ProcessWatch(guard.pid)
    try:
        assert not watch.ended(0)
        guard._process.kill()
        assert watch.ended(10)
    finally:
        watch.close()
    assert ended.told.wait(10)
    with pytest.raises(HostError, match="has ended"):
        guard.call("stop", timeout=10)
    assert ended.times == 1


@NEEDS_SIGNALS
def test_a_worker_that_hangs_is_told_from_one_that_is_gone(guard: Worker) -> None:
    with pytest.raises(HostError, match=r"not installed|does not have"):
        guard.call("open", SimpleNamespace(policy=policy("nowhere0")), timeout=10)
    os.kill(guard.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, guard.pid, os.WSTOPPED)
    with pytest.raises(UnansweredError, match="is silent"):
        guard.call("drop", timeout=0.05)
    assert guard.alive
    assert not guard.end(timeout=0.05), "it cannot have ended by itself"


@NEEDS_SIGNALS
def test_a_worker_does_not_end_before_its_node(guard: Worker) -> None:
    with pytest.raises(HostError):
        guard.call("open", SimpleNamespace(policy=policy("nowhere0")), timeout=10)  # now it handles signals
    os.kill(guard.pid, signal.SIGTERM)
    with pytest.raises(HostError, match="KeyError"):
        guard.call("nothing of this name", timeout=10)
    assert guard.alive


@NEEDS_SIGNALS
def test_leftovers_are_ended(guard: Worker, ended: Ended) -> None:
    lines = leftovers.end(leftovers.find("unit"))
    assert lines == [f"ended the windivert guard process (pid {guard.pid})"]
    assert ended.told.wait(10)


def test_a_program_of_somebody_else_is_no_leftover() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()", "nlbfarm-windivert"], stdin=subprocess.PIPE)
    try:
        assert not any(leftovers.find("unit").values())
    finally:
        other.communicate(b"\n", timeout=10)


def test_the_page_is_shared() -> None:
    mine = Shared.create()
    theirs = Shared(mine.path)
    before = clock()
    mine.lease(0.5)
    assert before + 0.5 <= theirs.lease_end <= clock() + 0.5
    for nothing in (0.0, -1.0):
        mine.lease(nothing)
        assert theirs.lease_end == 0
    theirs.beat(Word.LOOP_BEAT)
    theirs[Word.DROPPING_SINCE] = 1 << 62
    assert (mine[Word.LOOP_BEAT], mine[Word.DROPPING_SINCE]) == (1, 1 << 62)
    theirs.close()
    mine.close(remove=True)
    assert not Path(mine.path).exists()


def test_the_page_of_a_node_that_is_gone_is_removed() -> None:
    code = "from nlbfarm.backends.windivert.shared import Shared; print(Shared.create().path, end='')"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    mine = Shared.create()
    Shared.remove_orphans()
    assert not Path(theirs).exists()
    assert Path(mine.path).exists()
    mine.close(remove=True)


@pytest.mark.skipif(sys.platform == "win32", reason="WinDivert leaves checksums alone")
@pytest.mark.parametrize(
    ("head", "protocol", "checksum", "kept"),
    [
        (FOUR, 6, None, False),
        (FOUR, 17, None, False),
        (SIX, 6, None, False),
        (SIX, 17, None, False),
        (FOUR, 6, 0x1234, True),
        (FOUR, 17, 0, True),
        (SIX, 17, 0x1234, True),
        (FOUR, 1, 0x1234, True),
        (b"\x46" + FOUR[1:], 6, None, True),
    ],
)
def test_checksums_stay_as_they_were(head: bytes, protocol: int, checksum: int | None, kept: bool) -> None:
    """Only a checksum that the kernel left to be completed (``None``: the pseudo header's sum) may be."""
    body = bytearray(40)
    data = bytearray(head)
    if head[0] >> 4 == 4:
        data[2:4], data[9] = (20 + len(body)).to_bytes(2, "big"), protocol
        ends = data[12:20]
    else:
        data[4:6], data[6] = len(body).to_bytes(2, "big"), protocol
        ends = data[8:40]
    if checksum is None:
        words = [int.from_bytes(ends[place : place + 2], "big") for place in range(0, len(ends), 2)]
        checksum = sum(words) + protocol + len(body)
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
    place = 6 if protocol == 17 else 16
    body[place : place + 2] = checksum.to_bytes(2, "big")
    address = SimpleNamespace(IPChecksum=0, TCPChecksum=0, UDPChecksum=0)
    engine.keep_checksums(SimpleNamespace(wd_addr=address, raw=memoryview(data + body)))
    assert address.IPChecksum == 1
    assert (address.TCPChecksum, address.UDPChecksum) == (int(kept), int(kept))


def test_the_clock_is_the_same_in_every_process() -> None:
    code = "from nlbfarm.backends.windivert.shared import clock; print(clock())"
    before = clock()
    there = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert before < there < clock()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EPERM, "no"), "needs root"),
        (OSError(errno.ENODEV, "no"), "interface of a VIP"),
        (OSError(errno.ENOMEM, "no"), "LimitMEMLOCK"),
        (OSError(errno.EINVAL, "Invalid filter at position 3"), "position 3"),
        (NotImplementedError("Layer FLOW is not supported"), "not supported"),
    ],
)
def test_errors_of_linux(error: Exception, words: str) -> None:
    assert words in engine.explain(error)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (2, "anti-virus"),
        (5, "Administrator"),
        (577, "signature"),
        (654, "another version"),
        (1275, "blocked by an anti-virus product"),
        (1753, "BFE"),
        (31, "error 31"),
    ],
)
def test_errors_of_windows(number: int, words: str) -> None:
    error = OSError("it failed")
    error.winerror = number  # type: ignore[attr-defined]
    assert words in engine.explain(error)
    assert f"(error {number})" in engine.explain(error)


async def test_without_pydivert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydivert", None)
    usability = await WinDivertBackend.probe()
    assert not usability.usable
    assert "pip install nlbfarm[windivert]" in usability.detail
    backend = WinDivertBackend()
    with pytest.raises(HostError, match=r"pip install nlbfarm\[windivert\]"):
        await backend.open(policy(), lambda _: None)
    with pytest.raises(UsageError, match="not open"):
        backend.lease(0.1)


async def test_without_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "load", lambda: None)
    monkeypatch.setattr(engine, "missing_right", lambda: "no right to open the driver")
    usability = await WinDivertBackend.probe()
    assert not usability.usable
    assert usability.detail == "no right to open the driver"
    with pytest.raises(HostError, match="windivert: no right to open the driver"):
        await WinDivertBackend().open(policy(), lambda _: None)


def test_a_handle_with_our_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.getpid()
    others = [engine.Stranger(me, 0), engine.Stranger(me, engine.LOOP_PRIORITY)]
    monkeypatch.setattr(engine, "strangers", lambda _: others[:1])
    assert engine.require_no_rival([]) == others[:1]
    monkeypatch.setattr(engine, "strangers", lambda _: others)
    with pytest.raises(HostError, match=rf"pid {me}, priority {engine.LOOP_PRIORITY}.*another priority"):
        engine.require_no_rival([])


def test_handles_of_others_are_read_from_the_reflect_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def event(pid: int, priority: int, layer: int = 0) -> SimpleNamespace:
        return SimpleNamespace(reflect=SimpleNamespace(ProcessId=pid, Priority=priority, Layer=layer))

    class Reflect:
        def __init__(self, *_: object) -> None:
            self.events = [event(7, 5), event(8, 0, layer=2), event(9, -3)]

        def __enter__(self) -> Reflect:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def recv(self, timeout: float) -> SimpleNamespace:
            if not self.events:
                raise TimeoutError
            return self.events.pop(0)

    module = SimpleNamespace(
        Divert=Reflect,
        Layer=SimpleNamespace(NETWORK=0, REFLECT=4),
        Flag=SimpleNamespace(SNIFF=1, RECV_ONLY=4),
    )
    monkeypatch.setattr(engine, "load", lambda: module)
    assert engine.strangers([9]) == [engine.Stranger(7, 5)]


def test_a_bucket_function_that_no_other_process_can_import() -> None:
    with pytest.raises(UsageError, match="cannot be imported"):
        WinDivertBackend(bucket=lambda packet, rule, group: 0)
    WinDivertBackend(bucket=bucket_by_port)


def test_the_end_of_a_connection() -> None:
    def words(address: str) -> tuple[int, ...]:
        number = int(IPv6Address(f"::ffff:{address}") if ":" not in address else IPv6Address(address))
        return tuple(number >> 32 * place & 0xFFFFFFFF for place in range(4))

    def flow(local: str, remote: str, protocol: int = 6) -> Any:
        return SimpleNamespace(
            LocalAddr=words(local), RemoteAddr=words(remote), LocalPort=80, RemotePort=4711, Protocol=protocol
        )

    assert flow_end(flow("192.0.2.100", "198.51.100.7")) == (
        IPv4Address("198.51.100.7"),
        4711,
        IPv4Address("192.0.2.100"),
        80,
    )
    assert flow_end(flow("2001:db8::100", "2001:db8:c::7")) == (
        IPv6Address("2001:db8:c::7"),
        4711,
        IPv6Address("2001:db8::100"),
        80,
    )
    assert flow_end(flow("192.0.2.100", "198.51.100.7", 17)) is None
    assert flow_end(None) is None


def test_vips_are_taken_away_by_their_manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loopback = next(name for name, items in psutil.net_if_addrs().items() if _is_loopback(items))
    there = policy(loopback, "127.0.0.1")
    assert [vip.address for vip in removal.present(there)] == [IPv4Address("127.0.0.1")]
    assert removal.remove_vips(policy(loopback), None), "it is not there in the first place"

    calls: list[object] = []

    class Manager:
        async def cleanup(self) -> list[str]:
            calls.append("cleanup")
            return []

        async def close(self) -> None:
            calls.append("close")

    def make(kind: object, name: str, interface: object, what: str, *arguments: object) -> Manager:
        assert interface is VIPManager
        calls.extend((name, *arguments))
        return Manager()

    monkeypatch.setattr(plugins, "make", make)
    monkeypatch.setattr(removal, "present", lambda _: [])
    journal = tmp_path / "journal.json"
    assert removal.remove_vips(there, VipRemoval("linux", journal))
    assert calls == ["linux", (), journal, "cleanup", "close"]


def _is_loopback(items: list[Any]) -> bool:
    return any(item.address == "127.0.0.1" for item in items)


def test_a_marker_names_the_network_namespace() -> None:
    role = channel.marker("loop", "shop")
    assert role == f"nlbfarm-windivert/{channel.network()}/shop/loop"
