"""Services and checkers in simulated farms: who loses clients for what, and who never does."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.simulation.farms import served, shares, supervised

from nlbfarm.core.node import Node
from nlbfarm.core.policy import Mode
from nlbfarm.core.settings import Admin
from nlbfarm.core.supervision import Action, CheckSpec, Phase, ServiceSpec
from nlbfarm.core.supervision.placing import placed
from nlbfarm.core.wire import Fitness, NodeState
from nlbfarm.testing.actions import Action as Happening
from nlbfarm.testing.actions import act
from nlbfarm.testing.applications.ledger import Doing
from nlbfarm.testing.applications.model import Applications, CheckPlan, RulePlan, ServicePlan
from nlbfarm.testing.applications.shell import SupervisedProcess
from nlbfarm.testing.chance import random_schedule
from nlbfarm.testing.farm import SimulatedFarm, ViolationError
from nlbfarm.testing.schedules import play

SCHEDULES = 30
"""How many a run of the tests takes; ``python -m nlbfarm.testing.simulate`` takes more."""

WEB = ServicePlan(ServiceSpec("web", hold=1.0, max_restarts=2, within=3600.0, start_timeout=1.0, backoff=0.1))
PAGE = CheckPlan(CheckSpec("page", Action.RESTART, "web"), interval=0.1)
GATEWAY = CheckPlan(CheckSpec("gateway", Action.STOP, confirm=1.0))
SHOP = Applications((WEB,), (PAGE, GATEWAY))


def happens(farm: SimulatedFarm, kind: str, value: str, *nodes: int) -> None:
    act(farm, Happening(farm.now, kind, nodes, value))


def process(farm: SimulatedFarm, node: int) -> SupervisedProcess:
    found = farm.hosts[node].supervised
    assert found is not None
    return found


def phase(farm: SimulatedFarm, node: int, service: str = "web") -> Phase:
    return process(farm, node).machine.services[service].phase


def state(farm: SimulatedFarm, node: int) -> tuple[NodeState, str]:
    core = farm.hosts[node].core
    assert core is not None
    return core.state, core.reason


@pytest.mark.parametrize("part", range(3))
def test_random_schedules_keep_the_invariants(part: int, rng: random.Random) -> None:
    for _ in range(SCHEDULES // 3):
        violation = play(random_schedule(rng.randrange(2**32), (2, 4), "applications")).violation
        if violation is not None:
            raise violation


# -- one node ------------------------------------------------------------------------------


def test_no_client_comes_before_the_application_answers() -> None:
    farm = SimulatedFarm(2, 1, applications=SHOP)
    farm.wild = False
    for node in farm.hosts:
        happens(farm, "application", "web silent", node)
        farm.start(node)
    farm.run(6.0)
    assert served(farm) == 0
    assert state(farm, 1)[0] is NodeState.WAIT
    assert state(farm, 1)[1].startswith("web: not well 1 s after its start: page: ")
    happens(farm, "application", "web mended", 2)
    farm.admin(2, Admin.RUN)
    farm.run(8.0)
    assert shares(farm) == {1: 0, 2: 256}


def test_a_crash_that_is_over_within_the_hold_costs_no_bucket() -> None:
    farm = supervised(SHOP)
    before = shares(farm)
    for fate in ("dies", "hangs"):
        happens(farm, "application", f"web {fate}", 2)
        for _ in range(20):
            farm.run(farm.now + 0.1)
            assert shares(farm) == before
    assert process(farm, 2).machine.restarts_left("web", farm.now) == 0
    assert state(farm, 2) == (NodeState.UP, "")


def test_one_that_cannot_be_started_any_more_takes_its_node_out_and_nobody_else() -> None:
    farm = supervised(SHOP)
    happens(farm, "application", "web broken", 2)
    farm.run(8.0)
    assert shares(farm) == {1: 128, 2: 0, 3: 128}
    reason = "web: it cannot be started: exit code 1 from its start (restarted 2 times in 1 h)"
    assert state(farm, 2) == (NodeState.STOP, f"stopped: {reason}")
    assert phase(farm, 2) is Phase.STOPPED
    assert farm.applications.taken_out == 1


def test_an_administrator_who_starts_it_begins_anew() -> None:
    farm = supervised(SHOP)
    happens(farm, "application", "web broken", 2)
    farm.run(8.0)
    happens(farm, "application", "web mended", 2)
    farm.admin(2, Admin.RUN)
    farm.run(11.0)
    assert state(farm, 2) == (NodeState.UP, "")
    assert process(farm, 2).machine.restarts_left("web", farm.now) == 2
    farm.check_whole()


def test_restarts_are_counted_over_the_lives_of_a_node() -> None:
    farm = supervised(SHOP)
    for _ in range(2):
        happens(farm, "application", "web dies", 2)
        farm.run(farm.now + 1.0)
        farm.kill(2)
        farm.run(farm.now + 0.1)
        farm.start(2)
        farm.run(farm.now + 3.0)
        assert state(farm, 2) == (NodeState.UP, "")
    happens(farm, "application", "web dies", 2)
    farm.run(farm.now + 3.0)
    assert state(farm, 2)[0] is NodeState.STOP
    farm.check_whole({1, 3})


def test_a_node_that_is_stopped_and_started_at_once_runs_its_services() -> None:
    for seed in range(4):
        farm = supervised(SHOP, seed=seed)
        farm.admin(2, Admin.STOP, at_once=True)
        while not any(event == "halted" for _, _, event, _ in farm.trace):
            farm.run(farm.now + 0.001)
        farm.run(farm.now + 0.015 * seed)
        farm.admin(2, Admin.RUN)
        farm.run(farm.now + 3.0)
        assert phase(farm, 2) is Phase.UP
        farm.check_whole()


def test_during_maintenance_nothing_is_done_and_afterwards_it_is() -> None:
    farm = supervised(SHOP)
    before = shares(farm)
    farm.maintenance(2, on=True)
    happens(farm, "application", "web dies", 2)
    happens(farm, "cause", "gateway down", 2)
    farm.run(6.0)
    assert shares(farm) == before
    assert phase(farm, 2) is Phase.UP
    farm.maintenance(2, on=False)
    farm.run(9.0)
    assert shares(farm) == {1: 128, 2: 0, 3: 128}
    assert state(farm, 2)[1].startswith("stopped: gateway: ")


# -- causes that nodes share ---------------------------------------------------------------


def test_a_lost_gateway_takes_the_one_node_out_that_has_lost_it() -> None:
    farm = supervised(SHOP)
    happens(farm, "cause", "gateway down", 2)
    farm.run(6.0)
    assert shares(farm) == {1: 128, 2: 0, 3: 128}
    assert state(farm, 2)[0] is NodeState.STOP


def test_a_gateway_that_all_lose_within_the_time_to_confirm_it_moves_nothing() -> None:
    farm = supervised(SHOP)
    before = shares(farm)
    for node in farm.hosts:
        happens(farm, "cause", "gateway down", node)
        farm.run(farm.now + 0.2)
        assert shares(farm) == before
    for _ in range(30):
        farm.run(farm.now + 0.1)
        assert shares(farm) == before
    assert farm.applications.taken_out == 0
    for node in farm.hosts:
        told, reason = state(farm, node)
        assert told is NodeState.UP
        assert reason.startswith("degraded: gateway: ")
        assert reason.endswith("; no other node is better")


def test_when_every_application_is_broken_the_last_node_stays() -> None:
    farm = supervised(SHOP)
    for node in farm.hosts:
        happens(farm, "application", "web broken", node)
        farm.run(farm.now + 4.0)
    assert shares(farm) == {1: 0, 2: 0, 3: 256}
    told, reason = state(farm, 3)
    assert told is NodeState.UP
    assert reason.startswith("degraded: web: it cannot be started")
    farm.applications.quiet()


def test_with_last_node_leave_nobody_stays() -> None:
    farm = supervised(Applications((WEB,), (PAGE, GATEWAY), last_stays=False))
    for node in farm.hosts:
        happens(farm, "cause", "gateway down", node)
    farm.run(6.0)
    assert served(farm) == 0
    assert {state(farm, node)[0] for node in farm.hosts} == {NodeState.STOP}


@pytest.mark.parametrize("sees", [True, False])
def test_two_nodes_that_fail_before_anybody_has_clients_do_not_both_leave(
    sees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do if it is enough that the other one could have them."""
    if not sees:
        monkeypatch.setattr(Node, "others_serve", lambda self: True)
    disk = CheckPlan(CheckSpec("disk", Action.STOP), interval=0.05, fall=1)
    left = []
    for seed in range(8):
        farm = SimulatedFarm(2, seed, applications=Applications(checks=(disk,)), delay_s=(0.01, 0.02))
        farm.wild = False
        for node in farm.hosts:
            farm.start(node)
        farm.run(0.8)
        assert served(farm) == 0
        for node in farm.hosts:
            happens(farm, "cause", "disk down", node)
        with contextlib.suppress(ViolationError):  # A5, if they do
            farm.run(4.0)
        left.append(farm.applications.taken_out)
    assert (max(left) < 2) is sees


