"""A machine loses its power: how long each of its buckets is unserved, at default timing and at a fast one.

The client asks the buckets of the machine that is lost and no others, each again 25 ms after a SYN that was
not answered: by so much the outage is overstated at most.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.host import about, forgive
from nlbfarm.lab import Lab, Probing, percentile

NODES = 3

PROFILES: Mapping[str, str] = {
    "default": "",
    "fast": 'interval = "30ms"\nlost_after = 5\nlease = "90ms"',
}
"""Lines of ``[heartbeat]``."""


def measure(repeat: int, server: str) -> dict[str, Any]:
    """Return the outage over all buckets of all repetitions, for each profile.

    Args:
        repeat: How many machines are lost, each node in turn, for each profile.
        server: Web server of the nodes.
    """
    results: dict[str, Any] = {"benchmark": "outage", "repeat": repeat}
    for name, heartbeat in PROFILES.items():
        with Lab(NODES, server, heartbeat=heartbeat) as lab:
            lab.start()
            lab.settle()
            results |= about(lab)
            runs = []
            for number in range(repeat):
                runs.append(_lose(lab, lab.names[number % NODES]))
                print(f"{name} {number + 1}/{repeat}: max {max(runs[-1]) * 1000:.0f} ms", file=sys.stderr)
        results[name] = {
            "heartbeat": heartbeat.replace("\n", ", "),
            "outage_ms": _spread([outage for run in runs for outage in run]),
            "max_ms_of_each": [round(max(run) * 1000, 1) for run in runs],
        }
    return results


def _lose(lab: Lab, victim: str) -> list[float]:
    rest = [node for node in lab.names if node != victim]
    lost = [bucket for bucket, owner in enumerate(lab.settle()) if owner == lab.id_of(victim)]
    with Probing(lab, rate=1000, held=0, buckets=lost, abandon=0.025) as probing:
        probing.wait_until(probing.seen + 0.5)
        time.sleep(random.uniform(0, 0.1))  # any phase of the heartbeat
        at = lab.crash(victim)
        lab.settle(*rest)
        probing.wait_until(time.monotonic() + 0.5)
        outages = list(probing.outages(lost, at).values())
    forgive(lab, victim)
    lab.boot(victim)
    lab.start(victim)
    lab.settle(timeout=30)
    return outages


def _spread(seconds: list[float]) -> dict[str, float]:
    values = {"p50": percentile(seconds, 0.5), "p99": percentile(seconds, 0.99), "max": max(seconds)}
    return {name: round(value * 1000, 1) for name, value in values.items()}
