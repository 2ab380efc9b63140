"""The ledger of flows: what it asks of the kernel, and that it never calls a bucket empty that is not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.backends.conntrack import Flow, Life
from nlbfarm.backends.flows import HALF_OPEN_S, LOOKUPS, FlowLedger, FlowSource, FlowWatch
from nlbfarm.core.buckets import Bitmap
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import HostError
from nlbfarm.testing.clock import FakeClock

Flows = list[tuple[int, bytes]]


class Table:
    """A host's table, and what was asked of it."""

    def __init__(self, flows: Flows) -> None:
        self.flows = dict.fromkeys(flows)
        self.scans = 0
        self.lookups = 0
        self.half_open: set[bytes] = set()
        self.broken = False
        self.meanwhile: Callable[[], object] = lambda: None

    @contextmanager
    def __call__(self) -> Iterator[FlowSource]:
        yield self

    def scan(self) -> Iterator[list[Flow]]:
        self.scans += 1
        flows = [Flow("web", bucket, question, question in self.half_open) for bucket, question in self.flows]
        yield flows[::2]
        self.meanwhile()
        yield flows  # some twice, as a table that changes tells them

    def look_up(self, question: bytes) -> Life:
        self.lookups += 1
        if self.broken:
            raise HostError("no")
        if all(known != question for _, known in self.flows):
            return Life.OVER
        return Life.HALF_OPEN if question in self.half_open else Life.OPEN

    def end(self, bucket: int, question: bytes) -> None:
        del self.flows[bucket, question]

    def truth(self, buckets: Bitmap) -> dict[int, int]:
        return dict(Counter(bucket for bucket, _ in self.flows if buckets >> bucket & 1))


def flows(*sizes: int) -> Flows:
    """So many flows in bucket 0, in bucket 1, and so on."""
    return [(bucket, b"%d %d" % (bucket, n)) for bucket, size in enumerate(sizes) for n in range(size)]


def web(ledger: FlowLedger, buckets: Bitmap) -> Mapping[int, int]:
    return ledger.count({"web": buckets})["web"]


def test_the_table_is_scanned_once() -> None:
    table = Table(flows(3, 0, 2, 1))
    ledger = FlowLedger(table, FakeClock().monotonic)
    for _ in range(5):
        assert web(ledger, 0b0111) == {0: 3, 2: 2}
    assert table.scans == 1


def test_a_repeated_question_costs_a_look_up_a_bucket_whatever_the_number_of_flows() -> None:
    table = Table(flows(*[1000] * 200))
    ledger = FlowLedger(table, FakeClock().monotonic)
    web(ledger, (1 << 200) - 1)
    assert web(ledger, (1 << 200) - 1) == dict.fromkeys(range(200), 1000)
    assert table.lookups <= max(LOOKUPS, 200)


def test_flows_that_ended_cost_a_look_up_each() -> None:
    table = Table(flows(1000, 1000))
    ledger = FlowLedger(table, FakeClock().monotonic)
    web(ledger, 0b11)
    for flow in flows(1000, 999):
        table.end(*flow)
    assert web(ledger, 0b11) == {1: 1}
    assert table.lookups == 2000
    assert web(ledger, 0b11) == {1: 1}
    assert table.lookups == 2001
    assert table.scans == 1


def test_counts_come_down_as_flows_end() -> None:
    table = Table(flows(4 * LOOKUPS))
    ledger = FlowLedger(table, FakeClock().monotonic)
    web(ledger, 1)
    for n in range(0, 4 * LOOKUPS, 2):
        table.end(0, b"0 %d" % n)
    for _ in range(4):
        web(ledger, 1)
    assert web(ledger, 1) == {0: 2 * LOOKUPS}


def test_a_bucket_that_took_new_flows_since_is_scanned_again() -> None:
    table = Table(flows(0, 1))
    ledger = FlowLedger(table, FakeClock().monotonic)
    assert web(ledger, 1) == {}
    ledger.opening({"web": 1})
    ledger.opened({"web": 1})
    table.flows[0, b"new"] = None
    assert ledger.opened({"web": 0})
    assert not ledger.opened({"web": 0})
    assert web(ledger, 1) == {0: 1}
    assert table.scans == 2
    assert web(ledger, 1) == {0: 1}
    assert table.scans == 2


