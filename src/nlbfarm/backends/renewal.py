"""The lease's renewal: a datagram to the loopback that the table takes note of and drops.

The mark says for how long. A packet that the output hook drops fails in ``sendto`` with ``EPERM``: that
is the proof that a rule took it. A datagram that goes through met no table of ours. It costs a few
microseconds, needs no transaction (a busy ``nft`` of somebody else cannot delay it) and no thread.
"""

from __future__ import annotations

import enum
import errno
import socket
import sys
from collections.abc import Collection

from nlbfarm.backends.marks import RENEW_PORT, Marks, lease_step
from nlbfarm.errors import HostError

__all__ = ["Outcome", "Renewal"]

_LOOPBACK = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}


class Outcome(enum.Enum):
    """What became of a renewal."""

    TAKEN = "taken"
    PASSED = "the datagram that renews the lease went through: the table is gone or damaged"
    UNSENT = "the datagram that renews the lease could not be sent"


class Renewal:
    """Sends the renewals, one datagram for each IP version.

    Args:
        families: IP versions (4, 6) of the policy's VIPs: each has a lease of its own.

    Raises:
        HostError: No right to mark packets, or no such sockets on this host.
    """

    def __init__(self, families: Collection[int]) -> None:
        self._sockets: list[tuple[socket.socket, str]] = []
        self._mark: int | None = None
        try:
            for version in sorted(families):
                family, address = _LOOPBACK[version]
                flags = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                sender = socket.socket(family, flags)
                self._sockets.append((sender, address))
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)
        except PermissionError as error:
            self.close()
            raise HostError(
                "packets cannot be marked (SO_MARK): it needs root or the capability CAP_NET_ADMIN"
            ) from error
        except OSError as error:
            self.close()
            raise HostError(f"no UDP socket for the lease's renewal: {error}") from error

    def send(self, marks: Marks, seconds: float) -> tuple[Outcome, str]:
        """Renew for ``seconds``, rounded down; never blocks.

        Args:
            marks: The marks of the table as it is now.
            seconds: How long the filter may accept; too short for any step ends the lease.

        Returns:
            The worst outcome of all IP versions, and the operating system's words for ``UNSENT``.
        """
        mark = marks.lease(lease_step(seconds))
        outcome, reason = Outcome.TAKEN, ""
        for sender, address in self._sockets:
            try:
                if mark != self._mark:
                    sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark.to_bytes(4, sys.byteorder))
                sender.sendto(b"", (address, RENEW_PORT))
            except OSError as error:
                if error.errno != errno.EPERM:
                    outcome, reason = Outcome.UNSENT, f"{address}: {error.strerror}"
            else:
                return Outcome.PASSED, ""
        self._mark = mark
        return outcome, reason

    def close(self) -> None:
        """Close the sockets; may be called twice."""
        for sender, _ in self._sockets:
            sender.close()
        self._sockets.clear()
