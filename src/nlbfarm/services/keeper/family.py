"""Which processes are an application's, and how all of them are ended.

Three nets, because each has a hole. The cgroup holds everything that was not moved out of it on purpose. The
keeper's descendants are everything, as it is a subreaper: orphans become its children (prctl(2),
``PR_SET_CHILD_SUBREAPER``); but only for as long as it lives. What is left when it was killed without a
cgroup is found by its session, and by a variable that the launched process had in its environment.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from nlbfarm.services.keeper import cgroup as cgroups

__all__ = ["TOKEN", "Family", "Process", "alive", "descendants", "marked", "processes", "send", "sweep"]

TOKEN = "NLBFARM_RUN"  # noqa: S105 - a name, no secret
"""The variable by which an application's processes are known."""

_PASS_S = 0.01


class Process:
    """A line of the process table.

    Args:
        parent: Id of its parent.
        session: Id of its session.
        alive: Whether it can still do anything: it is no zombie.
    """

    __slots__ = ("alive", "parent", "session")

    def __init__(self, parent: int, session: int, alive: bool) -> None:
        self.parent, self.session, self.alive = parent, session, alive


def processes() -> dict[int, Process]:
    """Return the process table, by id."""
    return {pid: found for pid in _ids() if (found := _look_up(pid)) is not None}


def _look_up(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None  # it has ended meanwhile
    # proc(5): pid (name) state ppid pgrp session ... num_threads; the name may have blanks and brackets in it
    fields = text.rpartition(b")")[2].split(maxsplit=18)
    # A zombie that still has other threads than its first one is none.
    return Process(int(fields[1]), int(fields[3]), fields[0] not in (b"Z", b"X") or int(fields[17]) > 1)


def alive(pid: int) -> bool:
    """Say whether there is a process with this id that can still do anything."""
    found = _look_up(pid)
    return found is not None and found.alive


def descendants(root: int, table: dict[int, Process]) -> set[int]:
    """Return the ids of the children of ``root``, theirs, and so on; zombies are left out."""
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    found: list[int] = list(children.get(root, ()))
    for pid in found:
        found += children.get(pid, ())
    return {pid for pid in found if table[pid].alive}


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to each; those that are gone are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            continue


class Family:
    """The processes of the application that this process keeps.

    Args:
        cgroup: Its cgroup; ``None`` if it has none.
    """

    def __init__(self, cgroup: Path | None) -> None:
        self.cgroup = cgroup

    def members(self) -> set[int]:
        """Return the ids of those that are alive."""
        table = processes()
        found = descendants(os.getpid(), table)
        if self.cgroup is not None:
            found |= {pid for pid in cgroups.members(self.cgroup) if pid in table and table[pid].alive}
        return found

    def kill(self) -> set[int]:
        """Kill everything that is there now; returns the ids of those that were alive before."""
        if self.cgroup is not None:
            cgroups.kill(self.cgroup)
        found = self.members()
        send(found, signal.SIGKILL)
        return found


def sweep(cgroup: Path | None, token: str, session: int = 0, patience: float = 5.0) -> set[int]:
    """Kill what is left of an application whose keeper is gone. Takes milliseconds, if there is nothing.

    Args:
        cgroup: Its cgroup; ``None`` if it had none.
        token: The value of ``TOKEN`` in its environment.
        session: The id of its session, while it is certain that no other can have got the same; 0 if not.
        patience: Seconds to wait for their end.

    Returns:
        The ids of those that do not end.
    """
    deadline = time.monotonic() + patience
    while True:
        table = processes()
        left = {pid for pid in marked(token) if pid in table and table[pid].alive}
        left |= {pid for pid, one in table.items() if session and one.session == session and one.alive}
        if cgroup is not None:
            cgroups.kill(cgroup)
            left |= {pid for pid in cgroups.members(cgroup) if pid in table and table[pid].alive}
        left.discard(os.getpid())
        send(left, signal.SIGKILL)
        if not left:
            if cgroup is not None:
                cgroups.remove(cgroup)
            return left
        if time.monotonic() > deadline:
            return left
        time.sleep(_PASS_S)


def marked(token: str) -> set[int]:
    """Return the ids of processes that have this token in their environment (zombies have none)."""
    entry = f"{TOKEN}={token}".encode()
    found = set()
    for pid in _ids():
        try:
            if entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


def _ids() -> list[int]:
    with os.scandir("/proc") as entries:
        return [int(entry.name) for entry in entries if entry.name.isdigit()]
