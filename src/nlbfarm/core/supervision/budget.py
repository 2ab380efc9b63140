"""How often services may be restarted, and how long to wait before the next time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from nlbfarm.core.supervision.model import ServiceSpec

__all__ = ["Budget"]


class Budget:
    """Counts the restarts of all services.

    Args:
        services: How often each may be restarted.
        times: When each was restarted before, on the clock of ``now`` (earlier lives of the node, too).
        salt: What makes the pauses of nodes differ.
    """

    def __init__(
        self, services: Iterable[ServiceSpec], times: Mapping[str, Iterable[float]], salt: str
    ) -> None:
        self._services = {spec.name: spec for spec in services}
        self._times = {name: sorted(times.get(name, ())) for name in self._services}
        self._in_a_row = dict.fromkeys(self._services, 0)
        self._salt = salt

    def used(self, name: str, now: float) -> int:
        """Return how often the service was restarted in its time."""
        within = self._services[name].within
        self._times[name] = [at for at in self._times[name] if now - at < within]
        return len(self._times[name])

    def left(self, name: str, now: float) -> int:
        """Return how often it may still be restarted."""
        return max(0, self._services[name].max_restarts - self.used(name, now))

    def spend(self, name: str, now: float) -> float:
        """Count a restart; return for how many seconds to wait before it.

        The first after a good time waits for nothing. The pause of each further one in a row is twice as
        long; chance, the same for the same node, makes it a quarter longer or shorter, so that nodes whose
        common database is back do not all come at once.
        """
        spec = self._services[name]
        self.used(name, now)
        self._times[name].append(now)
        before = self._in_a_row[name]
        self._in_a_row[name] += 1
        if not before:
            return 0.0
        pause = min(spec.backoff * 2.0 ** min(before - 1, 32), spec.longest_backoff)
        digest = hashlib.sha256(f"{self._salt}\0{name}\0{before}".encode()).digest()
        return pause * (0.75 + 0.5 * int.from_bytes(digest[:4], "big") / 2**32)

    def well(self, name: str) -> None:
        """Take note that the service has been up for a good time: the next restart is the first again."""
        self._in_a_row[name] = 0

    def forgive(self) -> None:
        """Count all anew."""
        for name in self._times:
            self._times[name] = []
            self._in_a_row[name] = 0

    def times(self) -> dict[str, tuple[float, ...]]:
        """Return when each was restarted."""
        return {name: tuple(times) for name, times in self._times.items()}
