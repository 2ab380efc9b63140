"""What the demo promises: which measurements are goals, and under which keys they are written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import click
import pytest

from nlbfarm.cli import demo
from nlbfarm.lab.acts import Crash, Freeze, Measurement, OneWay, Partition, Planned, Service, Share, Way
from nlbfarm.lab.probing import percentile
from nlbfarm.lab.story import SCENARIOS, Results
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

EVERY = [
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
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(SCENARIOS)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, part) for part in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([1.0, 2.0], 0.5) == 1.0
    assert percentile([], 0.5) == 0.0
