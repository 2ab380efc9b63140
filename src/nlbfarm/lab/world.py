"""The owner's end of a lab: starts the supervisor in namespaces of its own and talks to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nlbfarm.errors import HostError, NlbfarmError
from nlbfarm.lab.supervisor import MAX_PACKET

__all__ = ["Done", "LabError", "World", "inhabitants", "missing"]

_START_TIMEOUT = 20.0
_GONE_TIMEOUT = 10.0


class LabError(NlbfarmError):
    """Something inside the lab did not work."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended inside the lab."""

    code: int
    out: str
    err: str


def missing() -> str:
    """Say in one sentence what this host lacks for a lab; empty if nothing."""
    if sys.platform != "linux":
        return "a lab needs Linux network namespaces; this is not Linux"
    for tool, package in (("unshare", "util-linux"), ("mount", "mount"), ("ip", "iproute2")):
        if shutil.which(tool, path=_path()) is None:
            return f"the command {tool} is missing; install the package {package}"
    trial = subprocess.run(
        [*_unshare(), "true"], capture_output=True, text=True, check=False, env=_environment()
    )
    if trial.returncode:
        return (
            f"this host does not let {'root' if os.geteuid() == 0 else 'an ordinary user'} make namespaces "
            f"({trial.stderr.strip()}); run it as root of a machine or of a privileged container"
        )
    return ""


class World:
    """A bundle of fresh namespaces with a supervisor in it.

    It lives as long as this object holds its end of a socket pair: after ``close``, and likewise after
    the end of this process by any signal, the kernel ends every process inside, and with the last
    one the namespaces, the mounts and all files of the lab are gone.

    Raises:
        HostError: This host cannot make namespaces.
    """

    def __init__(self) -> None:
        problem = missing()
        if problem:
            raise HostError(problem)
        self._lock = threading.Lock()
        self._requests = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):  # a large ruleset or log has to fit one packet
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, MAX_PACKET)
        self._channel = ours
        with theirs:
            self._unshare = subprocess.Popen(
                [*_unshare(), sys.executable, "-m", "nlbfarm.lab.supervisor", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=_environment(),
            )
        ours.settimeout(_START_TIMEOUT)
        try:
            greeting = ours.recv(MAX_PACKET)
        except OSError:
            greeting = b""
        if not greeting:
            self._unshare.kill()
            problem = self._unshare.communicate()[1].decode(errors="replace").strip()
            ours.close()
            raise HostError(f"the lab's namespaces could not be set up: {problem}")
        ours.settimeout(None)

    @property
    def pid(self) -> int:
        """Process id of the supervisor, as this host sees it."""
        return psutil.Process(self._unshare.pid).children()[0].pid

    def namespaces(self) -> frozenset[int]:
        """Return the inodes of the network namespaces that this lab's processes are in now."""
        found = set()
        for process in [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]:
            with contextlib.suppress(OSError):
                found.add(Path(f"/proc/{process.pid}/ns/net").stat().st_ino)
        return frozenset(found)

    def call(self, op: str, *, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """Ask the supervisor for one operation; its methods say which there are.

        Raises:
            LabError: It failed, or the lab is gone.
        """
        with self._lock:
            self._requests += 1
            number = self._requests
            request = json.dumps({"number": number, "op": op, "args": arguments}).encode()
            try:
                socket.send_fds(self._channel, [request], list(fds))
                # An interrupted call (Ctrl-C) left its answer behind: skip it.
                while (reply := self._receive())["number"] != number:
                    pass
            except OSError as error:
                raise LabError(f"the lab is gone: {error}") from error
        if not reply["ok"]:
            raise LabError(f"{op}: {reply['error']}")
        return reply["result"]

    def _receive(self) -> dict[str, Any]:
        data = self._channel.recv(MAX_PACKET)
        if not data:
            raise LabError("the lab is gone: its supervisor has ended")
        reply: dict[str, Any] = json.loads(data)
        return reply

    def run(
        self,
        argv: Sequence[str],
        *,
        ns: str | None = None,
        stdin: str = "",
        check: bool = True,
        timeout: float = 30,
    ) -> Done:
        """Run a command to its end inside the lab.

        Args:
            argv: Program and arguments.
            ns: Namespace; ``None`` is the switch.
            stdin: Its input.
            check: Whether an exit code other than 0 is an error.
            timeout: Seconds.

        Raises:
            LabError: It failed (with ``check``) or did not end in time.
        """
        done = Done(**self.call("run", argv=list(argv), ns=ns, stdin=stdin, timeout=timeout))
        if check and done.code:
            raise LabError(
                f"{' '.join(argv)} in {ns or 'the switch'} ended with {done.code}: {done.err or done.out}"
            )
        return done

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        ns: str,
        log: str,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        """Start a process that goes on; ``fds[0]``, if given, is its standard output."""
        self.call("spawn", name=name, argv=list(argv), ns=ns, log=log, env=dict(env or {}), fds=fds)

    def close(self) -> list[str]:
        """End the lab; returns a line for each thing that outlived it (there should be none)."""
        if self._unshare.returncode is not None:
            return []
        inodes, closed = self.namespaces(), time.time()
        inside = psutil.Process(self._unshare.pid).children(recursive=True)
        self._channel.close()
        try:
            self._unshare.wait(_GONE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._unshare.kill()
            self._unshare.wait()
        if self._unshare.stderr:
            self._unshare.stderr.close()
        left: list[str] = []
        deadline = time.monotonic() + _GONE_TIMEOUT
        while time.monotonic() < deadline:
            left = [f"process {process.pid}" for process in inside if process.is_running()]
            left += [f"process {pid} in a namespace of the lab" for pid in inhabitants(inodes, closed)]
            if not left:
                break
            time.sleep(0.02)
        return left


def inhabitants(inodes: Collection[int], born_before: float) -> list[int]:
    """Return the processes that are in one of these network namespaces, as far as this user may see.

    Args:
        inodes: Inodes of the namespaces.
        born_before: Only processes that are older, seconds since 1970: the kernel soon gives the inode of a
            namespace that has gone to another one, which is none of ours.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if (
                Path(f"/proc/{process.pid}/ns/net").stat().st_ino in inodes
                and process.create_time() < born_before
            ):
                found.append(process.pid)
    return found


def _unshare() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    kill = f"--kill-child={signal.SIGKILL.name}"
    return ["unshare", *user, "--net", "--mount", "--pid", "--fork", kill, "--mount-proc", "--"]


def _path() -> str:
    # An ordinary user's PATH often lacks the directories where ip, nft and the servers are.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def _environment() -> dict[str, str]:
    # The package is found as here, also when it is neither installed nor in the working directory.
    return {
        **os.environ,
        "PATH": _path(),
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
    }
