"""The asyncio shell around one node: events in, commands out.

``Runtime`` is built from finished ``nlbfarm.parts``, so that a vendor can put its own in; ``run_node`` in
``nlbfarm.assembly`` builds them from a configuration. Order on the way up: filter (closed), what a
killed process left, addresses, heartbeats; on the way down the reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass

import structlog

from nlbfarm.core.buckets import BucketStates
from nlbfarm.core.commands import (
    ApplyFilter,
    Command,
    ProbeReachability,
    Report,
    SaveIncarnation,
    Send,
    SetLease,
    Stopped,
)
from nlbfarm.core.events import (
    Event,
    FilterApplied,
    FilterDamaged,
    FilterRepaired,
    MessageArrived,
    PeerRefused,
    Reachability,
    ResourceChanged,
    StopRequested,
    TimerFired,
)
from nlbfarm.core.health import Health
from nlbfarm.core.node import Node
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError, NlbfarmError, PeerError
from nlbfarm.incarnation import next_incarnation, save_incarnation
from nlbfarm.interfaces import CheckResult, Received
from nlbfarm.parts import Check, Parts
from nlbfarm.rejections import Rejections

__all__ = ["Runtime"]

VIPS = "virtual-ip"
"""Name of the resource that stands for the VIPs."""

FILTER = "filter"
"""Name of the resource that stands for the packet filter, once it has failed to be repaired."""

LOOK_S = 1.0
"""How often the node looks whether its VIPs are still there."""

REPAIR_S = 0.5
"""Pause between two attempts to repair a damaged filter, or to take a VIP that a stranger uses."""

CHECK_SLACK_S = 0.5
"""A checker that keeps its own time has this much longer to say what it waited for."""

LONGEST_LEASE_S = 1.0
"""What every backend must be able to promise."""


@dataclass(slots=True)
class CheckState:
    """What is known of a checked resource."""

    ok: bool | None = None
    detail: str = "not looked at yet"
    since: float = 0.0


class Runtime:
    """One running node.

    ``open`` brings it up, ``stop`` asks it to leave, ``wait`` returns when it has, ``close`` puts the host
    back whatever happened.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.node: Node | None = None
        self.started_at = parts.clock.monotonic()
        self.checks: dict[str, CheckState] = {check.name: CheckState() for check in parts.checks}
        self.rejections = Rejections(parts.peers, parts.settings.nodes)
        self.present: Mapping[IPAddress, bool] = {}
        self._log = structlog.get_logger("nlbfarm.node")
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._filter = asyncio.Lock()
        self._states: Mapping[str, BucketStates] = {}
        self._damaged = False
        self._damages = 0
        self._vips = asyncio.Lock()
        """Held while the VIPs are brought up or taken away."""
        self._vips_told: bool | None = None
        self._shut = asyncio.Event()
        """Set while the VIPs are down for a repair."""
        self._vips_up = False
        self._closed = False

    # -- life ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Bring the node up: the filter closed, the VIPs, the heartbeats, the checkers.

        Raises:
            NlbfarmError: Something is missing; call ``close`` to put the host back.
        """
        parts, clock = self.parts, self.parts.clock
        incarnation = next_incarnation(parts.incarnation_file, clock.wall())
        # First what a killed process left: with its filter still in place, nothing gets through.
        for line in await parts.vips.open():
            self._log.info("host.restored", what=line)
        await parts.backend.open(parts.policy, self._on_damage)
        self._log.info("filter.opened", backend=parts.backend.name, detail=parts.backend_detail)
        resources = [VIPS, *(f"checker {check.name}" for check in parts.checks)]
        self.node = Node(parts.settings, incarnation, clock.monotonic(), resources)
        self._log.info("node.started", node=parts.settings.node, incarnation=incarnation)
        await parts.heartbeat.open(self._on_datagram, lambda peer: self.handle(PeerRefused(peer)))
        for note in parts.heartbeat.stats().notes:
            self._log.info("heartbeat.note", note=note)
        self._arm()
        self._spawn(self._keep_vips())
        for check in parts.checks:
            self._spawn(self._watch(check))

    def stop(self) -> None:
        """Ask the node to leave in good order; ``wait`` returns when it has."""
        if self.node is None:
            self._finish()
        else:
            self.handle(StopRequested())

    async def wait(self) -> None:
        """Return when the node has left.

        Raises:
            Exception: What ended it, if it was not asked to stop.
        """
        await self._done

    async def close(self) -> None:
        """Put the host back: VIPs, then filter. Tries everything before it raises the first error."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        errors: list[Exception] = []

        async def attempt(closer: Callable[[], Awaitable[None]]) -> bool:
            try:
                await closer()
            except Exception as error:  # noqa: BLE001 - every part gets its turn; raised below
                errors.append(error)
                self._log.error("node.close_failed", error=str(error))
                return False
            return True

        for check in self.parts.checks:
            await attempt(check.checker.close)
        await attempt(self.parts.heartbeat.close)
        if await attempt(self.parts.vips.close):
            await attempt(self.parts.backend.close)
        else:
            # With a VIP still on the host, the filter has to stay, closed: "cleanup" finishes this.
            with contextlib.suppress(NlbfarmError):
                self.parts.backend.lease(0)
        if errors:
            raise errors[0]

    def _finish(self, error: BaseException | None = None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Take note that a task is over; an error that nobody expected ends the node, not half of it."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._finish(task.exception())

    # -- the loop --------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Feed the core and do what it says."""
        if self.node is None or self._closed or self._done.done():
            return
        try:
            for command in self.node.handle(event, self.parts.clock.monotonic()):
                self._do(command)
        except Exception as error:  # noqa: BLE001 - raised by wait(); without renewal the lease runs out
            self._log.exception("node.failed", event_kind=type(event).__name__)
            self._finish(error)
            return
        self._arm()

    def _arm(self) -> None:
        assert self.node is not None
        due = self.node.timer()
        if self._timer is not None:
            if self._timer.when() == due and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        try:
            self.parts.heartbeat.poll()
        except Exception as error:  # noqa: BLE001 - raised by wait(); without renewal the lease runs out
            self._log.exception("heartbeat.failed")
            self._finish(error)
            return
        self.handle(TimerFired())
        if not self._done.done():
            self.parts.on_turn()

    def _on_datagram(self, received: Received) -> None:
        try:
            message = self.parts.codec.decode(received.data)
        except PeerError as error:
            said = self.rejections.add(error, received.source, self.parts.clock.monotonic())
            if said is not None:
                self._log.warning("heartbeat.rejected", kind=error.kind, source=received.source, detail=said)
            return
        now = self.parts.clock.monotonic()
        self.handle(MessageArrived(message, received.network, min(received.at, now)))

    def _do(self, command: Command) -> None:
        match command:
            case Send():
                self.parts.heartbeat.send(self.parts.codec.encode(command.message), command.nodes)
            case SetLease():
                seconds = min(command.until - self.parts.clock.monotonic(), LONGEST_LEASE_S)
                if not self.parts.backend.lease(seconds) and seconds > 0 and not self._damaged:
                    self._on_damage("the filter did not take the lease")
            case ApplyFilter():
                self._spawn(self._apply(command))
            case ProbeReachability():
                self._spawn(self._probe())
            case SaveIncarnation():
                save_incarnation(self.parts.incarnation_file, command.incarnation)
            case Report():
                log = self._log.warning if command.warning else self._log.info
                log(command.event, **command.fields)
            case Stopped():
                self._finish()

    # -- the filter ------------------------------------------------------------------------

    async def _apply(self, command: ApplyFilter) -> None:
        self._states = command.states
        if self._damaged:
            # With the VIPs down nothing is accepted, so a release is true at once; the repair applies these.
            await self._shut.wait()
        else:
            async with self._filter:
                try:
                    await self.parts.backend.apply(command.states)
                except HostError as error:
                    self._on_damage(str(error))
                    await self._shut.wait()
        self.handle(FilterApplied(command.serial))

    def _on_damage(self, reason: str) -> None:
        self._damages += 1
        if self._damaged or self._closed:
            return
        self._damaged = True
        self._log.warning("filter.damaged", reason=reason)
        self.handle(FilterDamaged(reason))
        self._spawn(self._repair())

    async def _repair(self) -> None:
        """Take the VIPs away, put the filter back, bring the VIPs back; without a lease all the while."""
        async with self._vips:
            were_up, failed = self._vips_up, False
            while True:
                await self._lower_vips()
                seen, states = self._damages, self._states
                try:
                    async with self._filter:
                        await self.parts.backend.repair()
                        await self.parts.backend.apply(states)
                except HostError as error:
                    failed = True
                    self._log.warning("filter.repair_failed", error=str(error))
                    reason = f"the packet filter cannot be repaired: {error}"
                    self.handle(ResourceChanged(FILTER, False, reason))
                    await asyncio.sleep(REPAIR_S)
                    continue
                if were_up:
                    try:
                        await self._raise_vips()
                    except HostError as error:  # the filter is whole: the next look tries again
                        self._tell_vips(False, str(error))
                # A firewall script often flushes twice: what came in the meantime counts, too.
                if seen == self._damages and states is self._states:
                    break
            self._damaged = False
            self._shut.clear()
        self._log.info("filter.repaired")
        self.handle(FilterRepaired())
        if failed:
            self.handle(ResourceChanged(FILTER, True))

    # -- the VIPs --------------------------------------------------------------------------

    async def _lower_vips(self) -> None:
        await self.parts.vips.down()
        self._vips_up = False
        self._shut.set()

    async def _raise_vips(self) -> None:
        await self.parts.vips.up()
        self._vips_up = True

    def _tell_vips(self, ok: bool, reason: str = "") -> None:
        self._vips_told = ok
        self.handle(ResourceChanged(VIPS, ok, reason))

    async def _keep_vips(self) -> None:
        """Bring the VIPs up, and keep them there."""
        while not await self._take_vips():  # noqa: ASYNC110 - a stranger tells nobody when it goes
            await asyncio.sleep(REPAIR_S)
        while True:
            await asyncio.sleep(LOOK_S)
            self.present = self.parts.vips.present()
            gone = sorted(str(address) for address, there in self.present.items() if not there)
            if self._damaged or (self._vips_told and not gone):
                continue
            if gone and self._vips_told:
                self._log.warning("vip.vanished", addresses=gone)
            await self._take_vips()

    async def _take_vips(self) -> bool:
        """Bring the VIPs up unless a stranger has one; return whether that was possible."""
        try:
            strangers = await self.parts.vips.claimed()
            if strangers:
                who = ", ".join(f"{address} is in use by {mac}" for address, mac in strangers.items())
                reason = f"{who}, not a node of this farm: give that machine another address (tried again)"
                self._tell_vips(False, reason)
                return False
            async with self._vips:
                if self._damaged:
                    return False
                await self._raise_vips()
        except HostError as error:
            self._tell_vips(False, str(error))
            return False
        self.present = self.parts.vips.present()
        self._tell_vips(True)
        return True

    async def _probe(self) -> None:
        peers = self.parts.peers
        try:
            answered = await self.parts.vips.reachable({a for known in peers.values() for a in known})
        except HostError as error:
            self._log.warning("vip.probe_failed", error=str(error))
            answered = frozenset()
        nodes = frozenset(node for node, known in peers.items() if answered.intersection(known))
        self.handle(Reachability(nodes))

    # -- checkers --------------------------------------------------------------------------

    async def _watch(self, check: Check) -> None:
        """Look at one resource for ever."""
        health = Health(check.rise, check.fall)
        state = self.checks[check.name]
        while True:
            begun = self._loop.time()
            try:
                async with asyncio.timeout(check.timeout + CHECK_SLACK_S):
                    result = await check.checker.check()
            except TimeoutError:
                result = CheckResult(False, f"no answer within {check.timeout:g} s")
            except NlbfarmError as error:
                result = CheckResult(False, str(error))
            except Exception as error:  # noqa: BLE001 - a plug-in's fault is a failed check, not our end
                self._log.exception("checker.failed", checker=check.name)
                result = CheckResult(False, f"the checker itself failed: {error!r}")
            state.detail = result.detail
            changed = health.observe(result.ok)
            if changed is not None:
                state.ok, state.since = changed, self._loop.time()
                log = self._log.info if changed else self._log.warning
                log("checker.changed", checker=check.name, ok=changed, detail=result.detail)
                self.handle(
                    ResourceChanged(f"checker {check.name}", changed, f"{check.name}: {result.detail}")
                )
            await asyncio.sleep(max(0.0, check.interval - (self._loop.time() - begun)))
