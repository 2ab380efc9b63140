"""The node's side: starts the loop and the guard, tells them what to do, and sees that both are there."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from nlbfarm.backends.bucketing import reference_of
from nlbfarm.backends.windivert import engine, leftovers
from nlbfarm.backends.windivert.channel import UnansweredError, Worker
from nlbfarm.backends.windivert.guard import GuardSetup
from nlbfarm.backends.windivert.leftovers import Program
from nlbfarm.backends.windivert.loop import LoopSetup, Opened
from nlbfarm.backends.windivert.removal import VipRemoval
from nlbfarm.backends.windivert.shared import Shared, Word
from nlbfarm.backends.windivert.tcwatch import TcWatch
from nlbfarm.core.buckets import Bitmap, BucketStates
from nlbfarm.core.judging import BucketFunction
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import FilterBackend, FilterCounters, Usability

__all__ = ["MAX_LEASE_S", "WinDivertBackend"]

_T = TypeVar("_T")

MAX_LEASE_S = 1.0
"""Longest lease that may be given."""

_OPEN_S = 20.0
_CALL_S = 2.0
_POLITE_S = 0.5
_LOOK_S = 0.25
_HUNG_AFTER = 5  # looks without a beat


class WinDivertBackend(FilterBackend):
    """Enforces the rule in a process of its own, for packets that WinDivert (on Linux: eBPF) diverts to it.

    It needs the package pydivert, and Administrator or root.

    Args:
        bucket: A vendor's own bucket function, which other processes must be able to import by its name.
        udp_idle: Seconds of silence that end a UDP flow.
        removal: The node's VIP manager, with which the guard removes the VIPs if it must; without one it
            removes the addresses by the host's own tool.
        follow_ends: Whether the host is asked which connections have ended (the flow layer): a server's FIN
            does not pass this filter. On Linux that takes a second to open.

    Raises:
        UsageError: The bucket function cannot be imported by another process.
    """

    name = "windivert"

    def __init__(
        self,
        *,
        bucket: BucketFunction | None = None,
        udp_idle: float = 60.0,
        removal: VipRemoval | None = None,
        follow_ends: bool = engine.WINDOWS,
    ) -> None:
        self._bucket = reference_of(bucket) if bucket is not None else ""
        self._udp_idle, self._removal = udp_idle, removal
        self._follow_ends = follow_ends
        self._loop: asyncio.AbstractEventLoop | None = None
        self._executor: ThreadPoolExecutor | None = None  # starts and ends processes, one thing at a time
        self._asking: ThreadPoolExecutor | None = None  # waits for what they answer
        self._policy: FilterPolicy | None = None
        self._on_damage: Callable[[str], None] = lambda _: None
        self._shared: Shared | None = None
        self._judging: Worker | None = None
        self._guard: Worker | None = None
        self._handle: int | None = None  # of the loop, on Windows
        self._programs: set[Program] = set()  # ours, at tc
        self._qdiscs_before: set[str] = set()
        self._tc: TcWatch | None = None
        self._states: Mapping[str, BucketStates] = {}
        self._damaged = False
        self._watching: asyncio.Task[None] | None = None
        self._comparing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()  # over starting and ending the processes
        self.others: Sequence[str] = ()
        """Divert handles of other programs that were there when the filter was opened, a line each."""
        self.trouble = ""
        """What is wrong with the vendor's bucket function, as of the last ``counters``; else empty."""

    @classmethod
    async def probe(cls) -> Usability:
        return await _in_thread(engine.usability)

    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        if self._policy is not None:
            raise UsageError("the windivert backend is open already")
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nlbfarm-windivert")
        self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nlbfarm-windivert-ask")
        self._policy, self._on_damage = policy, on_damage
        self._states, self._damaged = {}, False
        try:
            await self._run(self._start)
        except BaseException:
            await self.close()
            raise
        if not engine.WINDOWS:
            with suppress(OSError):
                self._tc = TcWatch()
                self._loop.add_reader(self._tc.fileno(), self._tc_changed)
        self._watching = self._loop.create_task(self._watch(), name="nlbfarm-windivert-watch")

    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        self._require_groups(states)
        await self._ask(self._judging, "apply", dict(states))
        self._states = dict(states)

    def lease(self, seconds: float) -> bool:
        self._opened()
        if not seconds <= MAX_LEASE_S:  # nor NaN
            raise UsageError(f"a lease of {seconds} s: give at most {MAX_LEASE_S} s")
        if self._damaged or self._shared is None or self._judging is None or not self._judging.alive:
            return False
        self._shared.lease(seconds)
        return True

    async def repair(self) -> None:
        self._opened()
        async with self._changing:
            await self._run(self._restart)
            self._damaged = False
            if self._judging is not None and not self._judging.alive:
                self._judging_ended(self._judging)

    async def flows(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        self._require_groups(buckets)
        counts: Mapping[str, Mapping[int, int]] = await self._ask(self._judging, "flows", dict(buckets))
        return counts

    async def counters(self) -> FilterCounters:
        self._opened()
        counters: FilterCounters
        counters, self.trouble = await self._ask(self._judging, "counters")
        return counters

    async def close(self) -> None:
        for task in (self._watching, self._comparing, *self._tasks):
            if task is not None:
                task.cancel()
        self._watching = self._comparing = None
        if self._tc is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._tc.fileno())
            self._tc.close()
            self._tc = None
        if self._executor is None:
            return
        try:
            async with self._changing:
                await self._run(self._end)
        finally:
            self._policy = None
            for executor in (self._executor, self._asking):
                if executor is not None:
                    executor.shutdown(wait=False)
            self._executor = self._asking = None

    @classmethod
    async def cleanup(cls, farm: str) -> Sequence[str]:
        return await _in_thread(_cleanup, farm)

    # -- in the thread of the executor -------------------------------------------------------------

    def _start(self) -> None:
        policy = self._opened()
        engine.load()
        if lacking := engine.missing_right():
            raise HostError(f"windivert: {lacking}")
        interfaces = list(engine.interface_indexes(policy))
        earlier = leftovers.find(policy.farm)
        of_earlier = leftovers.programs(interfaces)
        self._qdiscs_before = leftovers.interfaces_with_qdisc(interfaces)
        self._shared = Shared.create()
        known = [process.pid for role in earlier.values() for process in role]
        self._guard = Worker("guard", policy.farm, self._guard_gone)
        self._judging = Worker("loop", policy.farm, self._judging_gone)
        self._start_guard()
        self._start_judging(known)
        # Theirs is the same filter with no lease: until here it dropped what ours did not see.
        leftovers.end(earlier)
        leftovers.remove(of_earlier)
        self._programs = leftovers.programs(interfaces) - of_earlier

    def _start_guard(self) -> None:
        policy, shared = self._opened(), self._shared
        assert shared is not None
        if self._guard is None:
            self._guard = Worker("guard", policy.farm, self._guard_gone)
        self._guard.call("open", GuardSetup(policy, shared.path, self._removal), timeout=_OPEN_S)
        if self._watching is not None and self._judging is not None:  # it is not the first guard
            self._guard.call("watch", self._judging.pid, self._handle, timeout=_OPEN_S)

    def _start_judging(self, allowed: Iterable[int] = ()) -> None:
        policy, shared, guard = self._opened(), self._shared, self._guard
        assert shared is not None
        assert guard is not None
        shared.lease(0)
        if self._judging is None:
            self._judging = Worker("loop", policy.farm, self._judging_gone)
        pids = (os.getpid(), self._judging.pid, guard.pid, *allowed)
        setup = LoopSetup(policy, self._bucket, self._udp_idle, self._follow_ends, shared.path, pids)
        opened: Opened = self._judging.call("open", setup, timeout=_OPEN_S)
        self.others, self._handle = opened.others, opened.handle
        self._judging.call("apply", dict(self._states), timeout=_CALL_S)
        guard.call("watch", self._judging.pid, self._handle, timeout=_OPEN_S)

    def _restart(self) -> None:
        """Put a new loop in the place of the damaged one; the guard drops everything meanwhile."""
        policy, shared = self._opened(), self._shared
        assert shared is not None
        shared.lease(0)
        if self._guard is None or not self._guard.alive:
            if self._guard is not None:
                self._guard.end()
                self._guard = None
            self._start_guard()
        assert self._guard is not None
        self._guard.call("drop", timeout=_OPEN_S)
        if self._judging is not None:
            self._judging.end(_POLITE_S)  # it may well hang
            self._judging = None
        interfaces = [vip.interface for vip in policy.vips]
        leftovers.remove(program for program in self._programs if program.of_loop)
        before = leftovers.programs(interfaces)
        self._start_judging([self._guard.pid])
        self._programs = {p for p in leftovers.programs(interfaces) - before if p.of_loop}

    def _end(self) -> None:
        """End both processes and take away what they had; the guard first, that it sees no failure."""
        for worker in (self._guard, self._judging):
            if worker is not None:
                worker.end()
        self._guard = self._judging = None
        if self._policy is not None and self._shared is not None:
            interfaces = [vip.interface for vip in self._policy.vips]
            if leftovers.alone():
                self._programs = leftovers.programs(interfaces)  # those of guards that were killed as well
            leftovers.remove(self._programs)
            self._programs = set()
            leftovers.drop_empty_qdiscs(leftovers.interfaces_with_qdisc(interfaces) - self._qdiscs_before)
        if self._shared is not None:
            self._shared.close(remove=True)
            self._shared = None

    def _replace_guard(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard = None
        self._start_guard()

    # -- on the event loop -------------------------------------------------------------------------

    async def _watch(self) -> None:
        """See that both processes run: one that was stopped, or hangs, says nothing by itself."""
        beats = {Word.LOOP_BEAT: (-1, 0), Word.GUARD_BEAT: (-1, 0)}
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._shared is None:
                return
            for word, (seen, still) in beats.items():
                beat = self._shared[word]
                beats[word] = beat, still + 1 if beat == seen else 0
            # Counted in looks, not in seconds: a host that stood still has not shown a hung process.
            if beats[Word.LOOP_BEAT][1] >= _HUNG_AFTER:
                self._damage("the process that judges packets hangs or was stopped")
            if beats[Word.GUARD_BEAT][1] >= _HUNG_AFTER:
                beats[Word.GUARD_BEAT] = -1, 0
                await self._new_guard(self._guard)

    async def _new_guard(self, gone: Worker | None) -> None:
        if self._policy is None or self._executor is None:
            return
        try:
            async with self._changing:
                if self._guard is None or self._guard is gone:  # not replaced meanwhile
                    await self._run(self._replace_guard)
        except HostError as error:
            self._damage(f"the process that guards the filter is gone and cannot be started again: {error}")

    def _judging_gone(self, worker: Worker) -> None:
        """The loop has ended; called from its thread."""
        self._from_thread(self._judging_ended, worker)

    def _judging_ended(self, worker: Worker) -> None:
        if worker is self._judging:
            self._damage("the process that judges packets has ended")

    def _guard_gone(self, worker: Worker) -> None:
        """The guard has ended; called from its thread."""
        self._from_thread(self._guard_ended, worker)

    def _guard_ended(self, worker: Worker) -> None:
        if self._loop is not None and self._watching is not None:
            task = self._loop.create_task(self._new_guard(worker), name="nlbfarm-windivert-guard")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _from_thread(self, call: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(call, *arguments)

    def _tc_changed(self) -> None:
        if self._tc is not None:
            self._tc.drain()
        if self._damaged or self._loop is None:
            return
        if self._comparing is None or self._comparing.done():
            self._comparing = self._loop.create_task(self._compare(), name="nlbfarm-windivert-compare")

    async def _compare(self) -> None:
        if self._policy is None:
            return
        wanted = {program for program in self._programs if program.of_loop}
        there = await self._run(leftovers.programs, {vip.interface for vip in self._policy.vips})
        missing = sorted({program.interface for program in wanted - there})
        if missing and wanted <= {program for program in self._programs if program.of_loop}:
            self._damage(f"somebody else took the filter's program off {', '.join(missing)}")
            with suppress(HostError):
                await self._ask(self._guard, "drop")

    def _damage(self, reason: str) -> None:
        if self._damaged or self._policy is None:
            return
        self._damaged = True
        if self._shared is not None:
            self._shared.lease(0)
        self._on_damage(reason)

    # -- small things ------------------------------------------------------------------------------

    def _opened(self) -> FilterPolicy:
        if self._policy is None:
            raise UsageError("the windivert backend is not open")
        return self._policy

    def _require_groups(self, named: Mapping[str, object]) -> None:
        policy = self._opened()
        if unknown := sorted(named.keys() - {group.name for group in policy.groups}):
            raise UsageError(f"no group {', '.join(unknown)} in the policy of farm {policy.farm}")

    async def _run(self, job: Callable[..., _T], *arguments: object) -> _T:
        assert self._loop is not None
        return await self._loop.run_in_executor(self._executor, job, *arguments)

    async def _ask(self, worker: Worker | None, name: str, *arguments: object) -> Any:
        self._opened()
        assert self._loop is not None
        assert worker is not None
        call = partial(worker.call, name, *arguments, timeout=_CALL_S)
        try:
            return await self._loop.run_in_executor(self._asking, call)
        except UnansweredError as error:
            # It may yet do what it was asked, long after it was said to have failed.
            self._damage(str(error))
            raise


async def _in_thread(job: Callable[..., _T], *arguments: object) -> _T:
    """Run ``job`` in a new thread: it belongs to the network namespace of the caller's."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, job, *arguments)


def _cleanup(farm: str) -> list[str]:
    lines = leftovers.end(leftovers.find(farm))
    Shared.remove_orphans()
    if engine.WINDOWS or not leftovers.alone():
        return lines  # their handles went with the processes; or other farms have programs here, too
    interfaces = [name for _, name in socket.if_nameindex()]
    return [*lines, *leftovers.remove(leftovers.programs(interfaces))]
