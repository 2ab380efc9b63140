"""Nodes that are not fit: who has the clients then, and that nobody loses them for a cause that all share."""

from __future__ import annotations

from tests.simulation.farms import shares, started

from nlbfarm.core.events import FailbackRequested
from nlbfarm.core.wire import Fitness, NodeState
from nlbfarm.testing.farm import SimulatedFarm


def settle(farm: SimulatedFarm, seconds: float = 1.0) -> dict[int, int]:
    farm.run(farm.now + seconds)
    return shares(farm)


def state(farm: SimulatedFarm, node: int) -> tuple[NodeState, str]:
    core = farm.hosts[node].core
    assert core is not None
    return core.state, core.reason


def test_a_degraded_node_gives_its_clients_to_the_others_and_waits() -> None:
    farm = started(connections_per_s=60.0)
    farm.invariants.planned = True
    farm.fit(2, Fitness.DEGRADED)
    assert settle(farm) == {1: 128, 2: 0, 3: 128}
    assert state(farm, 2) == (NodeState.WAIT, "degraded")
    farm.fit(2, Fitness.SOUND)
    assert sorted(settle(farm).values()) == [85, 85, 86]
    assert state(farm, 2) == (NodeState.UP, "")


def test_when_all_are_degraded_nobody_loses_anything_and_each_says_so() -> None:
    farm = started()
    before = shares(farm)
    for node in farm.hosts:
        farm.fit(node, Fitness.SUSPECT)
    farm.run(farm.now + 0.3)
    for node in farm.hosts:
        farm.fit(node, Fitness.DEGRADED)
        farm.run(farm.now + 0.3)
        assert shares(farm) == before
    assert state(farm, 1) == (NodeState.UP, "degraded: degraded; no other node is better")


def test_the_last_fit_node_goes_on_when_it_is_degraded_too() -> None:
    farm = started()
    for node in (1, 2):
        farm.fit(node, Fitness.DEGRADED)
    assert settle(farm) == {1: 0, 2: 0, 3: 256}
    farm.fit(3, Fitness.DEGRADED)
    assert sorted(settle(farm).values()) == [85, 85, 86]
    assert state(farm, 3)[0] is NodeState.UP


def test_whose_application_is_gone_serves_only_when_nobody_has_one() -> None:
    farm = started()
    farm.fit(1, Fitness.DOWN)
    farm.fit(2, Fitness.DEGRADED)
    farm.fit(3, Fitness.DOWN)
    assert settle(farm) == {1: 0, 2: 256, 3: 0}
    farm.crash(2)
    assert settle(farm, 2.0) == {1: 128, 2: 0, 3: 128}


def test_a_sound_node_without_power_is_no_reason_to_take_the_clients_away() -> None:
    farm = started()
    farm.power(3, (0,))
    farm.fit(1, Fitness.DEGRADED)
    farm.fit(2, Fitness.DEGRADED)
    assert settle(farm) == {1: 128, 2: 128, 3: 0}


def test_a_failback_that_was_asked_of_somebody_who_does_not_lead_is_not_kept_for_later() -> None:
    farm = started()
    core = farm.hosts[3].core
    assert core is not None
    core.handle(FailbackRequested(("group0",)), farm.now)
    farm.run(farm.now + 0.3)
    assert core.membership.failback == frozenset()
    farm.check_whole()
