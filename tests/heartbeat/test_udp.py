"""UDP heartbeats over real sockets on loopback addresses."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from ipaddress import ip_address
from typing import Any

import pytest

from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError, UsageError
from nlbfarm.heartbeat.link import Link
from nlbfarm.heartbeat.udp import UdpHeartbeat
from nlbfarm.interfaces import Clock, Received
from nlbfarm.testing.clock import FakeClock
from nlbfarm.testing.heartbeat import check_heartbeat


class RealClock(Clock):
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


CLOCK = RealClock()


def addresses(*texts: str) -> list[IPAddress]:
    return [ip_address(text) for text in texts]


@pytest.fixture
def port() -> int:
    """A UDP port that is free now on every loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        return int(sock.getsockname()[1])


class End:
    """An open heartbeat and what it was told."""

    def __init__(
        self, local: list[IPAddress], peers: dict[int, list[IPAddress]], port: int, **kw: Any
    ) -> None:
        self.heartbeat = UdpHeartbeat(local, peers, port=port, clock=kw.pop("clock", CLOCK), **kw)
        self.received: list[Received] = []
        self.refused: list[int] = []

    async def open(self) -> End:
        await self.heartbeat.open(self.received.append, self.refused.append)
        return self


@pytest.fixture
async def make(port: int) -> AsyncIterator[Callable[..., Coroutine[Any, Any, End]]]:
    """Opens heartbeats and closes them when the test is over."""
    ends: list[End] = []

    async def opened(local: list[IPAddress], peers: dict[int, list[IPAddress]], **kw: Any) -> End:
        end = End(local, peers, port, **kw)
        ends.append(end)
        return await end.open()

    yield opened
    for end in ends:
        await end.heartbeat.close()
    gc.collect()  # a socket left open is a ResourceWarning, and that an error


