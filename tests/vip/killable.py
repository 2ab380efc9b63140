"""A process that brings VIPs up and down and kills itself at the point it is told, for the crash tests.

Reads points from standard input, one a line, and says for each how the child ended: ``killed`` or
``finished``. A point is each moment before and after a write of the journal, and each fsync in it. A child of
this process that dies, so that all that is imported is imported once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from nlbfarm.core.group_mac import group_mac
from nlbfarm.interfaces import VipSpec
from nlbfarm.vip import LinuxVIPManager
from nlbfarm.vip.journal import Entry, Journal

VIPS = (IPv4Address("192.0.2.100"), IPv4Address("192.0.2.101"))


def specs() -> list[VipSpec]:
    """Return the VIPs of these tests."""
    return [VipSpec(vip, "eth0", "multicast", group_mac(vip)) for vip in VIPS]


def _kill_at(point: int) -> None:
    passed = 0
    write, fsync = Journal._write, os.fsync

    def here() -> None:
        nonlocal passed
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    def killable_write(self: Journal, entries: Sequence[Entry]) -> None:
        here()
        write(self, entries)
        here()

    def killable_fsync(fd: Any) -> None:
        here()
        fsync(fd)

    Journal._write = killable_write  # type: ignore[method-assign]
    os.fsync = killable_fsync


async def _live(journal: Path) -> None:
    manager = LinuxVIPManager(specs(), journal)
    await manager.open()
    await manager.up()
    await manager.close()


def main() -> None:
    """Serve points until the input ends."""
    journal = Path(sys.argv[1])
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _kill_at(int(line))
            asyncio.run(_live(journal))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else "finished" if status == 0 else f"failed {status}", flush=True)


if __name__ == "__main__":
    main()
