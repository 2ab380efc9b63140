"""The keeper's connections: to its node, and from those that ask, of which one may become the next node."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from nlbfarm.services.keeper import talk
from nlbfarm.services.keeper.waiting import readable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nlbfarm.services.keeper.waiting import Waiting

__all__ = ["Nodes"]

_CALLERS = 8


class Nodes:
    """Hears from the node, and sees its end.

    Args:
        waiting: Where descriptors are waited for.
        hello: Returns what a caller is told first, and what one is told that cannot become the node.
        open_to: Returns whether another process may take over now.
        on_message: Called with each message of the node, but ``keep``.
        on_keep: Called when the node has said that another process takes over.
        on_lost: Called with why, when the node is gone.
        on_adopted: Called with the message of the process that took over.
    """

    def __init__(
        self,
        waiting: Waiting,
        *,
        hello: Callable[[], bytes],
        open_to: Callable[[], bool],
        on_message: Callable[[dict[str, Any]], None],
        on_keep: Callable[[], None],
        on_lost: Callable[[str], None],
        on_adopted: Callable[[dict[str, Any]], None],
    ) -> None:
        self._waiting = waiting
        self._hello, self._open_to = hello, open_to
        self._on_message, self._on_keep = on_message, on_keep
        self._on_lost, self._on_adopted = on_lost, on_adopted
        self._node: socket.socket | None = None
        self._process = -1  # a pidfd: a copy of the connection in another process would hide the node's end
        self._callers: dict[int, socket.socket] = {}
        self._listener: socket.socket | None = None
        self._path = Path()
        self._inode: tuple[int, int] | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a node."""
        return self._node is not None

    def listen(self, path: Path) -> None:
        """Take the socket ``path``; the file of a keeper that was killed is replaced."""
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        # Complete under another name, then moved: nobody ever connects to one with a wrong mode.
        with talk.address(draft) as name:
            draft.unlink(missing_ok=True)
            self._listener.bind(name)
        draft.chmod(0o600)
        self._listener.listen(_CALLERS)
        found = draft.stat()
        draft.replace(path)
        self._path, self._inode = path, (found.st_dev, found.st_ino)
        self._waiting.watch(self._listener.fileno(), self._accept)

    def unlisten(self) -> bool:
        """Remove the socket's file; returns whether it still was this keeper's."""
        with contextlib.suppress(OSError):
            found = self._path.stat()
            if (found.st_dev, found.st_ino) == self._inode:
                self._path.unlink()
                return True
        return False

    def adopt(self, node: socket.socket) -> None:
        """Have this one as the node."""
        self._node = node
        node.setblocking(False)
        self._waiting.watch(node.fileno(), self._hear)
        pid = talk.peer(node)[0]
        with contextlib.suppress(OSError, AttributeError):  # a kernel before 5.3: the connection alone tells
            if pid > 0:
                self._process = os.pidfd_open(pid)
                self._waiting.watch(self._process, self._died)

    def tell(self, message: bytes) -> None:
        """Tell the node, and those that wait for the end."""
        for connection in (self._node, *self._callers.values()):
            if connection is not None:
                _send(connection, message)

    def gone(self) -> bool:
        """Say whether there is no node, without taking anything from its connection."""
        if self._node is None:
            return True
        try:
            return not self._node.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _hear(self) -> None:
        assert self._node is not None
        try:
            data = self._node.recv(talk.LARGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose("the node is gone")
            return
        message = talk.unpack(data)
        if message["kind"] == "keep":
            self._let_go()
            self._on_keep()
        else:
            self._on_message(message)

    def _died(self) -> None:
        """Hear what the dead process said last; ``keep`` may be it."""
        while self._node is not None:
            before = self._node
            if self.gone() or not readable(before.fileno()):
                self._lose("the node's process has ended")
                return
            self._hear()

    def _lose(self, why: str) -> None:
        self._let_go()
        self._on_lost(why)

    def _let_go(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            self._waiting.ignore(node.fileno())
            node.close()
        if self._process >= 0:
            self._waiting.ignore(self._process)
            os.close(self._process)
            self._process = -1

    def _accept(self) -> None:
        """Greet whoever connects."""
        assert self._listener is not None
        try:
            caller, _ = self._listener.accept()
        except OSError:
            return  # it is gone again
        caller.setblocking(False)
        uid = talk.peer(caller)[1]
        if uid not in (0, os.geteuid()) or len(self._callers) >= _CALLERS:
            caller.close()
            return
        descriptor = caller.fileno()
        self._callers[descriptor] = caller
        self._waiting.watch(descriptor, lambda: self._called(descriptor))
        _send(caller, self._hello())

    def _called(self, descriptor: int) -> None:
        """Hear a caller: it becomes the node, if it says so and there is none."""
        caller = self._callers[descriptor]
        try:
            message = talk.unpack(caller.recv(talk.LARGEST))
        except BlockingIOError:
            return
        except (OSError, ValueError):  # it is gone, or says what we do not know
            message = {"kind": "gone"}
        adopts = message["kind"] == "adopt"
        if adopts and self._node is not None and self.gone():
            self._lose("the node is gone")
        if adopts and not self._open_to():
            _send(caller, self._hello())
            return
        if adopts and self._node is not None:
            _send(caller, talk.pack("busy", pid=talk.peer(self._node)[0]))
            return
        self._waiting.ignore(descriptor)
        del self._callers[descriptor]
        if not adopts:
            caller.close()
            return
        self.adopt(caller)
        self._on_adopted(message)
        _send(caller, talk.pack("adopted"))


def _send(connection: socket.socket, message: bytes) -> None:
    with contextlib.suppress(OSError):  # whoever does not read, or is gone, is not waited for
        connection.send(message)
