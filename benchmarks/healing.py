"""The network falls apart and heals: what each side served, and for how long both served the same then."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.host import about
from nlbfarm.lab import Lab, acts
from nlbfarm.lab.acts import Stage

NODES = 3


def measure(repeat: int, server: str) -> dict[str, Any]:
    """Return the figures of each healing.

    Args:
        repeat: How many.
        server: Web server of the nodes.
    """
    with Lab(NODES, server) as lab:
        lab.start()
        lab.settle()
        stage = Stage(lab, lambda sentence: print(sentence, file=sys.stderr))
        with stage.probed(rate=1000):
            runs = [acts.partition(stage) for _ in range(repeat)]
        host = about(lab)
    last = sorted(run.double_ms["max"] for run in runs)
    return {
        "benchmark": "healing",
        **host,
        "repeat": repeat,
        "served_twice_ms": {"p50": round(last[(len(last) - 1) // 2], 1), "max": round(last[-1], 1)},
        "double_served_late": sum(run.double_served_late for run in runs),
        "runs": [run.as_json()["partition"] for run in runs],
    }
