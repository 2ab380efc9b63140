"""How long the guard of the windivert backend takes: from ``kill -9`` of the loop to a handle that drops.

Where a dead process's handles are gone at once everything passes in that time. The eBPF engine keeps a dead
process's programs closed for 3 s, so the test takes them away right after the kill; it sends packets all the
time. ``NLBFARM_WINDIVERT_KILLS=20`` repeats it more often; no time is asserted.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from tests.netns.filter_child import policy
from tests.netns.packets import Bench
from tests.netns.support import eventually
from tests.netns.test_windivert import VIP, syn

from nlbfarm.backends.windivert import WinDivertBackend, leftovers
from nlbfarm.backends.windivert.shared import Word
from nlbfarm.core.buckets import ALL, BucketStates

pytestmark = pytest.mark.netns

KILLS = int(os.environ.get("NLBFARM_WINDIVERT_KILLS", "1"))


@pytest.fixture
def bench(rng: random.Random) -> Iterator[Bench]:
    bench = Bench([VIP], (80,), rng)
    try:
        with bench.node.entered():
            yield bench
    finally:
        bench.close()


class Flood(threading.Thread):
    """Sends a new flow every millisecond and notes when."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(daemon=True)
        self.bench = bench
        self.sent: dict[int, float] = {}
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            at = time.monotonic()
            self.sent[self.bench.send(syn(self.bench.rng))] = at
            self.stop.wait(0.001)


async def test_how_long_the_guard_takes(bench: Bench) -> None:
    backend = WinDivertBackend()
    damages: list[str] = []
    await backend.open(policy("race"), damages.append)
    opened: list[float] = []
    accepted: list[float] = []
    try:
        for _ in range(KILLS):
            await backend.apply({"web": BucketStates(own=ALL)})
            assert backend.lease(0.3)
            bench.forget()
            flood = Flood(bench)
            flood.start()
            await asyncio.sleep(0.05)
            judging, shared = backend._judging, backend._shared
            assert judging is not None
            assert shared is not None
            program = next(p for p in leftovers.programs(["eth0"]) if p.of_loop and p.interface == "eth0")
            delete = ["tc", "filter", "del", "dev", "eth0", "ingress", "pref", str(program.pref)]
            killed = time.monotonic()
            os.kill(judging.pid, signal.SIGKILL)
            subprocess.run(delete, check=True)
            await eventually(lambda: shared[Word.DROPPING_SINCE] != 0, "the guard drops")  # noqa: B023
            dropping = shared[Word.DROPPING_SINCE] / 1e9
            await asyncio.sleep(0.05)
            flood.stop.set()
            flood.join()
            bench.settle()
            through = [flood.sent[number] for number in bench.seen(4) if number in flood.sent]
            late = [at for at in through if at > dropping]
            assert not late, f"{len(late)} packets were accepted while the guard's handle was open"
            opened.append(dropping - killed)
            accepted.append(max([at - killed for at in through if at > killed], default=0.0))
            await eventually(lambda: bool(damages), "the damage is told")
            damages.clear()
            await backend.repair()
    finally:
        await backend.close()
    for what, values in (("the guard's handle is open", opened), ("the last packet was accepted", accepted)):
        middle, most = statistics.median(values) * 1000, max(values) * 1000
        print(f"\n{what} after the kill: p50 {middle:.0f} ms, max {most:.0f} ms, {KILLS} kills")
