"""Planned changes under held connections that keep talking: how many break, and how many new ones fail.

Join, drain, stop, restart of the process, power and reload, one after the other on one farm of three.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.host import about
from nlbfarm.lab import Lab, Talking, acts
from nlbfarm.lab.acts import Planned, Stage

NODES = 3

OPERATIONS: Mapping[str, Callable[[Stage], Planned]] = {
    "join": acts.join,
    "drain": acts.drain,
    "stop": acts.stop,
    "restart": acts.restart,
    "power": acts.power,
    "reload": acts.reload,
}


def measure(held: int, rate: float, server: str, repeat: int) -> dict[str, Any]:
    """Return what each operation cost.

    Args:
        held: Held connections; each talks once a second.
        rate: New connections a second.
        server: Web server of the nodes.
        repeat: How often each operation is done.
    """
    operations: dict[str, list[dict[str, Any]]] = {name: [] for name in OPERATIONS}
    trouble: list[str] = []
    with Lab(NODES, server) as lab:
        lab.start()
        lab.settle()
        stage = Stage(lab, lambda sentence: print(sentence, file=sys.stderr))
        with stage.talked(held=held, rate=rate) as talking:
            for name, operation in [*OPERATIONS.items()] * repeat:
                _fresh(stage, talking)
                if name == "join":
                    _leave(stage, talking)
                planned = operation(stage)
                operations[name].append(planned.as_json()[name])
                trouble += [f"{name}: {line}" for line in planned.trouble]
        host = about(lab)
    everything = [one for each in operations.values() for one in each]
    return {
        "benchmark": "handoff",
        **host,
        "held": held,
        "rate": rate,
        "operations": operations,
        "broken_connections": sum(one["broken_connections"] for one in everything),
        "failed_connections": sum(one["failed_connections"] for one in everything),
        "syn_retransmits": sum(one["syn_retransmits"] for one in everything),
        "trouble": trouble,
    }


def _fresh(stage: Stage, talking: Talking) -> None:
    """Give every operation the same start: all connections young, and no bucket on its way."""
    talking.turn_over()
    stage.operator.wait_quiet()
    talking.wait_for_all()


def _leave(stage: Stage, talking: Talking) -> None:
    """End the victim's process in good order, so that it can join."""
    stage.lab.terminate(stage.victim)
    stage.lab.settle(*stage.rest)
    talking.turn_over()
    stage.lab.wait_ended(stage.victim)
    talking.wait_for_all()
