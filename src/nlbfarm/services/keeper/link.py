"""A node's end of the connection to a keeper: start one, or find the one that another process left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlbfarm.errors import HostError
from nlbfarm.services.keeper import talk
from nlbfarm.services.keeper.family import alive, sweep

__all__ = ["Link", "sweep_record"]

_BOOT = Path(__file__).with_name("boot.py")
_START_S = 20.0  # for an interpreter to start on a host that is very busy
_ANSWER_S = 5.0  # for a keeper that runs
_BUSY_S = 5.0  # for the process before to be gone
_END_S = 10.0  # for a keeper to end what it keeps, and itself, when its node is gone
_PAUSE_S = 0.01

_children: set[int] = set()
"""Keepers that this process has started and not yet taken the exit status of."""

_spawning: set[asyncio.Future[int]] = set()
"""Keepers that are just being started; one that nobody wants any more ends as soon as it sees that."""


class Link:
    """A connection to a keeper.

    ``ended`` is set when the application has come to its end, or the keeper has; ``gone`` when nothing of
    either is left, or nothing more can be done about it.

    Args:
        connection: The socket, connected.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._finishing: asyncio.Task[None] | None = None
        self._stopping = False
        self._farewell = False
        self._ours = False  # that keeper, to be ended with what it keeps if it comes to that
        self.hello: Mapping[str, Any] = {}
        """What the keeper has said of itself."""
        self.silent = False
        """Whether it does not answer: it hangs, or is stopped."""
        self.keeper = talk.peer(connection)[0]
        """Its process id."""
        self.ended = asyncio.Event()
        self.why = ""
        """How the application came to its end."""
        self.gone = asyncio.Event()
        self.left: frozenset[int] = frozenset()
        """Processes of the application that do not end."""
        connection.setblocking(False)
        self._loop.add_reader(connection.fileno(), self._readable)

    # -- how to get one ----------------------------------------------------------------------------

    @classmethod
    async def spawn(cls, label: str) -> Link:
        """Start a keeper.

        Args:
            label: For people who look at the process table.

        Raises:
            HostError: It cannot be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        spawning = asyncio.ensure_future(asyncio.to_thread(_spawn, theirs, label))
        _spawning.add(spawning)
        spawning.add_done_callback(_spawned)
        try:
            pid = await asyncio.shield(spawning)
        except BaseException:
            ours.close()
            raise
        link = cls(ours)
        link.keeper, link._ours = pid, True
        return link

    async def begin(self, setup: Mapping[str, Any]) -> None:
        """Have a new keeper start its application.

        Args:
            setup: What ``Keeper`` is told.

        Raises:
            HostError: It cannot be started. As after a cancellation, what there is ends by itself (``gone``).
        """
        try:
            self._connection.send(talk.pack("setup", **setup))
            answer = await self._answered(_START_S)
        except OSError as error:
            self.drop()
            raise HostError(f"its keeper cannot be told what to start: {error.strerror}") from error
        except BaseException:
            self.drop()
            raise
        if answer["kind"] == "hello":
            self.hello = answer
            return
        self.drop()
        await self.gone.wait()
        if answer["kind"] == "failed":
            raise HostError(str(answer["why"]))
        raise HostError(f"its keeper ({sys.executable}) did not start; see the node's standard error")

    @classmethod
    async def find(cls, path: Path) -> Link | None:
        """Connect to a keeper that runs; ``None`` if there is none. It is not adopted yet.

        Raises:
            HostError: It is somebody else's.
        """
        for pid in list(_children):
            _reaped(pid)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        try:
            with talk.address(path) as name:
                connection.connect(name)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        except OSError as error:
            connection.close()
            raise HostError(f"{path}: {error.strerror}") from error
        pid, uid = talk.peer(connection)
        if uid not in (0, os.geteuid()):
            connection.close()
            raise HostError(f"{path} belongs to user {uid} (process {pid}); end that process")
        link = cls(connection)
        try:
            answer = await link._answered(_ANSWER_S)
        except BaseException:
            link.close()
            raise
        if answer["kind"] == "hello":
            link.hello = answer
        link.silent = answer["kind"] == "silent"
        return link

    async def adopt(self, *, outlive: bool) -> bool:
        """Take the application over; returns whether it runs. If not, it is being ended: wait for ``gone``.

        Raises:
            HostError: Another process has it.
        """
        if self.silent:
            self._give_up()
        deadline = self._loop.time() + _BUSY_S
        while not self.ended.is_set() and self.hello.get("state") == "running":
            answer = await self._ask("adopt", outlive=outlive)
            if answer["kind"] == "adopted":
                self._ours = True
                return True
            if answer["kind"] == "silent":
                self._give_up()
            elif answer["kind"] != "busy":
                self.hello = {**self.hello, "state": "ending"}
            elif self._loop.time() > deadline:
                self.close()
                raise HostError(
                    f"process {answer['pid']} of another node has it under its care; stop that one"
                )
            else:
                await asyncio.sleep(_PAUSE_S)
        return False

    # -- what can be done with it ------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the application runs, as far as is known."""
        return self.hello.get("state") == "running" and not self._stopping and not self.ended.is_set()

    @property
    def pid(self) -> int:
        """The application's main process; 0 if it is not known."""
        return int(self.hello.get("pid", 0))

    @property
    def cgroup(self) -> Path | None:
        """The application's cgroup."""
        found = self.hello.get("cgroup", "")
        return Path(found) if found else None

    def stop(self, number: int, timeout: float, why: str) -> None:
        """Have the application asked to end, and killed after ``timeout`` seconds."""
        self._stopping = True
        with contextlib.suppress(OSError):  # then it is on its way out already
            self._connection.send(talk.pack("stop", signal=number, timeout=timeout, why=why[:4096]))

    def keep(self) -> None:
        """Leave the application to the next process of the node."""
        with contextlib.suppress(OSError):
            self._connection.send(talk.pack("keep"))
        self._disconnect()

    def drop(self) -> None:
        """Have everything ended at once, if it is this node's; ``gone`` is set when that is done."""
        if self._finishing is None:
            self.stop(signal.SIGKILL, 0.0, "the node does not want it any more")
            self._finishing = self._loop.create_task(self._finish())

    def close(self) -> None:
        """Take the connection away; the keeper sees that as ``drop``."""
        self._disconnect()
        if self._finishing is not None:
            self._finishing.cancel()

    # -- what comes from there ---------------------------------------------------------------------

    async def _ask(self, kind: str, **content: object) -> dict[str, Any]:
        self._answer = self._loop.create_future()
        try:
            self._connection.send(talk.pack(kind, **content))
        except OSError:
            return {"kind": "silent"}
        return await self._answered(_ANSWER_S)

    async def _answered(self, patience: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(patience):
                return await self._answer
        except TimeoutError:
            return {"kind": "silent"}

    def _readable(self) -> None:
        while True:
            try:
                data = self._connection.recv(talk.LARGEST)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.drop()
                return
            self._take(talk.unpack(data))

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if kind == "ended":
            self._end(_how(message))
        elif kind == "stuck":
            self.left = frozenset(message["pids"])
        elif kind == "gone":
            self._farewell = True
            self._end("it was stopped")
        if kind in ("hello", "failed", "adopted", "busy", "gone") and not self._answer.done():
            self._answer.set_result(message)

    def _end(self, why: str) -> None:
        if not self.ended.is_set():
            self.why = why
            self.ended.set()

    def _disconnect(self) -> None:
        if self._connection.fileno() >= 0:
            self._loop.remove_reader(self._connection.fileno())
            self._connection.close()

    async def _finish(self) -> None:
        """Wait for the keeper's end; after one that was killed, end what it kept."""
        self._disconnect()
        if not self._answer.done():
            self._answer.set_result({"kind": "gone"})
        try:
            if not await self._keeper_ended() and self._ours:
                self._give_up()
                await self._keeper_ended()
            if self._ours and not self._farewell and self.hello:
                cgroup, token, session = self.cgroup, str(self.hello["token"]), self.pid
                self.left = frozenset(await asyncio.to_thread(sweep, cgroup, token, session))
        finally:
            self._end(f"the process that kept it ({self.keeper}) is gone")
            self.gone.set()

    def _give_up(self) -> None:
        """Kill a keeper that does not do what it has to; what it kept is swept up then."""
        self._ours = self._stopping = True
        with contextlib.suppress(OSError):
            os.kill(self.keeper, signal.SIGKILL)

    async def _keeper_ended(self) -> bool:
        deadline = self._loop.time() + _END_S
        while not _reaped(self.keeper) and alive(self.keeper):
            if self._loop.time() > deadline:
                return False
            await asyncio.sleep(_PAUSE_S)
        return True


def sweep_record(path: Path) -> frozenset[int]:
    """End what a keeper left that was killed together with its node; blocks.

    Args:
        path: What it has written down.

    Returns:
        The ids of processes that do not end.
    """
    try:
        record = json.loads(path.read_text())
        cgroup, token = Path(record["cgroup"]) if record["cgroup"] else None, str(record["token"])
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, KeyError, TypeError):
        path.unlink(missing_ok=True)  # the host went down as it was written: so did all processes
        return frozenset()
    left = sweep(cgroup, token)
    if not left:
        path.unlink(missing_ok=True)
    return frozenset(left)


def _spawn(theirs: socket.socket, label: str) -> int:
    """Start a keeper; the connection is its own from then on."""
    descriptor = theirs.fileno()
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(_BOOT), label],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, descriptor, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            ],
            setsigmask=(),
        )
    except OSError as error:
        raise HostError(f"its keeper ({sys.executable}) cannot be started: {error.strerror}") from error
    finally:
        theirs.close()
    _children.add(pid)
    return pid


def _spawned(spawning: asyncio.Future[int]) -> None:
    _spawning.discard(spawning)
    if not spawning.cancelled():
        spawning.exception()  # whoever still waits has it


def _reaped(pid: int) -> bool:
    """Take the exit status of a child that has ended; returns whether it was one."""
    try:
        done = os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        _children.discard(pid)
        return False
    if done:
        _children.discard(pid)
    return done


def _how(message: Mapping[str, Any]) -> str:
    """Put the end of an application into words."""
    text = f"its process ({message['pid']}) has ended: {message['how']}"
    if message["left"] and message["code"] == 0:
        text += (
            f", and left {message['left']} in the background, which were ended, too: "
            "a command has to stay in the foreground"
        )
    return f"{text}; it said: {message['said']}" if message["said"] else text
