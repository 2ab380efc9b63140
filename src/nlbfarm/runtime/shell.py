"""The loop of one node: what comes in goes to the core, and what the core says is done.

Order on the way up: what a killed process left, the filter (closed), addresses, heartbeats; on the way down
the reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace

from nlbfarm.admin import AdminFile
from nlbfarm.core.commands import (
    ApplyFilter,
    AskFlows,
    Command,
    Forgotten,
    Halted,
    ProbeReachability,
    Report,
    SaveIncarnation,
    Send,
    SetLease,
    Stopped,
)
from nlbfarm.core.events import (
    Event,
    MessageArrived,
    PeerRefused,
    PowersChanged,
    SettingsChanged,
    StopRequested,
    TimerFired,
)
from nlbfarm.core.node import Node
from nlbfarm.core.orders import Orders
from nlbfarm.core.policy import IPAddress
from nlbfarm.core.settings import Settings
from nlbfarm.core.versions import Versions
from nlbfarm.core.wire import AnyMessage, OrderMessage, version_of
from nlbfarm.damping import Starts
from nlbfarm.errors import NlbfarmError, PeerError
from nlbfarm.events import EventLog, EventStream
from nlbfarm.incarnation import next_incarnation, save_incarnation
from nlbfarm.interfaces import Received
from nlbfarm.parts import Parts
from nlbfarm.rejections import Rejections
from nlbfarm.restarts import Restarts
from nlbfarm.runtime.administration import Administration
from nlbfarm.runtime.dialect import Dialect
from nlbfarm.runtime.filtering import FilterKeeper
from nlbfarm.runtime.remote import Remote
from nlbfarm.runtime.supervising import Supervising
from nlbfarm.runtime.vips import VIPS, VipKeeper

__all__ = ["Runtime"]

LONGEST_LEASE_S = 1.0
"""What every backend must be able to promise."""


class Runtime:
    """One running node.

    ``open`` brings it up, ``stop`` asks it to leave, ``wait`` returns when it has, ``close`` puts the host
    back whatever happened. ``administration`` and ``remote`` take an administrator's commands.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.node: Node | None = None
        self.started_at = parts.clock.monotonic()
        self.rejections = Rejections(parts.peers, parts.settings.nodes)
        self.versions = Versions(parts.peers, parts.codec.newest)
        self.log = EventLog(EventStream(), clock=parts.clock)
        """Everything that happens; ``log.stream`` is for whoever wants to know it in this process."""
        self._log = self.log
        self._dialect = Dialect(parts.settings, parts.former_digest)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._service_tasks: set[asyncio.Task[None]] = set()
        """Those that start, stop and watch services: they go on while the node ends."""
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._closed = False
        self._in_order = False
        """Whether this life ends because somebody wanted it to."""
        self._returning = False
        """Whether another process takes over: services go on without this one."""
        self._peers: dict[int, Sequence[IPAddress]] = dict(parts.peers)
        """Whom heartbeats go to: the configured peers, and those retired that still serve."""
        self._names = dict(parts.settings.nodes)
        self.supervising = Supervising(
            parts.services,
            parts.checks,
            parts.failover_rules,
            last_stays=parts.last_stays,
            salt=parts.settings.nodes[parts.settings.node],
            restarts=Restarts(parts.restarts_file),
            node=lambda: self.node,
            handle=self.handle,
            take_out=lambda action, reason: self.administration.take_out(action, reason),  # noqa: PLW0108 - made below
            spawn=self._spawn_service,
            clock=parts.clock,
            log=self.log,
        )
        self.vips = VipKeeper(parts.vips, self.handle, self.supervising.vips_changed, self.log)
        self.filter = FilterKeeper(parts.backend, self.vips, self.handle, self._spawn, self.log)
        self.administration = Administration(
            parts.settings,
            AdminFile(parts.admin_file),
            Starts(parts.starts_file),
            self.vips,
            self.supervising,
            self.running,
            parts.clock,
            self.handle,
            self._spawn,
            self.log,
        )
        self.remote = Remote(
            Orders(parts.settings.node, self._names, parts.settings.interval),
            self.versions,
            self.administration,
            self.running,
            self._send_order,
            self._spawn,
            parts.clock,
            self.log,
        )

    def running(self) -> Node:
        """Return the state machine.

        Raises:
            NlbfarmError: The node is still starting.
        """
        if self.node is None:
            raise NlbfarmError("the node is still starting: try again in a moment")
        return self.node

    # -- life ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Bring the node up: the filter closed, the VIPs, the heartbeats, the checkers.

        Raises:
            NlbfarmError: Something is missing; call ``close`` to put the host back.
        """
        try:
            await self._open()
        except BaseException:
            self._in_order = True  # it never served: nothing to be careful with the next time
            raise

    async def _open(self) -> None:
        parts, clock, administration = self.parts, self.parts.clock, self.administration
        incarnation = next_incarnation(parts.incarnation_file, clock.wall())
        admin = administration.open()
        # First what a killed process left: with its filter still in place, nothing gets through.
        for line in await parts.vips.open():
            self._log.info("host.restored", what=line)
        flows = await self.filter.open(parts.policy)
        self._log.info("filter.opened", backend=parts.backend.name, detail=parts.backend_detail)
        self.node = Node(
            self._announced(parts.settings),
            incarnation,
            clock.monotonic(),
            [VIPS, *administration.resources, *self.supervising.resources],
            admin=admin,
            admin_reason=administration.state.reason,
            flows=flows,
        )
        self._log.info("node.started", node=parts.settings.node, incarnation=incarnation, admin=admin.value)
        await parts.heartbeat.open(self._on_datagram, lambda peer: self.handle(PeerRefused(peer)))
        for note in parts.heartbeat.stats().notes:
            self._log.info("heartbeat.note", note=note)
        self._arm()
        self._spawn(self.vips.keep())
        self._spawn(administration.damp())

    def stop(self, *, at_once: bool = False, returning: bool = False) -> None:
        """Ask the node to leave in good order; ``wait`` returns when it has.

        Args:
            at_once: Without waiting for established connections; may be said later, too.
            returning: A new process takes over here soon: the peers leave its connections alone meanwhile.
        """
        self._in_order = self.administration.ending = True
        self._returning |= returning
        if self.node is None:
            self._finish()
        else:
            self.handle(StopRequested(at_once=at_once, returning=returning))

    async def wait(self) -> None:
        """Return when the node has left.

        Raises:
            Exception: What ended it, if it was not asked to stop.
        """
        await self._done

    async def close(self) -> None:
        """Put the host back: VIPs, services, filter. Tries everything before it raises the first error.

        Services go on if another process takes over, or if this one ends because of an error: the next one
        finds them running. Those that are children of this process end with it then, or wait for the next.
        """
        if self._closed:
            return
        self._closed = self.filter.closed = True
        self.remote.close()
        if self._timer is not None:
            self._timer.cancel()
        errors: list[Exception] = []

        async def attempt(closer: Callable[[], Awaitable[None]]) -> bool:
            try:
                await closer()
            except Exception as error:  # noqa: BLE001 - every part gets its turn; raised below
                errors.append(error)
                self._log.error("node.close_failed", error=str(error))
                return False
            return True

        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await attempt(self.parts.heartbeat.close)
        lowered = await attempt(self.parts.vips.close)
        stop = self._in_order and not self._returning
        await attempt(lambda: self.supervising.close(stop=stop))
        for task in self._service_tasks:
            task.cancel()
        await asyncio.gather(*self._service_tasks, return_exceptions=True)
        if lowered:
            await attempt(self.parts.backend.close)
        else:
            # With a VIP still on the host, the filter has to stay, closed: "cleanup" finishes this.
            with contextlib.suppress(NlbfarmError):
                self.parts.backend.lease(0)
        if self._in_order:
            self.administration.end()
        if errors:
            raise errors[0]

    def _finish(self, error: BaseException | None = None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self._spawn_in(self._tasks, work)

    def _spawn_service(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self._spawn_in(self._service_tasks, work)

    def _spawn_in(
        self, tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Take note that a task is over; an error that nobody expected ends the node, not half of it."""
        if not task.cancelled() and task.exception() is not None:
            self._finish(task.exception())

    # -- another configuration -------------------------------------------------------------

    async def reconfigure(self, parts: Parts) -> None:
        """Go by other ``settings`` (``SettingsChanged``), ``codec``, ``peers``, ``checks`` and rules.

        All other parts must be those that the runtime has. Nodes that are no longer named are still counted
        with as long as they serve.
        """
        node, settings = self.running(), self._announced(parts.settings)
        self.parts = parts
        self._dialect = Dialect(parts.settings, parts.former_digest)
        self.rejections.configure(parts.peers, parts.settings.nodes)
        self._reach({**self._peers, **parts.peers})
        self._names.update(parts.settings.nodes)
        self.administration.configure(parts.settings)
        self.handle(SettingsChanged(settings))
        if node.powers != settings.powers:
            self.handle(PowersChanged(settings.powers))
        await self.supervising.reconfigure(parts.checks, parts.failover_rules)

    def _announced(self, settings: Settings) -> Settings:
        """Return ``settings`` with the powers that the administrator has set."""
        return replace(settings, powers=self.administration.powers(settings))

    def _reach(self, peers: Mapping[int, Sequence[IPAddress]]) -> None:
        self._peers = dict(peers)
        self.parts.heartbeat.set_peers(self._peers)
        self.versions.configure(self._peers)

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
        self.supervising.turned()

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
        version = version_of(received.data)
        message = self._dialect.heard(message, version)
        self.versions.heard(message.sender, message.incarnation, version, now)
        if isinstance(message, OrderMessage):
            if not self._closed and not self._done.done():
                self.remote.arrived(message)
        else:
            self.handle(MessageArrived(message, received.network, min(received.at, now), version))

    def _do(self, command: Command) -> None:
        match command:
            case Send():
                self._send(command.message, command.nodes)
            case SetLease():
                self.filter.lease(min(command.until - self.parts.clock.monotonic(), LONGEST_LEASE_S))
            case ApplyFilter():
                self._tell_drained(command)
                self._spawn(self.filter.apply(command))
            case AskFlows():
                self._spawn(self.filter.ask(command))
            case ProbeReachability():
                self._spawn(self.vips.probe(self.parts.peers))
            case SaveIncarnation():
                save_incarnation(self.parts.incarnation_file, command.incarnation)
            case Report():
                log = self._log.warning if command.warning else self._log.info
                log(command.event, **command.fields)
            case Forgotten():
                if command.node not in self.parts.peers:
                    self._reach({peer: its for peer, its in self._peers.items() if peer != command.node})
            case Halted():
                self.administration.halted()
            case Stopped():
                self._finish()

    def _tell_drained(self, change: ApplyFilter) -> None:
        """Log the end of a drain, and the connections that it did not wait for any longer."""
        node, cut = self.running(), 0
        for group, before in zip(node.settings.groups, node.applied, strict=True):
            after = change.states[group]
            over = before.drain & ~(after.drain | after.own | after.adopt)
            cut += sum(
                count for bucket, count in node.flows_left.get(group, {}).items() if over >> bucket & 1
            )
        self.administration.cut += cut
        if cut:
            self._log.warning("drain.cut_short", connections=cut)
        elif any(old.drain for old in node.applied) and not any(new.drain for new in change.states.values()):
            self._log.info("drain.ended")

    def _send(self, message: AnyMessage, nodes: Iterable[int]) -> None:
        """Send a message to each of ``nodes`` in the version that it understands."""
        for version, readers in self.versions.speak(message, nodes, self.parts.clock.monotonic()):
            said = self._dialect.spoken(message, version)
            self.parts.heartbeat.send(self.parts.codec.encode(said, version), readers)

    def _send_order(self, message: OrderMessage, nodes: Iterable[int]) -> None:
        """Send an order, or an answer, in the newest version; who does not know it does not read it."""
        self.parts.heartbeat.send(self.parts.codec.encode(message, self.parts.codec.newest), tuple(nodes))
