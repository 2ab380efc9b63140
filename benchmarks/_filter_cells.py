"""The figures of the filter benchmark: fresh nodes, a filter in each, loads, and what came of it."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from benchmarks._filter_host import Meter, Node, Window, Wire, cpu_clock, pin
from benchmarks._filter_load import FLOWS, Generator, Kind, pick
from benchmarks._filter_subjects import Running, Subject
from nlbfarm.errors import NlbfarmError

EMPTY, DROP = "empty chain", "plain drop"

_WALL = 20  # times the CPU time that a window is meant to take: on a busy host
_QUIET_S = 0.02
_DRAIN_S = 10.0
_FLOOD_S = 0.2  # until the buffers are full
_SHORTEST_QUEUE = 4096  # of the libraries', in packets
_MOST_LOST = 0.02
_TOLERANCE = 0.005  # of packets that were not judged as expected: none, but for packets lost to full buffers


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured.

    Args:
        name: Name of what is measured.
        kind: Of the packets.
        owned: Per cent of the buckets that the node owns.
        rules: How many services the filter knows; the packets are for all of them alike.
    """

    name: str
    kind: Kind
    owned: int
    rules: int


@dataclass(frozen=True, slots=True)
class Line:
    """A wire and the generator at its end."""

    wire: Wire
    generator: Generator


Lines = Mapping[tuple[Kind, int], Sequence[Line]]
"""For each kind of packets and number of rules as many as are needed at once."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one repetition says of a cell: medians over its rounds.

    Args:
        ns: CPU time a packet.
        added_ns: How much more than through an empty chain, in the same round.
        over_drop_ns: How much more than at a plain drop, in the same round; ``None`` unless it was measured.
        user_ns: CPU time a packet in the filter's own processes.
        lost: The share of packets that found a buffer full.
    """

    ns: float
    added_ns: float
    over_drop_ns: float | None
    user_ns: float
    lost: float


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast user space decided.

    Args:
        per_second: Packets decided on, a second.
        per_cpu_second: The same, a second of its processes' CPU time.
        busy: CPU time of its processes, of one CPU's.
    """

    per_second: float
    per_cpu_second: float
    busy: float


@dataclass(slots=True)
class _Place:
    subject: Subject
    cell: Cell
    node: Node
    generator: Generator
    running: Running
    windows: list[Window] = field(default_factory=list)
    lost: float = 0.0


async def cost(
    cells: Collection[Cell],
    subjects: Mapping[str, Subject],
    lines: Lines,
    meter: Meter,
    *,
    rounds: int,
    seconds: float,
    chance: random.Random,
    failed: list[str],
) -> dict[Cell, Sample]:
    """Measure cells beside each other: all are in place at once and take turns, in short windows.

    So whatever makes the host faster and slower from one second to the next does it to all of them.

    Args:
        cells: What; with an empty chain for each kind and number of rules.
        subjects: By name.
        lines: To the nodes.
        meter: Reads clocks; knows the CPU of it all.
        rounds: How many turns each has.
        seconds: CPU time of a generator in a turn.
        chance: Deals lines and turns.
        failed: Gets a line for each cell that could not be measured; it has no sample.
    """
    free = {key: chance.sample(list(some), len(some)) for key, some in lines.items()}
    places: dict[Cell, _Place] = {}
    async with AsyncExitStack() as stack:
        for cell in chance.sample(list(cells), len(cells)):
            line = free[cell.kind, cell.rules].pop()
            try:
                places[cell] = await _place(stack, subjects[cell.name], cell, line, meter.cpu)
            except (NlbfarmError, RuntimeError, TimeoutError) as error:
                failed.append(f"{cell}: {error}")
        for _ in range(rounds):
            for cell in chance.sample(list(places), len(places)):
                try:
                    places[cell].windows.append(await _turn(places[cell], meter, seconds))
                except RuntimeError as error:
                    failed.append(f"{cell}: {error}")
                    del places[cell]
    windows = {cell: place.windows for cell, place in places.items()}
    return {cell: sample for cell, place in places.items() if (sample := _sample(place, windows)) is not None}


async def _place(stack: AsyncExitStack, subject: Subject, cell: Cell, line: Line, cpu: int) -> _Place:
    # Before the filter has a lease, which nobody renews while this goes on.
    opened = pick(cell.kind, cell.rules, FLOWS[cell.kind]) if cell.kind is Kind.ESTABLISHED else []
    node = stack.enter_context(line.wire.node())
    with node.entered():
        running = await stack.enter_async_context(subject.put(node, cell.owned, cell.rules))
    for process in running.processes:
        pin(process, cpu)
    await node.connect(opened)
    return _Place(subject, cell, node, line.generator, running)


async def _turn(place: _Place, meter: Meter, seconds: float) -> Window:
    new = place.cell.kind is Kind.NEW
    if place.subject.tracks and new:
        place.node.forget()
    if place.subject.user_space:
        # So the filter's process runs as soon as it has a packet, and no buffer fills.
        place.generator.prefer_others()
    else:
        place.generator.prefer_nobody()
    _, lost = await _counts(place.node, place.running)
    window = await meter.measure(
        place.node,
        place.generator,
        cpu_seconds=seconds,
        most_seconds=_WALL * seconds,
        most_packets=_most_packets(place),
        processes=place.running.processes,
        settle=_settle if place.subject.user_space else None,
    )
    _, lost_then = await _counts(place.node, place.running)
    if window.packets == 0:
        raise RuntimeError("no packet arrived")
    if place.subject.tracks and new and place.node.tracked() < 0.99 * window.packets:
        raise RuntimeError(f"of {window.packets} flows only {place.node.tracked()} were new")
    share = (lost_then - lost) / window.packets
    place.lost = max(place.lost, share)
    _check(place.subject, place.cell, window.accepted / window.packets, share)
    return window


def _most_packets(place: _Place) -> int:
    """Return after how many packets a turn ends; there is time to stop until twice as many."""
    if place.subject.user_space:
        return _SHORTEST_QUEUE // 2
    return FLOWS[Kind.NEW] // 2 if place.cell.kind is Kind.NEW else 0  # a flow is new only once


async def _settle(node: Node, processes: Collection[int]) -> None:
    """Wait until the filter's processes have nothing left to do."""
    deadline = time.monotonic() + _DRAIN_S
    seen = (-1, 0)
    while time.monotonic() < deadline:
        now = node.accepted(), sum(cpu_clock(process) for process in processes)
        if now[0] == seen[0] and now[1] - seen[1] < _QUIET_S * 1e9 / 4:
            return
        seen = now
        await asyncio.sleep(_QUIET_S)
    raise RuntimeError("the filter's processes do not come to rest")


