"""The memory that the node's process and its workers share: the bucket states, what was counted.

The node writes the head and the states, each worker a slot of its own. A number of eight bytes at a multiple
of eight is read and written whole. The states stand there twice: the node writes the half that nobody reads
and then says so by the generation's lowest bit.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

from nlbfarm.core.buckets import BucketStates

__all__ = ["Board", "Slot"]

_HEAD = 64
_SLOT = 64
_BITMAP = 32
_STATES = 3 * _BITMAP
_GENERATION = 0  # word of the head
_BEAT, _MALFORMED = 0, 1  # words of a slot


@dataclass(frozen=True, slots=True)
class Slot:
    """What a worker says of itself.

    Args:
        beat: When it last turned, seconds on the monotonic clock; 0 before its first turn.
        malformed: Packets that it could not place.
    """

    beat: float
    malformed: int


class Board:
    """One view of that memory.

    Args:
        descriptor: A file descriptor of it; it may be closed afterwards.
        groups: How many groups the policy has.
        workers: How many workers there are.
    """

    def __init__(self, descriptor: int, groups: int, workers: int) -> None:
        self._groups = groups
        self._states = _HEAD + workers * _SLOT
        self._memory = mmap.mmap(descriptor, self._states + 2 * groups * _STATES)
        whole = memoryview(self._memory)
        usable = whole[: len(whole) // 8 * 8]
        self.numbers = usable.cast("Q")
        """All of it as numbers; the generation is the first."""
        self._times = usable.cast("d")

    @staticmethod
    def make(groups: int, workers: int) -> int:
        """Return a file descriptor of memory for a board; nothing in it may accept."""
        descriptor = os.memfd_create("nlbfarm-nfqueue", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _HEAD + workers * _SLOT + 2 * groups * _STATES)
        return descriptor

    @property
    def generation(self) -> int:
        """Rises with every change of the bucket states."""
        return self.numbers[_GENERATION]

    def publish(self, states: Sequence[BucketStates]) -> int:
        """Write new bucket states, in the order of the groups; returns their generation.

        The caller waits until every worker goes by them before it calls again.
        """
        generation = self.generation + 1
        encoded = b"".join(
            bitmap.to_bytes(_BITMAP, "little")
            for of_group in states
            for bitmap in (of_group.own, of_group.adopt, of_group.drain)
        )
        start = self._half(generation)
        self._memory[start : start + len(encoded)] = encoded
        self.numbers[_GENERATION] = generation
        return generation

    def states(self, generation: int) -> list[BucketStates]:
        """Read the bucket states of the newest generation."""
        start = self._half(generation)
        found = []
        for group in range(self._groups):
            place = start + group * _STATES
            own, adopt, drain = (
                int.from_bytes(self._memory[place + offset : place + offset + _BITMAP], "little")
                for offset in range(0, _STATES, _BITMAP)
            )
            found.append(BucketStates(own, adopt, drain))
        return found

    def _half(self, generation: int) -> int:
        return self._states + (generation & 1) * self._groups * _STATES

    def beat(self, worker: int, now: float) -> None:
        """Say that a worker turns."""
        self._times[self._slot(worker) + _BEAT] = now

    def count_malformed(self, worker: int) -> None:
        """Count a packet that cannot be placed."""
        self.numbers[self._slot(worker) + _MALFORMED] += 1

    def slot(self, worker: int) -> Slot:
        """Read what a worker says of itself."""
        first = self._slot(worker)
        return Slot(self._times[first + _BEAT], self.numbers[first + _MALFORMED])

    @staticmethod
    def _slot(worker: int) -> int:
        return (_HEAD + worker * _SLOT) // 8
