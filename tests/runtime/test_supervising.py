"""Services and checkers in a running node: what is started, stopped and taken out, and what is remembered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.bench import App, Bench, give, make, until

from nlbfarm.core.supervision import Action, RuleSpec, ServiceSpec
from nlbfarm.core.supervision.expressions import parse
from nlbfarm.heartbeat.memory import SimulatedNetwork
from nlbfarm.interfaces import CheckResult
from nlbfarm.parts import Supervised, SystemClock
from nlbfarm.status import status

SPEC = ServiceSpec("web", hold=0.3, start_timeout=5.0, max_restarts=2, within=3600.0, backoff=0.01)


class Farm:
    """Two nodes, each with an application whose page answers while it runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.network = SimulatedNetwork(SystemClock())
        self.heartbeats = {number: self.network.heartbeat(number) for number in (1, 2)}
        self.benches: list[Bench] = []

    async def node(self, number: int, spec: ServiceSpec = SPEC, **options: Any) -> tuple[Bench, App]:
        app = App()
        options.setdefault("action", Action.RESTART)
        heartbeat = self.heartbeats.pop(number, None) or self.network.heartbeat(number)
        supervised = (Supervised("memory", app, spec),)
        bench = make(
            number, self.network, self.directory, heartbeat=heartbeat, services=supervised, **options
        )
        bench.page.does = lambda: CheckResult(app.runs, "HTTP 200" if app.runs else "connection refused")
        self.benches.append(bench)
        await bench.runtime.open()
        return bench, app

    async def pair(self, **options: Any) -> tuple[Bench, App, Bench, App]:
        one, app = await self.node(1, **options)
        two, other = await self.node(2, **options)
        await until(lambda: [bench.own for bench in self.benches] == [128, 128])
        return one, app, two, other


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[Farm]:
    made = Farm(tmp_path)
    yield made
    for bench in made.benches:
        await bench.runtime.close()
        assert bench.host.addresses == {}


def phase(bench: Bench) -> str:
    return bench.runtime.supervising.machine.services["web"].phase.value


async def test_a_node_serves_when_its_application_answers_and_stops_it_last(farm: Farm) -> None:
    one, app = await farm.node(1)
    await until(lambda: one.own == 256)
    assert app.log == ["start"]
    vips_at_stop: list[bool] = []
    stopped = app.stop

    async def stop(reason: str) -> None:
        vips_at_stop.append(bool(one.host.addresses))
        await stopped(reason)

    app.stop = stop  # type: ignore[method-assign]
    one.runtime.stop()
    await one.runtime.wait()
    assert app.runs
    await one.runtime.close()
    assert (app.runs, app.closed, vips_at_stop) == (False, True, [False])


async def test_a_node_waits_for_its_application(farm: Farm) -> None:
    one, app = await farm.node(1)
    one.page.does = lambda: CheckResult(False, "HTTP 503")
    await until(lambda: phase(one) == "checking")
    assert (one.state, one.own) == ("STARTING", 0)
    assert "service web" in one.reason
    one.page.does = lambda: CheckResult(True, "HTTP 200")
    await until(lambda: one.own == 256)
    assert app.log == ["start"]


async def test_a_crash_is_repaired_and_no_bucket_moves(farm: Farm) -> None:
    one, app, two, _ = await farm.pair()
    app.crash()
    await until(lambda: app.log == ["start", "stop", "start"])
    await until(lambda: phase(one) == "up")
    assert (one.own, two.own) == (128, 128)
    shown = await status(one.runtime)
    (service,) = shown["services"]
    assert (service["phase"], service["restarts"], service["max_restarts"]) == ("up", 1, 2)


async def test_one_that_hangs_gives_its_clients_away_until_it_is_well(farm: Farm) -> None:
    one, app, two, _ = await farm.pair()
    app.hold.clear()
    one.page.does = lambda: CheckResult(False, "no answer within 0.05 s")
    await until(lambda: two.own == 256)
    assert one.state == "WAIT"
    assert "web: page: no answer within 0.05 s" in one.reason
    app.hold.set()
    one.page.does = lambda: CheckResult(True, "HTTP 200")
    await until(lambda: one.own == 128)


