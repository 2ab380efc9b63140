"""The supervision of a node: restarts within their budget, order, and when a node takes itself out."""

from __future__ import annotations

import pytest
from tests.core.supervision.bench import Bench, rule

from nlbfarm.core.messages import Fitness
from nlbfarm.core.supervision import Action, CheckSpec, ServiceSpec
from nlbfarm.core.supervision.model import (
    Ended,
    Forgiven,
    Halt,
    PauseChanged,
    Run,
    Started,
    StartFailed,
    Stopped,
)

WEB = ServiceSpec("web", hold=3.0, max_restarts=3, within=3600.0, backoff=1.0, longest_backoff=60.0)
PAGE = CheckSpec("page", Action.RESTART, "web")
RUN = Run("the node starts")


def up(*specs: object, **options: object) -> Bench:
    """Make a bench whose service is up."""
    bench = Bench(WEB, PAGE, *specs, **options)  # type: ignore[arg-type]
    bench.do(RUN)
    bench.ok("page")
    assert bench.phase() == "up"
    return bench


def test_a_service_is_started_and_up_when_its_checker_is_content() -> None:
    bench = Bench(WEB, PAGE)
    assert bench.machine.resources == ("service web",)
    assert bench.do(RUN) == ["start web"]
    assert bench.phase() == "checking"
    assert bench.looking == {"page"}
    assert bench.resources["service web"].ok is None
    bench.ok("page")
    assert bench.phase() == "up"
    assert bench.resources["service web"].ok is True


def test_a_service_without_a_checker_is_up_when_it_is_started() -> None:
    bench = Bench(WEB)
    bench.do(RUN)
    assert bench.phase() == "up"


def test_an_end_restarts_at_once_and_the_clients_stay_for_the_hold() -> None:
    bench = up()
    assert bench.do(Ended("web", "killed by signal 9")) == ["stop web", "start web"]
    assert bench.resources["service web"].ok is True
    bench.wait(2.9)
    bench.ok("page")
    assert bench.phase() == "up"
    assert bench.resources["service web"].ok is True
    assert bench.events().count("service.restarting") == 1


def test_after_the_hold_the_node_is_down_but_may_stay_the_last_one() -> None:
    bench = up()
    bench.obeys = False
    bench.bad("page")
    bench.wait(3.0)
    told = bench.resources["service web"]
    assert (told.ok, told.fitness) == (False, Fitness.DOWN)
    assert "HTTP 503" in told.reason


def test_restarts_are_counted_and_wait_longer_each_time() -> None:
    bench = up()
    waits = []
    for _ in range(3):
        begun = bench.now
        bench.do(Ended("web", "it crashed"))
        while bench.phase() == "backoff":
            bench.wait(bench.machine.timer() - bench.now)
        waits.append(bench.now - begun)
        bench.ok("page")
    assert waits[0] == 0
    assert 0.75 <= waits[1] <= 1.25
    assert 1.5 <= waits[2] <= 2.5
    assert bench.saved is not None
    assert len(bench.saved.times["web"]) == 3
    assert bench.do(Ended("web", "it crashed")) == []
    assert bench.phase() == "given up"
    assert bench.machine.services["web"].reason == "it ended: it crashed (restarted 3 times in 1 h)"


def test_restarts_of_earlier_lives_count() -> None:
    bench = up(restarts={"web": [999.0, 998.0, 997.0]})
    assert bench.bad("page") == []
    assert bench.phase() == "given up"


def test_restarts_of_long_ago_do_not_count() -> None:
    bench = up(restarts={"web": [-9000.0, -8000.0, -7000.0]})
    assert bench.bad("page") == ["stop web", "start web"]


def test_one_that_cannot_be_started_uses_its_budget_up_and_the_node_leaves() -> None:
    bench = Bench(WEB, PAGE)
    bench.obeys = False
    bench.do(RUN)
    for _ in range(4):
        bench.do(StartFailed("web", "exit code 1: syntax error"))
        if bench.phase() == "given up":
            break
        bench.do(Stopped("web"))
        bench.wait(10)
        assert bench.resources["service web"].ok is False
        assert bench.resources["service web"].fitness is None
    assert bench.log == ["start web", *["stop web", "start web"] * 3]
    assert bench.taken_out == []
    bench.placed(serving=False, others=True)
    (out,) = bench.taken_out
    assert out.action is Action.STOP
    assert "syntax error" in out.reason
    assert "restarted 3 times in 1 h" in out.reason


