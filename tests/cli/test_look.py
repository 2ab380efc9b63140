"""``status``, ``buckets`` and ``explain``, asked of a real control socket with invented answers behind it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.test_explain import KNOWLEDGE

from nlbfarm.api.control import ControlServer
from nlbfarm.cli import cli, tables
from nlbfarm.explain import explain, parse_question

PLACEMENT = [1] * 100 + [2] * 100 + [0] * 56


def peer(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "name": f"web{number}",
        "self": False,
        "heard": True,
        "state": "UP",
        "reason": "",
        "inside": True,
        "in_view": True,
        "incarnation": 17,
        "last_heard_ms": 42.0,
        "acknowledged_ms": 61.0,
        "problem": "",
        "power": {"web": 1},
        "configured_power": {"web": 1},
        "holding": {"web": 100},
        "draining": {},
        "wire_version": 2,
        "networks": [
            {"index": 0, "address": f"192.0.2.1{number}", "alive": True, "last_heard_ms": 42.0},
            {"index": 1, "address": f"198.51.100.1{number}", "alive": False, "last_heard_ms": None},
        ],
        **changes,
    }


STATUS: dict[str, Any] = {
    "farm": "shop",
    "node": {"id": 1, "name": "web1"},
    "version": "0.1.0",
    "pid": 4711,
    "uptime_s": 93784.2,
    "state": "UP",
    "reason": "",
    "fitness": "sound",
    "admin": "run",
    "damping": None,
    "drain_timeout_s": 60.0,
    "connections_left": 0,
    "incarnation": 17,
    "epoch": [12, 1],
    "inside": True,
    "leader": 1,
    "lease_ms": 287.4,
    "backend": {"name": "nftables", "detail": "as configured"},
    "delivery": "multicast",
    "nodes": [
        peer(1, self=True, networks=[]),
        peer(2),
        peer(3, heard=False, in_view=False, state="STOP", reason="no heartbeat", acknowledged_ms=None),
    ],
    "groups": [
        {
            "name": "web",
            "mode": "balanced",
            "buckets": {"1": 100, "2": 100},
            "own": 100,
            "adopt": 0,
            "drain": 0,
            "connections_left": 0,
            "placement": PLACEMENT,
            "states": "O" * 100 + "." * 156,
        }
    ],
    "vips": [{"address": "192.0.2.100", "interface": "eth0", "present": True}],
    "checkers": [
        {
            "name": "page",
            "type": "http",
            "service": "apache",
            "on_failure": "restart",
            "ok": False,
            "detail": "HTTP 503 from http://127.0.0.1/",
            "since_s": 3.0,
        },
        {
            "name": "port",
            "type": "tcp",
            "service": None,
            "on_failure": "wait",
            "ok": None,
            "detail": "",
            "since_s": 0.0,
        },
    ],
    "services": [
        {
            "name": "apache",
            "type": "systemd",
            "phase": "restarting",
            "reason": "page: HTTP 503 from http://127.0.0.1/",
            "since_s": 1.0,
            "restarts": 1,
            "max_restarts": 3,
            "within_s": 86400.0,
        }
    ],
    "failover_rules": [
        {"name": "disks", "action": "drain", "ok": True, "detail": ""},
        {"name": "gateways", "action": "wait", "ok": False, "detail": "gateways: gw1 down, gw2 down"},
    ],
    "paused": False,
    "counters": {"groups": {}, "other": {}},
    "heartbeat": {"networks": [], "rejected": {}, "notes": []},
    "warnings": ["the clock went back"],
}


async def answer_status(args: Mapping[str, Any]) -> Any:
    return STATUS


async def answer_explain(args: Mapping[str, Any]) -> Any:
    return explain(parse_question(args["client"], args["service"]), KNOWLEDGE)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """Serve a control socket in a thread with a loop of its own; yield the runtime directory."""
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        server = ControlServer(
            tmp_path / "shop" / "control.sock", {"status": answer_status, "explain": answer_explain}
        )
        await server.open()
        loops.append(asyncio.get_running_loop())
        ready.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield tmp_path
    loops[0].call_soon_threadsafe(stop.set)
    thread.join(10)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_status(runtime: Path) -> None:
    result = invoke("status", "--runtime-dir", runtime)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "farm shop, node web1 (id 1): UP",
        "  in view 12, led by web1; lease: 287 ms left",
        "  multicast delivery, filter nftables (as configured)",
        "  running for 1 d 2 h, pid 4711, nlbfarm 0.1.0",
        "",
        "nodes",
        "  NAME  ID  STATE  IN VIEW  HEARD       ANSWERED   NETWORKS  web",
        "  web1  1   UP     yes      (this one)                       100 (39 %)",
        "  web2  2   UP     yes      42 ms ago   61 ms ago  +-        100 (39 %)",
        "  web3  3   lost   no       42 ms ago   never      +-        -",
        "  web3: no heartbeat",
        "  NETWORKS: a sign for each heartbeat network in its order; + heard on it lately, - not",
        "",
        "virtual IPs",
        "  ADDRESS      INTERFACE  HERE",
        "  192.0.2.100  eth0       yes",
        "",
        "services",
        "  NAME    TYPE     PHASE       SINCE  RESTARTS           REASON",
        "  apache  systemd  restarting  1 s    1 of 3 in 1 d 0 h  page: HTTP 503 from http://127.0.0.1/",
        "",
        "checkers",
        "  NAME  TYPE  RESULT          SINCE  IF IT FAILS     DETAIL",
        "  page  http  BAD             3 s    restart apache  HTTP 503 from http://127.0.0.1/",
        "  port  tcp   not looked yet  0 s    wait",
        "  rule gateways: gw1 down, gw2 down (action: wait)",
        "",
        "warnings",
        "  the clock went back",
    ]


def test_status_of_a_node_that_waits() -> None:
    waiting = STATUS | {
        "state": "WAIT",
        "reason": "page is down",
        "inside": False,
        "epoch": None,
        "lease_ms": 0.0,
    }
    lines = tables.status(waiting).splitlines()
    assert lines[0] == "farm shop, node web1 (id 1): WAIT (page is down)"
    assert lines[1] == "  in no view; lease: run out, nothing is accepted"


def test_status_of_a_node_that_gives_away() -> None:
    group = STATUS["groups"][0] | {"drain": 60, "connections_left": 412}
    told = STATUS | {
        "state": "DRAINING",
        "reason": "asked to drain by the administrator",
        "admin": "drain",
        "connections_left": 412,
        "groups": [group],
        "nodes": [peer(1, self=True, power={"web": 3}), peer(2, draining={"web": 9}, power=None)],
    }
    lines = tables.status(told).splitlines()
    assert lines[0] == "farm shop, node web1 (id 1): DRAINING (asked to drain by the administrator)"
    assert lines[2] == "  drained until it is started (nlbfarm-node start), also after a reboot"
    assert lines[3] == "  gives away: 412 connections left in 60 buckets, for at most 60 s"
    assert "  web1: power 3 in group web (configured: 1)" in lines
    assert "  web2: drains 9 buckets" in lines


def test_status_of_a_node_that_failed_often() -> None:
    told = STATUS | {"state": "WAIT", "damping": {"failures": 4, "remaining_s": 9.6}}
    assert (
        "  waits 10 s more: failed 4 times in a row (nlbfarm-node start ends it)"
        in tables.status(told).splitlines()
    )


def test_long_ago_is_told_in_seconds() -> None:
    lost = STATUS | {"nodes": [peer(1, self=True), peer(2, last_heard_ms=92_400.0, acknowledged_ms=9_999.0)]}
    assert "1 min 32 s ago  9999 ms ago" in tables.status(lost)


def test_a_farm_that_does_not_run_names_those_that_do(runtime: Path) -> None:
    (runtime / "old").mkdir()
    result = invoke("status", "--runtime-dir", runtime, "--farm", "nosuch")
    assert result.exit_code == 5
    assert "running here: shop (--farm NAME)" in result.stderr


def test_an_empty_directory_is_no_farm(runtime: Path) -> None:
    (runtime / "old").mkdir()
    assert "farm shop" in invoke("status", "--runtime-dir", runtime).stdout


def test_json_is_what_the_node_said(runtime: Path) -> None:
    assert json.loads(invoke("status", "--runtime-dir", runtime, "--json").stdout) == STATUS
    assert json.loads(invoke("buckets", "--runtime-dir", runtime, "--json").stdout) == STATUS["groups"]


def test_the_runtime_directory_may_come_from_the_environment(runtime: Path) -> None:
    result = CliRunner().invoke(cli, ["status", "--farm", "shop"], env={"NLBFARM_RUNTIME_DIR": str(runtime)})
    assert result.exit_code == 0


def test_buckets(runtime: Path) -> None:
    result = invoke("buckets", "--runtime-dir", runtime, "--group", "web")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "group web (balanced), 256 buckets",
        "  a  web1: 100 (39 %)",
        "  b  web2: 100 (39 %)",
        "  c  web3: -",
        "  .  nobody: 56 (22 %)",
        "",
        "    0  " + "a" * 64,
        "   64  " + "a" * 36 + "b" * 28,
        "  128  " + "b" * 64,
        "  192  " + "b" * 8 + "." * 56,
        "",
        "  filter of web1: 100 owned, 0 being adopted, 0 draining",
    ]
    result = invoke("buckets", "--runtime-dir", runtime, "--group", "wob")
    assert result.exit_code == 2
    assert 'there is no group "wob" (there: web)' in result.stderr


def test_explain(runtime: Path) -> None:
    result = invoke("explain", "198.51.100.7", "192.0.2.100:8080", "--runtime-dir", runtime)
    assert result.exit_code == 0
    assert "  owner       web2 (id 2)" in result.stdout.splitlines()
    assert "state here  foreign" in result.stdout
    found = json.loads(
        invoke("explain", "198.51.100.7", "192.0.2.100:80", "--runtime-dir", runtime, "--json").stdout
    )
    assert found["distribution"] == {"web1": 128, "web2": 128, "web3": 0}
    assert (
        "web1      128 (50 %)"
        in invoke("explain", "198.51.100.7", "192.0.2.100:80", "--runtime-dir", runtime).stdout
    )


def test_a_question_that_cannot_be_meant_needs_no_node(tmp_path: Path) -> None:
    result = invoke("explain", "example.org", "192.0.2.100:80", "--runtime-dir", tmp_path)
    assert result.exit_code == 2


@pytest.mark.parametrize("verb", [["status"], ["buckets"], ["explain", "198.51.100.7", "192.0.2.100:80"]])
def test_no_node_is_running(tmp_path: Path, verb: list[str]) -> None:
    result = invoke(*verb, "--runtime-dir", tmp_path)
    assert (result.exit_code, result.stdout) == (5, "")
    assert "no node is running here" in result.stderr
    assert invoke(*verb, "--runtime-dir", tmp_path, "--farm", "shop").exit_code == 5
