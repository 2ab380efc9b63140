"""The packet filter of one node: changes, damage and repair, and which connections are left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping

from nlbfarm.core.buckets import ALL, Bitmap, BucketStates, bits
from nlbfarm.core.commands import ApplyFilter, AskFlows
from nlbfarm.core.events import (
    Event,
    FilterApplied,
    FilterDamaged,
    FilterRepaired,
    FlowsLeft,
    ResourceChanged,
)
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import HostError
from nlbfarm.events import EventLog
from nlbfarm.interfaces import FilterBackend
from nlbfarm.runtime.vips import REPAIR_S, VipKeeper

__all__ = ["FILTER", "FilterKeeper"]

COUNT_S = 0.5
"""How long a node waits at its start for the number of connections that an earlier process left."""

FILTER = "filter"
"""Name of the resource that stands for the packet filter, once it has failed to be repaired."""


class FilterKeeper:
    """Changes the filter, and repairs it when somebody else has.

    Args:
        backend: The filter.
        vips: They go down while it is repaired.
        handle: Where events go.
        spawn: Starts a task of the node.
        log: Of the node.
    """

    def __init__(
        self,
        backend: FilterBackend,
        vips: VipKeeper,
        handle: Callable[[Event], None],
        spawn: Callable[[Coroutine[None, None, None]], object],
        log: EventLog,
    ) -> None:
        self._backend = backend
        self._vips = vips
        self._handle = handle
        self._spawn = spawn
        self._log = log
        self._changing = asyncio.Lock()
        self._shut = asyncio.Event()
        """Set while the VIPs are down for a repair."""
        self._states: Mapping[str, BucketStates] = {}
        self._damages = 0
        self._uncountable = False
        self.damaged = False
        self.closed = False
        """Set when the node ends: what happens to the filter from then on is nobody's business."""

    async def open(self, policy: FilterPolicy) -> Mapping[str, Mapping[int, int]]:
        """Put the closed filter in place; return the flows that an earlier process left.

        A table of many connections takes seconds to read, and the peers do not adopt for ever: an answer that
        takes longer than ``COUNT_S`` is not waited for. Then there may be one in every bucket, until the
        state machine has asked again.

        Raises:
            HostError: It cannot be put in place; nothing was changed.
        """
        await self._backend.open(policy, self.damage)
        everything = {group.name: ALL for group in policy.groups}
        count = asyncio.ensure_future(self._count(everything))
        done, _ = await asyncio.wait({count}, timeout=COUNT_S)
        if done:
            return count.result()
        self._spawn(self._finish(count))
        return _anywhere(everything)

    async def _finish(self, count: asyncio.Future[Mapping[str, Mapping[int, int]]]) -> None:
        await count

    def lease(self, seconds: float) -> None:
        """Let the filter accept for ``seconds``."""
        if not self._backend.lease(seconds) and seconds > 0 and not self.damaged:
            self.damage("the filter did not take the lease")

    async def apply(self, command: ApplyFilter) -> None:
        """Make the change, and say when it holds."""
        self._states = command.states
        if self.damaged:
            # With the VIPs down nothing is accepted, so a release is true at once; the repair applies these.
            await self._shut.wait()
        else:
            async with self._changing:
                try:
                    await self._backend.apply(command.states)
                except HostError as error:
                    self.damage(str(error))
                    await self._shut.wait()
        self._handle(FilterApplied(command.serial))

    async def ask(self, command: AskFlows) -> None:
        """Find out which connections are left, and tell."""
        self._handle(FlowsLeft(command.serial, await self._count(command.buckets)))

    async def _count(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        try:
            found = await self._backend.flows(buckets)
        except HostError as error:
            if not self._uncountable:
                self._uncountable = True
                self._log.warning(
                    "filter.flows_unknown", error=str(error), detail="every drain lasts for drain_timeout"
                )
            return _anywhere(buckets)
        self._uncountable = False
        return found

    def damage(self, reason: str) -> None:
        """Take note that the filter cannot be relied on, and begin to repair it."""
        self._damages += 1
        if self.damaged or self.closed:
            return
        self.damaged = self._vips.hindered = True
        self._log.warning("filter.damaged", reason=reason)
        self._handle(FilterDamaged(reason))
        self._spawn(self._repair())

    async def _repair(self) -> None:
        """Take the VIPs away, put the filter back, bring the VIPs back; without a lease all the while."""
        vips = self._vips
        async with vips.changing():
            were_up, failed = vips.up, False
            while True:
                await vips.down()
                self._shut.set()
                seen, states = self._damages, self._states
                try:
                    async with self._changing:
                        await self._backend.repair()
                        await self._backend.apply(states)
                except HostError as error:
                    failed = True
                    self._log.warning("filter.repair_failed", error=str(error))
                    reason = f"the packet filter cannot be repaired: {error}"
                    self._handle(ResourceChanged(FILTER, False, reason))
                    await asyncio.sleep(REPAIR_S)
                    continue
                if were_up:
                    await vips.back()
                # A firewall script often flushes twice: what came in the meantime counts, too.
                if seen == self._damages and states is self._states:
                    break
            self.damaged = vips.hindered = False
            self._shut.clear()
        self._log.info("filter.repaired")
        self._handle(FilterRepaired())
        if failed:
            self._handle(ResourceChanged(FILTER, True))


def _anywhere(buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
    """Return the answer of who does not know: there may be a flow in every bucket."""
    return {group: dict.fromkeys(bits(bitmap), 1) for group, bitmap in buckets.items()}