def test_one_that_never_answers_is_restarted_after_its_start_timeout() -> None:
    bench = Bench(WEB, PAGE)
    bench.do(RUN)
    bench.bad("page", detail="connection refused")
    assert bench.wait(29.9) == []
    assert bench.wait(0.2) == ["stop web", "start web"]
    assert bench.machine.services["web"].reason.startswith("it runs")
    (told,) = [one for one in bench.told if one.event == "service.restarting"]
    assert told.fields["reason"] == "not well 30 s after its start: page: connection refused"


def test_a_node_that_gave_up_stays_while_nobody_has_its_clients() -> None:
    bench = up(restarts={"web": [999.0, 998.0, 997.0]})
    bench.placed(serving=True, others=True)
    bench.bad("page")
    told = bench.resources["service web"]
    assert (told.ok, told.fitness) == (False, Fitness.DOWN)
    assert bench.taken_out == []
    bench.placed(serving=True, others=False)
    assert bench.taken_out == []
    bench.placed(serving=False, others=True)
    assert [out.action for out in bench.taken_out] == [Action.STOP]


def test_with_last_node_leave_it_leaves_at_once() -> None:
    bench = up(restarts={"web": [999.0, 998.0, 997.0]}, last_stays=False)
    bench.placed(serving=True, others=False)
    bench.bad("page")
    assert [out.action for out in bench.taken_out] == [Action.STOP]
    assert bench.resources["service web"].fitness is None


def test_one_that_was_given_up_and_is_well_again_serves_again() -> None:
    bench = up(restarts={"web": [999.0, 998.0, 997.0]})
    bench.placed(serving=True, others=False)
    bench.bad("page")
    assert bench.phase() == "given up"
    bench.ok("page")
    assert bench.phase() == "up"
    assert bench.resources["service web"].ok is True
    bench.placed(serving=False, others=True)
    assert bench.taken_out == []


def test_an_administrator_who_starts_the_node_forgives() -> None:
    bench = up(restarts={"web": [999.0, 998.0, 997.0]})
    bench.bad("page")
    assert bench.do(Forgiven()) == ["stop web", "start web"]
    assert bench.machine.restarts_left("web", bench.now) == 3
    assert bench.saved is not None
    assert bench.saved.times == {"web": ()}


# -- order ---------------------------------------------------------------------------------

DB, APP = ServiceSpec("db"), ServiceSpec("app", after=("db",))
ANSWERS = CheckSpec("answers", Action.RESTART, "db")


def test_services_start_after_those_they_need_and_stop_before_them() -> None:
    bench = Bench(APP, DB, ANSWERS)
    assert bench.do(RUN) == ["start db"]
    assert bench.phase("app") == "queued"
    assert bench.machine.services["app"].reason == "waits for db"
    assert bench.ok("answers") == ["start app"]
    assert bench.do(Halt("the node stops")) == ["stop app", "stop db"]
    assert bench.machine.halted


def test_what_is_needed_is_not_stopped_before_what_needs_it_is_gone() -> None:
    bench = Bench(APP, DB)
    bench.do(RUN)
    bench.obeys = False
    assert bench.do(Halt("the node stops")) == ["stop app"]
    assert bench.do(Stopped("app")) == ["stop db"]
    assert not bench.machine.halted
    bench.do(Stopped("db"))
    assert bench.machine.halted


def test_a_restart_takes_along_what_needs_the_service_without_counting_it() -> None:
    bench = Bench(APP, DB, ANSWERS)
    bench.do(RUN)
    bench.ok("answers")
    assert bench.bad("answers") == ["stop app", "stop db", "start db"]
    assert bench.ok("answers") == ["start app"]
    assert bench.machine.restarts_left("app", bench.now) == 3
    assert bench.machine.restarts_left("db", bench.now) == 2


def test_restart_all_restarts_all_in_order_once() -> None:
    bench = Bench(APP, DB, CheckSpec("disk", Action.RESTART_ALL))
    bench.do(RUN)
    bench.ok("disk")
    assert bench.bad("disk") == ["stop app", "stop db", "start db", "start app"]
    assert bench.bad("disk")[:2] == ["stop app", "stop db"]
    assert bench.machine.restarts_left("app", bench.now) == 1


