"""The memory backend: the contract, and what it has beyond it."""

from __future__ import annotations

import math
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.backends.memory_support import Clocked, Probe, damage

from nlbfarm.backends.memory import MemoryBackend
from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.decision import Decision, PacketFacts, Reason, Verdict, decide
from nlbfarm.core.policy import FilterPolicy, Group, IPAddress, Protocol, Rule, Vip
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import FilterCounters
from nlbfarm.testing.clock import FakeClock
from nlbfarm.testing.filter_backend import check_filter_backend_contract

VIP = IPv4Address("192.0.2.100")
POLICY = FilterPolicy(
    farm="shop",
    vips=(Vip(VIP, "eth0"),),
    groups=(Group("web", 1),),
    rules=(Rule("web", "web", VIP, Protocol.TCP, (80,)),),
)


@pytest.mark.parametrize("vip", [VIP, IPv6Address("2001:db8::100")], ids=str)
async def test_it_keeps_the_contract(vip: IPAddress) -> None:
    await check_filter_backend_contract(Clocked, Probe, vip=vip, damage=damage)


async def test_damage_need_not_be_checked() -> None:
    await check_filter_backend_contract(Clocked, Probe)


# What the memory backend has beyond the contract.


def syn(port: int) -> PacketFacts:
    return PacketFacts("eth0", IPv4Address("198.51.100.7"), VIP, Protocol.TCP, port, 80, syn=True)


def later(port: int) -> PacketFacts:
    return replace(syn(port), syn=False, ack=True)


async def opened(max_flows: int = 100, damages: list[str] | None = None) -> tuple[MemoryBackend, FakeClock]:
    clock = FakeClock()
    backend = MemoryBackend(clock, max_flows=max_flows)
    await backend.open(POLICY, (damages if damages is not None else []).append)
    return backend, clock


async def test_judge_gives_the_oracles_decision_and_counts_it() -> None:
    backend, _ = await opened()
    states = {"web": BucketStates(own=ALL >> 128)}
    await backend.apply(states)
    backend.lease(1.0)
    expected = [decide(POLICY, states, True, syn(port)) for port in range(1000, 1300)]
    assert [backend.judge(syn(port)) for port in range(1000, 1300)] == expected
    own = sum(decision.accepted for decision in expected)
    assert 0 < own < 300
    counters = await backend.counters()
    assert counters.groups == {"web": {"own": own, "foreign": 300 - own}}


async def test_packets_that_are_not_filtered_are_not_counted() -> None:
    backend, _ = await opened()
    assert backend.judge(replace(syn(1), interface="lo")).reason == "not-filtered"
    assert await backend.counters() == FilterCounters(groups={"web": {}}, other={})


async def test_the_flow_that_was_silent_longest_is_forgotten() -> None:
    backend, _ = await opened(max_flows=2)
    await backend.apply({"web": BucketStates(own=ALL)})
    backend.lease(1.0)
    for packet in (syn(1), syn(2), later(1), syn(3)):
        assert backend.judge(packet).accepted
    await backend.apply({"web": BucketStates(drain=ALL)})
    assert [backend.judge(later(port)).accepted for port in (1, 2, 3)] == [True, False, True]


async def test_a_connection_that_ended_is_forgotten_when_it_is_told() -> None:
    backend, _ = await opened()
    await backend.apply({"web": BucketStates(own=ALL)})
    backend.lease(1.0)
    backend.judge(syn(1))
    backend.judge(later(2))
    bucket = backend.judge(syn(1)).bucket
    await backend.apply({"web": BucketStates(drain=ALL)})
    assert await backend.flows({"web": ALL}) == {"web": {bucket: 1}}
    assert backend.forget(later(1))
    assert not backend.forget(later(1))
    assert await backend.flows({"web": ALL}) == {"web": {}}
    assert not backend.judge(later(1)).accepted


async def test_flows_outlive_close_as_long_as_the_policy_is_the_same() -> None:
    backend, _ = await opened()
    await backend.apply({"web": BucketStates(own=ALL)})
    backend.lease(1.0)
    bucket = backend.judge(syn(1)).bucket
    await backend.close()
    await backend.open(POLICY, lambda what: None)
    assert await backend.flows({"web": ALL}) == {"web": {bucket: 1}}
    await backend.close()
    await backend.open(replace(POLICY, groups=(Group("web", 2),)), lambda what: None)
    assert await backend.flows({"web": ALL}) == {"web": {}}


async def test_the_host_tells_when_no_filter_is_in_place() -> None:
    damages: list[str] = []
    backend, _ = await opened(damages=damages)
    assert not backend.judge(syn(1)).accepted
    backend.damage("flushed")
    backend.damage("flushed again")
    assert damages == ["flushed"]
    assert backend.judge(syn(1)) == Decision(Verdict.ACCEPT, Reason.NOT_FILTERED)
    with pytest.raises(HostError, match="repair"):
        await backend.apply({"web": BucketStates(own=ALL)})
    await backend.repair()
    assert not backend.judge(syn(1)).accepted
    await backend.close()
    assert backend.judge(syn(1)) == Decision(Verdict.ACCEPT, Reason.NOT_FILTERED)
    with pytest.raises(UsageError):
        backend.damage()


async def test_without_a_clock_it_uses_the_hosts() -> None:
    backend = MemoryBackend()
    await backend.open(POLICY, lambda what: None)
    await backend.apply({"web": BucketStates(own=ALL)})
    assert not backend.judge(syn(1)).accepted
    backend.lease(1.0)
    assert backend.judge(syn(1)).accepted
    backend.lease(0)
    assert not backend.judge(syn(1)).accepted
    await backend.close()


def test_a_table_without_room_is_refused() -> None:
    with pytest.raises(UsageError):
        MemoryBackend(max_flows=0)


@given(st.lists(st.floats(-0.5, 1.0), max_size=8), st.floats(0, 1.5))
async def test_the_last_lease_is_the_one_that_counts(leases: list[float], passed: float) -> None:
    backend, clock = await opened()
    await backend.apply({"web": BucketStates(own=ALL)})
    for seconds in leases:
        backend.lease(seconds)
    clock.advance(passed)
    running = clock.monotonic() < FakeClock().monotonic() + max([0.0, *leases[-1:]])
    assert backend.judge(syn(1)).accepted is running


class TestFakeClock:
    def test_it_moves_when_told(self) -> None:
        clock = FakeClock(monotonic=10.0, wall=100.0)
        clock.advance(1.5)
        clock.set_wall(0.0)
        clock.advance(0.5)
        assert (clock.monotonic(), clock.wall()) == (12.0, 0.5)

    @pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
    def test_it_never_goes_back(self, seconds: float) -> None:
        clock = FakeClock(monotonic=10.0)
        with pytest.raises(UsageError):
            clock.advance(seconds)
        assert clock.monotonic() == 10.0
