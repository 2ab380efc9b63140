"""Network namespaces for tests: without names, so that the kernel removes them whatever becomes of the test.

A namespace lives as long as something holds it: here a file descriptor of the test's process. The
test enters one with its own thread; sockets, threads and programs started meanwhile belong to it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_HERE = "/proc/thread-self/ns/net"


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class Namespace:
    """A network namespace with its loopback up."""

    def __init__(self) -> None:
        failure: list[BaseException] = []

        def make() -> None:
            try:
                _check(_LIBC.unshare(_CLONE_NEWNET), "unshare")
                self.fd = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """A path that stands for it, for ``ip link … netns PATH``."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in it, with the calling thread."""
        back = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_LIBC.setns(self.fd, _CLONE_NEWNET), "setns")
            try:
                yield
            finally:
                _check(_LIBC.setns(back, _CLONE_NEWNET), "setns back")
        finally:
            os.close(back)

    def run(self, *command: str, stdin: str | None = None) -> str:
        """Run a program in it and return what it printed; a failure raises with what it said."""
        with self.entered():
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=30, check=False
            )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def sysctl(self, name: str, value: str) -> None:
        """Set a sysctl of it."""
        with self.entered(), open(f"/proc/sys/{name.replace('.', '/')}", "w") as file:
            file.write(value)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)


def cable(left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
    """Connect two namespaces by a pair of interfaces, up."""
    with left.entered():
        subprocess.run(
            ["ip", "link", "add", left_name, "type", "veth", "peer", "name", right_name, "netns", right.path],
            check=True,
            timeout=30,
        )
    left.run("ip", "link", "set", left_name, "up")
    right.run("ip", "link", "set", right_name, "up")


async def eventually(condition: Callable[[], bool], what: str, *, within: float = 5.0) -> float:
    """Wait until ``condition`` holds; return after how many seconds it did, fail after ``within``."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > within:
            raise AssertionError(f"not within {within} s: {what}")
        await asyncio.sleep(0.002)
    return time.monotonic() - start


async def eventually_async(
    condition: Callable[[], Awaitable[bool]], what: str, *, within: float = 5.0
) -> float:
    """Do the same with a condition that must be awaited."""
    start = time.monotonic()
    while not await condition():
        if time.monotonic() - start > within:
            raise AssertionError(f"not within {within} s: {what}")
        await asyncio.sleep(0.002)
    return time.monotonic() - start
