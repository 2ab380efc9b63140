"""What counts as well again, and what is done when a service comes up: simulated farms have found these."""

from __future__ import annotations

import pytest
from tests.core.supervision.bench import Bench, rule

from nlbfarm.core.messages import Fitness
from nlbfarm.core.supervision import Action, CheckSpec, ServiceSpec
from nlbfarm.core.supervision.model import (
    Checked,
    Ended,
    PauseChanged,
    Run,
    Start,
    Started,
    StartFailed,
    Stopped,
)

RUN = Run("the node starts")
PAGE = CheckSpec("page", Action.RESTART, "web")


# -- what was given up ---------------------------------------------------------------------


def test_one_that_was_given_up_is_not_up_while_something_asks_for_its_restart() -> None:
    """Else it would be up and given up in turns, for ever."""
    disk, gateway = CheckSpec("disk", Action.RESTART_ALL), CheckSpec("gateway", Action.NONE)
    net = rule("net", "gateway down", Action.RESTART, service="web")
    for cause in ("disk", "gateway"):
        bench = Bench(ServiceSpec("web", max_restarts=0), PAGE, disk, gateway, net)
        bench.do(RUN)
        bench.ok("page", "disk", "gateway")
        bench.bad(cause)
        assert bench.phase() == "given up"
        bench.ok("page")
        assert bench.phase() == "given up"
        bench.ok(cause)
        assert bench.phase() == "up"


def test_one_that_was_given_up_while_it_started_is_not_up_before_it_has_started() -> None:
    bench = Bench(ServiceSpec("web", start_timeout=30.0, max_restarts=0), PAGE)
    bench.obeys = False
    bench.do(RUN)
    bench.wait(31.0)
    assert bench.phase() == "given up"
    bench.ok("page")
    assert bench.phase() == "given up"
    bench.do(Started("web"))
    assert bench.phase() == "up"


def test_one_that_was_given_up_is_not_up_before_what_it_needs() -> None:
    """It would at once be stopped for that, also during maintenance."""
    bench = Bench(ServiceSpec("db"), ServiceSpec("web", after=("db",), max_restarts=0), PAGE)
    bench.do(RUN)
    bench.ok("page")
    bench.bad("page")
    assert bench.phase() == "given up"
    bench.obeys = False
    assert bench.do(Ended("db", "it crashed")) == ["stop db"]
    bench.do(PauseChanged(True))
    assert bench.ok("page") == []
    assert bench.phase() == "given up"
    bench.do(Stopped("db"))
    bench.do(Started("db"))
    assert bench.phase("db") == "up"
    assert bench.phase() == "up"


def test_one_that_was_given_up_and_has_ended_is_not_up_whatever_a_checker_says() -> None:
    bench = Bench(ServiceSpec("web", max_restarts=0), PAGE)
    bench.do(RUN)
    bench.ok("page")
    bench.bad("page")
    bench.do(Ended("web", "it crashed at last"))
    bench.ok("page")
    assert bench.phase() == "given up"
    bench.do(Started("web"))
    assert bench.phase() == "up"


def test_one_that_has_ended_is_restarted_alone_when_not_all_may_be() -> None:
    db, web = ServiceSpec("db", max_restarts=0), ServiceSpec("web", on_exit=Action.RESTART_ALL)
    bench = Bench(db, web)
    bench.do(RUN)
    assert bench.do(Ended("web", "it crashed")) == ["stop web", "start web"]
    assert (bench.phase("db"), bench.phase()) == ("given up", "up")
    assert bench.machine.restarts_left("web", bench.now) == 2


def test_a_node_whose_service_is_down_is_not_fit_because_a_maintenance_begins() -> None:
    bench = Bench(ServiceSpec("web", hold=3.0), PAGE)
    bench.do(RUN)
    bench.ok("page")
    bench.obeys = False
    bench.bad("page")
    bench.wait(4.0)
    assert bench.resources["service web"].fitness is Fitness.DOWN
    bench.do(PauseChanged(True))
    assert bench.resources["service web"].fitness is Fitness.DOWN
    bench.do(Stopped("web"))
    bench.do(Started("web"))
    bench.ok("page")
    assert bench.resources["service web"].ok is True
    bench.do(Ended("web", "stopped by hand"))
    assert bench.resources["service web"].ok is True