def _check(subject: Subject, cell: Cell, accepted: float, lost: float) -> None:
    if not subject.drops:
        expected = 1.0
    elif cell.kind is Kind.SCATTERED:
        expected = cell.owned / 100
    else:
        expected = float(cell.kind in (Kind.NEW, Kind.ESTABLISHED) and cell.owned > 0)
    if abs(accepted - expected) > _TOLERANCE + lost or lost > _MOST_LOST:
        raise RuntimeError(f"{accepted:.2%} were accepted and {lost:.2%} lost")


def _sample(place: _Place, windows: Mapping[Cell, Sequence[Window]]) -> Sample | None:
    cell = place.cell
    empty = windows.get(Cell(EMPTY, cell.kind, 0, cell.rules))
    if empty is None:
        return None
    drop = windows.get(Cell(DROP, cell.kind, 0, cell.rules))
    return Sample(
        statistics.median(window.ns for window in place.windows),
        _difference(place.windows, empty),
        None if drop is None else _difference(place.windows, drop),
        statistics.median(window.user_ns / window.packets for window in place.windows),
        place.lost,
    )


def _difference(windows: Iterable[Window], base: Iterable[Window]) -> float:
    return statistics.median(one.ns - other.ns for one, other in zip(windows, base, strict=True))


async def rate(subject: Subject, cell: Cell, line: Line, cpu: int, seconds: float) -> Rate:
    """Measure how fast the processes of a filter decide.

    Args:
        subject: What is measured.
        cell: How; each packet must be the first of its flow.
        line: To the node; the packets come from another CPU where there is one.
        cpu: The CPU of the filter's processes.
        seconds: How long to measure.

    Raises:
        RuntimeError: Nothing was decided.
    """
    async with AsyncExitStack() as stack:
        line.generator.prefer_nobody()
        place = await _place(stack, subject, cell, line, cpu)
        with line.generator.sending():
            await asyncio.sleep(_FLOOD_S)
            decided, used, start = await _decided(place)
            await asyncio.sleep(seconds)
            decided_then, used_then, end = await _decided(place)
    number, cpu_seconds = decided_then - decided, (used_then - used) / 1e9
    if not number:
        raise RuntimeError("nothing was decided")
    return Rate(number / (end - start), number / cpu_seconds, cpu_seconds / (end - start))


async def _counts(node: Node, running: Running) -> tuple[int, int]:
    return node.queued() if running.counts is None else await running.counts()


async def _decided(place: _Place) -> tuple[int, int, float]:
    decided, _ = await _counts(place.node, place.running)
    return decided, sum(cpu_clock(process) for process in place.running.processes), time.perf_counter()