def test_a_bucket_that_takes_new_flows_is_scanned_at_every_question() -> None:
    table = Table([])
    ledger = FlowLedger(table, FakeClock().monotonic)
    ledger.opened({"web": 1})
    for n in range(3):
        table.flows[0, b"%d" % n] = None
        assert web(ledger, 1) == {0: n + 1}


def test_a_bucket_that_opens_during_a_scan_is_scanned_again() -> None:
    table = Table([])
    ledger = FlowLedger(table, FakeClock().monotonic)

    def reopen() -> None:
        ledger.opening({"web": 1})
        table.flows[0, b"new"] = None
        ledger.opened({})

    table.meanwhile = reopen
    web(ledger, 1)
    table.meanwhile = lambda: None
    assert web(ledger, 1) == {0: 1}


def test_what_is_no_longer_asked_about_is_forgotten() -> None:
    table = Table(flows(1, 1))
    ledger = FlowLedger(table, FakeClock().monotonic)
    web(ledger, 0b11)
    assert web(ledger, 0b10) == {1: 1}
    assert table.scans == 1
    table.end(0, b"0 0")
    assert web(ledger, 0b11) == {1: 1}
    assert table.scans == 2


def test_nothing_is_taken_for_scanned_when_the_table_could_not_be_read() -> None:
    table = Table(flows(2))
    ledger = FlowLedger(table, FakeClock().monotonic)

    def fail() -> None:
        raise HostError("no")

    table.meanwhile = fail
    with pytest.raises(HostError):
        web(ledger, 1)
    table.meanwhile = lambda: None
    assert web(ledger, 1) == {0: 2}
    assert table.scans == 2


def test_a_look_up_that_fails_loses_no_flow() -> None:
    table = Table(flows(1))
    ledger = FlowLedger(table, FakeClock().monotonic)
    web(ledger, 1)
    table.broken = True
    with pytest.raises(HostError):
        web(ledger, 1)
    table.broken = False
    assert web(ledger, 1) == {0: 1}


async def test_a_question_that_waits_for_the_table_ends_with_the_filter() -> None:
    watch = FlowWatch(FilterPolicy("shop", (), (), ()))
    question = asyncio.create_task(watch.count({}))
    await asyncio.sleep(0)
    watch.close()
    with pytest.raises(HostError, match="closed"):
        await question


def test_a_connection_that_stays_half_open_is_not_waited_for() -> None:
    table, clock = Table(flows(2, 1)), FakeClock()
    table.half_open = {b"0 0", b"0 1", b"1 0"}
    ledger = FlowLedger(table, clock.monotonic)
    assert web(ledger, 0b11) == {0: 2, 1: 1}
    clock.advance(HALF_OPEN_S)
    assert web(ledger, 0b11) == {0: 2, 1: 1}
    table.half_open.remove(b"0 1")
    clock.advance(0.5)
    assert web(ledger, 0b11) == {0: 1}
    assert table.scans == 1
    table.flows[2, b"new"] = None
    table.half_open.add(b"new")
    assert web(ledger, 0b111) == {0: 1, 2: 1}, "a scan for another bucket finds the old ones again"
    assert table.scans == 2


step = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 255)),
    st.tuples(st.just("apply"), st.integers(0, 255)),
    st.tuples(st.just("begin"), st.integers(0, 7)),
    st.tuples(st.just("end"), st.integers(0, 30)),
)


@given(st.lists(step, max_size=60))
def test_a_bucket_is_empty_when_it_is_said_to_be_and_only_then(steps: list[tuple[str, int]]) -> None:
    table = Table([])
    ledger = FlowLedger(table, FakeClock().monotonic)
    taking = 0
    for number, (what, value) in enumerate(steps):
        if what == "apply":
            ledger.opening({"web": value})
            taking = value
            ledger.opened({"web": value})
        elif what == "begin" and taking >> value & 1:
            table.flows[value, b"%d" % number] = None
        elif what == "end" and table.flows:
            table.end(*list(table.flows)[value % len(table.flows)])
        elif what == "ask":
            counted, truth = web(ledger, value), table.truth(value)
            assert counted.keys() == truth.keys()
            assert all(counted[bucket] >= truth[bucket] for bucket in truth)
