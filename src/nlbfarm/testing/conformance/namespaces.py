"""Network namespaces without names: the kernel removes them whatever becomes of the process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nlbfarm.errors import HostError

__all__ = ["Namespace", "cable"]

_CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"
_PROGRAM_S = 30.0


class Namespace:
    """A network namespace with its loopback up; it lives as long as this object is open.

    Raises:
        HostError: It cannot be made here: no right, no Linux, no ``ip`` program.
    """

    def __init__(self) -> None:
        failure: list[OSError] = []

        def make() -> None:
            try:
                _call("unshare", _CLONE_NEWNET)
                self._descriptor = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                failure.append(error)

        # Of this thread alone: the caller's stays where it is.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if failure:
            raise HostError(
                f"no network namespace can be made here ({failure[0]}): it needs Linux, and root or "
                "`unshare --user --map-root-user --net --mount`"
            )
        try:
            self.run("ip", "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """A path that stands for it, for ``ip link … netns PATH``."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in it with the calling thread; threads, sockets and programs begun meanwhile belong to it."""
        back = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", self._descriptor, _CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", back, _CLONE_NEWNET)
        finally:
            os.close(back)

    def run(self, *command: str) -> None:
        """Run a program in it.

        Raises:
            HostError: It failed, and what it said.
        """
        with self.entered():
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=_PROGRAM_S, check=False
                )
            except FileNotFoundError as error:
                raise HostError(f"the program {command[0]!r} is missing on this host") from error
        if done.returncode != 0:
            raise HostError(f"{' '.join(command)}: {done.stderr.strip()}")

    def sysctl(self, name: str, value: str) -> None:
        """Set a sysctl of it; one that this kernel does not have is left alone."""
        path = Path("/proc/sys", *name.split("/"))
        with self.entered():
            if path.exists():
                path.write_text(value)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


def cable(left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
    """Connect two namespaces by a pair of interfaces (veth), up.

    Raises:
        HostError: This host has no such devices.
    """
    left.run("ip", "link", "add", left_name, "type", "veth", "peer", "name", right_name, "netns", right.path)
    left.run("ip", "link", "set", left_name, "up")
    right.run("ip", "link", "set", right_name, "up")


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise OSError(f"this operating system has no {name}")
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
