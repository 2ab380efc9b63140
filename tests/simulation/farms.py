"""Simulated farms that serve, and what can be asked of them."""

from __future__ import annotations

from nlbfarm.core.buckets import ALL
from nlbfarm.testing.applications.model import Applications
from nlbfarm.testing.farm import SimulatedFarm


def started(nodes: int = 3, seed: int = 1, **options: object) -> SimulatedFarm:
    """Return a farm that serves."""
    farm = SimulatedFarm(nodes, seed, **options)  # type: ignore[arg-type]
    farm.invariants.strict = True
    for node in farm.hosts:
        farm.start(node)
    farm.run(2.0)
    farm.check_whole()
    return farm


def served(farm: SimulatedFarm) -> int:
    """Return how many buckets of the first group anybody accepts now."""
    taken = 0
    for host in farm.hosts.values():
        taken |= host.accepts(0, farm.now)
    return taken.bit_count()


def shares(farm: SimulatedFarm) -> dict[int, int]:
    """Return how many buckets each node accepts now."""
    return {node: host.accepts(0, farm.now).bit_count() for node, host in farm.hosts.items()}


def first_time_served(farm: SimulatedFarm, until: float) -> float:
    """Return when all buckets are served, looked at every millisecond."""
    while farm.now < until:
        farm.run(farm.now + 0.001)
        served = 0
        for host in farm.hosts.values():
            served |= host.accepts(0, farm.now)
        if served == ALL:
            return farm.now
    raise AssertionError(f"not whole by {until}")


def supervised(applications: Applications, nodes: int = 3, seed: int = 1) -> SimulatedFarm:
    """Return a farm that serves, with these applications on every host, which do nothing by themselves."""
    farm = SimulatedFarm(nodes, seed, applications=applications, drain_timeout=1.0)
    farm.invariants.strict = True
    farm.wild = False
    for node in farm.hosts:
        farm.start(node)
    farm.run(3.0)
    farm.applications.quiet()
    farm.check_whole()
    return farm
