"""A node as a process: its signals, systemd, its verbs, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import TypeVar

import structlog

from nlbfarm.api.control import ControlServer
from nlbfarm.assembly.building import build
from nlbfarm.assembly.reloading import Reloader
from nlbfarm.assembly.verbs import verbs
from nlbfarm.config import FarmConfig, FarmKeys
from nlbfarm.core.policy import IPAddress
from nlbfarm.events import Journal
from nlbfarm.heartbeat.realtime import go_realtime
from nlbfarm.instance import claim
from nlbfarm.notify import Notifier as PersonNotifier
from nlbfarm.runtime import Runtime
from nlbfarm.sdnotify import Notifier

__all__ = ["Ended", "run_node"]

STOP_S = 10.0
"""A node that has not left in good order so long after the end of its drain is taken down anyway."""

STATUS_S = 1.0
"""How often systemd is told what the node does."""

T = TypeVar("T")

_log = structlog.get_logger("nlbfarm.node")


class Ended(enum.Enum):
    """How a node came to its end."""

    STOPPED = "stopped"
    REPLACED = "replaced"
    """A new process shall take over: whoever runs the node starts one at once."""


async def run_node(
    config: FarmConfig,
    keys: FarmKeys,
    node_id: int,
    *,
    runtime_dir: Path,
    state_dir: Path,
    config_file: Path | None = None,
) -> Ended:
    """Run one node until SIGTERM or SIGINT, or until its process is to be replaced; SIGHUP reloads.

    It drains first. A second signal ends it without waiting for connections, a third one without waiting for
    the other nodes.

    Args:
        config, keys: What was loaded.
        node_id: Which of the nodes this is.
        runtime_dir, state_dir: Where this farm's volatile and lasting files go (without the farm's name).
        config_file: Where the configuration can be reloaded from. Whoever gives it must start a new
            process when the node is ``REPLACED``.

    Returns:
        How it ended, after it has left and the host is as it was.

    Raises:
        AlreadyRunningError: This host already runs a node of this farm.
        NlbfarmError: It cannot run here; the host is as it was.
    """
    farm = config.farm.name
    lock = claim(farm)
    notifier = Notifier()
    try:
        if config.heartbeat.realtime:
            for note in go_realtime():
                _log.info("host.note", note=note)
        runtime = await build(
            config, keys, node_id, runtime_dir=runtime_dir, state_dir=state_dir, notifier=notifier
        )
        reloader = Reloader(runtime, config, keys, node_id, config_file, runtime_dir)
        process = _Process(runtime, reloader, notifier)
        if config_file is not None:
            runtime.administration.restart_process = process.replace
        journal = Journal(
            state_dir / farm / "events.jsonl",
            runtime.log,
            max_bytes=config.events.max_size,
            files=config.events.files,
        )
        told = _notifier(config, node_id, runtime)
        control = ControlServer(
            runtime_dir / farm / "control.sock",
            verbs(runtime, _local(config, node_id), process.reload, journal),
            group=config.control.group,
        )
        try:
            journal.open()
            told.open()
            with process.signals:
                await control.open()
                if await process.signals.interrupt(runtime.open()):
                    _log.info("node.interrupted", reason="asked to stop while starting")
                else:
                    notifier.ready(f"node {config.node(node_id).name} of farm {farm}")
                    await process.serve()
        finally:
            if not process.replaced:
                notifier.stopping()
            async with process.patience():
                await runtime.close()
                await control.close()
                runtime.log.info("node.stopped", replaced=process.replaced)
                await asyncio.to_thread(told.close)
                await asyncio.to_thread(journal.close)
        if process.replaced:
            notifier.alive()  # the new process has the watchdog's whole time
        return Ended.REPLACED if process.replaced else Ended.STOPPED
    finally:
        notifier.close()
        lock.close()


class _Process:
    """What the process of one node does beside running it."""

    def __init__(self, runtime: Runtime, reloader: Reloader, notifier: Notifier) -> None:
        self._runtime = runtime
        self._reloader = reloader
        self._notifier = notifier
        self._reloading: set[asyncio.Task[None]] = set()
        self._leaving = False
        self._returning = False
        self.signals = _Signals(self._hang_up)

    @property
    def replaced(self) -> bool:
        """Whether a new process shall take over."""
        return self._returning and not self.signals.asked[0].done()

    def replace(self) -> None:
        """Leave so that a new process can take over; refuses if that one could not start."""
        self._reloader.check()
        self._returning = True
        self._notifier.reloading()
        self._runtime.stop(returning=True)

    async def reload(self, dry_run: bool) -> dict[str, object]:
        """Reload the configuration."""
        if dry_run:
            return await self._reloader.reload(dry_run)
        return await self._telling(self._reloader.reload())

    async def serve(self) -> None:
        """Let the node run until the first signal, then leave in good order, for as long as that may take."""
        runtime, asked = self._runtime, self.signals.asked
        stopped = asyncio.create_task(runtime.wait())
        speaker = asyncio.create_task(self._speak())
        try:
            await asyncio.wait({stopped, asked[0]}, return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                self._leaving = True
                self._notifier.stopping()
                runtime.stop()
                await self._either(stopped, asked[1], runtime.parts.settings.drain_timeout + STOP_S)
            if not stopped.done():
                runtime.stop(at_once=True)
                await self._either(stopped, asked[2], STOP_S)
            if stopped.done():
                stopped.result()
        finally:
            speaker.cancel()
            stopped.cancel()
            for task in self._reloading:
                task.cancel()

    async def _either(
        self, stopped: asyncio.Task[None], hurry: asyncio.Future[None], patience: float
    ) -> None:
        await asyncio.wait({stopped, hurry}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            reason = "asked again" if hurry.done() else f"not done after {patience:g} s"
            _log.warning("node.hurried", reason=reason)

    @contextlib.asynccontextmanager
    async def patience(self) -> AsyncIterator[None]:
        """Ask systemd for time while services are stopped, one after the other."""

        async def ask() -> None:
            while True:
                self._notifier.extend(STOP_S)
                await asyncio.sleep(STATUS_S)

        asking = asyncio.create_task(ask())
        try:
            yield
        finally:
            asking.cancel()

    def _hang_up(self) -> None:
        task = asyncio.create_task(self._telling(self._reloader.reload_by_signal()))
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _telling(self, reload: Coroutine[None, None, T]) -> T:
        """Reload, and tell systemd, unless the node still starts or is about to end."""
        tells = self._runtime.node is not None and not self._leaving and not self._returning
        if tells:
            self._notifier.reloading()
        try:
            return await reload
        finally:
            if tells:
                self._notifier.ready()

    async def _speak(self) -> None:
        """Tell systemd what the node does, and that its end may take longer while it drains."""
        said = ""
        while True:
            node = self._runtime.node
            if node is not None:
                line = f"{node.state.name} {node.reason}".strip()
                if line != said:
                    self._notifier.status(line)
                    said = line
            if self._leaving:
                self._notifier.extend(STOP_S)
            await asyncio.sleep(STATUS_S)


class _Signals:
    """SIGTERM and SIGINT as futures: the first asks to leave, the others to hurry; SIGHUP calls back."""

    def __init__(self, hang_up: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._hang_up = hang_up
        self.asked: list[asyncio.Future[None]] = [self._loop.create_future() for _ in range(3)]

    def __enter__(self) -> _Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled)
        self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        return self

    def __exit__(self, *_: object) -> None:
        # From here on the host is being put back: a further signal must not break that off half-way.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._loop.add_signal_handler(number, lambda: None)

    def _signalled(self) -> None:
        for future in self.asked:
            if not future.done():
                future.set_result(None)
                return

    async def interrupt(self, work: Coroutine[None, None, None]) -> bool:
        """Do ``work`` unless a signal comes first; return whether one did. Raises what ``work`` raises."""
        task = asyncio.create_task(work)
        await asyncio.wait({task, self.asked[0]}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return False
        task.cancel()
        await asyncio.wait({task})
        return True


def _notifier(config: FarmConfig, node_id: int, runtime: Runtime) -> PersonNotifier:
    """Return who tells people; nothing is sent yet.

    Raises:
        ConfigError: The file of targets cannot be used.
        HostError: The package that mail and webhooks need is missing.
    """
    notify = config.notify
    return PersonNotifier(
        runtime.log,
        config.farm.name,
        config.node(node_id).name,
        targets=notify.everyone(),
        script=notify.script,
        patterns=notify.events,
        severity=notify.severity,
        batch=notify.batch.total_seconds(),
    )


def _local(config: FarmConfig, node_id: int) -> frozenset[IPAddress]:
    """Return the addresses that are the node's own: its heartbeat addresses and the VIPs."""
    return frozenset({*config.node(node_id).addresses, *(vip.address for vip in config.vips)})
