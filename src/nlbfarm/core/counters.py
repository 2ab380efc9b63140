"""What a filter counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["FilterCounters"]


@dataclass(frozen=True, slots=True)
class FilterCounters:
    """Packets that a filter has judged since it was opened.

    Args:
        groups: For each group: packets for each verdict. The keys are a subset of ``"own"``,
            ``"adopt"``, ``"drain"`` (accepted in that state), ``"foreign"``, ``"not-new"`` (dropped:
            neither new nor established here where the state asks for it), ``"no-lease"`` and ``"blocked"``.
        other: Packets outside every group: ``"uncovered"``, ``"icmp-error"``, ``"malformed"``,
            ``"no-lease"``; and, dropped unjudged where packets wait for a process, ``"queue-full"`` (it was
            too slow) and ``"lost"`` (on the way to it; windivert's engine on Linux lets these *pass*).
    """

    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    other: Mapping[str, int] = field(default_factory=dict)
