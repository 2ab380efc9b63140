"""One thread for each target: one that fails is tried again, one that hangs holds up nobody else."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from nlbfarm.events import EventLog
from nlbfarm.notify.message import DeliveryError, Message, Target

__all__ = ["Courier"]

WAITING = 16
"""So many messages may wait for a target."""

PAUSES_S = (5.0, 30.0, 120.0)
"""Pauses between the attempts to deliver a message; after the last one it is given up."""

HANGS_S = 60.0
"""An attempt that lasts longer is told as a failure, though nothing can end it."""


class Courier:
    """Delivers messages to one target, in their order.

    Args:
        target: Whom to.
        log: Where it is told that the target fails: once, not for each attempt.
        name: What the log calls the target.
        pauses: Seconds between attempts.
        hangs: Seconds.
    """

    def __init__(
        self,
        target: Target,
        log: EventLog,
        *,
        name: str = "",
        pauses: Sequence[float] = PAUSES_S,
        hangs: float = HANGS_S,
    ) -> None:
        self._target = target
        self._log = log
        self._name = name or target.name
        self._pauses = tuple(pauses)
        self._hangs = hangs
        self._changed = threading.Condition()
        self._waiting: deque[Message] = deque()
        self._current: Message | None = None
        self._busy_since: float | None = None
        self._closing = False
        self._error = ""
        """Why the last attempt failed; empty: it did not."""
        self._missed = 0
        """Events that the target was not told of since it last was told something."""
        self._thread = threading.Thread(target=self._work, name="nlbfarm-notify-target", daemon=True)

    def open(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether something is being delivered, or waits for it."""
        with self._changed:
            return bool(self._waiting) or self._current is not None

    def offer(self, message: Message) -> None:
        """Deliver a message in its turn; never waits. When too many wait, the oldest is given up."""
        with self._changed:
            given_up = self._waiting.popleft() if len(self._waiting) >= WAITING else None
            self._waiting.append(message)
            self._changed.notify_all()
        if given_up is not None:
            self._give_up(given_up)

    def watch(self) -> None:
        """Tell of an attempt that lasts too long."""
        with self._changed:
            since = self._busy_since
        if since is not None and time.monotonic() - since >= self._hangs:
            self._fails(f"no answer for {self._hangs:g} s, and it is still waited for", None)

    def finish(self) -> None:
        """Deliver what waits, each message with one more attempt, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait for the end, ``timeout`` seconds at most, and tell of what is lost then."""
        self._thread.join(timeout)
        with self._changed:
            lost = sum(map(_count, self._waiting)) + (_count(self._current) if self._current else 0)
        if lost:
            self._log.warning("notify.dropped", target=self._name, events=lost)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                self._current = replace(self._waiting.popleft(), missed=self._missed)
            self._deliver(self._current)
            with self._changed:
                self._current = None

    def _deliver(self, message: Message) -> None:
        for pause in (*self._pauses, None):
            with self._changed:
                self._busy_since = time.monotonic()
                last = self._closing or pause is None
            error = self._attempt(message)
            with self._changed:
                self._busy_since = None
            if error is None:
                self._arrived(message.missed)
                return
            self._fails(error, None if last else pause)
            if last:
                break
            with self._changed:
                self._changed.wait_for(lambda: self._closing, pause)
        self._give_up(message)

    def _attempt(self, message: Message) -> str | None:
        """Return why the message did not arrive, or ``None``."""
        try:
            self._target.send(message)
        except DeliveryError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - a target of a vendor's own, which must not end this thread
            return f"the target itself failed: {type(error).__name__}"
        return None

    def _fails(self, error: str, pause: float | None) -> None:
        with self._changed:
            news, self._error = error != self._error, error
        if news:
            self._log.warning("notify.failed", target=self._name, error=error, retry_s=pause)

    def _arrived(self, told: int) -> None:
        with self._changed:
            failed, self._error = bool(self._error), ""
            self._missed -= told
        if failed:
            self._log.info("notify.recovered", target=self._name, missed=told)

    def _give_up(self, message: Message) -> None:
        with self._changed:
            first, self._missed = not self._missed, self._missed + _count(message)
        if first:
            self._log.warning("notify.dropped", target=self._name, events=_count(message))


def _count(message: Message) -> int:
    return len(message.events) + message.left_out
