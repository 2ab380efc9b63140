"""Commands to running nodes: a real control socket with an invented farm behind it."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.cli.test_look import STATUS, peer

from nlbfarm.api.control import ControlServer, Handler
from nlbfarm.cli import cli, waiting
from nlbfarm.errors import NlbfarmError, UsageError

Change = Callable[["Farm"], None]


class Farm:
    """Three nodes as web1 sees them. What was told takes effect with the looks that follow."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.fails: dict[int, NlbfarmError] = {}
        self.orders: dict[int, str] = {}
        self.ended: dict[int, str] = {}
        self.reload: dict[str, Any] = {}
        self.status = copy.deepcopy(STATUS) | {"drain_timeout_s": 20.0}
        self.status["nodes"] = [peer(1, self=True, networks=[]), peer(2), peer(3)]
        self.steps: list[Change] = []
        """Each look at the status does one."""
        self.place({1: 86, 2: 85, 3: 85})

    def row(self, node: int) -> dict[str, Any]:
        found: dict[str, Any] = self.status["nodes"][node - 1]
        return found

    def place(self, shares: Mapping[int, int]) -> None:
        self.status["groups"][0]["buckets"] = {str(node): count for node, count in shares.items() if count}
        for node, count in shares.items():
            self.row(node)["holding"] = {"web": count} if count else {}
        self.status["epoch"] = [self.status["epoch"][0] + 1, 1]

    def change(self, node: int, **values: Any) -> None:
        self.row(node).update(values)

    async def look(self, args: Mapping[str, Any]) -> Any:
        answer = copy.deepcopy(self.status)
        if self.steps:
            self.steps.pop(0)(self)
        return answer

    def command(self, verb: str) -> Handler:
        async def carry_out(args: Mapping[str, Any]) -> Any:
            node = int(args["node"])
            self.told.append((verb, dict(args)))
            if node in self.fails:
                raise self.fails[node]
            number = None if node == 1 else 40 + node
            return {"node": {"id": node, "name": f"web{node}"}, "order": number, "detail": f"{verb} begun"}

        return carry_out

    async def order(self, args: Mapping[str, Any]) -> Any:
        number = args["number"]
        if number not in self.orders:
            raise UsageError("no order is remembered")
        return {"number": number, "text": self.orders[number], "ended": self.ended.get(number)}

    async def reloaded(self, args: Mapping[str, Any]) -> Any:
        return self.reload | {"file": "/etc/shop.toml", "dry_run": args["dry_run"]}

    def handlers(self) -> dict[str, Handler]:
        verbs = ("start", "stop", "drain", "restart", "power")
        commands = {verb: self.command(verb) for verb in verbs}
        return {"status": self.look, "order": self.order, "reload": self.reloaded, **commands}


@pytest.fixture
def farm() -> Farm:
    return Farm()


@pytest.fixture
def invoke(farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Serve the farm's control socket in a thread; return what runs a verb."""
    monkeypatch.setattr(waiting, "LOOK_S", 0.01)
    monkeypatch.setattr(waiting, "LINE_S", 0.0)
    monkeypatch.setattr(waiting, "LAST_WORD_S", 0.05)
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        server = ControlServer(tmp_path / "shop" / "control.sock", farm.handlers())
        await server.open()
        loops.append(asyncio.get_running_loop())
        ready.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, [*words, "--runtime-dir", str(tmp_path)])

    yield run
    loops[0].call_soon_threadsafe(stop.set)
    thread.join(10)


Invoke = Callable[..., Result]


def nothing(_: Farm) -> None:
    """Let one look pass."""


def test_without_a_name_it_is_this_node(farm: Farm, invoke: Invoke) -> None:
    result = invoke("drain")
    assert (result.exit_code, result.output) == (0, "web1: drain begun\n")
    assert farm.told == [("drain", {"node": 1})]


def test_nodes_are_named_once_and_this_one_comes_last(farm: Farm, invoke: Invoke) -> None:
    assert invoke("stop", "web1", "web3", "web3", "--now").exit_code == 0
    assert farm.told == [("stop", {"node": 3, "now": True}), ("stop", {"node": 1, "now": True})]
    farm.told.clear()
    assert invoke("start", "--all").exit_code == 0
    assert [args["node"] for _, args in farm.told] == [2, 3, 1]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("stop", "wob2"), 'no node is called "wob2"; did you mean "web2"?'),
        (("stop", "web2", "--all"), "not both"),
        (("restart", "--process", "--now"), "not both"),
        (("power", "web2", "lots"), '"lots" is no power'),
        (("power", "wob2", "1"), 'no node is called "wob2"'),
    ],
)
def test_what_cannot_be_meant(farm: Farm, invoke: Invoke, words: tuple[str, ...], why: str) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert why in result.stderr
    assert farm.told == []


