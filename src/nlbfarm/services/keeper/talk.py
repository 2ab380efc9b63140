"""Messages between a node and a keeper: JSON in the packets of a Unix socket (``SOCK_SEQPACKET``, unix(7)).

From the node: ``adopt`` (I am your node from now on), ``stop`` and ``keep`` (another process takes over).
From the keeper: ``hello`` on each new connection, ``failed``, ``adopted``, ``busy``, ``ended``, ``stuck`` and
``gone``. A keeper of an earlier version of nlbfarm must understand the node's, so that an upgrade can take
over: what is there may get further keys, but keeps its meaning.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

__all__ = ["LARGEST", "VERSION", "address", "pack", "peer", "unpack"]

VERSION = 1
"""Of the messages."""

LARGEST = 1 << 18
"""Bytes of a message, at most."""

_SUN_PATH = 107  # bytes of a socket's name (unix(7))


def pack(kind: str, **content: Any) -> bytes:
    """Return a message."""
    return json.dumps({"kind": kind, **content}).encode()


def unpack(data: bytes) -> dict[str, Any]:
    """Return what is in a message; ``ValueError`` if it is none."""
    message = json.loads(data)
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ValueError("no message of a keeper")
    return message


def peer(connection: socket.socket) -> tuple[int, int]:
    """Return the process and user ids of the other end, as the kernel knows them."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", found)
    return pid, uid


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """Yield a name for the socket ``path`` that is short enough, however long the path is."""
    if len(os.fsencode(path)) <= _SUN_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
