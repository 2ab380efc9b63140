"""The windivert backend on pydivert's eBPF engine: real packets, and each process stopped and killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import psutil
import pytest
from tests.netns import windivert_child
from tests.netns.filter_child import policy
from tests.netns.packets import Bench, Tcp, fragments, frame
from tests.netns.support import Namespace, eventually, eventually_async

from nlbfarm.backends.windivert import WinDivertBackend, engine, leftovers
from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.decision import ICMPV6, IcmpKind, PacketFacts
from nlbfarm.core.policy import IPAddress, Protocol
from nlbfarm.errors import HostError, NlbfarmError, UsageError
from nlbfarm.interfaces import FilterBackend, FilterCounters
from nlbfarm.testing.filter_backend import check_filter_backend_contract

pydivert = pytest.importorskip(
    "pydivert", reason="pydivert is not installed (pip install nlbfarm[windivert])"
)

pytestmark = pytest.mark.netns

VIP = IPv4Address("192.0.2.100")
Flow = tuple[IPAddress, int, int]


@pytest.fixture
def bench(rng: random.Random) -> Iterator[Bench]:
    bench = Bench([VIP, IPv4Address("192.0.2.101")], (80, 443), rng)
    try:
        with bench.node.entered():
            yield bench
    finally:
        bench.close()


class Flows:
    """A client that keeps to TCP. Packets come back from user space: it waits until each was judged."""

    def __init__(self, bench: Bench, backend: FilterBackend | None = None) -> None:
        self.bench, self.backend = bench, backend
        self.sequences: dict[Flow, int] = {}
        self.answers: dict[Flow, tuple[int, int]] = {}

    async def offer(self, facts: PacketFacts) -> bool:
        """Let one packet arrive, and say whether the filter let it through."""
        key = (facts.source, facts.source_port or 0, facts.destination_port or 0)
        tcp = None
        if facts.protocol == Protocol.TCP:
            if facts.opens_flow:
                tcp = Tcp(self.sequences.setdefault(key, self.bench.rng.getrandbits(32)))
            elif key in self.answers and not facts.syn:
                sequence, acknowledge = self.answers[key]
                tcp = Tcp(acknowledge, (sequence + 1) % 2**32)
        number = await self._judged(facts, tcp)
        self.answers.update(self.bench.answers())
        return number in self.bench.seen(4)

    async def reset(self, facts: PacketFacts) -> None:
        """Let the client give the connection up."""
        key = (facts.source, facts.source_port or 0, facts.destination_port or 0)
        sequence, acknowledge = self.answers[key]
        ack = replace(facts, syn=False, ack=True)
        await self._judged(ack, Tcp(acknowledge, (sequence + 1) % 2**32, rst=True))

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        await asyncio.sleep(seconds)

    async def _judged(self, facts: PacketFacts, tcp: Tcp | None) -> int:
        before = await self._count()
        number = self.bench.send(facts, tcp)
        if before is not None:

            async def counted() -> bool:
                count = await self._count()
                return count is None or count > before

            # Counters are read between two batches: what was counted has been put back, or never will be.
            await eventually_async(counted, f"a verdict on {facts}")
        self.bench.settle()
        return number

    async def _count(self) -> int | None:
        """Return how many packets were judged, ``None`` while nothing judges."""
        if self.backend is None:
            return None
        try:
            counters = await self.backend.counters()
        except NlbfarmError:
            return None
        return sum(_counted(counters))


def syn(rng: random.Random) -> PacketFacts:
    source = IPv4Address(rng.randrange(0x0B000000, 0x7E000000))
    return PacketFacts("eth0", source, VIP, Protocol.TCP, rng.randrange(1024, 65536), 80, syn=True)


def detach(bench: Bench) -> None:
    """Take the filter away as a stranger would."""
    bench.node.run("tc", "qdisc", "del", "dev", "eth0", "clsact")


class Child:
    """``windivert_child`` in a namespace, and the lines that it printed."""

    def __init__(self, bench: Bench, farm: str) -> None:
        self.farm = farm
        self.bench = bench
        root = str(Path(windivert_child.__file__).parents[2])
        with bench.node.entered():
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "tests.netns.windivert_child", farm],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=root,
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.said = ""

    def lines(self) -> list[str]:
        assert self.process.stdout is not None
        self.said += (self.process.stdout.read() or b"").decode()
        return self.said.splitlines()

    def damages(self) -> list[str]:
        return [line for line in self.lines() if line.startswith("damaged")]

    def pid(self, role: str) -> int:
        """The newest process in this role that the child knows of."""
        newest = [line for line in self.lines() if line.startswith("processes")][-1]
        return {name: int(pid) for name, pid in (item.split("=") for item in newest.split()[1:])}[role]

    async def ready(self) -> None:
        await eventually(
            lambda: (
                "lease True" in self.lines() and any(line.startswith("processes") for line in self.lines())
            ),
            "the child is ready",
            within=15,
        )

    def repair(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"repair\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()
        with self.bench.node.entered():
            leftovers.end(leftovers.find(self.farm))


@pytest.fixture
def child(bench: Bench) -> Iterator[Child]:
    child = Child(bench, "frozen")
    try:
        yield child
    finally:
        child.close()


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def has_vip(bench: Bench) -> bool:
    return f"inet {VIP}/" in bench.node.run("ip", "address", "show", "dev", "eth0")


def arrivals(bench: Bench, numbers: list[int], seconds: float) -> int:
    """Send new flows all the time for ``seconds``; returns how many got through."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        numbers.append(bench.send(syn(bench.rng)))
        time.sleep(0.005)
    bench.settle()
    return len(set(numbers) & bench.seen(4))


