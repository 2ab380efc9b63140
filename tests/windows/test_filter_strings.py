"""The filter strings of the WinDivert backend, judged by WinDivert's own compiler and interpreter.

What the driver would divert, packet by packet of the conformance corpus: all that the oracle has a word on,
and nothing else. Then both halves of the backend together, filter and judge, against the oracle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

import pytest
from tests.windows.compiler import FLOW, Filter, FilterError

from nlbfarm.backends.windivert.filters import MAX_TESTS, Target, divert_filter, drop_filters, flow_filter
from nlbfarm.core.buckets import Bitmap, BucketStates
from nlbfarm.core.decision import Reason
from nlbfarm.core.judging import Judge
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.interfaces import FilterBackend, FilterCounters, Usability
from nlbfarm.testing.conformance import Corpus, Packet, check_filter_backend, make_corpus

pytestmark = pytest.mark.windows

INTERFACES = {"eth0": 3, "eth1": 12}
SCATTERED = [Target(IPv4Address("192.0.2.0") + 2 * number, 3) for number in range(120)]
SCATTERED += [Target(IPv6Address("2001:db8::") + 5 * number, 7) for number in range(120)]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(seed=1, packets=20_000)


def targets(policy: FilterPolicy) -> list[Target]:
    return [Target(vip.address, INTERFACES[vip.interface]) for vip in policy.vips]


def matches(one: Filter, packet: Packet) -> bool | None:
    return one.matches(packet.data, packet.version, INTERFACES[packet.facts.interface])


def test_diverts_what_needs_a_decision_and_nothing_else(corpus: Corpus) -> None:
    compiled = Filter(divert_filter(targets(corpus.policy)))
    wrong, no_packets = [], set()
    for phase in corpus.phases:
        for packet in phase.packets():
            decision = corpus.decision(phase, packet, whole=False)
            diverted = matches(compiled, packet)
            if diverted is None:
                no_packets.add(decision.reason)
            elif diverted is (decision.reason is Reason.NOT_FILTERED):
                wrong.append((packet.index, packet.category, packet.version, diverted, decision.reason))
    assert wrong == []
    # What WinDivert's parser takes for no packet is none to the system's own stack, either.
    assert no_packets == {Reason.MALFORMED}


def test_what_drops_drops_the_same(corpus: Corpus) -> None:
    diverting = Filter(divert_filter(targets(corpus.policy)))
    dropping = [Filter(one) for one in drop_filters(targets(corpus.policy), limit=12)]
    assert len(dropping) > 1
    different = [
        packet.index
        for packet in corpus.packets()
        if bool(matches(diverting, packet)) is not any(matches(one, packet) for one in dropping)
    ]
    assert different == []


def test_a_filter_of_few_tests_diverts_more_and_never_less(corpus: Corpus) -> None:
    exact = Filter(divert_filter(targets(corpus.policy)))
    coarse = Filter(divert_filter(targets(corpus.policy), limit=24))
    missed = [
        packet.index
        for packet in corpus.packets()
        if matches(exact, packet) and matches(coarse, packet) is False
    ]
    assert missed == []


def test_nothing_that_leaves_or_stays_inside(corpus: Corpus) -> None:
    compiled = Filter(divert_filter(targets(corpus.policy)))
    for packet in corpus.packets():
        index = INTERFACES[packet.facts.interface]
        assert not compiled.matches(packet.data, packet.version, index, outbound=True)
        assert not compiled.matches(packet.data, packet.version, index, loopback=True)


def test_nothing_from_another_interface(corpus: Corpus) -> None:
    compiled = Filter(divert_filter(targets(corpus.policy)))
    assert not any(compiled.matches(packet.data, packet.version, 4) for packet in corpus.packets())


@pytest.mark.parametrize("count", [1, 2, 3, 60, 120, 240])
def test_as_many_vips_as_one_likes(count: int) -> None:
    chosen = SCATTERED[:count] if count <= 120 else SCATTERED
    Filter(divert_filter(chosen))
    for one in drop_filters(chosen):
        Filter(one)
    Filter(flow_filter(chosen), FLOW)


def test_no_vip_is_no_packet(corpus: Corpus) -> None:
    compiled = Filter(divert_filter([]))
    assert not any(matches(compiled, packet) for packet in corpus.packets())


def test_the_limit_is_the_compilers() -> None:
    many = [Target(IPv4Address("198.18.0.0") + 2 * number) for number in range(400)]
    Filter(divert_filter(many, limit=MAX_TESTS))
    with pytest.raises(FilterError, match="too long"):
        Filter(divert_filter(many, limit=MAX_TESTS + 1))


class Diverted(FilterBackend):
    """What the backend is on Windows, without the driver: the filter takes packets out, the judge judges."""

    name = "windivert"

    @classmethod
    async def probe(cls) -> Usability:
        return Usability(True, "WinDivert's interpreter in place of its driver")

    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        self.judge = Judge(policy)
        self.filter = Filter(divert_filter(targets(policy)))

    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        self.judge.apply(states)

    def lease(self, seconds: float) -> bool:
        self.judge.lease_end = time.monotonic() + seconds
        return True

    async def repair(self) -> None:
        raise AssertionError("nobody damages it")

    async def flows(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        return self.judge.flows(buckets)

    async def counters(self) -> FilterCounters:
        return self.judge.counters()

    async def close(self) -> None:
        return None

    @classmethod
    async def cleanup(cls, farm: str) -> Sequence[str]:
        return ()


class Shown:
    """Shows packets to it."""

    def __init__(self, backend: FilterBackend) -> None:
        assert isinstance(backend, Diverted)
        self._backend = backend

    async def offer(self, packet: Packet) -> bool:
        diverted = matches(self._backend.filter, packet)
        if diverted is None:  # the system's stack drops what is no packet
            assert not packet.facts.understood
            return False
        judge = self._backend.judge.judge
        return not diverted or judge(packet.data, packet.facts.interface, time.monotonic())


async def test_filter_and_judge_decide_as_the_oracle_does() -> None:
    report = await check_filter_backend(Diverted, packets=20_000, seed=1, probe=Shown)
    assert report.differences == []