def test_one_that_refuses_does_not_keep_the_others(farm: Farm, invoke: Invoke) -> None:
    farm.fails[2] = NlbfarmError("web2 is not heard from here")
    result = invoke("drain", "web2", "web3", "--json")
    assert result.exit_code == 1
    assert "nlbfarm-node: web2 is not heard from here" in result.stderr
    told = json.loads(result.stdout)
    assert [(node["name"], node["ok"], node["reached"]) for node in told["nodes"]] == [
        ("web2", False, False),
        ("web3", True, False),
    ]


def test_who_takes_the_last_one_away_is_warned(farm: Farm, invoke: Invoke) -> None:
    assert "warning" not in invoke("stop", "web2", "web3").stderr
    assert "no other node serves: the service is down until one is started" in invoke("stop", "--all").stderr
    farm.change(2, state="DRAINING")
    farm.change(3, heard=False)
    assert "no other node serves" in invoke("drain", "web1").stderr
    assert "down until it is back" in invoke("restart", "web1").stderr


def test_a_drain_is_waited_for_and_the_connections_are_told(farm: Farm, invoke: Invoke) -> None:
    farm.orders[42] = "412 connections left in 85 buckets"

    def release(one: Farm) -> None:
        one.place({1: 128, 2: 0, 3: 128})
        one.change(2, state="DRAINING", draining={"web": 85})

    farm.steps = [nothing, nothing, release, nothing, lambda one: one.change(2, draining={})]
    result = invoke("drain", "web2", "--wait")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["web2: drain begun", "web2: drained"]
    assert "web2: 85 buckets not taken over yet" in result.stderr
    assert "web2: 412 connections left in 85 buckets, 0 s of at most 20 s" in result.stderr


def test_a_stop_of_this_node_is_waited_for(farm: Farm, invoke: Invoke) -> None:
    def release(one: Farm) -> None:
        one.place({1: 0, 2: 128, 3: 128})
        one.change(1, state="DRAINING", draining={"web": 86})
        one.status["connections_left"] = 7

    def leave(one: Farm) -> None:
        one.change(1, state="STOP", in_view=False, draining={})

    farm.steps = [nothing, nothing, release, nothing, leave]
    result = invoke("stop", "--wait")
    assert result.exit_code == 0
    assert "web1: stopped" in result.stdout
    assert "web1: 7 connections left in 86 buckets" in result.stderr


def test_connections_that_a_drain_cut_are_told(farm: Farm, invoke: Invoke) -> None:
    def drained(one: Farm) -> None:
        one.place({1: 0, 2: 0, 3: 256})
        one.change(1, state="DRAINING")
        one.change(2, state="DRAINING")
        one.status["connections_cut"] = 9
        one.orders[42], one.ended[42] = (
            "drained, but 3 connections had not ended in time and were cut",
            "done",
        )

    farm.status["connections_cut"] = 2
    farm.steps = [nothing, nothing, nothing, drained]
    result = invoke("drain", "web1", "web2", "--wait", "--json")
    assert result.exit_code == 0
    assert [node["detail"] for node in json.loads(result.stdout)["nodes"]] == [
        "drained, but 3 connections had not ended in time and were cut",
        "drained, but 7 connections had not ended in time and were cut",
    ]


def test_waiting_ends_but_what_was_begun_does_not(farm: Farm, invoke: Invoke) -> None:
    result = invoke("drain", "web2", "--wait", "--timeout", "0.05")
    assert result.exit_code == 1
    assert (
        "not done after 0.05 s: web2: 85 buckets not taken over yet. What was begun goes on" in result.stderr
    )


def test_a_node_that_dies_meanwhile_is_no_success(farm: Farm, invoke: Invoke) -> None:
    farm.steps = [
        nothing,
        nothing,
        lambda one: one.change(2, heard=False, state="STOP", reason="no heartbeat"),
    ]
    result = invoke("drain", "web2", "--wait")
    assert result.exit_code == 1
    assert "web2 is not heard any more (no heartbeat)" in result.stderr


