"""Another configuration while the node runs."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.runtime.bench import NAMES, VIP, Bench, Page, give, make, until

from nlbfarm.core.wire import Codec, Keyring
from nlbfarm.errors import UsageError
from nlbfarm.heartbeat.memory import SimulatedNetwork
from nlbfarm.interfaces import CheckResult
from nlbfarm.parts import Check, SystemClock
from nlbfarm.status import status


async def test_a_peer_that_is_new_is_taken_in_and_one_that_is_gone_forgotten(tmp_path: Path) -> None:
    network = SimulatedNetwork(SystemClock())
    benches = [make(number, network, tmp_path) for number in (1, 2)]
    third = make(3, network, tmp_path)
    address = [IPv4Address("192.0.2.3")]
    try:
        for bench in benches:
            bench.runtime.parts.heartbeat.set_peers(bench.runtime.parts.peers)
        for bench in (*benches, third):
            await bench.runtime.open()
        await until(lambda: [bench.own for bench in benches] == [128, 128])
        for bench in benches:
            parts = bench.runtime.parts
            settings = replace(parts.settings, nodes=NAMES, drain_timeout=7.0)
            await bench.runtime.reconfigure(
                replace(parts, settings=settings, peers={**parts.peers, 3: address})
            )
        await until(lambda: sorted(bench.own for bench in (*benches, third)) == [85, 85, 86])
        assert (await status(benches[0].runtime))["drain_timeout_s"] == 7.0
        third.runtime.administration.remove()
        for bench in benches:
            parts = bench.runtime.parts
            peers = {node: its for node, its in parts.peers.items() if node != 3}
            settings = replace(parts.settings, nodes={1: "one", 2: "two"})
            await bench.runtime.reconfigure(replace(parts, settings=settings, peers=peers))
        await until(lambda: [bench.own for bench in benches] == [128, 128])
        await until(lambda: third.state == "STOP" and VIP not in third.host.addresses)
        assert "no longer in the configuration" in " ".join((await status(third.runtime))["warnings"])
        with pytest.raises(UsageError, match="no longer in the configuration"):
            await give(third, "start")
        assert all(3 in bench.runtime.running().settings.nodes for bench in benches)
        await third.runtime.close()
        for bench in benches:
            await until(lambda: 3 not in bench.runtime.running().settings.nodes)  # noqa: B023 - awaited here
            with pytest.raises(UsageError):
                bench.runtime.parts.heartbeat.send(b"", [3])
    finally:
        for bench in (*benches, third):
            await bench.runtime.close()


async def test_keys_are_rotated_without_a_heartbeat_lost(pair: tuple[Bench, Bench]) -> None:
    new = bytes(range(16))
    steps = (
        Keyring({1: b"sixteen bytes ok", 2: new}, 1),
        Keyring({1: b"sixteen bytes ok", 2: new}, 2),
        Keyring({2: new}, 2),
    )
    for keyring in steps:
        for bench in pair:
            parts = bench.runtime.parts
            await bench.runtime.reconfigure(replace(parts, codec=Codec("t", keyring)))
            sequence = bench.runtime.running().sequence
            await until(lambda: bench.runtime.running().sequence > sequence + 10)  # noqa: B023 - awaited here
            assert [one.own for one in pair] == [128, 128]
    assert all(bench.runtime.rejections.counts == {} for bench in pair)


async def test_checkers_are_replaced_while_the_node_runs(pair: tuple[Bench, Bench]) -> None:
    one, _ = pair
    parts = one.runtime.parts
    page, other = parts.checks[0], Page()
    other.does = lambda: CheckResult(False, "HTTP 503")
    checks = [page, Check("other", "http", other, interval=0.02, timeout=0.05, rise=1, fall=1)]
    await one.runtime.reconfigure(replace(parts, checks=checks))
    await until(lambda: one.state == "WAIT" and one.reason == "other: HTTP 503")
    await one.runtime.reconfigure(replace(one.runtime.parts, checks=[page]))
    await until(lambda: one.state == "UP" and one.own == 128)
    assert other.closed
    assert not one.page.closed
    assert [check["name"] for check in (await status(one.runtime))["checkers"]] == ["page"]
