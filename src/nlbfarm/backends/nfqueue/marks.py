"""The packet marks between the kernel and the workers."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["ASKED", "GROUPS", "KIND_AND_GROUP", "NONCE", "Kind", "QueueMarks"]

GROUPS = 256
"""How many groups a mark can tell apart."""

NONCE = 0xFFF00000
"""The bits of a mark that say that it is ours."""

KIND_AND_GROUP = 0xFFFFFF00
"""All bits of a mark but the bucket."""


class Kind(enum.IntEnum):
    """What a mark says of its packet, 1..15."""

    HASHED = 1
    """Its bucket is in the mark; nothing else is known yet."""
    BARE = 2
    """Its bucket is not known yet, nor anything else."""
    NEW = 3
    """Asked: a TCP packet that opens a flow."""
    STRANGER = 4
    """Asked: a TCP packet of a flow that is not established here."""
    OTHER = 5
    """Asked: a packet without SYN (UDP, ICMP echo)."""
    KNOWN = 6
    """Asked: a TCP packet of a flow that is established here, where the kernel does not know the bucket."""
    SUSPECT = 7
    """As ``HASHED`` or ``BARE``, of a TCP flow of which a packet was rejected as neither new nor known."""
    OWN = 8
    """Answered: accept."""
    BEGIN_OWN = 9
    """Answered: accept, and from now on the flow is established here."""
    ADOPT = 10
    BEGIN_ADOPT = 11
    DRAIN = 12
    FOREIGN = 13
    """Answered: drop, and all that follows of this flow."""
    NOT_NEW = 14
    """Answered: drop, and all that follows of this flow but a SYN."""
    WAS_FOREIGN = 15
    """Answered: drop this packet. It came when its bucket was not to be accepted, and waited since."""


ASKED = (Kind.NEW, Kind.STRANGER, Kind.OTHER, Kind.KNOWN)
"""What a worker is asked."""


@dataclass(frozen=True, slots=True)
class QueueMarks:
    """The marks of one life of the workers.

    They share 12 random bits, so that they hardly meet another program's. Packets carry them between
    hooks that stand directly beside one another; whoever else marks packets hardly ever sees them.

    Args:
        nonce: 1..2**12-1.
    """

    nonce: int

    def __post_init__(self) -> None:
        if not 0 < self.nonce < 1 << 12:
            raise ValueError(f"nonce {self.nonce} is not in 1..2**12-1")

    @property
    def ours(self) -> int:
        """What every mark has in the bits of ``NONCE``."""
        return self.nonce << 20

    def mark(self, kind: Kind, group: int, bucket: int = 0) -> int:
        """Return the mark of a packet of the group at that index."""
        return self.nonce << 20 | kind << 16 | group << 8 | bucket
