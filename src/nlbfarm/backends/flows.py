"""In which buckets flows are left, without a scan of the host's table at each question.

The first question about a bucket scans the table once. Such a bucket gets no new flows any more (it is in
``DRAIN``): the flows that were found are all there can be. From then on they are looked up one by one, in
each bucket until one is found alive: one look-up a bucket, and one for each flow that ended since. What
is left of a call's budget is for the others, so that the counts come down, too.

A connection that is still half open some seconds after its bucket stopped to take new ones has lost its
client: on the Internet there is always one, and the kernel remembers it for a minute.

Events of connection tracking would tell the same, but of every connection of the host, and while
somebody listens to them the kernel does more work for each.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

from nlbfarm.backends.conntrack import Conntrack, Flow, Life, Services
from nlbfarm.core.buckets import Bitmap, BucketStates, bits
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import HostError

__all__ = ["HALF_OPEN_S", "LOOKUPS", "SETTLE_S", "FlowLedger", "FlowSource", "FlowWatch"]

LOOKUPS = 256
"""Flows that one question looks up for the counts alone; the answer whether there are any may take more."""

SETTLE_S = 0.1
"""How long after a bucket stopped to take new flows the table is scanned for it, seconds.

A first packet that was accepted just before gets into the table on its way out of the last hook. That takes
microseconds; longer only if the hypervisor, or somebody's packet queue (NFQUEUE), holds it up.
"""

HALF_OPEN_S = 10.0
"""How long a half-open connection counts in a bucket that takes no new flows, seconds.

