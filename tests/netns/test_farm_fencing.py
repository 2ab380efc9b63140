"""Nobody is served by two nodes: hung processes, loss in one direction, partitions; all under load."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab import Lab, Probing, Talking, acts
from nlbfarm.lab.acts import Stage

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def farm() -> Iterator[Lab]:
    """Yield a farm of three that serves; every test leaves it so."""
    with Lab(nodes=3) as lab:
        lab.start()
        lab.settle()
        yield lab


@pytest.fixture
def stage(farm: Lab) -> Iterator[Stage]:
    """Yield the farm with a client that asks every bucket all the time."""
    stage = Stage(farm, lambda sentence: None)
    with stage.probed(rate=800):
        yield stage


def test_a_process_that_hangs_for_five_seconds_serves_nobody_twice(stage: Stage) -> None:
    measured = acts.freeze(stage, 5.0)
    assert measured.double_served == 0
    assert measured.share == 85
    placement = stage.lab.settle()
    since = stage.probing.seen
    stage.probing.wait_until(since + 1)
    answered = stage.probing.served(since)
    assert all(set(answered[bucket]) == {"web2"} for bucket in stage.owned("web2", placement))


def test_a_short_hang_costs_time_but_no_connection(farm: Lab) -> None:
    with Talking(farm, held=256, interval=0.5, rate=50) as talking:
        assert talking.holders()["web2"] == 85
        since = time.monotonic()
        farm.freeze("web2")
        farm.settle("web1", "web3")
        farm.thaw("web2")
        farm.settle()
        tally = talking.tally(since, talking.watch(2))
    assert tally.broken_connections == 0, talking.trouble(since)
    assert tally.failed_connections == 0, talking.trouble(since)


def test_loss_in_one_direction_serves_nobody_twice_and_everybody_once(stage: Stage) -> None:
    for name, way in acts.oneway(stage).ways.items():
        assert way.double_served == 0, name
        assert way.unserved == 0, name


def test_each_side_of_a_partition_serves_its_clients_and_healing_ends_it(stage: Stage) -> None:
    measured = acts.partition(stage)
    assert measured.served == [BUCKETS, BUCKETS]
    assert measured.double_served_late == 0
    since = stage.probing.seen
    stage.probing.wait_until(since + 1)
    assert stage.probing.doubles(since) == []


def test_only_the_majority_serves_where_that_is_asked_for() -> None:
    text = 'partition = "majority"'
    with Lab(nodes=3, farm=text) as lab:
        lab.start()
        lab.settle()
        with Probing(lab, rate=500, held=0) as probing:
            lab.faults.partition([["web3"], ["web1", "web2"]])
            lab.settle("web1", "web2")
            since = probing.seen
            probing.wait_until(since + 1)
            assert {r.node for r in probing.requests(since, held=False) if r.answered} == {"web1", "web2"}
            assert {len(counter) for counter in probing.served(since)} == {1}
            lab.faults.heal()
            lab.settle()
            probing.wait_until(time.monotonic() + 0.5)
            assert probing.doubles() == []