async def test_one_that_cannot_be_repaired_takes_the_node_out_and_says_why(farm: Farm) -> None:
    one, app, two, _ = await farm.pair()
    app.refuses = "exit code 1: syntax error in line 3"
    app.crash()
    await until(lambda: one.state == "STOP")
    assert two.own == 256
    assert one.reason.startswith("stopped: web: it cannot be started: exit code 1: syntax error in line 3 (")
    assert "restarted 2 times in 1 h" in one.reason
    file = farm.directory / "admin-1"
    await until(lambda: file.exists() and json.loads(file.read_text())["admin"] == "stop")
    saved = json.loads(file.read_text())
    assert (saved["admin"], saved["reason"]) == ("stop", one.reason.removeprefix("stopped: "))
    app.refuses = ""
    await give(one, "start")
    await until(lambda: one.own == 128)
    assert json.loads((farm.directory / "admin-1").read_text())["reason"] == ""


async def test_the_last_node_stays_with_its_clients_and_says_so(farm: Farm) -> None:
    one, app, two, other = await farm.pair()
    app.refuses = other.refuses = "exit code 1"
    app.crash()
    await until(lambda: one.state == "STOP")
    other.crash()
    await until(lambda: two.reason.startswith("degraded: "))
    assert (two.state, two.own) == ("UP", 256)
    assert two.reason.endswith("no other node is better")
    assert other.log.count("start") == 3
    other.refuses = ""
    await give(one, "start")  # its application still cannot be started: nobody is better than the other
    await until(lambda: app.log.count("start") == 6)
    assert two.own == 256


async def test_restarts_are_remembered_by_the_next_process(farm: Farm) -> None:
    one, app = await farm.node(1)
    await until(lambda: one.own == 256)
    app.crash()
    await until(lambda: app.log.count("start") == 2 and phase(one) == "up")
    saved = json.loads((farm.directory / "restarts-1").read_text())
    assert len(saved["restarts"]["web"]) == 1
    await one.runtime.close()
    farm.benches.clear()
    farm.network = SimulatedNetwork(SystemClock())
    farm.heartbeats = {number: farm.network.heartbeat(number) for number in (1, 2)}
    again, app = await farm.node(1)
    await until(lambda: again.own == 256)
    machine = again.runtime.supervising.machine
    assert machine.restarts_left("web", SystemClock().monotonic()) == 1


async def test_an_application_outlives_a_process_that_is_replaced(farm: Farm) -> None:
    one, app = await farm.node(1)
    await until(lambda: one.own == 256)
    one.runtime.stop(returning=True)
    await one.runtime.wait()
    await one.runtime.close()
    assert (app.runs, app.closed, app.log) == (True, True, ["start"])


async def test_maintenance_looks_and_does_nothing(farm: Farm) -> None:
    one, app, two, _ = await farm.pair()
    assert "maintenance" in await give(one, "pause")
    app.crash()
    await until(lambda: one.runtime.supervising.checking.states["page"].ok is False)
    await until(lambda: one.runtime.supervising.machine.services["web"].ended)
    assert (app.log, one.own, one.state) == (["start"], 128, "UP")
    shown = await status(one.runtime)
    assert shown["paused"] is True
    assert any("maintenance" in warning for warning in shown["warnings"])
    assert json.loads((farm.directory / "admin-1").read_text())["paused"] is True
    assert "the maintenance is over" in await give(one, "start")
    await until(lambda: app.log == ["start", "stop", "start"])
    await until(lambda: one.own == 128 and phase(one) == "up")
    assert two.own == 128


async def test_a_stopped_node_stops_its_application_and_a_started_one_starts_it(farm: Farm) -> None:
    one, app, two, _ = await farm.pair()
    await give(one, "stop")
    await until(lambda: app.log == ["start", "stop"])
    assert (two.own, one.state, one.reason) == (256, "STOP", "stopped by the administrator")
    await give(one, "start")
    await until(lambda: one.own == 128)
    assert app.log == ["start", "stop", "start"]
    await give(one, "restart")
    await until(lambda: app.log == ["start", "stop", "start", "stop", "start"])
    await until(lambda: one.own == 128)


