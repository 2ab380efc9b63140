"""The memory backend on a fake clock, and the probe that brings packets before it."""

from __future__ import annotations

from nlbfarm.backends.memory import MemoryBackend
from nlbfarm.core.decision import PacketFacts
from nlbfarm.interfaces import FilterBackend
from nlbfarm.testing.clock import FakeClock


class Probe:
    """Hands packets to a memory backend, on its fake clock."""

    def __init__(self, backend: FilterBackend) -> None:
        assert isinstance(backend, Clocked)
        self.backend = backend

    async def offer(self, facts: PacketFacts) -> bool:
        return self.backend.judge(facts).accepted

    async def reset(self, facts: PacketFacts) -> None:
        self.backend.forget(facts)

    async def wait(self, seconds: float) -> None:
        self.backend.fake_clock.advance(seconds)


class Clocked(MemoryBackend):
    """A memory backend that carries its fake clock along."""

    def __init__(self) -> None:
        self.fake_clock = FakeClock()
        super().__init__(self.fake_clock)


async def damage(backend: FilterBackend) -> None:
    assert isinstance(backend, MemoryBackend)
    backend.damage()
