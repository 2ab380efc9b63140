"""What a keeper waits for: descriptors that can be read, and its children."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Waiting", "readable"]


class Waiting:
    """Calls a handler for each descriptor that can be read."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], object]] = {}

    def watch(self, descriptor: int, handler: Callable[[], object]) -> None:
        """Call ``handler`` whenever the descriptor can be read, or its other end is closed."""
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.POLLIN)

    def ignore(self, descriptor: int) -> None:
        """No longer watch it; do so before it is closed."""
        if self._handlers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def watch_children(self) -> None:
        """Return from ``wait`` when a child has ended."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.watch(reader, lambda: _empty(reader))

    def wait(self, seconds: float) -> None:
        """Wait until something happens, or so long; infinity: without a bound."""
        # Rounded up: one that comes back too early would turn in circles.
        bound = None if seconds == float("inf") else max(0, round(seconds * 1000 + 0.5))
        for descriptor, _ in self._poll.poll(bound):
            if (handler := self._handlers.get(descriptor)) is not None:
                handler()


def readable(descriptor: int) -> bool:
    """Say whether a descriptor can be read now, if only to see its end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _empty(reader: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(reader, 4096)
