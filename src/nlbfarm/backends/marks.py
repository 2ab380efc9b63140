"""The numbers that the packet path goes by: marks, lengths of a lease, a port, a conntrack label."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LABEL_BIT", "LEASES_MS", "MAX_LEASE_S", "RENEW_PORT", "Marks", "lease_step"]

LEASES_MS = (*range(25, 325, 25), 400, 500, 750, 1000)
"""Lengths of a lease that the kernel knows, in milliseconds; a lease is rounded down to one of them.

Fine where a short lease has to last to the next turn, an interval (100 ms) later.
"""

MAX_LEASE_S = LEASES_MS[-1] / 1000
"""The longest lease, in seconds."""

LABEL_BIT = 127
"""Conntrack label (0..127) of a flow whose first packet this node accepted for a VIP."""

RENEW_PORT = 9
"""UDP port (discard) that the datagrams which renew the lease are addressed to; none ever arrives."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The packet marks of one life of a table.

    They share 20 random bits, so that they meet neither another program's marks nor those of
    an earlier process of the same farm, which must not renew a lease that is no longer its own.

    Args:
        nonce: 1..2**20-1.
    """

    nonce: int

    def __post_init__(self) -> None:
        if not 0 < self.nonce < 1 << 20:
            raise ValueError(f"nonce {self.nonce} is not in 1..2**20-1")

    def lease(self, step: int) -> int:
        """Return the mark that starts the lease number ``step`` of ``LEASES_MS``; -1 ends the lease."""
        return self.nonce << 12 | (step + 1)

    @property
    def new_flow(self) -> int:
        """The mark, between the two hooks, of a flow's first packet in an ``OWN`` bucket."""
        return self.nonce << 12 | 0x40

    def adopt(self, group: int) -> int:
        """Return the mark, between the two hooks, of an ``ADOPT`` packet of the group at that index."""
        return self.nonce << 12 | (0x80 + 2 * group)

    def drain(self, group: int) -> int:
        """Return the mark, between the two hooks, of a ``DRAIN`` packet of the group at that index."""
        return self.nonce << 12 | (0x81 + 2 * group)


def lease_step(seconds: float) -> int:
    """Return the index of the longest of ``LEASES_MS`` that is not above ``seconds``; -1 if there is none."""
    step = -1
    for index, length in enumerate(LEASES_MS):
        if length <= seconds * 1000 + 1e-6:
            step = index
    return step
