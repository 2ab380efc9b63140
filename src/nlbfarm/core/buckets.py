"""The 256 buckets of a group: bitmaps, states and placements."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "ALL",
    "BUCKETS",
    "NOBODY",
    "Bitmap",
    "BucketState",
    "BucketStates",
    "Placement",
    "bits",
    "owned_by",
]

BUCKETS = 256
"""Hash values of a group; fixed, because it is part of the wire format and of the rule."""

Bitmap = int
"""A set of buckets: bit ``b`` (``1 << b``) stands for bucket ``b``; ``0 <= bitmap < 2**256``."""

ALL: Bitmap = (1 << BUCKETS) - 1
"""Every bucket."""

Placement = tuple[int, ...]
"""For one group: the node id that owns each of the 256 buckets, or ``NOBODY``."""

NOBODY = 0
"""Owner of a bucket that no node owns; node ids start at 1."""


class BucketState(enum.IntEnum):
    """What a node's filter does with a bucket (the table is in ``nlbfarm.core.decision``)."""

    FOREIGN = 0
    DRAIN = 1
    ADOPT = 2
    OWN = 3


@dataclass(frozen=True, slots=True)
class BucketStates:
    """The states of one group's 256 buckets, as three disjoint bitmaps; the rest is ``FOREIGN``.

    Raises:
        ValueError: If the bitmaps overlap or name a bucket above 255.
    """

    own: Bitmap = 0
    adopt: Bitmap = 0
    drain: Bitmap = 0

    def __post_init__(self) -> None:
        if self.own & self.adopt or self.own & self.drain or self.adopt & self.drain:
            raise ValueError("a bucket has two states")
        if not 0 <= self.own | self.adopt | self.drain <= ALL:
            raise ValueError("a bitmap names a bucket outside 0..255")

    def state(self, bucket: int) -> BucketState:
        """Return the state of ``bucket`` (0..255)."""
        mask = 1 << bucket
        if self.own & mask:
            return BucketState.OWN
        if self.adopt & mask:
            return BucketState.ADOPT
        if self.drain & mask:
            return BucketState.DRAIN
        return BucketState.FOREIGN

    def ranges(self) -> Iterator[tuple[int, int, BucketState]]:
        """Yield ``(first, last, state)`` runs, inclusive, in order, covering all 256 buckets."""
        first = 0
        state = self.state(0)
        for bucket in range(1, BUCKETS):
            following = self.state(bucket)
            if following is not state:
                yield first, bucket - 1, state
                first, state = bucket, following
        yield first, BUCKETS - 1, state


def bits(bitmap: Bitmap) -> Iterator[int]:
    """Yield the buckets of ``bitmap`` in rising order."""
    while bitmap:
        low = bitmap & -bitmap
        yield low.bit_length() - 1
        bitmap ^= low


def owned_by(placement: Placement, node: int) -> Bitmap:
    """Return the bitmap of the buckets that ``placement`` gives to ``node``."""
    return sum(1 << bucket for bucket, owner in enumerate(placement) if owner == node)
