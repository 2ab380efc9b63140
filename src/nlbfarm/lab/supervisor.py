"""The first process inside a lab: it holds the namespaces and does what the lab's owner asks.

Started by ``nlbfarm.lab.world`` as PID 1 of a PID namespace of its own. The network namespace that it
lives in is the farm's switch. It takes one JSON request a packet from a socket pair whose other end the
owner holds. When that end closes, however the owner came to its end, this process exits, and the kernel
takes every process, mount and namespace of the lab along with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["MAX_PACKET", "ROOT", "Supervisor", "main"]

ROOT = Path("/run/nlbfarm-lab")
"""Everything a lab writes is below this directory, on a tmpfs that only the lab can see."""

MAX_PACKET = 4 << 20
"""Largest request or answer, bytes."""

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h
_NETNS = Path("/run/netns")


class Supervisor:
    """Runs the requests, one after the other.

    Args:
        channel: The ``SOCK_SEQPACKET`` socket to the owner.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._spawned: dict[str, subprocess.Popen[bytes]] = {}
        self._operations: dict[str, Callable[..., Any]] = {
            "run": self.run,
            "spawn": self.spawn,
            "signal": self.signal,
            "wait": self.wait,
            "write": self.write,
            "read": self.read,
            "keygen": self.keygen,
            "control": self.control,
            "link": self.link,
            "crash": self.crash,
            "end": self.end,
            "processes": self.processes,
            "tree": self.tree,
            "kill": self.kill,
        }

    def serve(self) -> None:
        """Serve until the owner closes its end."""
        # One worker: the main thread stays at the socket, so that the owner's end is noticed during a
        # long request.
        with ThreadPoolExecutor(1) as worker:
            while True:
                data, fds, _flags, _address = socket.recv_fds(self._channel, MAX_PACKET, 4)
                if not data:
                    os._exit(0)
                worker.submit(self._answer, json.loads(data), fds)

    def _answer(self, request: dict[str, Any], fds: list[int]) -> None:
        try:
            arguments = dict(request["args"])
            if fds:
                arguments["fds"] = fds
            reply = {
                "number": request["number"],
                "ok": True,
                "result": self._operations[request["op"]](**arguments),
            }
        except Exception as error:  # noqa: BLE001 - the owner gets it
            detail = "" if isinstance(error, OSError | subprocess.SubprocessError) else traceback.format_exc()
            reply = {
                "number": request["number"],
                "ok": False,
                "error": f"{type(error).__name__}: {error}\n{detail}".strip(),
            }
        finally:
            for fd in fds:
                os.close(fd)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.send(json.dumps(reply).encode())

    def run(
        self, argv: list[str], ns: str | None = None, stdin: str = "", timeout: float = 30
    ) -> dict[str, Any]:
        """Run a command to its end, in namespace ``ns`` (default: the switch's)."""
        done = subprocess.run(
            _inside(ns, argv),
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        return {"code": done.returncode, "out": done.stdout, "err": done.stderr}

    def spawn(
        self,
        name: str,
        argv: list[str],
        ns: str,
        log: str,
        env: dict[str, str],
        fds: list[int] | None = None,
    ) -> int:
        """Start a process called ``name``; it writes to ``log``, or to the descriptor that came along."""
        with Path(log).open("ab") as sink:
            self._spawned[name] = subprocess.Popen(
                _inside(ns, argv),
                stdin=subprocess.DEVNULL,
                stdout=fds[0] if fds else sink,
                stderr=sink,
                env={**os.environ, **env},
                start_new_session=True,
            )
        return self._spawned[name].pid

    def signal(self, name: str, number: int) -> float:
        """Send a signal to a spawned process; returns the monotonic time just before, seconds."""
        at = time.monotonic()
        self._spawned[name].send_signal(number)
        return at

    def wait(self, name: str, timeout: float) -> int | None:
        """Wait for a spawned process; returns its exit code, ``None`` if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._spawned[name].wait(timeout)
        return None

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file below the lab's directory."""
        target = ROOT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch(mode)
        target.write_text(text)

    def read(self, path: str, last: int = 100_000) -> str:
        """Return the last bytes of a file below the lab's directory; empty if there is none."""
        try:
            with (ROOT / path).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - last))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def keygen(self, path: str) -> None:
        """Make a key file."""
        from nlbfarm.config.keys import generate

        generate(ROOT / path)

    def control(self, path: str, verb: str, args: dict[str, Any], timeout: float = 5) -> Any:
        """Ask a node's control socket; returns the whole answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(ROOT / path))
            connection.sendall(json.dumps({"verb": verb, "args": args}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = lines.readline()
        if not answer:
            raise ConnectionError(f"{path} closed without an answer")
        return json.loads(answer)

    def link(self, names: list[str], up: bool) -> float:
        """Set ports of the switch up or down; returns the monotonic time just before, seconds."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            at = time.monotonic()
            for name in names:
                request = struct.pack("16sH14x", name.encode(), 0)
                flags = struct.unpack_from("H", fcntl.ioctl(handle, _SIOCGIFFLAGS, request), 16)[0]
                flags = flags | _IFF_UP if up else flags & ~_IFF_UP
                fcntl.ioctl(handle, _SIOCSIFFLAGS, struct.pack("16sH14x", name.encode(), flags))
        return at

    def crash(self, ns: str, links: list[str]) -> float:
        """End a machine as a power cut does: its links first, so that it says no goodbye, then all that runs.

        Returns:
            The monotonic time just before, seconds.
        """
        at = self.link(links, False)
        # Those started for this node a moment ago may not have entered its namespace yet.
        for name, process in self._spawned.items():
            if name.startswith(f"{ns}/") and process.poll() is None:
                process.kill()
        while pids := self._members(ns):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
        subprocess.run(["ip", "netns", "delete", ns], check=True, capture_output=True)
        return at

    def end(self, name: str) -> None:
        """Kill a spawned process and everything that it started in its session."""
        leader = self._spawned[name].pid
        # Stopped first, so that none of them starts another one meanwhile.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in _pids():
                if _session(pid) == leader:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
        self._spawned[name].wait()
        while any(_session(pid) == leader for pid in _pids()):
            self._reap()

    def processes(self, ns: str | None = None) -> list[str]:
        """Return the command lines of the lab's processes, or of those in ``ns``; this one is left out."""
        self._reap()
        found = self._members(ns) if ns else [pid for pid in _pids() if pid != os.getpid()]
        lines = []
        for pid in found:
            with contextlib.suppress(OSError):
                lines.append(
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
        return [line.strip() for line in lines if line]

    def tree(self, ns: str) -> list[tuple[int, int, str]]:
        """Return the processes in ``ns``: each with its parent's id and its command line."""
        self._reap()
        found = []
        for pid in self._members(ns):
            with contextlib.suppress(OSError, IndexError):
                parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                found.append((pid, parent, line.decode(errors="replace").strip()))
        return found

    def kill(self, pids: list[int], number: int) -> float:
        """Send a signal to processes that ``tree`` named; returns the monotonic time just before, seconds."""
        at = time.monotonic()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return at

    def _members(self, ns: str) -> list[int]:
        inode = (_NETNS / ns).stat().st_ino
        members = []
        for pid in _pids():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/ns/net").stat().st_ino == inode:
                    members.append(pid)
        return members

    def _reap(self) -> None:
        """Collect ended processes: those started here, and orphans that the kernel gave to PID 1."""
        mine = {process.pid for process in self._spawned.values()}
        for process in self._spawned.values():
            process.poll()
        for pid in _pids():
            if pid in mine:
                continue
            with contextlib.suppress(OSError, IndexError):
                state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
                if state == "Z" and int(parent) == os.getpid():
                    os.waitpid(pid, os.WNOHANG)


def _inside(ns: str | None, argv: list[str]) -> list[str]:
    return ["ip", "netns", "exec", ns, *argv] if ns else argv


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def main() -> None:
    """Prepare the private file systems, say that the lab is ready, and serve."""
    descriptor = int(sys.argv[1])
    # The terminal's Ctrl-C reaches the whole process group; the owner decides what it means for the lab.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o022)  # servers that give up root have to find their files
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
    _NETNS.mkdir()
    ROOT.mkdir()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    channel.send(b'{"ok": true, "result": "ready"}')
    Supervisor(channel).serve()


if __name__ == "__main__":
    main()
