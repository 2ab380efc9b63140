"""The simulated network: conformance, and that it is as bad as it was asked to be."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_address

import pytest

from nlbfarm.errors import UsageError
from nlbfarm.heartbeat.memory import MemoryHeartbeat, SimulatedNetwork
from nlbfarm.interfaces import Clock, Received
from nlbfarm.testing.clock import FakeClock
from nlbfarm.testing.heartbeat import check_heartbeat


@pytest.mark.parametrize("networks", [1, 2])
async def test_conformance(networks: int) -> None:
    clock = FakeClock()

    def make_pair() -> tuple[MemoryHeartbeat, MemoryHeartbeat]:
        network = SimulatedNetwork(clock, networks=networks)
        return network.heartbeat(1), network.heartbeat(2)

    addresses = {node: [ip_address(f"192.0.2.{node}")] * networks for node in (1, 2)}
    await check_heartbeat(make_pair, clock=clock, networks=networks, addresses=addresses)


async def run(network: SimulatedNetwork, count: int) -> list[bytes]:
    """Send ``count`` numbered datagrams from node 1 to node 2 and return what arrives."""
    received: list[bytes] = []
    one, two = network.heartbeat(1), network.heartbeat(2)
    await one.open(lambda _: None, lambda _: None)
    await two.open(lambda datagram: received.append(datagram.data), lambda _: None)
    for number in range(count):
        one.send(b"%d" % number, [2])
    await asyncio.sleep(network.delay + 0.02)
    two.poll()
    await one.close()
    await two.close()
    return received


async def test_loss_and_duplication_are_as_asked_and_repeat_with_the_seed(still_clock: Clock) -> None:
    first = await run(SimulatedNetwork(still_clock, seed=7, loss=0.2, duplicate=0.1), 2000)
    again = await run(SimulatedNetwork(still_clock, seed=7, loss=0.2, duplicate=0.1), 2000)
    other = await run(SimulatedNetwork(still_clock, seed=8, loss=0.2, duplicate=0.1), 2000)
    assert first == again != other
    assert 1500 < len(set(first)) < 1700
    assert 100 < len(first) - len(set(first)) < 220


async def test_delay_reorders_and_loses_nothing(still_clock: Clock) -> None:
    received = await run(SimulatedNetwork(still_clock, seed=1, delay=0.05), 200)
    assert sorted(received, key=int) == [b"%d" % number for number in range(200)] != received


async def test_cut_is_one_way_and_healed(still_clock: Clock) -> None:
    network = SimulatedNetwork(still_clock)
    heard: dict[int, list[Received]] = {1: [], 2: []}
    refused: list[int] = []
    one, two = network.heartbeat(1), network.heartbeat(2)
    await one.open(heard[1].append, refused.append)
    await two.open(heard[2].append, refused.append)
    network.cut(1, 2)
    one.send(b"lost", [2])
    two.send(b"heard", [1])
    await asyncio.sleep(0)
    assert ([r.data for r in heard[1]], heard[2], refused) == ([b"heard"], [], [])
    network.heal()
    one.send(b"again", [2])
    await asyncio.sleep(0)
    assert [r.data for r in heard[2]] == [b"again"]
    await two.close()
    one.send(b"refused", [2])
    await asyncio.sleep(0)
    assert refused == [2]
    await one.close()


async def test_wrong_use_is_refused(still_clock: Clock) -> None:
    network = SimulatedNetwork(still_clock)
    one, _ = network.heartbeat(1), network.heartbeat(2)
    with pytest.raises(UsageError, match="already"):
        network.heartbeat(1)
    with pytest.raises(UsageError, match="not open"):
        one.send(b"x", [2])
    await one.open(lambda _: None, lambda _: None)
    with pytest.raises(UsageError, match="open already"):
        await one.open(lambda _: None, lambda _: None)
    await one.close()


@pytest.fixture
def still_clock() -> Clock:
    return FakeClock(monotonic=time.monotonic())
