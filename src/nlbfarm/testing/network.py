"""The simulated heartbeat networks: delay, loss, duplication, reordering, and cuts in one direction."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["SimulatedNetwork"]

STRAY_SHARE, STRAY_S = 0.1, 2.0
"""Share of the second copies that go astray, and how much longer they take at most: a replay, in effect."""


class SimulatedNetwork:
    """What happens to a datagram on its way.

    Args:
        rng: Where chance comes from.
        delay_s: Shortest and longest time that a datagram takes.
        loss: Share of datagrams lost, 0..1.
        duplicate: Share of datagrams that arrive twice; some of the copies come much later.
        ordered: Whether a link keeps the order of its datagrams.
        networks: How many heartbeat networks every node is on.
    """

    def __init__(
        self,
        rng: random.Random,
        delay_s: tuple[float, float] = (0.0001, 0.001),
        loss: float = 0.0,
        duplicate: float = 0.0,
        *,
        ordered: bool = False,
        networks: int = 1,
    ) -> None:
        self.loss = loss
        self.cuts: set[tuple[int, int]] = set()
        """Directed links (from, to) that carry nothing, on any network."""
        self.down: set[int] = set()
        """Networks that carry nothing."""
        self._random = rng.random
        self._shortest, longest = delay_s
        self._spread = longest - self._shortest
        self._duplicate = duplicate
        self._ordered = ordered
        self._networks = range(networks)
        self._newest: dict[tuple[int, int, int], float] = {}

    def carries(self, source: int, target: int, network: int = 0) -> bool:
        """Whether anything gets from ``source`` to ``target`` now."""
        return (source, target) not in self.cuts and network not in self.down

    def arrivals(self, source: int, target: int, now: float) -> Iterator[tuple[float, int]]:
        """Yield when, and over which network, each copy of a datagram sent now arrives."""
        if (source, target) in self.cuts:
            return
        chance = self._random
        for network in self._networks:
            if network in self.down:
                continue
            copies = 2 if self._duplicate and chance() < self._duplicate else 1
            for copy in range(copies):
                if self.loss and chance() < self.loss:
                    continue
                at = now + self._shortest + self._spread * chance()
                if copy and chance() < STRAY_SHARE:
                    at += STRAY_S * chance()
                elif self._ordered:
                    link = source, target, network
                    at = self._newest[link] = max(at, self._newest.get(link, 0.0) + 1e-9)
                yield at, network