def test_a_node_that_is_started_while_it_stops_starts_its_services_again() -> None:
    bench = up()
    bench.obeys = False
    assert bench.do(Halt("stopped by the administrator")) == ["stop web"]
    assert bench.resources["service web"].ok is None
    assert bench.do(Run("started by the administrator")) == []
    assert bench.do(Stopped("web")) == ["start web"]


# -- what a checker means for the node -----------------------------------------------------


def test_a_checker_of_the_node_makes_it_wait_before_it_was_ever_well_and_less_fit_later() -> None:
    bench = Bench(CheckSpec("disk", Action.WAIT))
    assert bench.machine.resources == ("checker disk",)
    bench.do(RUN)
    assert bench.looking == {"disk"}
    bench.bad("disk", detail="full")
    assert (bench.resources["checker disk"].ok, bench.resources["checker disk"].fitness) == (False, None)
    bench.ok("disk")
    bench.bad("disk", detail="full")
    assert bench.resources["checker disk"].fitness is Fitness.DEGRADED
    assert bench.resources["checker disk"].reason == "disk: full"
    bench.ok("disk")
    assert bench.resources["checker disk"].ok is True


def test_with_last_node_leave_a_failure_is_not_a_matter_of_fitness() -> None:
    bench = Bench(CheckSpec("disk", Action.WAIT), last_stays=False)
    bench.do(RUN)
    bench.ok("disk")
    bench.bad("disk")
    assert bench.resources["checker disk"].fitness is None


def test_a_cause_that_others_may_find_is_suspected_first_and_keeps_nobody_from_starting() -> None:
    bench = Bench(CheckSpec("gateway", Action.WAIT, confirm=2.0))
    bench.do(RUN)
    bench.bad("gateway")
    assert bench.resources["checker gateway"].fitness is Fitness.SUSPECT
    bench.wait(1.9)
    assert bench.resources["checker gateway"].fitness is Fitness.SUSPECT
    bench.wait(0.2)
    assert bench.resources["checker gateway"].fitness is Fitness.DEGRADED


def test_a_suspicion_that_passes_is_none() -> None:
    bench = Bench(CheckSpec("gateway", Action.STOP, confirm=2.0))
    bench.do(RUN)
    bench.bad("gateway")
    bench.placed(serving=False, others=True)
    bench.wait(1.0)
    bench.ok("gateway")
    bench.wait(10.0)
    assert bench.resources["checker gateway"].ok is True
    assert bench.taken_out == []


@pytest.mark.parametrize("action", [Action.DRAIN, Action.STOP])
def test_an_action_that_takes_the_node_out_waits_for_somebody_to_take_over(action: Action) -> None:
    bench = Bench(CheckSpec("disk", action))
    bench.do(RUN)
    bench.ok("disk")
    bench.placed(serving=True, others=True)
    bench.bad("disk", detail="full")
    assert bench.taken_out == []
    bench.placed(serving=False, others=True)
    (out,) = bench.taken_out
    assert (out.action, out.reason) == (action, "disk: full")
    bench.placed(serving=False, others=True)
    assert len(bench.taken_out) == 1


def test_what_only_shows_does_nothing() -> None:
    bench = Bench(CheckSpec("disk", Action.NONE))
    bench.do(RUN)
    bench.bad("disk")
    assert bench.resources == {}
    assert bench.machine.resources == ()


def test_a_checker_that_lets_the_node_wait_does_not_hold_up_its_service() -> None:
    bench = Bench(WEB, CheckSpec("page", Action.WAIT, "web"))
    bench.do(RUN)
    assert bench.phase() == "up"
    bench.bad("page")
    assert bench.resources["checker page"].fitness is None
    assert bench.wait(1000) == []


# -- rules ---------------------------------------------------------------------------------


