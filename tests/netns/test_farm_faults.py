"""A farm of real processes behind real servers, and what happens when a part of it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab import Lab, Probing

pytestmark = pytest.mark.netns

LEASE = 0.3
REST = ("web1", "web3")


@pytest.fixture(scope="module")
def farm() -> Iterator[Lab]:
    """Yield a farm of three that serves; every test leaves it so."""
    with Lab(nodes=3) as lab:
        lab.start()
        lab.settle()
        yield lab


def owned_by(lab: Lab, node: str, placement: tuple[int, ...]) -> list[int]:
    return [bucket for bucket, owner in enumerate(placement) if owner == lab.id_of(node)]


def test_a_frozen_node_falls_silent_before_the_others_take_over(farm: Lab) -> None:
    placement = farm.settle()
    with Probing(farm, rate=800, held=16) as probing:
        at = farm.freeze("web2")
        farm.settle(*REST)
        probing.wait_until(at + 2.5)
        late = [r for r in probing.requests(at + LEASE, at + 2.5, held=False) if r.node == "web2"]
        assert late == []
        outages = probing.outages(owned_by(farm, "web2", placement), at + LEASE)
        assert max(outages.values()) < 1
        thawed = farm.thaw("web2")
        farm.settle()
        probing.wait_until(time.monotonic() + 1)
        assert max(probing.outages(range(BUCKETS), probing.seen - 1).values()) < 1
        # A node that wakes up must look around before it serves: at no time two answers.
        assert probing.doubles() == []
        assert {r.node for r in probing.requests(thawed + 1, held=False) if r.answered} >= {"web2"}


def test_a_killed_process_is_replaced_and_comes_back(farm: Lab) -> None:
    placement = farm.settle()
    with Probing(farm, rate=800, held=0) as probing:
        at = farm.kill("web2")
        farm.settle(*REST)
        probing.wait_until(time.monotonic() + 1)
        assert [r for r in probing.requests(at + LEASE, held=False) if r.node == "web2"] == []
        assert max(probing.outages(owned_by(farm, "web2", placement), at).values()) < 1
        farm.start("web2")
        farm.settle()
        probing.wait_until(time.monotonic() + 0.5)
        assert probing.doubles() == []


def test_a_flushed_ruleset_is_repaired_and_nobody_answers_twice(farm: Lab) -> None:
    placement = farm.settle()
    with Probing(farm, rate=800, held=32) as probing:
        for _ in range(3):
            at = time.monotonic()
            farm.exec("web2", ["nft", "flush", "ruleset"])

            def repaired() -> bool:
                return "nlbfarm" in farm.exec("web2", ["nft", "list", "tables"]).out

            farm.wait_for(repaired, 10, "the table of web2 to be back")
            farm.settle()
            probing.wait_until(time.monotonic() + 0.5)
            mine = owned_by(farm, "web2", placement)
            assert max(probing.outages(range(BUCKETS), at).values()) < 3
            spoiled = [
                r for r in probing.requests(at, held=True) if r.bucket not in mine and r.error == "ECONNRESET"
            ]
            assert spoiled == []
        assert probing.doubles() == []
        since = probing.seen
        probing.wait_until(since + 1)
        assert {r.node for r in probing.requests(since, held=False) if r.answered} == {"web1", "web2", "web3"}


def test_a_node_whose_server_is_down_waits_and_comes_back(farm: Lab) -> None:
    with Probing(farm, rate=500, held=0) as probing:
        farm.stop_server("web2")
        farm.wait_for(
            lambda: farm.status("web2")["state"] == "WAIT", 15, "web2 to see that its server is down"
        )
        status = farm.status("web2")
        assert "page" in status["reason"]
        assert [check["ok"] for check in status["checkers"]] == [False]
        farm.settle(*REST)
        without = time.monotonic()
        probing.wait_until(without + 1)
        assert {r.node for r in probing.requests(without, without + 1) if r.answered} == set(REST)
        assert probing.failed(without, without + 0.9) == 0
        farm.start_server("web2")
        farm.settle(timeout=30)
        assert farm.status("web2")["state"] == "UP"
        probing.wait_until(time.monotonic() + 0.5)
        assert probing.doubles() == []


def test_one_heartbeat_network_down_costs_nothing(farm: Lab) -> None:
    placement = farm.settle()
    with Probing(farm, rate=500, held=8) as probing:
        at = farm.links("web2", up=False, networks=[1])
        try:

            def noticed() -> bool:
                nodes = farm.status("web1")["nodes"]
                networks = next(node["networks"] for node in nodes if node["name"] == "web2")
                return [network["alive"] for network in networks] == [True, False]

            farm.wait_for(noticed, 5, "web1 to miss web2 on the second network")
            probing.wait_until(time.monotonic() + 1)
            assert farm.settle() == placement
            assert probing.failed(at, probing.seen - 1) == 0
        finally:
            farm.links("web2", up=True, networks=[1])
