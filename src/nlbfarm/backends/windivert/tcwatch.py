"""Linux's engine: hear at once when somebody takes our programs off an interface (rtnetlink)."""

from __future__ import annotations

import socket
import sys

__all__ = ["TcWatch"]

_RTMGRP_TC = 0x8  # linux/rtnetlink.h; qdiscs, classes and filters
_BUFFER = 1 << 16


class TcWatch:
    """A socket that becomes readable whenever something changes at tc in this network namespace.

    Raises:
        OSError: The kernel refuses it, or there is no netlink.
    """

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise OSError("no netlink on this system")
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.setblocking(False)
        self._socket.bind((0, _RTMGRP_TC))

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Read what there is: that something changed is all it says."""
        while True:
            try:
                self._socket.recv(_BUFFER)
            except BlockingIOError:
                return
            except OSError:
                continue  # ENOBUFS: too much changed at once, which is a change as well

    def close(self) -> None:
        """Close it."""
        self._socket.close()
