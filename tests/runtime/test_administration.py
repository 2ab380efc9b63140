"""What an administrator wants of a node: carried out, and remembered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from tests.runtime.bench import VIP, Bench, give, make, until

from nlbfarm.core.buckets import bits
from nlbfarm.damping import Starts
from nlbfarm.errors import HostError, NlbfarmError, UsageError
from nlbfarm.heartbeat.memory import SimulatedNetwork
from nlbfarm.parts import SystemClock
from nlbfarm.runtime import Verb
from nlbfarm.status import status


async def test_a_stopped_node_keeps_talking_and_starts_again(pair: tuple[Bench, Bench]) -> None:
    one, two = pair
    await give(one, "stop")
    await until(lambda: two.own == 256 and VIP not in one.host.addresses)
    assert (one.state, one.reason) == ("STOP", "stopped by the administrator")
    told = await status(two.runtime)
    assert (told["nodes"][0]["heard"], told["nodes"][0]["state"]) == (True, "STOP")
    one.host.addresses.clear()
    assert await give(one, "stop")  # nothing to do, and no error
    await give(one, "start")
    await until(lambda: one.own == 128 and VIP in one.host.addresses and one.leased)


async def test_a_drained_node_stays_in_the_view(pair: tuple[Bench, Bench]) -> None:
    one, two = pair
    await give(one, "drain")
    await until(lambda: two.own == 256)
    assert one.state == "DRAINING"
    assert VIP in one.host.addresses
    told = await status(one.runtime)
    assert (told["admin"], told["inside"], told["connections_left"]) == ("drain", True, 0)
    await give(one, "start")
    await until(lambda: one.own == two.own == 128)


async def test_a_start_in_the_middle_of_a_stop_keeps_the_vip(pair: tuple[Bench, Bench]) -> None:
    one, _ = pair
    await give(one, "stop")
    await give(one, "start")
    await until(lambda: one.state == "UP" and one.own == 128 and one.leased)
    assert VIP in one.host.addresses


async def test_a_restart_leaves_and_comes_back_by_itself(pair: tuple[Bench, Bench]) -> None:
    one, two = pair
    down = one.host.addresses.copy()
    verb = Verb.of("restart", {})
    said: list[str] = []
    await one.runtime.administration.carry_out(verb)
    ended = await one.runtime.administration.finished(verb, one.runtime.running, said.append)
    assert ended == "has left and comes back"
    await until(lambda: one.own == two.own == 128 and one.host.addresses == down)


async def test_what_is_wanted_outlives_the_process(tmp_path: Path) -> None:
    network = SimulatedNetwork(SystemClock())
    other = make(2, network, tmp_path)
    await other.runtime.open()
    heartbeat = network.heartbeat(1)
    try:
        for wanted, command in (("stop", "stop"), ("drain", "drain"), ("run", "start")):
            bench = make(1, network, tmp_path, heartbeat=heartbeat)
            await bench.runtime.open()
            await give(bench, command)
            await give(bench, "power", power=3, group="web")
            await bench.runtime.close()
            again = make(1, network, tmp_path, heartbeat=heartbeat)
            await again.runtime.open()
            told = await status(again.runtime)
            assert (told["admin"], told["nodes"][0]["power"]) == (wanted, {"web": 3})
            if wanted != "run":
                await until(lambda: other.own == 256)
            else:
                await until(lambda: again.own == 192)  # noqa: B023 - awaited here
            await again.runtime.close()
    finally:
        await other.runtime.close()


async def test_a_damaged_file_of_the_administrator_stops_the_node_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "admin-1").write_text("{")
    bench = make(1, SimulatedNetwork(SystemClock()), tmp_path)
    bench.network.heartbeat(2)
    try:
        await bench.runtime.open()
        await until(lambda: bench.state == "STOP")
        assert bench.host.addresses == {}
        assert any("is damaged" in warning for warning in (await status(bench.runtime))["warnings"])
        await give(bench, "start")
        await until(lambda: bench.own == 256 and VIP in bench.host.addresses)
        assert not (await status(bench.runtime))["warnings"]
    finally:
        await bench.runtime.close()


async def test_power_moves_buckets_and_can_be_undone(pair: tuple[Bench, Bench]) -> None:
    one, two = pair
    assert await give(one, "power", power=3) == "power now: web 3"
    await until(lambda: (one.own, two.own) == (192, 64))
    assert await give(one, "power", power=None, group="web") == "power now: web 1"
    await until(lambda: one.own == two.own == 128)
    with pytest.raises(UsageError, match='no group "wob"'):
        await give(one, "power", power=1, group="wob")


@pytest.mark.parametrize(
    ("name", "args", "why"),
    [
        ("explode", {}, 'does not know the command "explode"'),
        ("start", {"now": True}, 'start takes nothing, but not "now"'),
        ("stop", {"process": True}, 'stop takes now, but not "process"'),
        ("stop", {"now": 1}, '"now" of stop must be true or false'),
        ("power", {"power": "many"}, "must be a whole number"),
        ("power", {"power": True}, "must be a whole number"),
        ("power", {"power": 65536}, "power 65536 is not in 0..65535"),
        ("power", {"power": 1, "group": 7}, "must be the name of a group"),
    ],
)
def test_a_command_that_cannot_be_meant(name: str, args: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=re.escape(why)):
        Verb.of(name, args)


@pytest.mark.parametrize(
    "verb",
    [
        Verb("start"),
        Verb("stop", now=True),
        Verb("restart", process=True),
        Verb("power", power=7, group="web"),
        Verb("power"),
    ],
)
def test_a_command_travels_whole(verb: Verb) -> None:
    assert Verb.read(verb.name, verb.argument()) == verb
    with pytest.raises(UsageError, match="not understood"):
        Verb.read(verb.name, "[]")


async def test_a_process_that_failed_often_waits_until_it_is_started(tmp_path: Path) -> None:
    starts = Starts(tmp_path / "starts-1")
    for _ in range(3):
        starts.begin(SystemClock().wall())
    bench = make(1, SimulatedNetwork(SystemClock()), tmp_path)
    bench.network.heartbeat(2)
    try:
        await bench.runtime.open()
        await until(lambda: bench.state == "WAIT")
        assert "failed 3 times in a row" in bench.reason
        told = await status(bench.runtime)
        assert told["damping"]["failures"] == 3
        assert 0 < told["damping"]["remaining_s"] <= 5
        await give(bench, "start")
        await until(lambda: bench.own == 256 and bench.leased)
        assert (await status(bench.runtime))["damping"] is None
        bench.runtime.stop()
        await bench.runtime.wait()
    finally:
        await bench.runtime.close()
    assert Starts(tmp_path / "starts-1").begin(SystemClock().wall()) == 0


async def test_flows_that_cannot_be_counted_are_drained_for_the_whole_time(
    pair: tuple[Bench, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair

    async def unknown(buckets: Mapping[str, int]) -> Mapping[str, Mapping[int, int]]:
        raise HostError("conntrack says no")

    monkeypatch.setattr(one.backend, "flows", unknown)
    await give(one, "drain")
    await until(lambda: two.own == 256)
    node = one.runtime.running()
    await until(lambda: sum(node.flows_left.get("web", {}).values()) == 128)
    assert (await status(one.runtime))["groups"][0]["states"].count("D") == 128
    assert [told["draining"] for told in (await status(two.runtime))["nodes"]] == [{"web": 128}, {}]
    one.runtime.stop(at_once=True)
    await one.runtime.wait()


async def test_connections_that_a_drain_cuts_are_counted_and_logged(
    pair: tuple[Bench, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair

    async def one_each(buckets: Mapping[str, int]) -> Mapping[str, Mapping[int, int]]:
        return {"web": dict.fromkeys(bits(buckets["web"]), 1)}

    monkeypatch.setattr(one.backend, "flows", one_each)
    settings = replace(one.runtime.parts.settings, drain_timeout=0.2)
    await one.runtime.reconfigure(replace(one.runtime.parts, settings=settings))
    verb = Verb.of("drain", {})
    with structlog.testing.capture_logs() as logs:
        await one.runtime.administration.carry_out(verb)
        ended = await one.runtime.administration.finished(verb, one.runtime.running, lambda text: None)
    assert ended == "drained, but 128 connections had not ended in time and were cut"
    assert {"event": "drain.cut_short", "log_level": "warning", "connections": 128} in logs
    assert (await status(one.runtime))["connections_cut"] == 128


async def test_commands_while_the_process_ends_hold_for_the_next_one(
    pair: tuple[Bench, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair

    async def one_each(buckets: Mapping[str, int]) -> Mapping[str, Mapping[int, int]]:
        return {"web": dict.fromkeys(bits(buckets["web"]), 1)}

    monkeypatch.setattr(one.backend, "flows", one_each)
    one.runtime.stop()
    await until(lambda: two.own == 256)
    assert "that holds for the next one" in await give(one, "drain")
    with pytest.raises(NlbfarmError, match="about to end"):
        await give(one, "restart", process=True)
    one.runtime.stop(at_once=True)
    await one.runtime.wait()