async def taken(bench: Bench) -> None:
    """Wait until a new flow gets through."""

    async def one() -> bool:
        number = bench.send(syn(bench.rng))
        await asyncio.sleep(0.02)
        bench.settle()
        return number in bench.seen(4)

    await eventually_async(one, "a new flow is accepted", within=10)


async def test_it_keeps_the_contract(bench: Bench) -> None:
    async def flush(_: FilterBackend) -> None:
        detach(bench)

    await check_filter_backend_contract(
        WinDivertBackend, lambda backend: Flows(bench, backend), vip=VIP, damage=flush, survives=False
    )


async def test_ipv6(rng: random.Random) -> None:
    vip, client = IPv6Address("2001:db8::100"), IPv6Address("2001:db8:c::7")
    bench = Bench([vip], (80,), rng)
    backend = WinDivertBackend()
    flow = PacketFacts("eth0", client, vip, Protocol.TCP, 4711, 80, syn=True)
    udp = PacketFacts("eth0", client, vip, Protocol.UDP, 4711, 53)
    discovery = PacketFacts("eth0", client, vip, ICMPV6, icmp=IcmpKind.NEIGHBOUR)
    try:
        with bench.node.entered():
            await backend.open(policy("six", str(vip)), lambda _: None)
        for states, lease, expected in (
            ({}, 1.0, [False, False, True]),
            ({"web": BucketStates(own=ALL)}, 0.0, [False, False, True]),
            ({"web": BucketStates(own=ALL)}, 1.0, [True, False, True]),
        ):
            await backend.apply(states)
            before = sum(_counted(await backend.counters()))
            backend.lease(lease)
            numbers = [bench.send(facts) for facts in (flow, udp, discovery)]

            async def counted() -> bool:
                return sum(_counted(await backend.counters())) >= before + 2  # noqa: B023

            await eventually_async(counted, "both packets are judged")
            bench.settle()
            assert [number in bench.seen(6) for number in numbers] == expected
    finally:
        await backend.close()
        bench.close()


def _counted(counters: FilterCounters) -> list[int]:
    return [sum(counts.values()) for counts in (*counters.groups.values(), counters.other)]


async def test_fragments_follow_their_first(bench: Bench) -> None:
    backend = WinDivertBackend()
    await backend.open(policy("fragments"), lambda _: None)
    try:
        await backend.apply({"web": BucketStates(own=ALL)})
        whole = replace(syn(bench.rng), syn=False, ack=True)
        for lease, expected in ((0.0, False), (1.0, True)):
            number = bench.number()
            backend.lease(lease)
            data = frame(whole, number, bench.rng, Tcp(1, 2, payload=bytes(600)))
            for piece in fragments(data, 256):
                bench.put(piece)

            async def counted() -> bool:
                counters = await backend.counters()
                return sum(counters.groups["web"].values()) >= (3 if lease <= 0 else 6)  # noqa: B023

            await eventually_async(counted, "three fragments are judged")
            bench.settle()
            assert (number in bench.seen(4)) is expected
    finally:
        await backend.close()


