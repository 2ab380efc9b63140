"""The invariants, in simulated farms: random schedules, and the faults that have a name."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.simulation.farms import first_time_served, served, shares, started

from nlbfarm.core.buckets import ALL
from nlbfarm.core.settings import Partition
from nlbfarm.core.wire import NodeState
from nlbfarm.testing.chance import random_schedule
from nlbfarm.testing.farm import SimulatedFarm
from nlbfarm.testing.schedules import play

SCHEDULES = 120
"""How many a run of the tests takes; ``python -m nlbfarm.testing.simulate`` takes more."""


@pytest.mark.parametrize("part", range(4))
def test_random_schedules_keep_the_invariants(part: int, rng: random.Random) -> None:
    for _ in range(SCHEDULES // 4):
        violation = play(random_schedule(rng.randrange(2**32))).violation
        if violation is not None:
            raise violation


@pytest.mark.parametrize("nodes", [3, 5])
def test_a_node_that_wakes_reads_its_queue_before_it_judges(nodes: int) -> None:
    """It once led the farm by the oldest word in there."""
    for seed in range(10):
        farm = started(nodes, seed)
        for node in (1, 2):
            farm.freeze(node, 0.45 + seed * 0.03)
        farm.run(5.0)
        farm.check_whole()


@pytest.mark.parametrize("nodes", [1, 2, 3, 8, 32])
def test_a_cold_start_takes_about_two_detection_times_and_shares_are_equal(nodes: int) -> None:
    farm = SimulatedFarm(nodes, 1)
    farm.invariants.strict = True
    for node in farm.hosts:
        farm.start(node)
    assert first_time_served(farm, 5.0) < 1.5
    farm.run(1.7)
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
    farm.invariants.strict = False
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
    farm.invariants.strict = False
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
    farm.invariants.strict = True
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
    farm.invariants.strict = False
    for cut in cuts:
        farm.cut(*cut)
    farm.run(10.0)
    assert served(farm) == 256


def test_nodes_configured_otherwise_do_not_serve_together_and_none_takes_the_farm_down() -> None:
    for other in (1, 2, 3):
        farm = SimulatedFarm(3, 1)
        farm.invariants.strict = True
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
    farm.invariants.strict = False
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
        farm.invariants.strict = True
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
    farm.start(2, incarnation=2000)
    farm.run(4.0)
    farm.crash(2)
    farm.run(6.0)
    farm.start(2, incarnation=3)
    farm.run(9.0)
    farm.check_whole()
    core = farm.hosts[2].core
    assert core is not None
    assert core.incarnation == 2001


def test_loss_does_not_cost_leases() -> None:
    """At 5 % loss an acknowledgement that comes late comes between two turns."""
    farm = started(loss=0.05)
    before = {node: host.lapses for node, host in farm.hosts.items()}
    farm.run(120.0)
    assert {node: host.lapses for node, host in farm.hosts.items()} == before


def test_outsiders_that_hear_different_members_of_a_view_agree_which_one_that_is() -> None:
    """Each took the view before for alive because of the other, and both told everybody, for ever."""
    farm = started(5)
    farm.cut(1, 3)
    farm.run(farm.now + 0.5)
    farm.crash(4)
    farm.cut(5, 4)
    farm.start(4)
    farm.run(farm.now + 2.0)
    farm.heal()
    farm.run(farm.now + 3.0)
    farm.check_whole()