# -- looked at anew ------------------------------------------------------------------------


def test_what_was_bad_is_not_well_because_it_is_looked_at_anew() -> None:
    """The gateway is down; the service is restarted for it, and that forgets what was seen of the gateway."""
    bench = Bench(
        ServiceSpec("web"),
        CheckSpec("gateway", Action.WAIT, confirm=5.0),
        rule("net", "gateway down", Action.RESTART, service="web"),
    )
    bench.do(RUN)
    bench.ok("gateway")
    assert bench.bad("gateway") == ["stop web", "start web"]
    assert bench.machine.checks["gateway"].ok is None
    assert bench.resources["checker gateway"].fitness is Fitness.SUSPECT
    bench.wait(4.0)
    bench.bad("gateway")
    assert bench.resources["checker gateway"].fitness is Fitness.SUSPECT
    bench.wait(1.1)
    bench.bad("gateway")  # five seconds after it was seen first
    assert bench.resources["checker gateway"].fitness is Fitness.DEGRADED
    bench.ok("gateway")
    assert bench.resources["checker gateway"].ok is True


def test_what_is_not_the_service_s_own_is_looked_at_while_it_is_restarted() -> None:
    bench = Bench(
        ServiceSpec("web"),
        PAGE,
        CheckSpec("gateway", Action.WAIT),
        rule("net", "gateway down and page down", Action.RESTART, service="web"),
    )
    bench.do(RUN)
    bench.ok("page", "gateway")
    bench.obeys = False
    bench.do(Ended("web", "it crashed"))
    assert bench.looking == {"gateway"}
    bench.do(Stopped("web"))
    bench.do(StartFailed("web", "exit code 1"))
    assert bench.looking == {"gateway"}
    bench.do(Stopped("web"))
    bench.wait(2.0)
    bench.do(Started("web"))
    assert bench.looking == {"page", "gateway"}


# -- when a service comes up ---------------------------------------------------------------


def test_what_asks_for_a_restart_of_all_is_heard_as_soon_as_the_last_one_is_up() -> None:
    """A checker says once that it finds something bad: nobody comes back to it later."""
    bench = Bench(ServiceSpec("db"), ServiceSpec("web"), PAGE, CheckSpec("disk", Action.RESTART_ALL))
    bench.do(RUN)
    bench.bad("disk")
    assert bench.phase("db") == "up"
    assert bench.phase() == "checking"
    bench.obeys = False
    assert bench.ok("page") == ["stop db", "stop web"]


def test_one_that_waited_for_another_is_started_for_the_reason_that_it_waited_with() -> None:
    bench = Bench(
        ServiceSpec("db"), ServiceSpec("web", after=("db",)), CheckSpec("page", Action.RESTART, "db")
    )
    bench.do(RUN)
    assert bench.machine.services["web"].reason == "waits for db"
    commands = bench.machine.handle(Checked("page", True, "well"), bench.now)
    assert [one.reason for one in commands if isinstance(one, Start)] == ["the node starts"]


@pytest.mark.parametrize("action", [Action.NONE, Action.WAIT])
def test_a_checker_restarts_one_whose_end_alone_would_not(action: Action) -> None:
    bench = Bench(ServiceSpec("web", on_exit=action), PAGE)
    bench.do(RUN)
    bench.ok("page")
    assert bench.do(Ended("web", "exit code 0")) == []
    assert bench.bad("page") == ["stop web", "start web"]


def test_to_run_what_runs_changes_nothing() -> None:
    bench = Bench(ServiceSpec("web"), PAGE)
    bench.do(RUN)
    bench.ok("page")
    assert bench.do(RUN) == []
    assert bench.resources["service web"].ok is True
    assert bench.phase() == "up"