def test_an_interruption_ends_the_waiting_only(
    farm: Farm, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    result = invoke("stop", "web2", "--wait")
    assert result.exit_code == 130
    assert "no longer waited for; the stop goes on" in result.stderr


def gone(node: int) -> Change:
    def leave(one: Farm) -> None:
        one.place({other: 0 if other == node else 128 for other in (1, 2, 3)})
        one.change(node, state="STOP", in_view=False)

    return leave


def back(node: int) -> Change:
    def come(one: Farm) -> None:
        one.place({1: 86, 2: 85, 3: 85})
        one.change(node, state="UP", in_view=True)

    return come


def test_a_rolling_restart_waits_for_each_node(farm: Farm, invoke: Invoke) -> None:
    once = [nothing, nothing]
    farm.steps = [nothing]
    for node in (2, 3, 1):
        farm.steps += [*once, gone(node), nothing, back(node), nothing]
    result = invoke("restart", "--all")
    assert result.exit_code == 0
    words = [line for line in result.stdout.splitlines() if line.endswith("again")]
    assert words == ["web2: serves again", "web3: serves again", "web1: serves again"]


def test_a_rolling_restart_stops_at_the_first_failure(farm: Farm, invoke: Invoke) -> None:
    farm.fails[3] = NlbfarmError("it says no")
    farm.steps = [nothing, nothing, nothing, gone(2), nothing, back(2)]
    result = invoke("restart", "--all")
    assert result.exit_code == 1
    assert "nlbfarm-node: got as far as web3; not begun: web1" in result.stderr
    assert [args["node"] for _, args in farm.told] == [2, 3]


def test_a_new_process_is_known_by_its_incarnation(farm: Farm, invoke: Invoke) -> None:
    farm.steps = [nothing, nothing, nothing, lambda one: one.change(2, incarnation=18)]
    result = invoke("restart", "web2", "--process", "--wait")
    assert (result.exit_code, farm.told) == (0, [("restart", {"node": 2, "process": True})])
    assert "web2: serves again" in result.stdout


def test_a_new_process_of_a_stopped_node_stays_stopped(farm: Farm, invoke: Invoke) -> None:
    reason = "stopped by the administrator"
    farm.change(2, state="STOP", reason=reason, in_view=False, inside=False, holding={})
    farm.steps = [nothing, nothing, nothing, lambda one: one.change(2, incarnation=18)]
    result = invoke("restart", "web2", "--process", "--wait")
    assert result.exit_code == 0
    assert "web2: has a new process, and still is drained or stopped" in result.stdout


@pytest.mark.parametrize("node", [1, 2])
def test_a_new_process_that_is_configured_otherwise_is_not_waited_for(
    farm: Farm, invoke: Invoke, node: int
) -> None:
    def differs(one: Farm) -> None:
        one.place({node: 0})
        one.change(node, incarnation=18, in_view=False)
        one.change(2, problem="configuration differs")

    farm.steps = [nothing, nothing, nothing, differs]
    result = invoke("restart", f"web{node}", "--process", "--wait")
    assert result.exit_code == 1
    assert f"web{node} runs, but is configured otherwise than web{3 - node}:" in result.stderr


def test_through_a_node_that_is_in_no_view(
    farm: Farm, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SETTLED_S", 0.03)
    farm.place({1: 0, 2: 0, 3: 0})
    farm.status |= {"inside": False, "epoch": [0, 0]}
    for node in (1, 2, 3):
        farm.change(node, state="STOP", in_view=False, inside=False)

    def comes(one: Farm) -> None:
        one.change(3, state="UP", inside=True, holding={"web": 256})

    farm.steps = [nothing, nothing, nothing, comes]
    result = invoke("start", "web3", "--wait")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "web3: serves")
    assert "web3: UP, holds 256 buckets" in result.stderr


def test_a_start_of_a_node_without_a_share_is_done_when_nothing_comes(
    farm: Farm, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SETTLED_S", 0.03)
    farm.place({1: 128, 2: 0, 3: 128})
    farm.change(2, state="WAIT", reason="page: HTTP 503")
    farm.steps = [nothing, nothing, nothing, lambda one: one.change(2, state="UP", reason="")]
    result = invoke("start", "web2", "--wait")
    assert result.exit_code == 0
    assert "web2: WAIT (page: HTTP 503)" in result.stderr


def test_power(farm: Farm, invoke: Invoke) -> None:
    assert invoke("power", "web2", "3").output == "web2: power begun\n"
    assert invoke("power", "web2", "default", "--group", "web", "--json").exit_code == 0
    assert farm.told == [
        ("power", {"node": 2, "power": 3, "group": None}),
        ("power", {"node": 2, "power": None, "group": "web"}),
    ]


@pytest.mark.parametrize(
    ("answer", "words", "code"),
    [
        ({}, "nothing has changed", 0),
        ({"changed": ['nodes "web4" (id 4) is new']}, 'would change:\n  nodes "web4" (id 4) is new', 0),
        ({"problems": ["farm.name: missing"]}, "is wrong; nothing was changed:\n  farm.name: missing", 3),
        (
            {"refused": ["heartbeat.port: 1 -> 2"], "changed": ["x"]},
            "restart --process):\n  heartbeat.port",
            1,
        ),
    ],
)
def test_reload(farm: Farm, invoke: Invoke, answer: dict[str, list[str]], words: str, code: int) -> None:
    farm.reload = {"changed": [], "refused": [], "problems": [], "applied": False} | answer
    result = invoke("reload", "--dry-run")
    assert words in result.output
    assert result.exit_code == code
    result = invoke("reload", "--json")
    assert json.loads(result.stdout)["dry_run"] is False
    assert result.exit_code == code


@pytest.mark.parametrize("words", [["stop"], ["start", "web2"], ["reload"], ["power", "web2", "1"]])
def test_no_node_is_running(tmp_path: Path, words: list[str]) -> None:
    result = CliRunner().invoke(cli, [*words, "--runtime-dir", str(tmp_path)])
    assert result.exit_code == 5
    assert "no node is running here" in result.stderr
