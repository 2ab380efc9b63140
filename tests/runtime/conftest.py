"""A pair of nodes that share the buckets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.runtime.bench import Bench, make, until

from nlbfarm.heartbeat.memory import SimulatedNetwork
from nlbfarm.parts import SystemClock


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Bench, Bench]]:
    """Return two nodes that share the buckets."""
    network = SimulatedNetwork(SystemClock())
    benches = (make(1, network, tmp_path), make(2, network, tmp_path))
    for bench in benches:
        await bench.runtime.open()
    await until(lambda: [bench.own for bench in benches] == [128, 128])
    yield benches
    for bench in benches:
        await bench.runtime.close()
        assert bench.host.addresses == {}
        assert bench.page.closed
