"""Processes of our own: how they are started, and frames of pickled messages over their standard streams.

Both ends are the same program of the same version and user, and nobody else has the pipes; that is what makes
pickle fit here. The end of the stream says that the other process is gone, whatever became of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nlbfarm.errors import HostError, NlbfarmError

__all__ = [
    "PREFIX",
    "Channel",
    "UnansweredError",
    "Worker",
    "marker",
    "network",
    "serve",
    "standard_channel",
]

PREFIX = "nlbfarm-windivert"
"""How the argument begins by which processes of ours are found."""

_LENGTH = struct.Struct("!I")
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from nlbfarm.backends.windivert.child import main; main(sys.argv[3])"
)
_ENDING_S = 3.0


def marker(role: str, farm: str) -> str:
    """Return the argument by which a process of ours is found again (``leftovers.find``).

    Args:
        role: ``"loop"`` or ``"guard"``.
        farm: The farm's name.
    """
    return f"{PREFIX}/{network()}/{farm}/{role}"


def network() -> str:
    """Return what tells the network namespaces of a host apart, as the calling thread sees it."""
    try:
        return str(Path("/proc/thread-self/ns/net").stat().st_ino)
    except OSError:
        return "host"


class UnansweredError(HostError):
    """A process of ours does not answer in time; it may yet do what it was asked."""


class Channel:
    """Messages over two streams; each direction may be used by one thread at a time."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader, self._writer = reader, writer

    def send(self, message: object) -> None:
        """Send a message; ``OSError`` if nobody is there to read it."""
        data = pickle.dumps(message)
        self._writer.write(_LENGTH.pack(len(data)) + data)
        self._writer.flush()

    def receive(self) -> Any:
        """Wait for a message; ``EOFError`` when the other end is gone."""
        return pickle.loads(self._read(_LENGTH.unpack(self._read(_LENGTH.size))[0]))  # noqa: S301 - from ourselves

    def _read(self, size: int) -> bytes:
        data = self._reader.read(size)
        if len(data) < size:
            raise EOFError("the other process is gone")
        return data

    def close(self) -> None:
        """Close both streams."""
        for stream in (self._writer, self._reader):
            with contextlib.suppress(OSError):
                stream.close()


def serve(channel: Channel, calls: Mapping[str, Callable[..., object]]) -> None:
    """Answer what the node asks until it is gone.

    Args:
        channel: To the node.
        calls: By name; what one raises is answered as an error.
    """
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, name, arguments = channel.receive()
            try:
                reply = number, "done", calls[name](*arguments)
            except NlbfarmError as error:
                reply = number, "error", str(error)
            except Exception as error:  # noqa: BLE001 - the node decides what becomes of this process
                reply = number, "error", f"windivert: {name}: {type(error).__name__}: {error}"
            channel.send(reply)


def standard_channel() -> Channel:
    """Return the channel to the process that started this one; what is printed goes to standard error."""
    reader, writer = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (reader, writer):
            msvcrt.setmode(descriptor, os.O_BINARY)
    return Channel(os.fdopen(reader, "rb"), os.fdopen(writer, "wb"))


class Worker:
    """A process of ours, from the side of the node: asked and answered, one thing at a time.

    Args:
        role: ``"loop"`` or ``"guard"``.
        farm: The farm's name.
        on_exit: Called once with the worker, from another thread, when its process is gone without having
            been told to.
    """

    def __init__(self, role: str, farm: str, on_exit: Callable[[Worker], None]) -> None:
        self.role = role
        self._on_exit = on_exit
        self._expected = False
        self._lock = threading.Lock()
        self._number = 0
        self._replies: queue.Queue[tuple[int, str, object] | None] = queue.Queue()
        arguments = ["-I", "-c", _BOOT, marker(role, farm), json.dumps(sys.path), role]
        try:
            self._process = subprocess.Popen(
                [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **_detached()
            )
        except OSError as error:
            raise HostError(f"windivert: the process {role!r} cannot be started: {error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._channel = Channel(self._process.stdout, self._process.stdin)  # type: ignore[arg-type]
        self._pump = threading.Thread(target=self._read, name=f"nlbfarm-windivert-{role}", daemon=True)
        self._pump.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs, or is at least stopped."""
        return self._process.poll() is None

    def call(self, name: str, *arguments: object, timeout: float) -> Any:
        """Ask for something and wait for the answer.

        Args:
            name: What, as the process's table of calls names it.
            arguments: Of the call; anything that can be pickled.
            timeout: Seconds to wait.

        Raises:
            HostError: The process said no, is gone, or does not answer.
        """
        with self._lock:
            self._number += 1
            try:
                self._channel.send((self._number, name, arguments))
                reply = self._reply(self._number, time.monotonic() + timeout)
            except queue.Empty:
                raise UnansweredError(
                    f"windivert: the process {self.role!r} (pid {self.pid}) is silent for {timeout} s"
                ) from None
            except (OSError, ValueError):
                reply = None
        if reply is None:
            raise HostError(f"windivert: the process {self.role!r} (pid {self.pid}) has ended")
        verdict, value = reply
        if verdict == "error":
            raise HostError(str(value))
        return value

    def _reply(self, number: int, deadline: float) -> tuple[str, object] | None:
        """Wait for the answer to one question; what comes for an earlier one, late, is thrown away."""
        while True:
            reply = self._replies.get(timeout=max(0.0, deadline - time.monotonic()))
            if reply is None:
                self._replies.put(None)  # for whoever asks next
                return None
            if reply[0] == number:
                return reply[1:]

    def end(self, timeout: float = _ENDING_S) -> bool:
        """Tell the process to end, and kill it if it does not; returns whether it ended by itself."""
        self._expected = True
        polite = False
        if self.alive:
            with contextlib.suppress(HostError):
                self.call("stop", timeout=timeout)
            try:
                self._process.wait(timeout)
                polite = True
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._pump.join()
        self._channel.close()
        return polite

    def kill(self) -> None:
        """End the process at once; it gets no chance to close its handles."""
        self._expected = True
        self._process.kill()
        self._process.wait()
        self._pump.join()
        self._channel.close()

    def _read(self) -> None:
        try:
            while True:
                self._replies.put(self._channel.receive())
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            self._replies.put(None)
        if not self._expected:
            self._on_exit(self)


def _detached() -> dict[str, Any]:
    """Return what keeps an interrupt from the keyboard, meant for the node, away from a process."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}
