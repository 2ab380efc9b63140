"""Publishes events to any number of readers, and waits for none of them.

A reader that does not keep up loses the oldest events that it has not taken yet, and is told how many
(``events.dropped``). Readers are tasks of an event loop (``async for``) or threads (``take``); events may be
published on any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from dataclasses import replace

from nlbfarm.events.model import NodeEvent, Severity
from nlbfarm.events.sentences import sentence

__all__ = ["RECENT", "EventStream", "Subscription"]

RECENT = 1000
"""So many events are kept in memory."""

DROPPED = "events.dropped"


class Subscription:
    """What one reader has not taken yet; made by ``EventStream.subscribe``.

    Either ``async for`` or ``take``, and one reader only.
    """

    def __init__(self, stream: EventStream, limit: int) -> None:
        self._stream = stream
        self._waiting: deque[NodeEvent] = deque()
        self._limit = limit
        self._dropped = 0
        self._last_dropped: NodeEvent | None = None
        self._closed = False
        self._rung = False
        self._changed = threading.Condition(threading.Lock())
        self._sleeper: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def take(self, timeout: float | None = None) -> list[NodeEvent]:
        """Return all that is waiting, oldest first; blocks the calling thread until there is something.

        Args:
            timeout: Seconds to wait at most; ``None``: for ever.

        Returns:
            Nothing when the time is over, after ``wake``, or when the subscription is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._rung or self._closed, timeout)
            self._rung = False
            taken = self._tell_dropped()
            taken += self._waiting
            self._waiting.clear()
            return taken

    def close(self) -> None:
        """Take no more; what waits can still be read. May be called twice, and on any thread."""
        self._stream.forget(self)
        with self._changed:
            self._closed = True
            self._wake()

    def wake(self) -> None:
        """Have ``take`` return, now or the next time, though nothing may have happened."""
        with self._changed:
            self._rung = True
            self._changed.notify_all()

    def offer(self, event: NodeEvent) -> None:
        """Take in an event; never waits for the reader."""
        with self._changed:
            if len(self._waiting) >= self._limit:
                self._last_dropped = self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(event)
            self._wake()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> NodeEvent:
        while True:
            with self._changed:
                if told := self._tell_dropped():
                    return told[0]
                if self._waiting:
                    return self._waiting.popleft()
                if self._closed:
                    raise StopAsyncIteration
                loop = asyncio.get_running_loop()
                arrival = loop.create_future()
                self._sleeper = (loop, arrival)
            await arrival

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._sleeper is not None:
            (loop, arrival), self._sleeper = self._sleeper, None
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_arrived, arrival)

    def _tell_dropped(self) -> list[NodeEvent]:
        """Return the event that says how many were lost, if that has to be said; it stands in their place."""
        last, self._last_dropped = self._last_dropped, None
        if last is None:
            return []
        fields = {"count": self._dropped}
        self._dropped = 0
        text = sentence(DROPPED, fields)
        return [NodeEvent(last.sequence, last.time, DROPPED, Severity.WARNING, text, fields)]


def _arrived(arrival: asyncio.Future[None]) -> None:
    if not arrival.done():
        arrival.set_result(None)


class EventStream:
    """Numbers events, remembers the last ``RECENT`` of them, and hands them to every subscription."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        self._recent: deque[NodeEvent] = deque(maxlen=RECENT)
        self._subscriptions: list[Subscription] = []

    def publish(self, event: NodeEvent) -> NodeEvent:
        """Give an event its number and hand it out; on any thread, and without waiting for anybody.

        Returns:
            The event with its number.
        """
        with self._lock:
            self._sequence += 1
            numbered = replace(event, sequence=self._sequence)
            self._recent.append(numbered)
            for subscription in self._subscriptions:
                subscription.offer(numbered)
        return numbered

    def subscribe(self, limit: int = RECENT, *, past: bool = False) -> Subscription:
        """Return what receives every event from now on; close it when it is no longer read.

        Args:
            limit: So many events may wait to be read.
            past: Begin with those that are remembered.
        """
        subscription = Subscription(self, limit)
        with self._lock:
            if past:
                for event in self._recent:
                    subscription.offer(event)
            self._subscriptions.append(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Hand nothing more to ``subscription``."""
        with self._lock, contextlib.suppress(ValueError):
            self._subscriptions.remove(subscription)

    def recent(self, count: int) -> list[NodeEvent]:
        """Return the last ``count`` events, oldest first; at most ``RECENT`` are remembered."""
        with self._lock:
            return list(self._recent)[-count:] if count > 0 else []
