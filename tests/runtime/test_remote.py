"""Commands for other nodes, over the heartbeats."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.bench import Bench, give, make, until

from nlbfarm.core.orders import Result
from nlbfarm.core.wire import VERSION
from nlbfarm.errors import NlbfarmError, UsageError
from nlbfarm.heartbeat.memory import SimulatedNetwork
from nlbfarm.parts import SystemClock
from nlbfarm.runtime import Runtime, Verb
from nlbfarm.status import status


async def test_an_order_from_another_node_is_carried_out(pair: tuple[Bench, Bench]) -> None:
    one, two = pair
    given = await two.runtime.remote.give(1, "one", Verb("stop"), 5.0)
    await until(lambda: given.ended is Result.DONE and one.state == "STOP" and two.own == 256)
    assert two.runtime.remote.given(given.number).text == "stopped"
    given = await two.runtime.remote.give(1, "one", Verb("start"), 5.0)
    assert given.text == "started"
    await until(lambda: one.own == 128)
    given = await two.runtime.remote.give(1, "one", Verb("power", power=3), 5.0)
    assert given.text == "power now: web 3"
    with pytest.raises(NlbfarmError, match='no group "wob"'):
        await two.runtime.remote.give(1, "one", Verb("power", power=3, group="wob"), 5.0)
    with pytest.raises(NlbfarmError, match="part of another program"):
        await two.runtime.remote.give(1, "one", Verb("restart", process=True), 5.0)
    with pytest.raises(UsageError, match="no order 99"):
        two.runtime.remote.given(99)


async def test_an_order_for_a_node_that_is_not_heard_says_so(pair: tuple[Bench, Bench]) -> None:
    one, two = pair
    one.runtime.stop()
    await one.runtime.wait()
    await one.runtime.close()
    await until(lambda: two.own == 256)
    node = two.runtime.running()
    await until(lambda: not list(node.hearing.heard(asyncio.get_running_loop().time())))
    with pytest.raises(NlbfarmError, match="one is not heard from here"):
        await two.runtime.remote.give(1, "one", Verb("start"), 1.0)


async def test_a_node_of_an_older_version_takes_no_orders_and_is_named(tmp_path: Path) -> None:
    network = SimulatedNetwork(SystemClock())
    old, new = make(1, network, tmp_path, newest=1), make(2, network, tmp_path)
    # Its digest is of everything that version 1 covers; the other one knows both.
    parts = old.runtime.parts
    old.runtime = Runtime(replace(parts, settings=replace(parts.settings, config_digest=b"1" * 8)))
    new.runtime = Runtime(replace(new.runtime.parts, former_digest=b"1" * 8))
    try:
        for bench in (old, new):
            await bench.runtime.open()
        await until(lambda: (old.own, new.own) == (128, 128))
        with pytest.raises(NlbfarmError, match="one runs an older nlbfarm"):
            await new.runtime.remote.give(1, "one", Verb("start"), 1.0)
        told = await status(new.runtime)
        assert [node["wire_version"] for node in told["nodes"]] == [1, VERSION]
        await give(new, "drain")
        await until(lambda: old.own == 256)
    finally:
        for bench in (old, new):
            await bench.runtime.close()
