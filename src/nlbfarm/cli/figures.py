"""What packets cost in each filter, from the benchmark's file; for ``backends``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlbfarm.errors import UsageError

__all__ = ["FILE", "measured"]

FILE = "filter-benchmark.json"
"""Name of the file in the directory of lasting files."""

_KINDS = ("rejected", "accepted, new", "accepted, established")
_OWNED = 50  # per cent of the buckets: what a node of two has


def measured(file: Path) -> dict[str, dict[str, float]]:
    """Return by backend what it adds to a packet, in nanoseconds of processor time, by kind of packet.

    Args:
        file: What ``python -m benchmarks filter --json FILE`` wrote.

    Raises:
        UsageError: It cannot be read, or is another file.
    """
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        if results["benchmark"] != "filter":
            raise ValueError("it is of another benchmark")
        found: dict[str, dict[str, float]] = {}
        for row in results["cost"]:
            _take(row, found)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} is not what `python -m benchmarks filter --json FILE` writes: {error}"
        ) from error
    return found


def _take(row: Mapping[str, Any], found: dict[str, dict[str, float]]) -> None:
    # A backend that can do it in several ways has a row for each: "nfqueue, kernel's hash" comes first.
    name = row["filter"].partition(",")[0]
    median = row["added_ns"].get("median")
    if row["packets"] in _KINDS and (row["owned"], row["rules"]) == (_OWNED, 1) and median is not None:
        found.setdefault(name, {}).setdefault(row["packets"], median)
