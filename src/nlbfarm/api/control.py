"""The local control socket of a node: a line of JSON asks, a line of JSON answers.

Request ``{"verb": "status", "args": {...}}``; answer ``{"ok": true, "result": ...}`` or
``{"ok": false, "error": "a sentence", "kind": "..."}``. Kinds: ``usage`` (the request cannot be
meant), ``denied`` (not allowed), ``busy`` (too many at once), ``timeout`` and ``failed``.

Who may ask is decided twice: by the mode of the socket file (0600, or 0660 with a group), and
by the credentials that the kernel reports of the peer (``SO_PEERCRED``, unix(7)).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from nlbfarm.errors import HostError, NlbfarmError, UsageError

__all__ = ["ControlServer", "Handler", "NodeNotRunningError", "call"]

Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Answers a verb: its arguments in, something JSON-able out; ``UsageError`` for wrong arguments."""

MAX_REQUEST = 64 * 1024
"""Bytes of a request line."""

MAX_ANSWER = 16 * 1024 * 1024
"""Bytes of an answer line that the client takes."""

MAX_CONNECTIONS = 16
IDLE_SECONDS = 5.0
HANDLER_SECONDS = 10.0
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_SUN_PATH = 107

_log = structlog.get_logger()


class NodeNotRunningError(NlbfarmError):
    """Nobody answers on a node's control socket."""


class ControlServer:
    """Serves the control socket.

    Args:
        path: The socket file; its directory is made if it is missing.
        handlers: What answers each verb.
        group: Name of a group of this host whose members may ask, too; empty for none.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler], group: str = "") -> None:
        self._path = path
        self._handlers = dict(handlers)
        self._group = group
        self._gid: int | None = None
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Start to answer. The file of a killed process is replaced.

        Raises:
            HostError: The socket cannot be made here, the group does not exist, or another process
                answers on it.
        """
        if self._group:
            try:
                import grp  # not on every platform

                self._gid = grp.getgrnam(self._group).gr_gid
            except KeyError:
                raise HostError(f'control.group: this host has no group "{self._group}"') from None
        # Made complete under another name, then moved: nobody ever connects to one with a wrong mode.
        draft = self._path.with_name(f".{secrets.token_hex(4)}")
        if max(len(os.fsencode(name)) for name in (self._path, draft)) > _SUN_PATH:
            raise HostError(f"{self._path} is too long a name for a socket; choose a shorter --runtime-dir")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._refuse_if_taken()
            listener.bind(str(draft))
            try:
                if self._gid is not None:
                    os.chown(draft, -1, self._gid)
                draft.chmod(0o600 if self._gid is None else 0o660)
                listener.listen(MAX_CONNECTIONS)
                found = draft.stat()
                draft.replace(self._path)
            except OSError:
                draft.unlink(missing_ok=True)
                raise
            self._inode = (found.st_dev, found.st_ino)
        except OSError as error:
            listener.close()
            raise HostError(f"cannot make the control socket {self._path}: {error.strerror}") from error
        except HostError:
            listener.close()
            raise
        listener.setblocking(False)
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=MAX_REQUEST)

    def _refuse_if_taken(self) -> None:
        try:
            mode = self._path.stat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise HostError(f"{self._path} is there and is not a socket; remove it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self._path))
            except (ConnectionRefusedError, FileNotFoundError):
                return  # left behind
            except TimeoutError:
                pass  # somebody listens, but does not keep up
        raise HostError(f"another process answers on {self._path}")

    async def close(self) -> None:
        """Stop to answer and remove the socket file, if it is still ours; may be called twice."""
        server, self._server = self._server, None
        if server is None:
            return
        with contextlib.suppress(FileNotFoundError):
            found = self._path.stat()
            if (found.st_dev, found.st_ino) == self._inode:
                self._path.unlink()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, TimeoutError):
            pass  # the peer is gone, or does not read its answer
        except asyncio.CancelledError:
            pass  # close(); asyncio would report a cancelled connection as an error
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        refusal = self._refusal(writer.get_extra_info("socket"))
        while True:
            try:
                # Who is refused is read, too: closing with unread bytes would take the answer along.
                # Not wait_for: in Python 3.11 it can swallow a cancellation (python/cpython#86296).
                async with asyncio.timeout(IDLE_SECONDS):
                    line = await reader.readuntil()
            except (asyncio.IncompleteReadError, TimeoutError):
                return
            except asyncio.LimitOverrunError:
                refusal = refusal or _error("usage", f"a request has at most {MAX_REQUEST} bytes")
            answer = refusal or await self._answer(line)
            writer.write(json.dumps(answer, separators=(",", ":"), default=str).encode() + b"\n")
            async with asyncio.timeout(IDLE_SECONDS):
                await writer.drain()
            if refusal is not None:
                return

    def _refusal(self, connection: socket.socket) -> dict[str, Any] | None:
        if len(self._tasks) > MAX_CONNECTIONS:
            return _error("busy", f"more than {MAX_CONNECTIONS} clients at once; try again")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, gid = struct.unpack("3i", credentials)
        if uid in (0, os.geteuid()) or (self._gid is not None and self._gid in _groups(connection, gid)):
            return None
        _log.warning("control.denied", uid=uid, pid=pid)
        return _error("denied", f"user {uid} may not control this node; be root, or join control.group")

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            verb, args = request["verb"], request.get("args", {})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return _error("usage", 'a request is a line like {"verb": "status", "args": {}}')
        if not isinstance(verb, str) or not isinstance(args, dict):
            return _error("usage", '"verb" must be a string, "args" an object')
        handler = self._handlers.get(verb)
        if handler is None:
            return _error("usage", f'this node does not know the verb "{verb[:40]}"')
        try:
            async with asyncio.timeout(HANDLER_SECONDS):
                result = await handler(args)
        except TimeoutError:
            return _error("timeout", f"{verb} took longer than {HANDLER_SECONDS:g} s")
        except UsageError as error:
            return _error("usage", str(error))
        except NlbfarmError as error:
            return _error("failed", str(error))
        except Exception as error:  # noqa: BLE001 - a fault of one verb must not end the node
            _log.exception("control.fault", verb=verb)
            return _error("failed", f"{verb} failed inside the node: {type(error).__name__}: {error}")
        return {"ok": True, "result": result}


