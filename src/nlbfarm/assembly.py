"""Builds a node from a configuration and runs it: what ``nlbfarm-node run`` does.

A program that embeds nlbfarm calls ``run_node``, or builds ``Parts`` of its own for a ``Runtime``.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import structlog

from nlbfarm import backends, checkers, plugins
from nlbfarm.api.control import ControlServer
from nlbfarm.config import FarmConfig, FarmKeys, derive
from nlbfarm.core.buckets import BucketStates
from nlbfarm.core.policy import IPAddress
from nlbfarm.core.wire import Codec
from nlbfarm.errors import NlbfarmError, UsageError
from nlbfarm.explain import Knowledge, explain, parse_question
from nlbfarm.heartbeat.realtime import go_realtime
from nlbfarm.instance import claim
from nlbfarm.interfaces import Heartbeat, VIPManager
from nlbfarm.parts import Check, Parts, SystemClock
from nlbfarm.plugins import Kind
from nlbfarm.runtime import Runtime
from nlbfarm.sdnotify import Notifier
from nlbfarm.status import status

__all__ = ["build", "run_node", "vip_manager"]

STOP_S = 10.0
"""A node that has not left in good order after this long is taken down anyway."""

STATUS_S = 1.0
"""How often systemd is told what the node does."""


def vip_manager(config: FarmConfig, journal: Path) -> VIPManager:
    """Return what brings this farm's VIPs up, as ``filter.vip_manager`` says.

    Raises:
        PluginError: It cannot be loaded, or not be made from the VIPs and the journal.
    """
    name, what, specs = config.filter.vip_manager_name, "filter.vip_manager", derive.vip_specs(config)
    arguments = (specs,) if name == "memory" else (specs, journal)  # what is in memory needs no journal
    return plugins.make(Kind.VIP, name, VIPManager, what, *arguments)  # type: ignore[type-abstract]


async def build(
    config: FarmConfig,
    keys: FarmKeys,
    node_id: int,
    *,
    runtime_dir: Path,
    state_dir: Path,
    notifier: Notifier | None = None,
) -> Runtime:
    """Build the runtime of one node; nothing on the host is changed yet.

    Args:
        config, keys: What was loaded.
        node_id: Which of the nodes this is.
        runtime_dir, state_dir: Where this farm's volatile and lasting files go (without the farm's name).
        notifier: Whom to tell of every healthy turn.

    Raises:
        NlbfarmError: The backend cannot work here, or a plug-in is missing.
    """
    farm = config.farm.name
    backend, why = await backends.choose(config.filter.backend)
    local, peers = derive.addresses(config, node_id)
    clock = SystemClock()
    checks = [
        Check(
            name=entry.name,
            kind=entry.type,
            checker=checkers.build(entry),
            interval=entry.interval.total_seconds(),
            timeout=entry.timeout.total_seconds(),
            rise=entry.rise,
            fall=entry.fall,
        )
        for entry in config.checkers
    ]
    return Runtime(
        Parts(
            settings=derive.settings(config, keys, node_id),
            policy=derive.policy(config, keys),
            codec=Codec(farm, derive.keyring(keys)),
            backend=backend,
            vips=vip_manager(config, runtime_dir / farm / "journal.json"),
            heartbeat=plugins.make(
                Kind.HEARTBEAT,
                config.heartbeat.transport,
                Heartbeat,  # type: ignore[type-abstract]
                "heartbeat.transport",
                local,
                peers,
                port=config.heartbeat.port,
                dscp=config.heartbeat.dscp,
                clock=clock,
            ),
            peers=peers,
            incarnation_file=state_dir / farm / "incarnation",
            checks=checks,
            backend_detail=why,
            delivery=", ".join(sorted({vip.delivery.value for vip in config.vips})),
            clock=clock,
            on_turn=_watchdog(notifier),
        )
    )


def _watchdog(notifier: Notifier | None) -> Any:
    """Return what tells systemd that the loop turns, at most as often as it wants to know."""
    if notifier is None or notifier.watchdog_interval is None:
        return lambda: None
    interval, last = notifier.watchdog_interval, [float("-inf")]
    clock = SystemClock()

    def turned() -> None:
        now = clock.monotonic()
        if now - last[0] >= interval:
            last[0] = now
            notifier.alive()

    return turned


async def run_node(
    config: FarmConfig, keys: FarmKeys, node_id: int, *, runtime_dir: Path, state_dir: Path
) -> int:
    """Run one node until SIGTERM or SIGINT; a second signal ends it without waiting for the others.

    Returns:
        0, after it has left and the host is as it was.

    Raises:
        AlreadyRunningError: This host already runs a node of this farm.
        NlbfarmError: It cannot run here; the host is as it was.
    """
    log = structlog.get_logger("nlbfarm.node")
    farm = config.farm.name
    lock = claim(farm)
    notifier = Notifier()
    try:
        if config.heartbeat.realtime:
            for note in go_realtime():
                log.info("host.note", note=note)
        runtime = await build(
            config, keys, node_id, runtime_dir=runtime_dir, state_dir=state_dir, notifier=notifier
        )
        control = ControlServer(
            runtime_dir / farm / "control.sock",
            _verbs(runtime, _local(config, node_id)),
            group=config.control.group,
        )
        try:
            with _Signals() as signals:
                await control.open()
                if await signals.interrupt(runtime.open()):
                    log.info("node.interrupted", reason="asked to stop while starting")
                else:
                    notifier.ready(f"node {config.node(node_id).name} of farm {farm}")
                    await _serve(runtime, signals, notifier)
        finally:
            notifier.stopping()
            await runtime.close()
            await control.close()
        log.info("node.stopped")
        return 0
    finally:
        notifier.close()
        lock.close()


async def _serve(runtime: Runtime, signals: _Signals, notifier: Notifier) -> None:
    """Let the node run until the first signal, then leave in good order, for as long as that may take."""
    stopped = asyncio.create_task(runtime.wait())
    speaker = asyncio.create_task(_speak(runtime, notifier))
    try:
        await asyncio.wait({stopped, signals.first}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            notifier.stopping()
            runtime.stop()
            await asyncio.wait({stopped, signals.second}, timeout=STOP_S, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            stopped.result()
        else:
            structlog.get_logger("nlbfarm.node").warning(
                "node.hurried",
                reason="asked a second time" if signals.second.done() else f"not done after {STOP_S:g} s",
            )
    finally:
        speaker.cancel()
        stopped.cancel()


class _Signals:
    """SIGTERM and SIGINT as futures: the first asks to leave, the second to hurry."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = self._loop.create_future()
        self.second: asyncio.Future[None] = self._loop.create_future()

    def __enter__(self) -> _Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled)
        return self

    def __exit__(self, *_: object) -> None:
        # From here on the host is being put back: a further signal must not break that off half-way.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, lambda: None)

    def _signalled(self) -> None:
        for future in (self.first, self.second):
            if not future.done():
                future.set_result(None)
                return

    async def interrupt(self, work: Coroutine[None, None, None]) -> bool:
        """Do ``work`` unless a signal comes first; return whether one did. Raises what ``work`` raises."""
        task = asyncio.create_task(work)
        await asyncio.wait({task, self.first}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return False
        task.cancel()
        await asyncio.wait({task})
        return True


async def _speak(runtime: Runtime, notifier: Notifier) -> None:
    said = ""
    while True:
        node = runtime.node
        if node is not None:
            line = f"{node.state.name} {node.reason}".strip()
            if line != said:
                notifier.status(line)
                said = line
        await asyncio.sleep(STATUS_S)


def _local(config: FarmConfig, node_id: int) -> frozenset[IPAddress]:
    """Return the addresses that are the node's own: its heartbeat addresses and the VIPs."""
    return frozenset({*config.node(node_id).addresses, *(vip.address for vip in config.vips)})


def _verbs(runtime: Runtime, local: frozenset[IPAddress]) -> dict[str, Any]:
    async def answer_status(args: Mapping[str, Any]) -> dict[str, Any]:
        return await status(runtime)

    async def answer_explain(args: Mapping[str, Any]) -> dict[str, Any]:
        client, service = args.get("client"), args.get("service")
        if not isinstance(client, str) or not isinstance(service, str):
            raise UsageError('explain takes "client" and "service", both text')
        return explain(parse_question(client, service), _knowledge(runtime, local))

    return {"status": answer_status, "explain": answer_explain}


def _knowledge(runtime: Runtime, local: frozenset[IPAddress]) -> Knowledge:
    parts, node = runtime.parts, runtime.node
    if node is None:
        raise NlbfarmError("the node is still starting: try again in a moment")
    plan = node.membership.plan
    groups = parts.settings.groups
    return Knowledge(
        policy=parts.policy,
        node=parts.settings.node,
        names=parts.settings.nodes,
        placements=dict(zip(groups, plan.placements, strict=True)) if plan is not None else {},
        states={name: BucketStates(own=own) for name, own in zip(groups, node.applied, strict=True)},
        lease_running=node.lease_until > parts.clock.monotonic(),
        local=local,
    )