def test_a_rule_is_unknown_until_its_checkers_have_looked() -> None:
    bench = Bench(
        CheckSpec("gw1", Action.NONE), CheckSpec("gw2", Action.NONE), rule("net", "gw1 down and gw2 down")
    )
    bench.do(RUN)
    assert bench.resources["rule net"].ok is None
    bench.bad("gw1")
    assert bench.resources["rule net"].ok is None
    bench.ok("gw2")
    assert bench.resources["rule net"].ok is True
    bench.bad("gw2")
    assert bench.resources["rule net"].fitness is Fitness.DEGRADED
    assert bench.resources["rule net"].reason == "net: gw1 down, gw2 down"
    bench.ok("gw1")
    assert bench.resources["rule net"].ok is True
    assert [(one.fields["rule"], one.fields["ok"]) for one in bench.told if one.event == "rule.changed"] == [
        ("net", False),
        ("net", True),
    ]


def test_a_rule_restarts_its_service_and_forgets_what_its_checkers_said() -> None:
    checks = [CheckSpec(name, Action.NONE) for name in ("p1", "p2", "p3")]
    bench = up(*checks, rule("probes", "2 of (p1, p2, p3) down", Action.RESTART, service="web"))
    bench.ok("p1", "p2", "p3")
    assert bench.bad("p1") == []
    assert bench.bad("p3") == ["stop web", "start web"]
    assert bench.machine.checks["p1"].ok is None
    bench.ok("page")
    assert bench.phase() == "up"
    assert bench.bad("p1") == []


# -- maintenance ---------------------------------------------------------------------------


def test_during_maintenance_checkers_are_seen_and_nothing_is_done() -> None:
    bench = up(CheckSpec("disk", Action.WAIT))
    bench.ok("disk")
    bench.do(PauseChanged(True))
    assert bench.bad("page", "disk") == []
    assert bench.do(Ended("web", "stopped by hand")) == []
    bench.placed(serving=False, others=True)
    assert bench.wait(3600) == []
    assert bench.resources["service web"].ok is True
    assert bench.resources["checker disk"].ok is True
    assert bench.machine.checks["page"].ok is False
    assert bench.do(PauseChanged(False)) == ["stop web", "start web"]
    assert bench.resources["checker disk"].fitness is Fitness.DEGRADED
    assert bench.events().count("node.paused") == bench.events().count("node.resumed") == 1


def test_a_service_that_was_started_by_hand_during_maintenance_is_left_alone() -> None:
    bench = up()
    bench.do(PauseChanged(True))
    bench.do(Ended("web", "stopped by hand"))
    bench.do(Started("web"))
    assert bench.do(PauseChanged(False)) == []
    assert bench.phase() == "up"


def test_a_node_that_starts_in_maintenance_serves_nobody_before_its_service_is_up() -> None:
    bench = Bench(WEB, PAGE, paused=True)
    assert bench.do(RUN) == ["start web"]
    assert bench.resources["service web"].ok is None
    bench.bad("page")
    bench.wait(100)
    assert bench.resources["service web"].ok is None
    bench.ok("page")
    assert bench.resources["service web"].ok is True


# -- ends ----------------------------------------------------------------------------------


def test_one_that_may_end_makes_the_node_wait() -> None:
    bench = Bench(ServiceSpec("web", on_exit=Action.WAIT))
    bench.do(RUN)
    assert bench.do(Ended("web", "exit code 0")) == []
    told = bench.resources["service web"]
    assert (told.ok, told.fitness) == (False, Fitness.DOWN)
    bench.do(Started("web"))
    assert bench.resources["service web"].ok is True


@pytest.mark.parametrize("action", [Action.DRAIN, Action.STOP])
def test_an_end_can_take_the_node_out(action: Action) -> None:
    bench = Bench(ServiceSpec("web", on_exit=action))
    bench.do(RUN)
    bench.do(Ended("web", "exit code 1"))
    bench.placed(serving=False, others=True)
    (out,) = bench.taken_out
    assert (out.action, out.reason) == (action, "web: it ended: exit code 1")


def test_an_end_that_only_shows_changes_nothing() -> None:
    bench = Bench(ServiceSpec("web", on_exit=Action.NONE))
    bench.do(RUN)
    assert bench.do(Ended("web", "exit code 0")) == []
    assert bench.resources["service web"].ok is True
    assert bench.events()[-1] == "service.ended"


def test_a_start_that_takes_too_long_is_broken_off() -> None:
    bench = Bench(WEB)
    bench.obeys = False
    bench.do(RUN)
    assert bench.wait(30.1) == ["stop web"]
    bench.do(Started("web"))
    assert bench.phase() == "restarting"
    assert bench.do(Stopped("web")) == ["start web"]
