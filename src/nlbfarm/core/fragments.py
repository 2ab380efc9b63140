"""Which datagram a later fragment belongs to: it is judged as its first fragment was.

Only the first fragment of a datagram holds the ports. What was read there is kept for the others, in a
bounded table. A later fragment without a first one is nobody's: it came before its first, or the table has
forgotten it.

Nobody can slip other ports under a decision: a later fragment that overlaps the first is refused (RFC 1858
section 4, RFC 5722), a first fragment that does not hold its whole transport header is never entered
(RFC 1858 section 3, RFC 7112), and a second first fragment is judged by itself and takes the place of the
one before. What else a datagram's fragments may do to one another is the host's reassembly to judge.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["FRAGMENT_TIME", "MAX_FRAGMENTED", "FragmentTable"]

MAX_FRAGMENTED = 4096
"""Fragmented datagrams remembered at a time, unless told otherwise."""

FRAGMENT_TIME = 30.0
"""Seconds for which a first fragment is remembered (Linux waits as long for the rest: ``ipfrag_time``)."""

T = TypeVar("T")


class FragmentTable(Generic[T]):
    """What was read in first fragments, by datagram; every operation takes constant time.

    Args:
        capacity: Datagrams remembered at most; when there are more, the one that began first is forgotten.
        lifetime: Seconds for which a first fragment is remembered.

    Raises:
        ValueError: ``capacity`` is below 1, or ``lifetime`` is not above 0.
    """

    def __init__(self, capacity: int = MAX_FRAGMENTED, lifetime: float = FRAGMENT_TIME) -> None:
        if capacity < 1 or not lifetime > 0:
            raise ValueError(f"a table of {capacity} datagrams for {lifetime} s")
        self._capacity = capacity
        self._lifetime = lifetime
        self._firsts: OrderedDict[bytes, tuple[T, int, float]] = OrderedDict()  # the oldest first

    def __len__(self) -> int:
        return len(self._firsts)

    def first(self, datagram: bytes, value: T, end: int, now: float) -> None:
        """Remember a first fragment, in place of an earlier one of the same datagram.

        Args:
            datagram: What all fragments of the datagram have in common.
            value: What its later fragments are to be given.
            end: Bytes of the datagram that it holds: where the second fragment may begin.
            now: Seconds, monotonic.
        """
        self._firsts[datagram] = value, end, now + self._lifetime
        self._firsts.move_to_end(datagram)
        if len(self._firsts) > self._capacity:
            self._firsts.popitem(last=False)

    def later(self, datagram: bytes, offset: int, now: float) -> T | None:
        """Return what was read in the first fragment, or ``None``: unknown, or overlapped by this one.

        Args:
            datagram: As for ``first``.
            offset: Where the later fragment begins, in bytes of the datagram.
            now: Seconds, monotonic.
        """
        found = self._firsts.get(datagram)
        if found is None:
            return None
        value, end, until = found
        if now >= until:
            del self._firsts[datagram]
            return None
        return value if offset >= end else None

    def forget(self, datagram: bytes) -> None:
        """Forget a datagram: its later fragments are nobody's."""
        self._firsts.pop(datagram, None)

    def expire(self, now: float) -> None:
        """Forget the datagrams whose time is over at ``now`` (seconds, monotonic)."""
        firsts = self._firsts
        while firsts:
            datagram = next(iter(firsts))
            if now < firsts[datagram][2]:
                return
            del firsts[datagram]

    def clear(self) -> None:
        """Forget all of them."""
        self._firsts.clear()
