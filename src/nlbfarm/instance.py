"""One node process for each farm on a host.

The lock is an abstract Unix socket: it belongs to a network namespace, as the VIPs and the filter
do, it needs no file, and the kernel drops it when the process ends, however it ends (unix(7)).
"""

from __future__ import annotations

import errno
import socket

from nlbfarm.errors import NlbfarmError

__all__ = ["AlreadyRunningError", "claim", "is_running"]


class AlreadyRunningError(NlbfarmError):
    """Another process on this host runs a node of the same farm."""


def claim(farm: str) -> socket.socket:
    """Take the lock of ``farm``; it is held until the socket is closed.

    Raises:
        AlreadyRunningError: Another process holds it.
    """
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        lock.bind(f"\0nlbfarm/{farm}")
    except OSError as error:
        lock.close()
        if error.errno == errno.EADDRINUSE:
            raise AlreadyRunningError(
                f'a node of farm "{farm}" is already running on this host; see "nlbfarm-node status"'
            ) from None
        raise
    return lock


def is_running(farm: str) -> bool:
    """Whether a process on this host runs a node of ``farm``."""
    try:
        claim(farm).close()
    except AlreadyRunningError:
        return True
    return False
