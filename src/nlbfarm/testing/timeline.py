"""Simulated time: what happened, what is to happen, and the chance that both hang on."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from typing import Any

from nlbfarm.testing.invariants import ViolationError

__all__ = ["Timeline"]


class Timeline:
    """The past as a trace, the future as an agenda.

    Args:
        seed: Of everything that is random.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.trace: list[tuple[float, int, str, Mapping[str, object]]] = []
        """What happened: when, to which node, and what."""
        self.agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        """What is to happen, as a heap."""
        self._count = 0

    def at(self, when: float, action: Callable[..., None], *arguments: object) -> None:
        """Do ``action`` at ``when``, seconds of simulated time."""
        self._count += 1
        heapq.heappush(self.agenda, (when, self._count, action, arguments))

    def tell(self, node: int, event: str, **fields: object) -> None:
        """Put something that happened into the trace; node 0 is everybody."""
        self.trace.append((self.now, node, event, fields))

    def story(self, newest: int = 80) -> str:
        """Return the newest events of the trace, a line each."""
        lines = []
        for when, node, event, fields in self.trace[-newest:]:
            told = " ".join(f"{name}={value}" for name, value in fields.items())
            lines.append(f"{when:9.4f}  {f'node {node}' if node else 'all':8} {event:22} {told}".rstrip())
        return "\n".join(lines)

    def fail(self, rule: str, message: str) -> None:
        """Raise a ``ViolationError`` with the seed and the newest events."""
        raise ViolationError(rule, f"seed {self.seed}, t={self.now:.4f}: {rule}: {message}\n{self.story()}")
