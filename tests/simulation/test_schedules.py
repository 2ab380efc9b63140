"""The invariants, in simulated farms: random schedules, and the faults that have a name."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.simulation.schedules import run_schedule

from nlbfarm.core.buckets import ALL
from nlbfarm.core.settings import Partition
from nlbfarm.core.wire import NodeState
from nlbfarm.testing.farm import SimulatedFarm, ViolationError

SCHEDULES = 60
"""How many a run of the tests takes; ``python -m tests.simulation FIRST LAST`` takes more."""


def started(nodes: int = 3, seed: int = 1, **options: object) -> SimulatedFarm:
    """Return a farm that serves."""
    farm = SimulatedFarm(nodes, seed, **options)  # type: ignore[arg-type]
    farm.strict = True
    for node in farm.hosts:
        farm.start(node)
    farm.run(2.0)
    farm.check_whole()
    return farm


def served(farm: SimulatedFarm) -> int:
    """Return how many buckets of the first group anybody accepts now."""
    taken = 0
    for host in farm.hosts.values():
        taken |= host.accepts(0, farm.now)
    return taken.bit_count()


def shares(farm: SimulatedFarm) -> dict[int, int]:
    """Return how many buckets each node accepts now."""
    return {node: host.accepts(0, farm.now).bit_count() for node, host in farm.hosts.items()}


def first_time_served(farm: SimulatedFarm, until: float) -> float:
    """Return when all buckets are served, looked at every millisecond."""
    while farm.now < until:
        farm.run(farm.now + 0.001)
        served = 0
        for host in farm.hosts.values():
            served |= host.accepts(0, farm.now)
        if served == ALL:
            return farm.now
    raise ViolationError(f"not whole by {until}")


@pytest.mark.parametrize("part", range(4))
def test_random_schedules_keep_the_invariants(part: int, rng: random.Random) -> None:
    for _ in range(SCHEDULES // 4):
        run_schedule(rng.randrange(2**32))


@pytest.mark.parametrize("seed", [264, 281])
def test_schedules_that_once_broke_them(seed: int) -> None:
    """A node that woke from a freeze led the farm by the oldest word in its queue."""
    run_schedule(seed)


def test_the_checks_can_fail() -> None:
    farm = started()
    farm.hosts[2].own = (farm.hosts[1].own[0],)
    with pytest.raises(ViolationError, match=r"seed 1, .*I1: group 0 is accepted by 1 and 2"):
        farm.run(3.0)
    farm = started()
    farm.hosts[2].own = (0,)
    with pytest.raises(ViolationError, match="85 buckets are accepted by nobody"):
        farm.check_whole()


@pytest.mark.parametrize("nodes", [1, 2, 3, 8, 32])
def test_a_cold_start_takes_about_two_detection_times_and_shares_are_equal(nodes: int) -> None:
    farm = SimulatedFarm(nodes, 1)
    farm.strict = True
    for node in farm.hosts:
        farm.start(node)
    assert first_time_served(farm, 5.0) < 1.5
    farm.run(3.0)
    counts = shares(farm).values()
    assert max(counts) - min(counts) <= 1


def test_a_crash_is_over_in_a_detection_time_and_little_more() -> None:
    for seed in range(10):
        farm = started(seed=seed)
        farm.run(2.0 + seed / 100)
        farm.crash(2)
        begun = farm.now
        assert first_time_served(farm, begun + 2.0) - begun < 0.55


def test_a_node_that_comes_back_gets_its_share_again_and_nothing_is_unserved_for_long() -> None:
    for back in (1, 2, 3):
        farm = started()
        farm.crash(back)
        farm.run(4.0)
        farm.start(back)
        unserved = 0
        for _ in range(2000):
            farm.run(farm.now + 0.001)
            served = 0
            for host in farm.hosts.values():
                served |= host.accepts(0, farm.now)
            unserved += served != ALL
        farm.check_whole()
        assert sorted(shares(farm).values()) == [85, 85, 86]
        assert unserved < 15  # milliseconds: two exchanges and a filter change


def test_a_frozen_node_is_fenced_before_its_buckets_are_served_elsewhere() -> None:
    for seconds in (0.31, 0.5, 0.52, 0.6, 5.0):
        farm = started()
        farm.freeze(1, seconds)
        farm.run(12.0)
        farm.check_whole()


def test_a_killed_process_leaves_a_filter_that_falls_silent() -> None:
    farm = started()
    farm.kill(3)
    farm.run(2.31)
    assert farm.hosts[3].accepts(0, farm.now) == 0
    farm.run(4.0)
    farm.check_whole()


def test_a_planned_stop_hands_over_within_milliseconds() -> None:
    farm = started()
    farm.stop(1)
    begun = farm.now
    farm.run(begun + 0.0001)
    assert first_time_served(farm, begun + 1.0) - begun < 0.015
    farm.run(4.0)
    farm.check_whole({2, 3})
    assert farm.hosts[1].core is None


def test_the_last_node_may_stop_too() -> None:
    farm = started(2)
    farm.stop(1)
    farm.stop(2)
    farm.run(5.0)
    assert all(host.core is None for host in farm.hosts.values())


def test_an_unhealthy_node_gives_its_buckets_away_and_gets_them_back() -> None:
    farm = started()
    farm.healthy(2, False)
    farm.run(2.2)
    farm.check_whole()
    assert shares(farm)[2] == 0
    farm.healthy(2, True)
    farm.run(2.4)
    farm.check_whole()
    assert shares(farm)[2] == 85


def test_both_sides_of_a_partition_serve_and_a_heal_ends_it_soon() -> None:
    farm = started(4)
    farm.strict = False
    for one in (1, 2):
        for other in (3, 4):
            farm.cut(one, other)
            farm.cut(other, one)
    farm.run(5.0)
    farm.check_whole({1, 2})
    farm.check_whole({3, 4})
    farm.heal()
    farm.run(8.0)
    farm.check_whole()


def test_with_a_majority_rule_only_the_larger_side_serves() -> None:
    farm = started(3, partition=Partition.MAJORITY)
    for other in (1, 2):
        farm.cut(3, other)
        farm.cut(other, 3)
    farm.run(5.0)
    farm.check_whole({1, 2})
    assert farm.hosts[3].accepts(0, farm.now) == 0
    farm.heal()
    farm.run(8.0)
    farm.check_whole()


@pytest.mark.parametrize("direction", [(1, 2), (2, 1), (1, 3), (3, 2)])
def test_a_link_that_works_one_way_only_leaves_every_bucket_with_one_node(direction: tuple[int, int]) -> None:
    farm = started()
    farm.cut(*direction)
    farm.run(6.0)
    double = 0
    seen = 0
    for host in farm.hosts.values():
        double |= seen & host.accepts(0, farm.now)
        seen |= host.accepts(0, farm.now)
    assert (seen, double) == (ALL, 0)
    farm.heal()
    farm.run(9.0)
    farm.check_whole()


def test_a_deaf_node_of_three_does_not_stop_the_others() -> None:
    for deaf in (1, 2, 3):
        farm = started()
        for other in {1, 2, 3} - {deaf}:
            farm.cut(other, deaf)
        farm.run(3.0)
        farm.check_whole({1, 2, 3} - {deaf})
        farm.run(6.0)
        farm.check_whole()
        core = farm.hosts[deaf].core
        assert core is not None
        assert (core.state, "firewall" in core.reason) == (NodeState.WAIT, True)
        farm.heal()
        farm.run(9.0)
        farm.check_whole()
        assert min(shares(farm).values()) == 85


def test_a_node_that_cannot_be_heard_by_one_other_is_settled_with_one_left_out() -> None:
    farm = started(4)
    farm.strict = False
    farm.cut(1, 4)
    farm.cut(4, 1)
    farm.run(8.0)
    farm.check_whole({1, 2, 3})
    farm.heal()
    farm.run(11.0)
    farm.check_whole()
    assert set(shares(farm).values()) == {64}


@pytest.mark.parametrize(("nodes", "groups"), [(3, 8), (8, 6)])
def test_plans_that_do_not_fit_into_a_heartbeat_are_fetched_in_peace(nodes: int, groups: int) -> None:
    """A joiner that knew the epoch before it had the plan was taken for one that had left, for ever."""
    farm = SimulatedFarm(nodes, 1, groups=groups, codec=True, ordered=True, delay_s=(0.0001, 0.0002))
    farm.strict = True
    for node in farm.hosts:
        farm.start(node)
    farm.run(3.0)
    farm.check_whole()
    counts = shares(farm).values()
    assert max(counts) - min(counts) <= 1
    core = farm.hosts[1].core
    assert core is not None
    assert core.membership.known_epoch.counter < 20
    farm.crash(2)
    farm.run(5.0)
    farm.start(2)
    farm.run(8.0)
    farm.check_whole()


@pytest.mark.parametrize(
    ("nodes", "cuts"),
    [(3, [(1, 3), (2, 1)]), (5, [(3, 1), (3, 2), (2, 4), (1, 4), (5, 1), (2, 1)])],
)
def test_a_leader_that_nobody_acknowledges_leaves(nodes: int, cuts: list[tuple[int, int]]) -> None:
    farm = started(nodes)
    farm.strict = False
    for cut in cuts:
        farm.cut(*cut)
    farm.run(10.0)
    assert served(farm) == 256


def test_nodes_configured_otherwise_do_not_serve_together_and_none_takes_the_farm_down() -> None:
    for other in (1, 2, 3):
        farm = SimulatedFarm(3, 1)
        farm.strict = True
        farm.settings[other] = replace(farm.settings[other], config_digest=b"another.")
        for node in farm.hosts:
            farm.start(node)
        farm.run(5.0)
        pair = {1, 2, 3} - {other}
        farm.check_whole(pair)
        core = farm.hosts[other].core
        assert core is not None
        assert "configured otherwise than node" in core.reason
        for node in pair:
            farm.healthy(node, False)
        farm.run(10.0)
        farm.check_whole({other})


def test_who_cannot_serve_does_not_stand_in_the_way_of_one_who_can() -> None:
    farm = started(2)
    farm.strict = False
    farm.cut(2, 1)
    farm.run(6.0)
    assert served(farm) == 256
    farm.healthy(1, False)
    farm.run(12.0)
    assert served(farm) == 256
    assert shares(farm)[2] == 256


def test_a_paused_machine_makes_sure_of_everybody_before_it_serves_again() -> None:
    for seed in range(20):
        farm = SimulatedFarm(2, seed, delay_s=(0.01, 0.02))
        farm.strict = True
        farm.start(1)
        farm.run(3.0)
        farm.start(2)
        farm.run(3.05)
        farm.pause(1, 5.0)
        farm.run(12.0)
        farm.check_whole()


def test_a_node_that_lost_its_incarnation_jumps_above_the_one_that_is_remembered() -> None:
    farm = started()
    farm.crash(2)
    farm.hosts[2].incarnation = 100
    farm.start(2, incarnation=100)
    farm.run(4.0)
    farm.crash(2)
    farm.run(6.0)
    farm.start(2, incarnation=3)
    farm.run(9.0)
    farm.check_whole()
    core = farm.hosts[2].core
    assert core is not None
    assert core.incarnation == 101


def test_loss_does_not_cost_leases() -> None:
    """At 5 % loss an acknowledgement that comes late comes between two turns."""
    farm = started(loss=0.05)
    before = {node: host.lapses for node, host in farm.hosts.items()}
    farm.run(120.0)
    assert {node: host.lapses for node, host in farm.hosts.items()} == before