async def test_the_host_says_which_connections_have_ended(bench: Bench) -> None:
    try:
        engine.flow_handle("false").close()
    except HostError as error:
        pytest.skip(f"no flow layer here: {error}")
    backend = WinDivertBackend(follow_ends=True)
    await backend.open(policy("ends"), lambda _: None)
    try:
        await backend.apply({"web": BucketStates(own=ALL)})
        flows = Flows(bench, backend)
        for _ in range(2):
            first = syn(bench.rng)
            for facts in (first, replace(first, syn=False, ack=True)):
                backend.lease(1.0)
                assert await flows.offer(facts)
        assert sum((await backend.flows({"web": ALL}))["web"].values()) == 2
        listener = next(one for one in bench._listeners if one.getsockname()[1] == 80)
        listener.settimeout(5)
        connection, _ = listener.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()  # with an RST that the client's half of the conversation does not show

        async def one_left() -> bool:
            return sum((await backend.flows({"web": ALL}))["web"].values()) == 1

        await eventually_async(one_left, "the flow is gone")
    finally:
        await backend.close()


async def test_nothing_of_it_stays(bench: Bench) -> None:
    def state() -> str:
        return (
            bench.node.run("tc", "qdisc", "show")
            + bench.node.run("ip", "-s", "-o", "link", "show", "lo")[:60]
        )

    before = state()
    backend = WinDivertBackend()
    await backend.open(policy("clean"), lambda _: None)
    assert "clsact" in state()
    await backend.close()
    assert state() == before
    assert not any(leftovers.find("clean").values())


async def test_the_node_killed_then_its_loop(bench: Bench, child: Child) -> None:
    await child.ready()
    await taken(bench)
    loop, guard = child.pid("loop"), child.pid("guard")
    child.process.kill()
    child.process.wait()
    await asyncio.sleep(windivert_child.LEASE_S)
    assert arrivals(bench, [], 0.3) == 0, "the loop accepted packets after the lease"
    assert has_vip(bench), "nobody needs to take the VIP away while the loop drops everything"
    os.kill(loop, signal.SIGKILL)
    killed = time.monotonic()
    assert arrivals(bench, [], 0.1) == 0
    await eventually(lambda: not has_vip(bench), "the guard takes the VIP away")
    print(f"\nthe VIP was gone {(time.monotonic() - killed) * 1000:.0f} ms after the loop was killed")
    await eventually(lambda: not runs(guard), "the guard has nothing left to guard")
    removed = await WinDivertBackend.cleanup("frozen")
    assert any("eBPF" in line for line in removed), removed
    assert not await WinDivertBackend.cleanup("frozen")


async def test_the_node_stopped(bench: Bench, child: Child) -> None:
    await child.ready()
    await taken(bench)
    child.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    last = stopped
    while time.monotonic() < stopped + 0.8:
        number, sent = bench.send(syn(bench.rng)), time.monotonic()
        await asyncio.sleep(0.005)
        if number in bench.seen(4):
            last = sent
    print(f"\nthe last new flow was accepted {(last - stopped) * 1000:.0f} ms after SIGSTOP, lease 300 ms")
    assert last - stopped < windivert_child.LEASE_S
    child.process.send_signal(signal.SIGCONT)
    await taken(bench)
    assert not child.damages()


