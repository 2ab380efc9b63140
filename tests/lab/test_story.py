"""What the demo promises: which measurements are goals, and under which keys they are written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nlbfarm.lab.probing import percentile
from nlbfarm.lab.story import Crash, Rejoin, Results, Share


def good() -> Results:
    return Results(
        nodes=3,
        server="builtin",
        backend="nftables",
        delivery="multicast",
        probes_per_second=1000.04,
        share={"web1": Share(86, 1340), "web2": Share(85, 1330), "web3": Share(85, 1330)},
        crash=Crash("web2", 504.03, {"p50": 560.0, "p99": 590.0, "max": 610.0}, 600, 0, 0),
        rejoin=Rejoin(85, 2.0004, 12),
    )


def test_the_keys_are_those_of_the_documentation() -> None:
    assert json.loads(json.dumps(good().as_json())) == {
        "nodes": 3,
        "backend": "nftables",
        "delivery": "multicast",
        "server": "builtin",
        "probes_per_second": 1000.0,
        "share": {
            "web1": {"buckets": 86, "requests": 1340},
            "web2": {"buckets": 85, "requests": 1330},
            "web3": {"buckets": 85, "requests": 1330},
        },
        "crash": {
            "node": "web2",
            "detect_ms": 504.0,
            "outage_ms": {"p50": 560.0, "p99": 590.0, "max": 610.0},
            "requests_failed": 600,
            "buckets_unserved_after": 0,
            "buckets_double_served": 0,
        },
        "rejoin": {"moved_buckets": 85, "seconds": 2.0, "requests_failed": 12},
        "leftovers": [],
    }
    assert good().failures() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"share": {"web1": Share(87, 1340), "web2": Share(84, 1330), "web3": Share(85, 1330)}},
            "to within one",
        ),
        (
            {"share": {"web1": Share(86, 1340), "web2": Share(85, 1330), "web3": Share(84, 1330)}},
            "to within one",
        ),
        ({"share": {"web1": Share(86, 1700), "web2": Share(85, 1330), "web3": Share(85, 1000)}}, "are worth"),
        ({"share": {"web1": Share(86, 0), "web2": Share(85, 0), "web3": Share(85, 0)}}, "are worth"),
        ({"crash": None}, "did not come to its end"),
        ({"rejoin": None}, "did not come to its end"),
        ({"leftovers": ["web1: file /run/x"]}, "left behind: web1: file /run/x"),
        ({"misplaced": ["1 buckets were not answered"]}, "not answered"),
    ],
)
def test_a_missed_goal_is_said(change: dict[str, object], words: str) -> None:
    assert any(words in failure for failure in replace(good(), **change).failures())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outage_ms": {"p50": 560.0, "p99": 1000.0, "max": 1000.0}}, "for 1000 ms"),
        ({"outage_ms": {"p50": 560.0, "p99": float("inf"), "max": float("inf")}}, "for inf ms"),
        ({"buckets_unserved_after": 2}, "2 buckets were not served"),
        ({"buckets_double_served": 1}, "1 buckets were served by two"),
    ],
)
def test_a_missed_goal_of_the_crash_is_said(change: dict[str, object], words: str) -> None:
    results = good()
    assert results.crash is not None
    results.crash = replace(results.crash, **change)  # type: ignore[arg-type]
    assert any(words in failure for failure in results.failures())
    json.dumps(results.as_json(), allow_nan=False)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, part) for part in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([1.0, 2.0], 0.5) == 1.0
    assert percentile([], 0.5) == 0.0
