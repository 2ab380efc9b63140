"""The local control socket of a node: a line of JSON asks, a line of JSON answers.

Request ``{"verb": "status", "args": {...}}``; answer ``{"ok": true, "result": ...}`` or
``{"ok": false, "error": "a sentence", "kind": "..."}``. Kinds: ``usage`` (the request cannot be
meant), ``denied`` (not allowed), ``busy`` (too many at once), ``timeout`` and ``failed``.

The answer to some verbs is a stream: ``{"ok": true, "begin": true}``, then ``{"ok": true, "item": ...}`` for
each item, and ``{"ok": true, "end": true}`` if there is an end; an error as above may stand in its place. A
client ends it by closing the connection; nothing that it sends meanwhile is read. One that reads too slowly
is cut off.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog

from nlbfarm.errors import HostError, NlbfarmError, UsageError

__all__ = ["ControlServer", "Handler", "NodeNotRunningError", "call", "stream"]

Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Answers a verb: its arguments in, something JSON-able out, or an asynchronous iterator of such things for a
stream; ``UsageError`` for wrong arguments. An iterator's ``aclose``, if it has one, is called at the end."""

MAX_REQUEST = 64 * 1024
"""Bytes of a request line."""

MAX_ANSWER = 16 * 1024 * 1024
"""Bytes of an answer line that the client takes."""

MAX_CONNECTIONS = 16
MAX_STREAMS = 8
"""Streams last, so they must leave connections to those who ask."""

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
        self._streams = 0

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
            try:
                async with asyncio.timeout(1):
                    await writer.wait_closed()
            except TimeoutError:
                writer.transport.abort()  # what it does not read would be kept for ever
            except (ConnectionError, asyncio.CancelledError):
                pass

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
            if isinstance(answer, AsyncIterator):
                await self._stream(answer, reader, writer)
                return
            await _send(writer, answer)
            if refusal is not None:
                return

    async def _stream(
        self, items: AsyncIterator[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send each item as it comes, until there is no more, or nobody who reads."""
        self._streams += 1
        sending = asyncio.create_task(_send_all(items, writer))
        gone = asyncio.create_task(_read_to_end(reader))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self._streams -= 1
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            await _close(items)

    def _refusal(self, connection: socket.socket) -> dict[str, Any] | None:
        if len(self._tasks) > MAX_CONNECTIONS:
            return _error("busy", f"more than {MAX_CONNECTIONS} clients at once; try again")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, gid = struct.unpack("3i", credentials)
        if uid in (0, os.geteuid()) or (self._gid is not None and self._gid in _groups(connection, gid)):
            return None
        _log.warning("control.denied", uid=uid, pid=pid)
        return _error("denied", f"user {uid} may not control this node; be root, or join control.group")

    async def _answer(self, line: bytes) -> dict[str, Any] | AsyncIterator[Any]:
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
        if not isinstance(result, AsyncIterator):
            return {"ok": True, "result": result}
        if self._streams < MAX_STREAMS:
            return result
        await _close(result)
        return _error("busy", f"more than {MAX_STREAMS} clients follow at once; try again")


async def _send(writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
    """Send a line; ``TimeoutError`` if the client does not read."""
    writer.write(json.dumps(answer, separators=(",", ":"), default=str).encode() + b"\n")
    async with asyncio.timeout(IDLE_SECONDS):
        await writer.drain()


async def _send_all(items: AsyncIterator[Any], writer: asyncio.StreamWriter) -> None:
    await _send(writer, {"ok": True, "begin": True})
    try:
        async for item in items:
            await _send(writer, {"ok": True, "item": item})
        last = {"ok": True, "end": True}
    except (ConnectionError, TimeoutError):
        raise  # nobody reads this any more
    except NlbfarmError as error:
        last = _error("failed", str(error))
    except Exception as error:  # noqa: BLE001 - as for an answer: a fault of one verb must not end the node
        _log.exception("control.fault", verb="a stream")
        last = _error("failed", f"the stream failed inside the node: {type(error).__name__}: {error}")
    await _send(writer, last)


async def _close(items: AsyncIterator[Any]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


async def _read_to_end(reader: asyncio.StreamReader) -> None:
    """Return when the client has closed its side of the connection."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(MAX_REQUEST):
            pass


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
    with _asked(path, verb, args, timeout) as lines:
        return _accepted(lines.next(deadline)).get("result")


def stream(
    path: Path, verb: str, args: Mapping[str, Any] | None = None, *, timeout: float = 5.0
) -> Iterator[Any]:
    """Ask a running node for a stream; yields each item as it comes, and blocks between them.

    Args:
        path, verb, args: As for ``call``.
        timeout: Seconds until the stream begins; how long it lasts is not limited.

    Raises:
        NodeNotRunningError: There is no socket, nobody answers on it, or the node has ended the connection.
        HostError, UsageError, NlbfarmError: As for ``call``.
    """
    deadline = time.monotonic() + timeout
    with _asked(path, verb, args, timeout) as lines:
        _accepted(lines.next(deadline))
        while True:
            try:
                answer = _accepted(lines.next(None))
            except NodeNotRunningError:
                raise NodeNotRunningError(
                    f"the node at {path} has ended, or it cut this off because it was read too slowly"
                ) from None
            if answer.get("end"):
                return
            yield answer.get("item")


class _Lines:
    """Lines from a connection, each within its time."""

    def __init__(self, path: Path, connection: socket.socket) -> None:
        self._path = path
        self._connection = connection
        self._received = bytearray()

    def next(self, deadline: float | None) -> dict[str, Any]:
        """Return the next line's JSON; ``TimeoutError`` after ``deadline``, on the monotonic clock."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > MAX_ANSWER:
                raise NlbfarmError(f"the answer from {self._path} has more than {MAX_ANSWER} bytes")
            left = None if deadline is None else max(0.001, deadline - time.monotonic())
            self._connection.settimeout(left)
            chunk = self._connection.recv(1 << 16)
            if not chunk:
                raise NodeNotRunningError(f"the node at {self._path} ended before it answered")
            self._received += chunk
        answer: dict[str, Any] = json.loads(self._received[:end])
        del self._received[: end + 1]
        return answer


@contextlib.contextmanager
def _asked(path: Path, verb: str, args: Mapping[str, Any] | None, timeout: float) -> Iterator[_Lines]:
    """Send a request, and say in words what goes wrong from there on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(timeout)
            connection.connect(str(path))
            connection.sendall(json.dumps({"verb": verb, "args": dict(args or {})}).encode() + b"\n")
            yield _Lines(path, connection)
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


def _accepted(answer: dict[str, Any]) -> dict[str, Any]:
    """Return a good answer.

    Raises:
        NlbfarmError: It is a bad one; of the kind that it says.
    """
    if answer.get("ok"):
        return answer
    message = str(answer.get("error", "no reason given"))
    raise {"usage": UsageError, "denied": HostError}.get(answer.get("kind", ""), NlbfarmError)(message)
