"""Reads the heartbeat sockets in a thread, for event loops that cannot watch a socket.

asyncio's Proactor loop, the default on Windows, has no ``add_reader``. A thread in ``select`` reads
as soon as something arrives, also while the event loop is late, so that arrival times are right.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence

from nlbfarm.heartbeat.link import Datagram, Link

__all__ = ["ThreadReader"]

_BATCH = 256
_QUEUE = 4096  # when the event loop hangs the oldest are forgotten: the newest say most


class ThreadReader:
    """Moves datagrams from the links' sockets to ``queue``.

    Args:
        links: The networks; every use of them needs ``lock``.
        on_ready: Called in the thread when there is something to deliver.
    """

    def __init__(self, links: Sequence[Link], on_ready: Callable[[], None]) -> None:
        self.queue: deque[tuple[int, Datagram]] = deque(maxlen=_QUEUE)
        self.lock = threading.RLock()
        self._links = links
        self._on_ready = on_ready
        self._stopping = threading.Event()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="nlbfarm-heartbeat", daemon=True)
        self._thread.start()

    def read(self, limit: int = _BATCH) -> None:
        """Move what the sockets have now to the queue; callable from any thread."""
        with self.lock:
            for link in self._links:
                self.queue.extend((link.index, datagram) for datagram in link.drain(limit))

    def wake(self) -> None:
        """Make the thread look anew at which sockets there are."""
        self._waker.send(b"x")

    def stop(self) -> None:
        """End the thread; it is never far from ``select``."""
        self._stopping.set()
        self.wake()
        self._thread.join()
        self._wake.close()
        self._waker.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self.lock:
                watched = [fileno for link in self._links if (fileno := link.fileno()) >= 0]
            try:
                ready, _, _ = select.select([*watched, self._wake.fileno()], [], [])
            except (OSError, ValueError):
                continue  # a socket was closed meanwhile: look anew
            if self._wake.fileno() in ready:
                self._wake.recv(64)
            if self._stopping.is_set():
                return
            self.read()
            self._on_ready()