def test_a_failover_rule_waits_for_both_gateways() -> None:
    checks = tuple(CheckPlan(CheckSpec(name, Action.NONE)) for name in ("gw1", "gw2"))
    rules = (RulePlan("gateways", "gw1 down and gw2 down", confirm=0.5),)
    farm = supervised(Applications(checks=checks, rules=rules))
    happens(farm, "cause", "gw1 down", 1, 2, 3)
    happens(farm, "cause", "gw2 down", 2)
    farm.run(6.0)
    assert shares(farm) == {1: 128, 2: 0, 3: 128}
    assert state(farm, 2) == (NodeState.WAIT, "gateways: gw1 down, gw2 down")


def test_where_the_clients_are() -> None:
    farm = supervised(SHOP)
    core = farm.hosts[2].core
    assert core is not None
    told = placed(core)
    assert (told.serving, told.others) == (True, False)  # no other is fitter
    farm.fit(2, Fitness.DEGRADED)
    told = placed(core)
    assert (told.serving, told.others) == (True, False)  # a fitter one is there, and has not all of them yet
    farm.run(4.0)
    told = placed(core)
    assert (told.serving, told.others) == (False, True)
    assert (placed(None).serving, placed(None).others) == (False, False)


def test_a_group_that_nobody_may_serve_keeps_no_node_in() -> None:
    farm = SimulatedFarm(2, 1, groups=2, applications=SHOP)
    farm.wild = False
    for node in farm.hosts:
        farm.settings[node] = replace(farm.settings[node], modes=(Mode.BALANCED, Mode.BLOCKED))
        farm.start(node)
    farm.run(3.0)
    happens(farm, "cause", "gateway down", 2)
    farm.run(7.0)
    assert shares(farm) == {1: 256, 2: 0}
    assert state(farm, 2)[0] is NodeState.STOP


