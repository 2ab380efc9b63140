"""Planned changes break no connection: real processes, a real server, clients that keep talking."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from nlbfarm.lab import Lab, acts
from nlbfarm.lab.acts import Planned, Stage

pytestmark = pytest.mark.netns

HELD = 200
RATE = 100


@pytest.fixture(scope="module")
def farm() -> Iterator[Lab]:
    """Yield a farm of three that serves; every test leaves it so."""
    with Lab(nodes=3) as lab:
        lab.start()
        lab.settle()
        yield lab


@pytest.fixture
def stage(farm: Lab) -> Iterator[Stage]:
    """Yield the farm with a client that holds connections and opens new ones."""
    stage = Stage(farm, lambda sentence: None)
    with stage.talked(held=HELD, rate=RATE):
        yield stage


def unbroken(planned: Planned) -> None:
    assert planned.failures() == []
    assert planned.tally.established == HELD
    assert planned.tally.new_connections > 0


@pytest.mark.parametrize("change", [acts.drain, acts.stop, acts.power, acts.restart])
def test_a_planned_change_breaks_no_connection(stage: Stage, change: Callable[[Stage], Planned]) -> None:
    unbroken(change(stage))


def test_a_node_that_joins_breaks_no_connection(farm: Lab) -> None:
    farm.crash("web2")
    farm.settle("web1", "web3")
    stage = Stage(farm, lambda sentence: None)
    with stage.talked(held=HELD, rate=RATE):
        planned = acts.rejoin(stage)
    unbroken(planned)
    assert planned.moved_buckets == 85


def test_a_node_added_to_the_configuration_and_removed_breaks_no_connection() -> None:
    with Lab(nodes=3) as lab:
        lab.start()
        lab.settle()
        stage = Stage(lab, lambda sentence: None)
        with stage.talked(held=HELD, rate=RATE):
            unbroken(acts.reload(stage))
        assert lab.names == lab.running == ("web1", "web2", "web3")


def test_a_process_that_ends_in_good_order_ends_its_connections_first(stage: Stage) -> None:
    """SIGTERM: the node drains, for as long as its connections last, and leaves."""
    lab, talking = stage.lab, stage.talking
    lab.settle()
    assert talking.holders()["web2"]
    since = talking.watch(0)
    lab.terminate("web2")
    lab.settle("web1", "web3")
    until = talking.watch(2)
    assert talking.holders()["web2"]  # they talk on
    talking.turn_over()
    assert lab.wait_ended("web2") == 0
    tally = talking.tally(since, until)
    assert (tally.broken_connections, tally.failed_connections) == (0, 0)
    lab.start("web2")
    lab.settle()
