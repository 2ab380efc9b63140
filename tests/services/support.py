"""Applications for these tests, and a look at their processes that goes past nlbfarm."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path

from nlbfarm.interfaces import ServiceContext
from nlbfarm.services.keeper import cgroup as cgroups

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 20.0


def context(directory: Path, service: str = "app") -> ServiceContext:
    vips = (ip_address("192.0.2.100"), ip_address("192.0.2.101"))
    return ServiceContext(farm_of(directory), "web1", vips, service, directory / "run", directory / "state")


def farm_of(directory: Path) -> str:
    """Return a farm's name that no other test has, on this host neither: cgroups are the host's."""
    return f"t{zlib.crc32(str(directory).encode()):08x}{os.getpid()}"


def cgroups_of(directory: Path) -> list[Path]:
    """Return the cgroups that a farm has left."""
    return [path for place in cgroups.places() for path in place.glob(f"nlbfarm-{farm_of(directory)}-*")]


def log_of(directory: Path, service: str = "app") -> Path:
    return directory / "state" / "services" / f"{service}.log"


class Mark:
    """A number that is in the command line of every process of one application: ``sleep 1234567890``."""

    def __init__(self) -> None:
        self.number = str(10**9 + secrets.randbelow(10**9))
        self.sleep = f"sleep {self.number}"

    def pids(self) -> list[int]:
        """Return its processes that are alive; no shell that merely was told the number."""
        return [pid for pid, words in _table().items() if words == ["sleep", self.number]]

    def alive(self) -> bool:
        return bool(self.pids())

    def kill(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)


def _table() -> dict[int, list[str]]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
            except OSError:
                continue
            found[int(entry.name)] = [word.decode(errors="replace") for word in words]
    return found


def zombies() -> set[int]:
    """Return the ids of this process's children that have ended and were not taken note of."""
    found = set()
    for pid in _table():
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] == b"Z" and int(fields[1]) == os.getpid():
            found.add(pid)
    return found


async def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Wait for a condition."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"not within {patience:g} s: {what}"
        await asyncio.sleep(0.01)


def cgroup_is_possible() -> str:
    """Return why no cgroup can be made here, or nothing."""
    path, why = cgroups.make(f"nlbfarm-test-{secrets.token_hex(4)}")
    if path is not None:
        cgroups.remove(path)
    return why


class Supervisor:
    """A process of its own that has a command as its service; it does what it is told, a line each."""

    def __init__(self, directory: Path, argv: Sequence[str], **options: object) -> None:
        setup = json.dumps(
            {
                "farm": farm_of(directory),
                "directory": str(directory),
                "command": list(argv),
                "options": options,
            }
        )
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("supervisor.py")), setup],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, what: str) -> str:
        """Have something done; returns what it answers."""
        self.begin(what)
        return self._answer()

    def begin(self, what: str) -> None:
        """Have something done, and do not wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        """Let it end; may be called again."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.communicate()
