"""Random schedules of faults for a simulated farm; the seed decides everything."""

from __future__ import annotations

import random

from nlbfarm.testing.farm import SimulatedFarm

FAULTS = ("crash", "kill", "freeze", "pause", "start", "stop", "health")
CUTS = ("cut", "one-way", "partition", "heal")
SETTLE_S = 9.0
"""Simulated seconds after the last fault, within which the farm has to be whole again."""


def run_schedule(seed: int, most_nodes: int = 6) -> SimulatedFarm:
    """Start a farm, do things to it, make the network whole, start every node, and check the invariants.

    Raises:
        ViolationError: An invariant does not hold.
    """
    rng = random.Random(seed)
    nodes = rng.randint(2, most_nodes)
    kinds = rng.choice([FAULTS, CUTS, FAULTS + CUTS])
    farm = SimulatedFarm(
        nodes,
        seed,
        loss=rng.choice([0.0, 0.0, 0.02, 0.05]),
        duplicate=rng.choice([0.0, 0.1]),
        delay_s=rng.choice([(0.0001, 0.001), (0.001, 0.02)]),
        groups=rng.choice([1, 1, 2, 8]),
        codec=rng.random() < 0.25,
        ordered=rng.random() < 0.5,
    )
    farm.strict = kinds == FAULTS
    for node in farm.hosts:
        farm.at(rng.uniform(0.0, 1.0), lambda node=node: farm.start(node))  # type: ignore[misc]
    when = rng.uniform(0.5, 3.0)
    for _ in range(rng.randint(1, 10)):
        farm.at(when, lambda: do(farm, rng.choice(kinds), rng))
        when += rng.choice([0.0, 0.05, 0.3, 0.7, 1.5]) * rng.random() * 2
    farm.at(when + 0.1, lambda: settle(farm))
    farm.at(when + 4.0, lambda: settle(farm))
    farm.run(when + SETTLE_S)
    farm.check_whole()
    return farm


def do(farm: SimulatedFarm, kind: str, rng: random.Random) -> None:
    """Do one thing to the farm."""
    running = [node for node, host in farm.hosts.items() if host.core is not None]
    down = [node for node in farm.hosts if node not in running]
    ids = list(farm.hosts)
    match kind:
        case "crash" if running:
            farm.crash(rng.choice(running))
        case "kill" if running:
            farm.kill(rng.choice(running))
        case "freeze" if running:
            farm.freeze(rng.choice(running), rng.choice([0.2, 0.35, 0.45, 0.5, 0.6, 1.0, 2.0]))
        case "pause" if running:
            farm.pause(rng.choice(running), rng.choice([0.2, 0.45, 0.6, 2.0, 5.0]))
        case "start" if down:
            farm.start(rng.choice(down))
        case "stop" if running:
            farm.stop(rng.choice(running))
        case "health" if running:
            farm.healthy(rng.choice(running), rng.random() < 0.5)
        case "cut" | "one-way":
            one, other = rng.sample(ids, 2)
            farm.cut(one, other)
            if kind == "cut":
                farm.cut(other, one)
        case "partition":
            side = set(rng.sample(ids, rng.randint(1, len(ids) - 1)))
            for one in ids:
                for other in ids:
                    if (one in side) != (other in side):
                        farm.cut(one, other)
        case "heal":
            farm.heal()
        case _:
            pass


def settle(farm: SimulatedFarm) -> None:
    """Make the network whole and lossless, and see that every node runs and is healthy."""
    farm.heal()
    farm.loss = 0.0
    for node, host in farm.hosts.items():
        if host.core is None:
            farm.start(node)
        elif not host.core.condition.stopping:
            farm.healthy(node, True)