# -- each invariant can fail ---------------------------------------------------------------


def serves_too_soon(farm: SimulatedFarm) -> None:
    process(farm, 2).ledger.been_up["web"] = False
    farm.invariants.due = True


def restarted_too_often(farm: SimulatedFarm) -> None:
    process(farm, 2).apps.counted["web"] = [farm.now] * 2
    happens(farm, "application", "web dies", 2)


def no_reason(farm: SimulatedFarm) -> None:
    process(farm, 2).machine.services["web"].reason = ""
    happens(farm, "cause", "gateway down", 2)


def not_in_order(farm: SimulatedFarm) -> None:
    process(farm, 2).ledger.doing["db"] = Doing.STARTING
    process(farm, 2).ledger.up["db"] = False
    happens(farm, "application", "web dies", 2)


def needed_still(farm: SimulatedFarm) -> None:
    process(farm, 2).machine.services["web"].phase = Phase.STOPPED
    happens(farm, "application", "db dies", 2)


def nobody_left(farm: SimulatedFarm) -> None:
    for node in (1, 3):
        process(farm, node).ledger.counted.clear()
    happens(farm, "cause", "gateway down", 2)


def not_at_rest(farm: SimulatedFarm) -> None:
    process(farm, 2).machine.services["web"].deadline = farm.now
    happens(farm, "cause", "gateway down", 2)


def paused_behind_its_back(farm: SimulatedFarm) -> None:
    farm.maintenance(2, on=True)
    farm.run(farm.now)
    process(farm, 2).ledger.still.add("web")
    process(farm, 2).machine.services["web"].phase = Phase.QUEUED
    happens(farm, "cause", "gateway down", 2)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (serves_too_soon, "A1: node 2 serves, and web has never been up"),
        (restarted_too_often, "A2: node 2: web is restarted 3 times in 3600 s, not 2"),
        (no_reason, "A3: node 2: web is up, and why"),
        (not_in_order, "A4: node 2 starts web before db is up"),
        (needed_still, "A4: node 2 stops db before web is stopped"),
        (nobody_left, "A5: node 2 takes itself out, and nobody else can serve"),
        (paused_behind_its_back, "A6: node 2: Start.* during maintenance"),
        (not_at_rest, "A7: node 2 wants a timer"),
    ],
)
def test_each_invariant_can_fail(harm: Callable[[SimulatedFarm], None], told: str) -> None:
    web = ServicePlan(ServiceSpec("web", after=("db",), max_restarts=2, within=3600.0))
    farm = supervised(Applications((web, ServicePlan(ServiceSpec("db"))), (PAGE, GATEWAY)))
    harm(farm)
    with pytest.raises(ViolationError, match=f"seed 1, .*{told}"):
        farm.run(9.0)


def test_what_is_judged_when_all_is_quiet_can_fail() -> None:
    farm = supervised(Applications((WEB,)))
    process(farm, 2).apps.services["web"].running = False
    with pytest.raises(ViolationError, match="A8: node 2: web has ended, and counts as up"):
        farm.applications.quiet()
    farm = supervised(SHOP)
    farm.hosts[2].close()
    with pytest.raises(ViolationError, match="A5: node 1 could serve, and 85 buckets have no server"):
        farm.applications.quiet()
    farm = supervised(SHOP)
    happens(farm, "application", "web dies", 2)
    farm.run(farm.now + 0.12)
    with pytest.raises(ViolationError, match="A7: the last thing was wanted"):
        farm.applications.quiet()
