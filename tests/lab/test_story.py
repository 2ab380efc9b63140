"""What the demo promises: which measurements are goals, and under which keys they are written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from nlbfarm.cli import demo
from nlbfarm.config import keys, load
from nlbfarm.errors import HostError
from nlbfarm.lab.acts import (
    AllUnhealthy,
    Broken,
    Crash,
    Failback,
    Fall,
    Freeze,
    GatewayLoss,
    Measurement,
    OneWay,
    Partition,
    Planned,
    Recovery,
    Service,
    Share,
    Takeover,
    Timeline,
    Way,
)
from nlbfarm.lab.probing import percentile
from nlbfarm.lab.servers import SERVERS, choose
from nlbfarm.lab.story import SCENARIOS, Results, lab_for
from nlbfarm.lab.talking import Tally

INF = float("inf")

SERVICE = Service(1000.04, {"web1": Share(86, 1340), "web2": Share(85, 1330), "web3": Share(85, 1330)})
CRASH = Crash("web2", 504.03, {"p50": 560.0, "p99": 590.0, "max": 610.0}, 600, 0, 0)
TALLY = Tally(512, 0, 1200, 0, 1, 20.04)
DRAIN = Planned("drain", "web2", 170, 0.2504, TALLY)
FREEZE = Freeze("web2", 5.0004, 280.0, {"p50": 300.0, "p99": 400.0, "max": 410.0}, 0, 0.7, 85)
WAY = Way({"p50": 0.0, "p99": 200.0, "max": 210.0}, 0, 0, {"web1": 128, "web2": 0, "web3": 128}, 0.6)
ONEWAY = OneWay("web2", {"mute": WAY, "deaf": WAY})
SPLIT = Partition(
    [["web3"], ["web1", "web2"]], [256, 256], [0, 0], 90.0, {"p50": 9.0, "max": 99.0}, 7, 0, 0.6
)

OUTAGE = {"p50": 100.0, "p99": 160.0, "max": 170.0}
LINE = Timeline(
    node="web2",
    detected_ms=4.04,
    acted_ms=4.5,
    moved_ms=INF,
    back_ms=178.0,
    outage_ms=OUTAGE,
    requests_failed=3,
    errors={"ECONNREFUSED": 2, "closed": 1},
    buckets_moved=0,
    others_failed=1,
    others_outage_ms=50.0,
    restarts=1,
    reason="it ended",
)
LINE_KEYS = {
    "node": "web2",
    "detected_ms": 4.0,
    "acted_ms": 4.5,
    "moved_ms": None,
    "back_ms": 178.0,
    "outage_ms": OUTAGE,
    "requests_failed": 3,
    "errors": {"ECONNREFUSED": 2, "closed": 1},
    "buckets_moved": 0,
    "others_failed": 1,
    "others_outage_ms": 50.0,
    "restarts": 1,
    "reason": "it ended",
}
MOVED = replace(LINE, moved_ms=120.0, buckets_moved=85)
MOVED_KEYS = LINE_KEYS | {"moved_ms": 120.0, "buckets_moved": 85}
CRASHED = Recovery("app_crash", LINE, moves=False)
HUNG = Recovery("app_hang", MOVED, moves=True, port_open=True)
BROKEN = Broken(MOVED, 900.0, 910.0, 1, "STOP", "stopped: it ended (restarted 1 times in 24 h)")
UP = {"web1": "UP", "web2": "UP"}
DEGRADED = dict.fromkeys(UP, "degraded: page: HTTP 503; no other node is better")
GATEWAY = GatewayLoss(MOVED, UP, DEGRADED, 2200.0, 0, 0.0, 230.0)
FALLS = [
    Fall("web1", 560.0, 600.0, UP | {"web1": "WAIT"}, {"web1": "page"}, {"web1": 0, "web2": 256}, 0),
    Fall("web2", 560.0, 600.0, UP, DEGRADED, {"web1": 128, "web2": 128}, 0),
]
UNHEALTHY = AllUnhealthy(FALLS, 3, 60.0, 230.0, UP)
TAKEOVER = Takeover("web2", "web2", {"web1": 256}, "web1", OUTAGE, 900)
FAILBACK = Failback(2.5004, 0, Planned("failback", "web2", 256, 0.02, TALLY))

EVERY = [
    (CRASHED, {"app_crash": LINE_KEYS}),
    (HUNG, {"app_hang": {**MOVED_KEYS, "port_open": True}}),
    (
        BROKEN,
        {
            "app_broken": {
                **MOVED_KEYS,
                "gave_up_ms": 900.0,
                "left_ms": 910.0,
                "max_restarts": 1,
                "state": "STOP",
                "left_reason": "stopped: it ended (restarted 1 times in 24 h)",
            }
        },
    ),
    (
        GATEWAY,
        {
            "gateway_loss": {
                "one": MOVED_KEYS,
                "all": {
                    "states": UP,
                    "reasons": DEGRADED,
                    "degraded_ms": 2200.0,
                    "buckets_moved": 0,
                    "outage_ms": 0.0,
                    "well_ms": 230.0,
                },
            }
        },
    ),
    (
        UNHEALTHY,
        {
            "all_unhealthy": {
                "falls": [
                    {
                        "node": "web1",
                        "detected_ms": 560.0,
                        "settled_ms": 600.0,
                        "states": {"web1": "WAIT", "web2": "UP"},
                        "reasons": {"web1": "page"},
                        "served_by": {"web1": 0, "web2": 256},
                        "unserved": 0,
                    },
                    {
                        "node": "web2",
                        "detected_ms": 560.0,
                        "settled_ms": 600.0,
                        "states": UP,
                        "reasons": DEGRADED,
                        "served_by": {"web1": 128, "web2": 128},
                        "unserved": 0,
                    },
                ],
                "requests_failed": 3,
                "outage_ms": 60.0,
                "well_ms": 230.0,
                "states": UP,
            }
        },
    ),
    (
        TAKEOVER,
        {
            "takeover": {
                "node": "web2",
                "taken_by": {"web1": 256},
                "outage_ms": OUTAGE,
                "requests_failed": 900,
            }
        },
    ),
    (
        FAILBACK,
        {
            "failback": {
                "stayed_seconds": 2.5,
                "moved_before": 0,
                "node": "web2",
                "seconds": 0.02,
                "moved_buckets": 256,
                "requests_failed": 0,
                "established": 512,
                "broken_connections": 0,
                "new_connections": 1200,
                "failed_connections": 0,
                "syn_retransmits": 1,
                "longest_stall_ms": 20.0,
            }
        },
    ),
    (
        SERVICE,
        {
            "probes_per_second": 1000.0,
            "share": {
                "web1": {"buckets": 86, "requests": 1340},
                "web2": {"buckets": 85, "requests": 1330},
                "web3": {"buckets": 85, "requests": 1330},
            },
        },
    ),
    (
        CRASH,
        {
            "crash": {
                "node": "web2",
                "detect_ms": 504.0,
                "outage_ms": {"p50": 560.0, "p99": 590.0, "max": 610.0},
                "requests_failed": 600,
                "buckets_unserved_after": 0,
                "buckets_double_served": 0,
            }
        },
    ),
    (
        DRAIN,
        {
            "drain": {
                "node": "web2",
                "seconds": 0.25,
                "moved_buckets": 170,
                "requests_failed": 0,
                "established": 512,
                "broken_connections": 0,
                "new_connections": 1200,
                "failed_connections": 0,
                "syn_retransmits": 1,
                "longest_stall_ms": 20.0,
            }
        },
    ),
    (
        FREEZE,
        {
            "freeze": {
                "node": "web2",
                "frozen_seconds": 5.0,
                "silent_ms": 280.0,
                "outage_ms": {"p50": 300.0, "p99": 400.0, "max": 410.0},
                "double_served": 0,
                "back_seconds": 0.7,
                "share": 85,
            }
        },
    ),
    (ONEWAY, {"oneway": {"node": "web2", "mute": WAY.as_json(), "deaf": WAY.as_json()}}),
    (
        SPLIT,
        {
            "partition": {
                "sides": [["web3"], ["web1", "web2"]],
                "served": [256, 256],
                "failed": [0, 0],
                "hearing_ms": 90.0,
                "double_ms": {"p50": 9.0, "max": 99.0},
                "double_served": 7,
                "double_served_late": 0,
                "back_seconds": 0.6,
            }
        },
    ),
]


@pytest.mark.parametrize(("measurement", "keys"), EVERY)
def test_the_keys_are_those_of_the_documentation(measurement: Measurement, keys: dict[str, Any]) -> None:
    assert json.loads(json.dumps(measurement.as_json(), allow_nan=False)) == keys
    assert measurement.failures() == []
    assert all(what and how_much for what, how_much in measurement.rows())


@pytest.mark.parametrize(
    ("measurement", "words"),
    [
        (replace(SERVICE, share={"web1": Share(87, 1340), "web2": Share(84, 1330)}), "to within one"),
        (replace(SERVICE, share={"web1": Share(128, 1700), "web2": Share(128, 1000)}), "are worth"),
        (replace(SERVICE, share={"web1": Share(128, 0), "web2": Share(128, 0)}), "are worth"),
        (replace(SERVICE, misplaced=["1 buckets were not answered"]), "not answered"),
        (replace(CRASH, outage_ms={"p50": 560.0, "p99": 1000.0, "max": 1000.0}), "for 1000 ms"),
        (replace(CRASH, outage_ms={"p50": 560.0, "p99": INF, "max": INF}), "for inf ms"),
        (replace(CRASH, buckets_unserved_after=2), "2 buckets were not served"),
        (replace(CRASH, buckets_double_served=1), "1 buckets were served by two"),
        (replace(DRAIN, tally=replace(TALLY, broken_connections=3)), "3 of 512 held connections broke"),
        (replace(DRAIN, tally=replace(TALLY, failed_connections=2)), "2 of 1200 new connections failed"),
        (replace(DRAIN, moved_buckets=0), "no bucket moved"),
        (replace(FREEZE, double_served=1), "1 connections were answered by two"),
        (replace(FREEZE, outage_ms={"p50": INF, "p99": INF, "max": INF}), "for inf ms"),
        (replace(FREEZE, share=0), "did not take its share"),
        (replace(ONEWAY, ways={"mute": replace(WAY, double_served=1)}), "mute: 1 connections"),
        (replace(ONEWAY, ways={"deaf": replace(WAY, unserved=1)}), "deaf: 1 buckets were not served"),
        (replace(ONEWAY, ways={"deaf": replace(WAY, outage_ms={"max": INF})}), "for inf ms"),
        (replace(SPLIT, served=[256, 250]), "web1 and web2 served 250"),
        (replace(SPLIT, double_served_late=1), "1 connections were answered twice"),
        (replace(CRASHED, timeline=replace(LINE, detected_ms=INF)), "did not notice"),
        (replace(CRASHED, timeline=replace(LINE, back_ms=INF)), "did not answer all of its buckets"),
        (replace(CRASHED, timeline=replace(LINE, others_outage_ms=INF)), "unserved for inf ms, too"),
        (replace(CRASHED, timeline=replace(LINE, restarts=2)), "restarted its server 2 times"),
        (replace(CRASHED, timeline=MOVED), "85 buckets moved"),
        (replace(HUNG, timeline=LINE), "served elsewhere while its server hung"),
        (replace(HUNG, port_open=False), "did not hang"),
        (replace(BROKEN, max_restarts=2), "1 restarts, not 2"),
        (replace(BROKEN, state="UP"), "is UP"),
        (replace(BROKEN, timeline=LINE), "no bucket of web2 was served elsewhere"),
        (replace(GATEWAY, one=LINE), "kept its buckets"),
        (replace(GATEWAY, states=UP | {"web1": "WAIT"}), "web1 is WAIT"),
        (replace(GATEWAY, buckets_moved=4), "all lost it, and 4 buckets moved"),
        (replace(GATEWAY, outage_ms=INF), "unserved for inf ms"),
        (replace(UNHEALTHY, falls=[replace(FALLS[0], unserved=9)]), "9 buckets unserved after 1"),
        (replace(UNHEALTHY, falls=[replace(FALLS[0], served_by={"web1": 9, "web2": 247})]), "were well"),
        (replace(UNHEALTHY, falls=[FALLS[0], replace(FALLS[1], reasons={})]), "not degraded"),
        (replace(UNHEALTHY, outage_ms=INF), "unserved for inf ms"),
        (replace(UNHEALTHY, states=UP | {"web1": "WAIT"}), "healed, and the nodes are"),
        (replace(TAKEOVER, node="web1"), "though web2 comes first"),
        (replace(TAKEOVER, taken_by={"web3": 256}), "though web1 comes next"),
        (replace(TAKEOVER, outage_ms={"p50": INF, "p99": INF, "max": INF}), "for inf ms"),
        (replace(FAILBACK, moved_before=3), "3 buckets moved before anybody"),
        (
            replace(FAILBACK, planned=replace(FAILBACK.planned, moved_buckets=170)),
            "170 buckets moved, not 256",
        ),
        (
            replace(FAILBACK, planned=replace(FAILBACK.planned, tally=replace(TALLY, broken_connections=3))),
            "3 of 512",
        ),
    ],
)
def test_a_missed_goal_is_said(measurement: Measurement, words: str) -> None:
    assert any(words in failure for failure in measurement.failures())
    json.dumps(measurement.as_json(), allow_nan=False)


def test_results_are_those_of_all_acts_and_of_the_end() -> None:
    results = Results("tour", 3, "builtin", "nftables", "multicast", [SERVICE, CRASH], ended=True)
    assert list(results.as_json()) == [
        *("scenario", "nodes", "backend", "delivery", "server"),
        *("probes_per_second", "share", "crash", "leftovers"),
    ]
    assert results.failures() == []
    results.measurements.append(replace(FREEZE, share=0))
    results.leftovers.append("web1: file /run/x")
    results.ended = False
    first, second, third = results.failures()
    assert "share" in first
    assert "did not come to its end" in second
    assert "left behind: web1: file /run/x" in third


def test_the_command_line_offers_every_scenario() -> None:
    (option,) = (parameter for parameter in demo.params if parameter.name == "scenario")
    context = click.Context(demo)
    assert option.type.get_metavar(option, context) == f"[{'|'.join(SCENARIOS)}]"
    for name in SCENARIOS:
        assert option.type.convert(name, option, context) == name
    with pytest.raises(click.BadParameter, match="'nosuch' is not one of tour, crash"):
        option.type.convert("nosuch", option, context)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_configuration_of_every_scenario_loads(scenario: str, server: str, tmp_path: Path) -> None:
    try:
        choose(server)
    except HostError as error:
        pytest.skip(f"lack of {server}: {error}")
    keys.generate(tmp_path / "lab.key")
    file = tmp_path / "farm.toml"
    file.write_text(lab_for(scenario, 3, server).configuration())
    config = load(file)
    supervised = [service.name for service in config.services]
    assert supervised == (["server"] if scenario.startswith("app-") else [])


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, part) for part in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([1.0, 2.0], 0.5) == 1.0
    assert percentile([], 0.5) == 0.0
