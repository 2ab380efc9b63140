"""Tells systemd (or whoever set ``NOTIFY_SOCKET``) that the node is ready, alive, or stopping.

The protocol is a line of text in a datagram (sd_notify(3)); the package of that name on PyPI is
not maintained, and this is all of it that a node needs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

__all__ = ["Notifier"]


class Notifier:
    """Sends notices; without a socket to send to, or when nobody reads it, does nothing.

    Args:
        environ: Where ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are looked up.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        # "@" stands for the zero byte of an abstract name; vsock and relative names are not for us.
        self._address = "\0" + name[1:] if name.startswith("@") else name if name.startswith("/") else ""
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self.watchdog_interval = _watchdog(environ) if self._address else None
        """Seconds between two calls of ``alive``: half of what systemd allows; ``None``: not wanted."""

    def ready(self, status: str = "") -> None:
        """Say that the node has started, or has done what ``reloading`` announced."""
        self._send("READY=1", status)

    def status(self, status: str) -> None:
        """Say in one line what the node does now (``systemctl status`` shows it)."""
        self._send("", status)

    def alive(self) -> None:
        """Say that the node's loop still turns."""
        self._send("WATCHDOG=1", "")

    def reloading(self) -> None:
        """Say that the node loads its configuration, or replaces its process; ``ready`` ends that."""
        micros = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={micros}", "")

    def extend(self, seconds: float) -> None:
        """Ask for so much more time, from now on, for what is under way (start, reload or end)."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}", "")

    def stopping(self, status: str = "") -> None:
        """Say that the node is leaving."""
        self._send("STOPPING=1", status)

    def close(self) -> None:
        """Close the socket; may be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, notice: str, status: str) -> None:
        if self._socket is None:
            return
        lines = [notice] if notice else []
        if status:
            lines.append("STATUS=" + " ".join(status.split()))
        # A supervisor that is gone or busy is no reason for the node to stop or to wait.
        with contextlib.suppress(OSError):
            self._socket.sendto("\n".join(lines).encode(), self._address)


def _watchdog(environ: Mapping[str, str]) -> float | None:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # meant for another process, which passed its environment on
    try:
        micros = int(environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return micros / 2_000_000 if micros > 0 else None
