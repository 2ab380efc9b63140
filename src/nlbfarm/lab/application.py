"""What befalls the web server of a node: it crashes, hangs, answers errors, or cannot be started any more."""

from __future__ import annotations

import signal
import sys
import time

from nlbfarm.lab.farm import Lab
from nlbfarm.lab.servers import ILL
from nlbfarm.lab.supervisor import ROOT
from nlbfarm.lab.world import LabError

__all__ = ["Application"]

_PORT = 80
_KEEPER = "/services/keeper/boot.py "


class Application:
    """The web servers of a lab. ``crash`` and ``hang`` are for one whose nodes run them themselves.

    What is returned as the moment of a failure is just before it, seconds on the monotonic clock.

    Args:
        lab: The lab.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def processes(self, node: str) -> list[int]:
        """Return the processes of a node's web server, parents before children; none if it does not run."""
        tree = self._lab.world.call("tree", ns=node)
        found = [pid for pid, _, line in tree if _KEEPER in f"{line} "]
        keepers = len(found)
        for parent in found:
            found += [pid for pid, its, _ in tree if its == parent]
        return found[keepers:]

    def crash(self, node: str) -> float:
        """Kill all processes of a node's web server (SIGKILL); returns when."""
        return self._signal(self._running(node), signal.SIGKILL)

    def hang(self, node: str) -> float:
        """Stop the workers of a node's web server (SIGSTOP), its port goes on to accept; returns when.

        A server without workers is stopped itself: the kernel accepts for it.
        """
        first, *workers = self._running(node)
        return self._signal(workers or [first], signal.SIGSTOP)

    def accepts(self, node: str) -> bool:
        """Whether the port of a node's web server accepts a connection, on the node itself."""
        connect = f"import socket; socket.create_connection(('127.0.0.1', {_PORT}), timeout=1)"
        return self._lab.exec(node, [sys.executable, "-S", "-c", connect], check=False).code == 0

    def spoil(self, node: str) -> None:
        """Put a mistake into the configuration of a node's web server; what runs goes on."""
        path, spoiled = self._lab.server.mistake
        text = self._lab.server.files(ROOT / node / "server", node)[path]
        self._lab.world.call("write", path=f"{node}/server/{path}", text=spoiled(text))

    def repair(self, node: str) -> None:
        """Take the mistake out again."""
        self._lab.install_server(node)

    def sicken(self, node: str) -> float:
        """Let a node's web server answer 503 to everything from now on; returns when."""
        at = time.monotonic()
        self._lab.world.call("write", path=f"{node}/server/{ILL}", text="")
        return at

    def heal(self, node: str) -> float:
        """Let it answer as it should again; returns when."""
        at = time.monotonic()
        self._lab.world.run(["rm", "-f", str(ROOT / node / "server" / ILL)])
        return at

    def _running(self, node: str) -> list[int]:
        found = self.processes(node)
        if not found:
            raise LabError(f"the server of {node} does not run: {self._lab.log(node)[-1000:]}")
        return found

    def _signal(self, pids: list[int], number: signal.Signals) -> float:
        return float(self._lab.world.call("kill", pids=pids, number=number))
