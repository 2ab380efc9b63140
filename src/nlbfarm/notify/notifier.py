"""From a node's events to the people who are told of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from math import inf

from nlbfarm.events import EventLog, Severity, Subscription
from nlbfarm.notify.batching import Batcher, Selection
from nlbfarm.notify.courier import HANGS_S, PAUSES_S, Courier
from nlbfarm.notify.message import Message, Target
from nlbfarm.notify.script import ScriptTarget
from nlbfarm.notify.targets import AppriseTarget

__all__ = ["Notifier"]

WAITING = 10_000
SETTLE_S = 2.0
_WATCH_S = 5.0


class Notifier:
    """Notifies of a node's events, on threads of its own: the node waits for none of it.

    Args:
        log: The node's events; told, too, when a target cannot be reached.
        farm, node: Names of the farm and of the node.
        targets: URLs that apprise knows.
        script: A program and its arguments; empty: none.
        patterns, severity: Which events, see ``Selection``.
        batch: Seconds; there is one message in so long.
        settle: Seconds from the first event of a quiet time to its message.
        pauses: Seconds between the attempts to reach a target.
        hangs: Seconds after which a target that does not answer is told as one that fails.
        others: Further targets, a vendor's own.
    """

    def __init__(
        self,
        log: EventLog,
        farm: str,
        node: str,
        *,
        targets: Sequence[str] = (),
        script: Sequence[str] = (),
        patterns: Sequence[str] = ("*",),
        severity: Severity = Severity.WARNING,
        batch: float = 60.0,
        settle: float = SETTLE_S,
        pauses: Sequence[float] = PAUSES_S,
        hangs: float = HANGS_S,
        others: Sequence[Target] = (),
    ) -> None:
        self._log = log
        self._farm = farm
        self._node = node
        self._selection = Selection(patterns, severity)
        self._batcher = Batcher(batch, settle)
        everyone = [*map(AppriseTarget, targets), *([ScriptTarget(script)] if script else ()), *others]
        self._couriers = [
            Courier(target, log, name=name, pauses=pauses, hangs=hangs)
            for target, name in zip(everyone, _names(everyone), strict=True)
        ]
        self._watch_s = min(_WATCH_S, hangs)
        self._coming: Subscription | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="nlbfarm-notify", daemon=True)

    def open(self) -> None:
        """Begin with what happens from now on; does nothing if nobody is to be told."""
        if not self._couriers:
            return
        self._coming = self._log.stream.subscribe(WAITING)
        for courier in self._couriers:
            courier.open()
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Tell what waits, for at most ``timeout`` seconds; blocks so long. May be called twice."""
        coming, self._coming = self._coming, None
        if coming is None:
            return
        deadline = time.monotonic() + timeout
        self._closing = True
        coming.close()
        self._thread.join(timeout)
        for courier in self._couriers:
            courier.finish()
        for courier in self._couriers:
            courier.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        coming = self._coming
        assert coming is not None
        closing = False
        while not closing:
            closing = self._closing  # before the last events are taken, not after
            for event in coming.take(self._patience()):
                if self._selection.wants(event):
                    self._batcher.add(event, time.monotonic())
            due = self._batcher.due
            if due != inf and (closing or time.monotonic() >= due):
                self._send()
            for courier in self._couriers:
                courier.watch()

    def _patience(self) -> float | None:
        """Return for how long there is nothing to do, seconds; ``None``: until the next event."""
        wait = self._batcher.due - time.monotonic()
        if any(courier.busy for courier in self._couriers):
            wait = min(wait, self._watch_s)
        return None if wait == inf else max(0.0, wait)

    def _send(self) -> None:
        events, left_out = self._batcher.take(time.monotonic())
        message = Message(self._farm, self._node, events, left_out)
        for courier in self._couriers:
            courier.offer(message)


def _names(targets: Sequence[Target]) -> list[str]:
    """Return a name for each target; those that look alike are numbered."""
    alike = Counter(target.name for target in targets)
    seen: Counter[str] = Counter()
    names = []
    for target in targets:
        seen[target.name] += 1
        names.append(f"{target.name} ({seen[target.name]})" if alike[target.name] > 1 else target.name)
    return names