def _groups(connection: socket.socket, gid: int) -> set[int]:
    groups = {gid}
    with contextlib.suppress(OSError):
        # 1024 bytes are the most that Python asks for: with more than 256 groups only the first counts.
        found = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
        groups.update(group for (group,) in struct.iter_unpack("I", found))
    return groups


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"ok": False, "error": message, "kind": kind}


def call(path: Path, verb: str, args: Mapping[str, Any] | None = None, *, timeout: float = 5.0) -> Any:
    """Ask a running node; blocks.

    Args:
        path: Its control socket.
        verb: What to do.
        args: The verb's arguments.
        timeout: Seconds for all of it.

    Returns:
        The result.

    Raises:
        NodeNotRunningError: There is no socket, or nobody answers on it.
        HostError: This user may not ask.
        UsageError: The node does not understand the request.
        NlbfarmError: It failed, or did not answer in time.
    """
    deadline = time.monotonic() + timeout
    received = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(json.dumps({"verb": verb, "args": dict(args or {})}).encode() + b"\n")
            while not received.endswith(b"\n"):
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                chunk = connection.recv(1 << 16)
                if not chunk:
                    raise NodeNotRunningError(f"the node at {path} ended before it answered")
                received += chunk
                if len(received) > MAX_ANSWER:
                    raise NlbfarmError(f"the answer from {path} has more than {MAX_ANSWER} bytes")
        except FileNotFoundError:
            raise NodeNotRunningError(f"no node is running here: there is no {path}") from None
        except (ConnectionResetError, BrokenPipeError):
            raise NodeNotRunningError(f"the node at {path} ended before it answered") from None
        except ConnectionRefusedError:
            raise NodeNotRunningError(
                f"no node is running here: nobody answers on {path}, which a killed process left behind "
                "(nlbfarm-node cleanup puts back what else it left)"
            ) from None
        except PermissionError:
            raise HostError(f"you may not use {path}; be root, or a member of control.group") from None
        except TimeoutError:
            raise NlbfarmError(
                f"the node at {path} did not answer within {timeout:g} s; it hangs, or the host is overloaded"
            ) from None
        except OSError as error:
            raise HostError(f"cannot talk to {path}: {error}") from error
    answer = json.loads(received)
    if answer.get("ok"):
        return answer.get("result")
    message = str(answer.get("error", "no reason given"))
    raise {"usage": UsageError, "denied": HostError}.get(answer.get("kind", ""), NlbfarmError)(message)