async def only_the_guard_is_left(bench: Bench) -> None:
    """Wait for the guard; then take away what this engine, unlike Windows, keeps of a dead loop for 3 s."""
    await eventually(
        lambda: any(not program.of_loop for program in leftovers.programs(["eth0"])),
        "the guard drops",
        within=10,
    )
    leftovers.remove(program for program in leftovers.programs(["eth0"]) if program.of_loop)
    assert arrivals(bench, [], 0.3) == 0


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_the_loop(bench: Bench, child: Child, how: str) -> None:
    await child.ready()
    await taken(bench)
    loop = child.pid("loop")
    os.kill(loop, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    await only_the_guard_is_left(bench)
    await eventually(lambda: len(child.damages()) == 1, "the damage is told")
    await eventually(lambda: "lease False" in child.lines(), "the lease is refused")
    if how == "stopped":  # it wakes up late, with packets to judge
        os.kill(loop, signal.SIGCONT)
        assert arrivals(bench, [], 0.2) == 0
    child.repair()
    await taken(bench)
    await eventually(lambda: child.pid("loop") != loop, "there is a new loop")
    assert len(child.damages()) == 1


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_the_guard(bench: Bench, child: Child, how: str) -> None:
    await child.ready()
    guard, loop = child.pid("guard"), child.pid("loop")
    os.kill(guard, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    await eventually(lambda: child.pid("guard") != guard, "there is a new guard", within=10)
    await taken(bench)
    assert not child.damages(), "the filter was never at risk"
    assert child.pid("loop") == loop
    # And it guards, even if it was told whom to watch when that one was gone already.
    os.kill(loop, signal.SIGKILL)
    await only_the_guard_is_left(bench)


async def test_loop_and_guard_killed_together(bench: Bench, child: Child) -> None:
    await child.ready()
    guard = child.pid("guard")
    for role in ("guard", "loop"):
        os.kill(child.pid(role), signal.SIGKILL)
    await only_the_guard_is_left(bench)
    assert len(child.damages()) == 1
    child.repair()
    await taken(bench)
    assert child.pid("guard") != guard


@pytest.mark.parametrize("what", ["lease", "states"])
async def test_packets_that_waited_are_not_judged_by_what_came_later(bench: Bench, what: str) -> None:
    backend = WinDivertBackend()
    await backend.open(policy("late"), lambda _: None)
    own = {"web": BucketStates(own=ALL)}
    try:
        await backend.apply(own if what == "lease" else {})
        if what == "states":
            backend.lease(1.0)
        judging = backend._judging
        assert judging is not None
        os.kill(judging.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, judging.pid, os.WSTOPPED)
        waited = [bench.send(syn(bench.rng)) for _ in range(100)]
        bench.settle()
        backend.lease(1.0)
        applying = asyncio.create_task(backend.apply(own)) if what == "states" else None
        await asyncio.sleep(0.05)
        os.kill(judging.pid, signal.SIGCONT)
        if applying is not None:
            await applying
        backend.lease(1.0)
        await taken(bench)
        bench.settle()
        assert not set(waited) & bench.seen(4)
    finally:
        await backend.close()


async def test_a_new_process_replaces_what_a_killed_one_left(bench: Bench, child: Child) -> None:
    await child.ready()
    await taken(bench)
    loop, guard = child.pid("loop"), child.pid("guard")
    child.process.kill()
    child.process.wait()
    await asyncio.sleep(windivert_child.LEASE_S)
    numbers: list[int] = []
    backend = WinDivertBackend()
    opening = asyncio.create_task(backend.open(policy("frozen"), lambda _: None))
    while not opening.done():
        numbers.append(bench.send(syn(bench.rng)))
        await asyncio.sleep(0.002)
    await opening
    try:
        bench.settle()
        assert not set(numbers) & bench.seen(4), "there was a moment without a filter"
        assert not runs(loop)
        assert not runs(guard)
        assert has_vip(bench)
        await backend.apply({"web": BucketStates(own=ALL)})
        backend.lease(1.0)
        await taken(bench)
    finally:
        await backend.close()
    assert not leftovers.programs(["eth0"])


async def test_two_namespaces_do_not_touch_each_other(bench: Bench, child: Child) -> None:
    await child.ready()
    other = Namespace()
    try:
        with other.entered():
            assert not await WinDivertBackend.cleanup("frozen")
    finally:
        other.close()
    await taken(bench)


async def test_an_interface_that_is_not_there(bench: Bench) -> None:
    bench.node.run("ip", "link", "set", "eth0", "down")
    bench.node.run("ip", "link", "set", "eth0", "name", "eth7")
    backend = WinDivertBackend()
    with pytest.raises(HostError, match=r"eth0.*does not have.*eth7"):
        await backend.open(policy("nowhere"), lambda _: None)
    with pytest.raises(UsageError):
        backend.lease(0.1)
    assert not any(leftovers.find("nowhere").values())
