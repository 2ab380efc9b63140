"""Leaders are killed again and again: is every bucket served in between, and do epochs only rise?"""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.host import about, forgive
from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab import Lab, Probing

NODES = 3


def measure(repeat: int, server: str) -> dict[str, Any]:
    """Return what was served between the kills.

    Args:
        repeat: How many leaders are killed (SIGKILL of the process).
        server: Web server of the nodes.
    """
    epochs: list[list[int]] = []
    unserved = 0
    with Lab(NODES, server) as lab:
        lab.start()
        lab.settle()
        host = about(lab)
        with Probing(lab, rate=800, held=32) as probing:
            for number in range(repeat):
                status = lab.status(lab.names[number % NODES])
                epochs.append(status["epoch"])
                leader = lab.names[status["leader"] - 1]
                lab.kill(leader)
                lab.settle(*[node for node in lab.names if node != leader])
                unserved += _unserved(probing)
                epochs.append(lab.status(lab.running[0])["epoch"])
                forgive(lab, leader)
                lab.start(leader)
                lab.settle(timeout=30)
                unserved += _unserved(probing)
                print(f"{number + 1}/{repeat}: killed {leader}, epoch {epochs[-1]}", file=sys.stderr)
            doubles = len(probing.doubles())
    return {
        "benchmark": "leaders",
        **host,
        "repeat": repeat,
        "buckets_unserved": unserved,
        "double_served": doubles,
        "epochs_only_rise": epochs == sorted(epochs) and len({tuple(epoch) for epoch in epochs}) > repeat,
        "last_epoch": epochs[-1],
    }


def _unserved(probing: Probing) -> int:
    """Return how many buckets nobody answers, once the farm has settled."""
    since = time.monotonic()
    probing.wait_until(since + 1)
    served = probing.served(since)
    return BUCKETS - sum(bool(counter) for counter in served)
