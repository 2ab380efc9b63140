"""Connections, clocks and networks in simulated farms: what may not cost anything does not."""

from __future__ import annotations

from tests.simulation.farms import started

from nlbfarm.core.settings import Admin


def test_a_drained_node_serves_its_connections_to_their_end_and_breaks_none() -> None:
    for seed in range(4):
        farm = started(seed=seed, connections_per_s=300.0, connection_life_s=0.5)
        farm.invariants.planned = True
        farm.admin(1, Admin.DRAIN)
        farm.run(2.3)
        held = sum(map(len, farm.hosts[1].talking))
        assert held
        assert farm.hosts[1].accepts(0, farm.now) == 0
        farm.check_whole({2, 3})
        farm.run(6.0)
        assert not any(farm.hosts[1].known)
        farm.admin(1, Admin.RUN)
        farm.run(9.0)
        farm.check_whole()
        assert farm.clients.broken == 0
        assert farm.clients.opened > 1000


def test_a_new_process_serves_the_connections_of_the_one_before() -> None:
    for node in (1, 2, 3):
        farm = started(connections_per_s=300.0, connection_life_s=4.0)
        farm.invariants.planned = True
        held = farm.hosts[node].established[0]
        assert held
        farm.upgrade(node, gap=1.0)
        farm.run(4.5)
        farm.invariants.connections_kept()
        assert farm.hosts[node].established[0] & held
        assert farm.clients.broken == 0
        farm.run(7.0)
        farm.check_whole()


def test_a_node_that_comes_back_from_a_short_freeze_finds_its_connections_alive() -> None:
    farm = started(connections_per_s=300.0, connection_life_s=9.0)
    farm.freeze(2, 1.5)
    farm.run(5.0)
    farm.check_whole()
    assert farm.clients.broken == 0
    assert farm.clients.retransmits  # while nobody had taken over yet


def test_a_connection_breaks_when_its_machine_does() -> None:
    farm = started(connections_per_s=300.0, connection_life_s=9.0)
    held = sum(farm.hosts[2].talking[0].values())
    farm.crash(2)
    assert farm.clients.broken == held > 0
    farm.run(5.0)
    assert farm.clients.broken == held
    assert farm.clients.failed == 0


def test_clocks_of_different_rates_cost_nothing() -> None:
    for seed in range(3):
        farm = started(4, seed, clock_error=0.02)
        before = {node: host.lapses for node, host in farm.hosts.items()}
        farm.run(60.0)
        farm.check_whole()
        assert {node: host.lapses for node, host in farm.hosts.items()} == before


def test_the_loss_of_one_of_two_networks_changes_nothing() -> None:
    farm = started(networks=2, connections_per_s=100.0)
    farm.invariants.planned = True
    lapses = {node: host.lapses for node, host in farm.hosts.items()}
    views = [line for line in farm.trace if line[2] == "view.entered"]
    farm.network.down = {0}
    farm.run(6.0)
    farm.network.down = {1}
    farm.run(10.0)
    farm.check_whole()
    assert [line for line in farm.trace if line[2] == "view.entered"] == views
    assert {node: host.lapses for node, host in farm.hosts.items()} == lapses


def test_leaders_killed_again_and_again() -> None:
    """Every bucket is served in between, and epochs only rise."""
    farm = started(4)
    newest = 0
    for _ in range(20):
        leader = min(node for node, host in farm.hosts.items() if host.core is not None)
        farm.kill(leader)
        farm.run(farm.now + 1.0)
        farm.check_whole()
        farm.start(leader)
        farm.run(farm.now + 1.5)
        farm.check_whole()
        counters = [host.core.membership.known_epoch.counter for host in farm.hosts.values()]
        assert min(counters) > newest
        newest = max(counters)


def test_a_recorded_heartbeat_does_not_keep_a_dead_node_alive() -> None:
    farm = started()
    farm.crash(2)
    farm.replay(2)
    farm.run(4.0)
    farm.check_whole({1, 3})