@pytest.mark.parametrize(("action", "state"), [(Action.DRAIN, "DRAINING"), (Action.STOP, "STOP")])
async def test_a_rule_takes_one_node_out(farm: Farm, action: Action, state: str) -> None:
    rule = RuleSpec("broken", parse("page down"), action)
    one, app, two, _ = await farm.pair(action=Action.NONE, rules=(rule,))
    one.page.does = lambda: CheckResult(False, "HTTP 500")
    await until(lambda: one.state == state)
    await until(lambda: two.own == 256)
    assert "broken: page down" in one.reason
    expected = ["start", "stop"] if action is Action.STOP else ["start"]
    await until(lambda: app.log == expected)


async def test_what_all_nodes_find_moves_nobody(farm: Farm) -> None:
    one, _, two, _ = await farm.pair(action=Action.WAIT)
    for bench in (one, two):
        bench.page.does = lambda: CheckResult(False, "the database does not answer")
    await until(lambda: all(bench.reason.startswith("degraded") for bench in (one, two)))
    await until(lambda: one.own + two.own == 256)
    assert {one.state, two.state} == {"UP"}
    shown = await status(one.runtime)
    peer = next(row for row in shown["nodes"] if not row["self"])
    assert peer["state"] == "UP"
    assert peer["reason"].startswith("degraded: page: the database does not answer")


async def test_a_fault_of_a_service_is_a_failed_start(farm: Farm) -> None:
    one, app, two, _ = await farm.pair()

    async def start(reason: str) -> None:
        raise RuntimeError("a bug of the plug-in")

    app.start = start  # type: ignore[method-assign]
    app.crash()
    await until(lambda: one.state == "STOP")
    assert "a bug of the plug-in" in one.reason
    assert two.own == 256


async def test_a_reload_takes_other_checkers_while_the_node_serves(farm: Farm) -> None:
    import dataclasses

    from tests.runtime.bench import Page

    from nlbfarm.parts import Check

    one, _ = await farm.node(1)
    await until(lambda: one.own == 256)
    disk = Page()
    parts = one.runtime.parts
    more = Check("disk", "acme", disk, 0.02, 0.05, rise=1, fall=1)
    await one.runtime.reconfigure(dataclasses.replace(parts, checks=(*parts.checks, more)))
    assert one.own == 256
    disk.does = lambda: CheckResult(False, "full")
    await until(lambda: one.reason.startswith("degraded: disk: full"))
    await one.runtime.reconfigure(dataclasses.replace(parts, checks=parts.checks))
    await until(lambda: (one.state, one.reason) == ("UP", ""))
    assert disk.closed


async def test_a_node_that_is_taken_out_does_not_wait_for_its_disk(farm: Farm) -> None:
    one, app, two, _ = await farm.pair()
    admin = one.runtime.administration
    await admin._carrying_out.acquire()  # as if a save took its time
    app.refuses = "exit code 1"
    app.crash()
    await until(lambda: one.state == "STOP")
    assert two.own == 256
    admin._carrying_out.release()
    file = farm.directory / "admin-1"
    await until(lambda: file.exists() and json.loads(file.read_text())["admin"] == "stop")


async def test_a_node_that_is_started_while_its_vips_go_down_goes_on(farm: Farm) -> None:
    one, app, _, _ = await farm.pair()
    async with one.runtime.vips.changing():
        await give(one, "stop")
        await until(lambda: one.state == "STOP")
        await give(one, "start")
    await until(lambda: one.own == 128)
    assert phase(one) == "up"
    assert app.runs


async def test_a_stopped_node_that_is_started_as_soon_as_it_is_there_runs_its_services(farm: Farm) -> None:
    one, app = await farm.node(1)
    await until(lambda: one.own == 256)
    await give(one, "stop")
    await until(lambda: not app.runs)
    await one.runtime.close()
    farm.benches.clear()
    farm.network = SimulatedNetwork(SystemClock())
    farm.heartbeats = {number: farm.network.heartbeat(number) for number in (1, 2)}
    again, app = await farm.node(1)
    await give(again, "start")
    await until(lambda: again.own == 256 and app.runs)
