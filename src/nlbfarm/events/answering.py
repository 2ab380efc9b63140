"""What a node answers to ``nlbfarm-node events``."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from nlbfarm.errors import UsageError
from nlbfarm.events.journal import Journal
from nlbfarm.events.model import NodeEvent
from nlbfarm.events.stream import EventStream, Subscription

__all__ = ["MOST", "answer_events"]

MOST = 10_000
"""So many events are answered at most."""

WAITING = 1000
"""So many may wait for a client that reads slowly."""

Answer = Callable[[Mapping[str, Any]], Awaitable[AsyncIterator[dict[str, Any]]]]


def answer_events(stream: EventStream, journal: Journal | None) -> Answer:
    """Return what answers the verb ``events`` on the control socket.

    Its arguments: ``last`` (that many of the past, 20 if it is not given, or ``MOST`` beside ``since``),
    ``since`` (none before, seconds since 1970) and ``follow`` (go on with what happens from now on). It
    streams events as ``NodeEvent.as_json`` has them, oldest first.

    Args:
        stream: The node's events.
        journal: Where earlier ones are kept; ``None``: only those that the stream remembers are told.
    """

    async def answer(args: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        since, follow = args.get("since"), args.get("follow", False)
        last = args.get("last", 20 if since is None else MOST)
        if not isinstance(last, int) or isinstance(last, bool) or not 0 <= last <= MOST:
            raise UsageError(f'"last" of events must be a number from 0 to {MOST}')
        if isinstance(since, bool) or not isinstance(since, int | float | None):
            raise UsageError('"since" of events must be a number of seconds since 1970')
        if not isinstance(follow, bool):
            raise UsageError('"follow" of events must be true or false')
        # First subscribed, then looked back: nothing falls in between. What is seen twice is told once.
        coming = stream.subscribe(WAITING) if follow else None
        try:
            past = await _past(stream, journal, last, since)
        except BaseException:
            if coming is not None:
                coming.close()
            raise
        return _Told(past, coming)

    return answer


async def _past(
    stream: EventStream, journal: Journal | None, last: int, since: float | None
) -> Sequence[NodeEvent]:
    if journal is not None:
        return await journal.look_back(last, since)
    found = [event for event in stream.recent(MOST) if since is None or event.time >= since]
    return found[-last:] if last else []


class _Told:
    """Tells the past, then what comes; no generator, so that ``aclose`` works before the first step, too."""

    def __init__(self, past: Sequence[NodeEvent], coming: Subscription | None) -> None:
        self._past = deque(past)
        self._coming = coming
        self._told = {(event.sequence, event.time) for event in past}

    def __aiter__(self) -> _Told:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._past:
            return self._past.popleft().as_json()
        if self._coming is None:
            raise StopAsyncIteration
        event = await anext(self._coming)
        while (event.sequence, event.time) in self._told:
            event = await anext(self._coming)
        self._told.clear()  # what was told before came first
        return event.as_json()

    async def aclose(self) -> None:
        """Go on no longer."""
        if self._coming is not None:
            self._coming.close()