Make = Callable[..., Coroutine[Any, Any, End]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


ONE, TWO = addresses("127.0.0.11", "127.0.1.11"), addresses("127.0.0.12", "127.0.1.12")


class LoopWithoutReaders(asyncio.SelectorEventLoop):
    """What Windows' default event loop is like."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


# --- conformance ------------------------------------------------------------------------------


async def test_conformance(port: int) -> None:
    def make_pair() -> tuple[UdpHeartbeat, UdpHeartbeat]:
        return (
            UdpHeartbeat(ONE, {2: TWO}, port=port, clock=CLOCK),
            UdpHeartbeat(TWO, {1: ONE}, port=port, clock=CLOCK),
        )

    await check_heartbeat(make_pair, clock=CLOCK, networks=2, addresses={1: ONE, 2: TWO})


def test_conformance_on_a_loop_without_readers(port: int) -> None:
    def make_pair() -> tuple[UdpHeartbeat, UdpHeartbeat]:
        return (
            UdpHeartbeat(ONE, {2: TWO}, port=port, clock=CLOCK),
            UdpHeartbeat(TWO, {1: ONE}, port=port, clock=CLOCK),
        )

    with asyncio.Runner(loop_factory=LoopWithoutReaders) as runner:
        runner.run(check_heartbeat(make_pair, clock=CLOCK, networks=2, addresses={1: ONE, 2: TWO}))
    assert not [thread for thread in threading.enumerate() if thread.name == "nlbfarm-heartbeat"]


async def test_a_peer_with_a_new_address_is_reached_there(make: Make) -> None:
    moved = addresses("127.0.0.13", "127.0.1.13")
    one, three = await make(ONE, {2: TWO}), await make(moved, {1: ONE})
    with pytest.raises(UsageError, match="node 2"):
        one.heartbeat.set_peers({2: moved[:1]})
    one.heartbeat.set_peers({2: moved})
    one.heartbeat.send(b"there", [2])
    three.heartbeat.send(b"here", [1])
    await until(lambda: len(one.received) == len(three.received) == 2)


async def test_ipv6_beside_ipv4(make: Callable[..., Coroutine[Any, Any, End]]) -> None:
    """One host has one IPv6 loopback address, so a node talks to itself under another name."""
    if not has_ipv6():
        pytest.skip("this host has no ::1")
    end = await make(addresses("::1", "127.0.0.11"), {2: addresses("::1", "127.0.0.12")})
    end.heartbeat.send(b"six", [2])
    await until(lambda: bool(end.received))
    assert [(r.data, r.network) for r in end.received] == [(b"six", 0)]
    assert end.received[0].source.startswith("::1:")
    await until(lambda: end.refused == [2])  # on the IPv4 network nobody listens


# --- who may be heard -------------------------------------------------------------------------


async def test_foreign_datagrams_are_counted_and_dropped(
    make: Callable[..., Coroutine[Any, Any, End]], port: int
) -> None:
    two = await make(TWO, {1: ONE})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.66", 0))
        for _ in range(3):
            stranger.sendto(b"let me in", ("127.0.0.12", port))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as crossed:
        crossed.bind(("127.0.1.11", 0))  # a peer's address, but of the other network
        crossed.sendto(b"wrong network", ("127.0.0.12", port))
    one = await make(ONE, {2: TWO})
    one.heartbeat.send(b"peer", [2])
    await until(lambda: len(two.received) == 2)
    assert {r.data for r in two.received} == {b"peer"}
    stats = two.heartbeat.stats()
    assert [(n.received, n.foreign) for n in stats.networks] == [(1, 4), (1, 0)]


async def test_any_bytes_of_a_peer_are_delivered_as_they_are(
    make: Callable[..., Coroutine[Any, Any, End]], port: int
) -> None:
    """Judging them is the codec's business; what is too long arrives too long."""
    two = await make(TWO, {1: ONE})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.11", 0))
        for data in (b"", b"\xff" * 7, bytes(9000)):
            peer.sendto(data, ("127.0.0.12", port))
    await until(lambda: len(two.received) == 3)
    assert [len(r.data) for r in two.received[:2]] == [0, 7]
    assert len(two.received[2].data) > 1200


async def test_a_flood_of_strangers_does_not_hold_poll(
    make: Callable[..., Coroutine[Any, Any, End]], port: int
) -> None:
    two = await make(TWO, {1: ONE})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.66", 0))
        for _ in range(300):
            stranger.sendto(b"x", ("127.0.0.12", port))
    assert two.heartbeat.poll() == 0
    assert two.heartbeat.stats().networks[0].foreign > 100


# --- when did it arrive -----------------------------------------------------------------------


async def test_arrival_is_the_kernels_not_ours(make: Callable[..., Coroutine[Any, Any, End]]) -> None:
    one, two = await make(ONE, {2: TWO}), await make(TWO, {1: ONE})
    one.heartbeat.send(b"warm up: the kernel starts to stamp a moment after it was asked", [2])
    await until(lambda: len(two.received) == 2)
    sent = time.monotonic()
    one.heartbeat.send(b"early", [2])
    time.sleep(0.25)  # a late turn of the event loop
    assert two.heartbeat.poll() == 2
    for received in two.received[2:]:
        assert sent - 0.005 <= received.at <= sent + 0.1


async def test_a_jump_of_the_wall_clock_does_not_move_arrivals(
    make: Callable[..., Coroutine[Any, Any, End]],
) -> None:
    class Jumping(RealClock):
        jump = 0.0

        def wall(self) -> float:
            return time.time() + self.jump

    clock = Jumping()
    one, two = await make(ONE, {2: TWO}), await make(TWO, {1: ONE}, clock=clock)
    for jump in (3600.0, -3600.0, 1.0):
        clock.jump = jump
        two.received.clear()
        two.heartbeat.poll()
        before = time.monotonic()
        one.heartbeat.send(b"x", [2])
        await until(lambda: len(two.received) == 2)
        assert all(before - 0.01 <= r.at <= time.monotonic() for r in two.received)


async def test_a_simulated_clock_gives_its_own_time(make: Callable[..., Coroutine[Any, Any, End]]) -> None:
    clock = FakeClock(monotonic=5.0, wall=100.0)
    one, two = await make(ONE, {2: TWO}), await make(TWO, {1: ONE}, clock=clock)
    one.heartbeat.send(b"x", [2])
    await until(lambda: len(two.received) == 2)
    assert {r.at for r in two.received} == {5.0}


# --- nobody there -----------------------------------------------------------------------------


async def test_a_dead_process_is_reported_and_others_are_reached(
    make: Callable[..., Coroutine[Any, Any, End]],
) -> None:
    three = addresses("127.0.0.13", "127.0.1.13")
    one = await make(ONE, {2: TWO, 3: three})
    third = await make(three, {1: ONE})
    for number in range(50):
        one.heartbeat.send(b"%d" % number, [2, 3])
    assert one.refused == [], "reported from within send"
    await until(lambda: 2 in one.refused)
    await until(lambda: len(third.received) == 100)
    assert set(one.refused) == {2}
    for network in one.heartbeat.stats().networks:
        assert (network.sent, network.send_errors) == (100, 0)
        assert "node 2" in network.last_error
    two = await make(TWO, {1: ONE})
    one.heartbeat.send(b"back", [2, 3])
    await until(lambda: len(two.received) == 2)


async def test_an_idle_sender_does_not_spin_after_a_refusal(
    make: Callable[..., Coroutine[Any, Any, End]],
) -> None:
    one = await make(ONE, {2: TWO})
    one.heartbeat.send(b"x", [2])
    await until(lambda: one.refused == [2, 2])  # on both networks
    turns = 0
    link = one.heartbeat._links[0]
    original = link.drain

    def counting(limit: int) -> Any:
        nonlocal turns
        turns += 1
        return original(limit)

    link.drain = counting  # type: ignore[method-assign]
    await asyncio.sleep(0.05)
    assert turns == 0


# --- what the host lacks ----------------------------------------------------------------------


async def test_an_address_that_is_not_here_is_named_with_its_port(port: int) -> None:
    end = End(addresses("127.0.0.11", "192.0.2.77"), {2: TWO}, port)
    with pytest.raises(HostError, match=rf"192\.0\.2\.77 port {port}/udp: the address is not on this host"):
        await end.open()
    # Nothing was left open: the good address can be bound at once.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.11", port))


async def test_a_taken_port_is_named(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.11", port))
        with pytest.raises(HostError, match=rf"127\.0\.0\.11 port {port}/udp: another program has the port"):
            await End(ONE, {2: TWO}, port).open()


async def test_two_of_us_on_one_address_are_refused(
    make: Callable[..., Coroutine[Any, Any, End]], port: int
) -> None:
    await make(ONE, {2: TWO})
    with pytest.raises(HostError, match="another program has the port"):
        await End(ONE, {2: TWO}, port).open()


async def test_a_network_that_is_gone_counts_errors_and_is_bound_again(port: int) -> None:
    clock = FakeClock()
    link = Link(0, ip_address("192.0.2.77"), {2: ip_address("192.0.2.78")}, port, 48, clock)
    link.rebind()  # as after the loss of the address
    assert link.fileno() == -1
    link.send(b"x", 2)
    stats = link.stats()
    assert (stats.sent, stats.send_errors) == (0, 1)
    assert "binding 192.0.2.77" in stats.last_error
    assert not link.wants_binding()
    clock.advance(1.0)
    assert link.wants_binding()
    link.rebind()
    assert not link.wants_binding()
    link.close()
    assert not link.wants_binding()


async def test_wrong_use_is_refused(make: Callable[..., Coroutine[Any, Any, End]]) -> None:
    for local, peers, kw in (
        ([], {}, {}),
        (ONE, {2: TWO[:1]}, {}),
        (ONE, {2: addresses("127.0.0.12", "::1")}, {}),
        (ONE, {2: TWO}, {"port": 0}),
        (ONE, {2: TWO}, {"dscp": 64}),
    ):
        with pytest.raises(UsageError):
            UdpHeartbeat(local, peers, clock=CLOCK, **kw)
    closed = UdpHeartbeat(ONE, {2: TWO}, clock=CLOCK)
    with pytest.raises(UsageError, match="not open"):
        closed.send(b"x", [2])
    one = await make(ONE, {2: TWO})
    with pytest.raises(UsageError, match="open already"):
        await one.open()


async def test_datagrams_carry_the_dscp_and_sockets_the_priority(
    make: Callable[..., Coroutine[Any, Any, End]], port: int
) -> None:
    one = await make(ONE, {2: TWO}, dscp=46)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.12", port))
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        peer.settimeout(5)
        one.heartbeat.send(b"x", [2])
        _, ancillary, _, _ = peer.recvmsg(100, 100)
    assert [(kind, content[0]) for _, kind, content in ancillary] == [(socket.IP_TOS, 46 << 2)]
    sock = one.heartbeat._links[0]._socket
    assert sock is not None
    assert sock.getsockopt(socket.SOL_SOCKET, 12) == 6
    assert one.heartbeat.stats().notes == ()
