"""Many schedules, in one process or in several side by side."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from nlbfarm.testing.breaks import broken
from nlbfarm.testing.chance import random_schedule
from nlbfarm.testing.schedules import play

__all__ = ["Failure", "Summary", "run_all", "run_batch"]

BATCH = 25


@dataclass(slots=True)
class Failure:
    """A schedule that broke a rule."""

    seed: int
    rule: str
    message: str


@dataclass(slots=True)
class Summary:
    """What came out of many schedules."""

    schedules: int = 0
    violations: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    simulated_hours: float = 0.0
    datagrams: int = 0
    connections: int = 0
    broken_connections: int = 0
    syn_retransmits: int = 0
    planned_schedules: int = 0
    planned_connections: int = 0
    planned_broken_connections: int = 0
    longest_settling_s: float = 0.0
    services_restarted: int = 0
    services_given_up: int = 0
    nodes_taken_out: int = 0
    nodes: dict[int, int] = field(default_factory=dict)
    """How many schedules had so many nodes."""
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Summary) -> None:
        """Count in what ``other`` has counted."""
        for name in self.__slots__:
            mine, more = getattr(self, name), getattr(other, name)
            if name == "nodes":
                for size, count in more.items():
                    mine[size] = mine.get(size, 0) + count
            elif name == "longest_settling_s":
                self.longest_settling_s = max(mine, more)
            else:
                setattr(self, name, mine + more)


def run_batch(
    seeds: Sequence[int], nodes: tuple[int, int], family: str | None, breaking: str | None
) -> Summary:
    """Run the schedules of these seeds, one after the other."""
    summary = Summary()
    begun = time.process_time()
    gc.disable()  # a run is short and leaves everything behind at once
    try:
        with broken(breaking):
            for seed in seeds:
                _run_one(seed, nodes, family, summary)
    finally:
        gc.enable()
        gc.collect()
    summary.cpu_seconds = time.process_time() - begun
    return summary


def _run_one(seed: int, nodes: tuple[int, int], family: str | None, summary: Summary) -> None:
    schedule = random_schedule(seed, nodes, family)
    outcome = play(schedule)
    summary.schedules += 1
    summary.simulated_hours += outcome.simulated_s / 3600
    summary.datagrams += outcome.datagrams
    summary.connections += outcome.opened
    summary.broken_connections += outcome.broken
    summary.syn_retransmits += outcome.retransmits
    summary.services_restarted += outcome.restarts
    summary.services_given_up += outcome.given_up
    summary.nodes_taken_out += outcome.taken_out
    summary.longest_settling_s = max(summary.longest_settling_s, outcome.settled_s)
    summary.nodes[schedule.nodes] = summary.nodes.get(schedule.nodes, 0) + 1
    if schedule.planned:
        summary.planned_schedules += 1
        summary.planned_connections += outcome.opened
        summary.planned_broken_connections += outcome.broken
    if outcome.violation is not None:
        summary.violations += 1
        message = str(outcome.violation).partition("\n")[0]
        summary.failures.append(Failure(seed, outcome.violation.rule, message))


def run_all(
    seeds: Sequence[int],
    nodes: tuple[int, int],
    family: str | None,
    breaking: str | None,
    jobs: int,
    advance: Callable[[Summary], None],
) -> Summary:
    """Run the schedules of these seeds in ``jobs`` processes.

    Args:
        seeds: Of the schedules.
        nodes: Fewest and most nodes of a farm.
        family: Which kind of schedules; ``None`` for all.
        breaking: Which rule is disabled; ``None`` for none.
        jobs: How many processes; with one, it is this one.
        advance: Told, from time to time, what came out of some more.
    """
    total = Summary()
    for part in _parts(seeds, nodes, family, breaking, jobs):
        total.add(part)
        advance(part)
    total.failures.sort(key=lambda failure: failure.seed)
    return total


def _parts(
    seeds: Sequence[int], nodes: tuple[int, int], family: str | None, breaking: str | None, jobs: int
) -> Iterator[Summary]:
    batches = [seeds[at : at + BATCH] for at in range(0, len(seeds), BATCH)]
    if jobs == 1:
        for batch in batches:
            yield run_batch(batch, nodes, family, breaking)
        return
    with ProcessPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_batch, batch, nodes, family, breaking) for batch in batches]
        for future in as_completed(futures):
            yield future.result()