A client sends its SYN, and the server its answer, again after 1, 3 and 7 s (RFC 6298 section 2; Linux).
"""

_BREATH_S = 0.0005
_LOOKUPS_A_BREATH = 32
_CLOSED = "the filter was closed while its flows were counted"

_Place = tuple[str, int]  # group and bucket


class FlowSource(Protocol):
    """What is asked for flows; ``nlbfarm.backends.conntrack.Conntrack`` is one."""

    def scan(self) -> Iterable[list[Flow]]:
        """Yield all flows that are not over, in parts; one may come twice."""

    def look_up(self, question: bytes) -> Life:
        """Say how far the flow of that question is now."""


class FlowLedger:
    """The flows of the buckets that were asked about.

    ``opening`` and ``opened`` may be called from any thread, ``count`` from one at a time.

    Args:
        source: Makes a source; it is used as a context, once a question.
        clock: Seconds that never go back.
        breathe: Called now and then, between the parts of a scan and after some look-ups.
    """

    def __init__(
        self,
        source: Callable[[], AbstractContextManager[FlowSource]],
        clock: Callable[[], float],
        breathe: Callable[[], object] = lambda: None,
    ) -> None:
        self._source = source
        self._clock = clock
        self._breathe = breathe
        self._lock = threading.Lock()
        self._open: Mapping[str, Bitmap] = {}  # these take new flows now
        self._grown: dict[str, Bitmap] = {}  # these took some since they were last asked about
        self._scanned: dict[_Place, float] = {}  # when first, since they took new flows
        # The question of each flow: in front that which was looked up longest ago.
        self._flows: dict[_Place, deque[bytes]] = {}

    def opening(self, buckets: Mapping[str, Bitmap]) -> None:
        """Note that these buckets may take new flows from now on, beside those that do."""
        with self._lock:
            self._open = _union(self._open, buckets)
            self._grown = _union(self._grown, buckets)

    def opened(self, buckets: Mapping[str, Bitmap]) -> bool:
        """Note that these buckets take new flows, and no others; returns whether one has just stopped to."""
        with self._lock:
            closed = any(bitmap & ~buckets.get(group, 0) for group, bitmap in self._open.items())
            self._open = dict(buckets)
            self._grown = _union(self._grown, buckets)
        return closed

    def count(self, buckets: Mapping[str, Bitmap]) -> dict[str, dict[int, int]]:
        """Count the flows of these buckets, as ``FilterBackend.flows`` does; all others are forgotten.

        Raises:
            HostError: The source could not tell.
        """
        with self._lock:
            grown, self._grown = self._grown, dict(self._open)
        asked = {(group, bucket) for group, bitmap in buckets.items() for bucket in bits(bitmap)}
        self._scanned = {
            (group, bucket): since
            for (group, bucket), since in self._scanned.items()
            if (group, bucket) in asked and not grown.get(group, 0) >> bucket & 1
        }
        with self._source() as source:
            if asked <= self._scanned.keys():
                self._look_up(source)
            else:
                self._scan(source, asked)
        found: dict[str, dict[int, int]] = {group: {} for group in buckets}
        for (group, bucket), flows in self._flows.items():
            found[group][bucket] = len(flows)
        return found

    def _scan(self, source: FlowSource, asked: Set[_Place]) -> None:
        now = self._clock()
        since = dict.fromkeys(asked, now) | self._scanned
        found: dict[_Place, dict[bytes, None]] = {}
        for part in source.scan():
            for flow in part:
                place = (flow.group, flow.bucket)
                if place in asked and not (flow.half_open and now - since[place] > HALF_OPEN_S):
                    found.setdefault(place, {})[flow.question] = None
            self._breathe()
        self._flows = {place: deque(flows) for place, flows in found.items()}
        self._scanned = since

    def _look_up(self, source: FlowSource) -> None:
        self._flows = {place: flows for place, flows in self._flows.items() if place in self._scanned}
        now = self._clock()
        share = LOOKUPS // max(1, len(self._flows))
        done = 0
        for place, flows in list(self._flows.items()):
            alive = False
            patient = now - self._scanned[place] <= HALF_OPEN_S
            for looked in range(len(flows)):
                if alive and looked >= share:
                    break
                done += 1
                if done % _LOOKUPS_A_BREATH == 0:
                    self._breathe()
                life = source.look_up(flows[0])  # which may raise
                question = flows.popleft()
                if life is Life.OPEN or (patient and life is Life.HALF_OPEN):
                    flows.append(question)
                    alive = True
            if not flows:
                del self._flows[place]


class FlowWatch:
    """Answers ``FilterBackend.flows`` from the kernel's connection tracking, in a thread of its own.

    Args:
        policy: What the filter enforces.
    """

    def __init__(self, policy: FilterPolicy) -> None:
        services = Services(policy)
        self._closing = threading.Event()
        self._ledger = FlowLedger(lambda: Conntrack(services), time.monotonic, self._breathe)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nlbfarm-flows")
        self._loop = asyncio.get_running_loop()
        # An earlier process may have taken new flows until a moment ago.
        self._settled = self._loop.time() + SETTLE_S

    def opening(self, states: Mapping[str, BucketStates]) -> None:
        """Note that these states are about to hold."""
        self._ledger.opening(_taking(states))

    def opened(self, states: Mapping[str, BucketStates]) -> None:
        """Note that these states hold."""
        if self._ledger.opened(_taking(states)):
            self._settled = self._loop.time() + SETTLE_S

    async def count(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        """Count the flows of these buckets; see ``FilterBackend.flows``.

        Raises:
            HostError: Connection tracking could not be asked.
        """
        await asyncio.sleep(max(0.0, self._settled - self._loop.time()))
        if self._closing.is_set():
            raise HostError(_CLOSED)
        return await self._loop.run_in_executor(self._worker, self._ledger.count, dict(buckets))

    def close(self) -> None:
        """End the thread; a question that is being answered then fails."""
        self._closing.set()
        self._worker.shutdown(wait=False)

    def _breathe(self) -> None:
        # Parsing holds the interpreter's lock, and the event loop has heartbeats to send.
        if self._closing.wait(_BREATH_S):
            raise HostError(_CLOSED)


def _taking(states: Mapping[str, BucketStates]) -> dict[str, Bitmap]:
    return {group: of_group.own | of_group.adopt for group, of_group in states.items()}


def _union(first: Mapping[str, Bitmap], second: Mapping[str, Bitmap]) -> dict[str, Bitmap]:
    return {group: first.get(group, 0) | second.get(group, 0) for group in {*first, *second}}
