"""What the samples of the filter benchmark come to: over the repetitions, differences and ratios of each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from benchmarks._filter_cells import Cell, Rate, Sample
from benchmarks._filter_load import Kind

CLUSTER, NFTABLES = "xt_cluster", "nftables"
QUEUE_KERNEL, QUEUE_PYTHON, DIVERT = "nfqueue, kernel's hash", "nfqueue, Python's hash", "windivert"

_T = TypeVar("_T")
Samples = Mapping[Cell, Sequence[_T | None]]
"""For each cell one sample of each repetition, ``None`` where there is none."""


def costs(samples: Samples[Sample]) -> list[dict[str, Any]]:
    """Return for each cell the CPU time of a packet, and what of it the filter added."""
    found = []
    for cell, taken in samples.items():
        present = [sample for sample in taken if sample is not None]
        if not present:
            continue
        row: dict[str, Any] = {
            "filter": cell.name,
            "packets": str(cell.kind),
            "owned": cell.owned,
            "rules": cell.rules,
            "repetitions": len(present),
            "total_ns": spread((sample.ns for sample in present), 0),
            "added_ns": spread((sample.added_ns for sample in present), 0),
            "processes_ns": round(statistics.median(sample.user_ns for sample in present)),
            "lost": round(max(sample.lost for sample in present), 4),
        }
        over = [sample.over_drop_ns for sample in present if sample.over_drop_ns is not None]
        if over:
            row["over_plain_drop_ns"] = spread(over, 0)
        found.append(row)
    return found


def rates(paces: Samples[Rate]) -> list[dict[str, Any]]:
    """Return for each cell how many packets a second were decided on."""
    found = []
    for cell, taken in paces.items():
        present = [pace for pace in taken if pace is not None]
        if present:
            found.append(
                {
                    "filter": cell.name,
                    "packets": str(cell.kind),
                    "owned": cell.owned,
                    "rules": cell.rules,
                    "per_second": spread((pace.per_second for pace in present), 0),
                    "per_cpu_second": spread((pace.per_cpu_second for pace in present), 0),
                    "busy": round(statistics.median(pace.busy for pace in present), 2),
                }
            )
    return found


def goals(samples: Samples[Sample], paces: Samples[Rate]) -> dict[str, dict[str, Any]]:
    """Return what was hoped for, and whether it is so."""
    found: dict[str, dict[str, Any]] = {}

    def over_drop(name: str, owned: int, rules: int) -> list[float | None]:
        taken = samples.get(Cell(name, Kind.REJECTED, owned, rules), [])
        return [sample.over_drop_ns if sample else None for sample in taken]

    def at_most(name: str, ratios: Iterable[float], bound: float) -> None:
        if seen := spread(ratios, 3):
            found[name] = {"ratio": seen, "wanted": f"at most {bound}", "met": seen["median"] <= bound}

    cluster = over_drop(CLUSTER, 50, 1)
    for owned in (0, 50):
        of = {rules: over_drop(NFTABLES, owned, rules) for rules in (1, 500)}
        for rules, those in of.items():
            name = f"rejected, {owned} % owned, {rules} rules: (nftables - drop) / (xt_cluster - drop)"
            at_most(name, _ratios(those, cluster), 0.6)
        name = f"rejected, {owned} % owned: (nftables with 500 rules - drop) / (with 1 rule - drop)"
        at_most(name, _ratios(of[500], of[1]), 1.1)
    new, known = Kind.SCATTERED, Kind.REJECTED
    for name, begin, kind, flows in (
        (QUEUE_KERNEL, "NFQUEUE", new, "new"),
        (QUEUE_PYTHON, "NFQUEUE", new, "new"),
        (DIVERT, "pydivert", new, "new"),
        (DIVERT, "pydivert", known, "known"),
    ):
        seen = spread(_pace_ratios(paces.get(Cell(name, kind, 0, 1), []), _best(paces, begin, kind)), 3)
        if seen:
            found[f"decisions on packets of {flows} flows, rejected: {name} / {begin}, drop only"] = {
                "ratio": seen,
                "wanted": "at least 0.7",
                "met": seen["median"] >= 0.7,
            }
    return found


def spread(values: Iterable[float], digits: int) -> dict[str, float]:
    """Return median, least and greatest; empty if there are no values."""
    known = list(values)
    if not known:
        return {}
    named = {"median": statistics.median(known), "min": min(known), "max": max(known)}
    return {name: round(value, digits or None) for name, value in named.items()}


def _ratios(over: Sequence[float | None], under: Sequence[float | None]) -> list[float]:
    return [one / other for one, other in zip(over, under, strict=False) if one is not None and other]


def _pace_ratios(taken: Sequence[Rate | None], best: Sequence[Rate | None]) -> list[float]:
    pairs = zip(taken, best, strict=False)
    return [one.per_cpu_second / other.per_cpu_second for one, other in pairs if one and other]


def _best(paces: Samples[Rate], begin: str, kind: Kind) -> Sequence[Rate | None]:
    """Return the paces of the fastest that only drops, of those whose name begins so."""

    def median(taken: Sequence[Rate | None]) -> float:
        return statistics.median([pace.per_cpu_second for pace in taken if pace] or [0.0])

    those = [taken for cell, taken in paces.items() if cell.name.startswith(begin) and cell.kind is kind]
    key: Callable[[Sequence[Rate | None]], float] = median
    return max(those, key=key, default=[])
