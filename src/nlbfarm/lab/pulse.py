"""When the heartbeats of each node arrive at another one, by the kernel's clock: how late is a busy node?

``python -m nlbfarm.lab.pulse`` is the process that listens; on SIGTERM it writes one JSON object: by address
of the node the moments, in seconds, at which its heartbeats came in.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import struct
import sys
import time
from itertools import pairwise
from types import TracebackType

from nlbfarm.config.heartbeat import Heartbeat
from nlbfarm.lab import topology
from nlbfarm.lab.farm import Lab
from nlbfarm.lab.supervisor import ROOT

__all__ = ["Pulse", "main"]

_ETH_P_IP = 0x0800
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h
_TIMESPEC = struct.Struct("@qq")
_FILE = "pulse.json"


class Pulse:
    """Listens on the first network of one node while the context lasts.

    Args:
        lab: The lab; its nodes run.
        at: The node that listens.
    """

    def __init__(self, lab: Lab, at: str) -> None:
        self._lab = lab
        self._at = at
        self._name = f"{at}/pulse"
        self._beats: dict[str, list[float]] = {}
        self.begun = 0.0
        """When it began to listen, seconds on the monotonic clock."""

    def __enter__(self) -> Pulse:
        argv = [sys.executable, "-m", "nlbfarm.lab.pulse", "--port", str(Heartbeat().port)]
        self._lab.world.spawn(self._name, argv, ns=self._at, log=str(ROOT / _FILE))

        def listens() -> bool:
            sockets = self._lab.exec(self._at, ["cat", "/proc/net/packet"]).out.splitlines()
            return any(line.split()[3:4] == [f"{_ETH_P_IP:04x}"] for line in sockets)

        self._lab.wait_for(listens, 10, f"somebody to listen to the heartbeats at {self._at}")
        self.begun = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lab.world.call("signal", name=self._name, number=signal.SIGTERM)
        self._lab.world.call("wait", name=self._name, timeout=10)
        self._beats = json.loads(self._lab.world.call("read", path=_FILE, last=1_000_000))

    def wait(self, seconds: float) -> None:
        """Listen for so long."""
        until = time.monotonic() + seconds
        self._lab.wait_for(lambda: time.monotonic() >= until, seconds + 10, "the heartbeats of a while")

    def gaps(self, node: str) -> list[float]:
        """Return the time from each heartbeat of another node to its next, seconds; after the context."""
        address, _ = topology.node_addresses(self._lab.id_of(node))
        beats = self._beats.get(str(address), [])
        return [after - before for before, after in pairwise(beats)]


def main() -> None:
    """Listen until SIGTERM."""
    parser = argparse.ArgumentParser(prog="nlbfarm.lab.pulse", description=__doc__.splitlines()[0])
    parser.add_argument("--interface", default="eth0")
    parser.add_argument("--port", type=int, required=True, help="UDP port of the heartbeats")
    options = parser.parse_args()
    beats: dict[str, list[float]] = {}

    def end(_number: int, _frame: object) -> None:
        sys.stdout.write(json.dumps(beats))
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as capture:
        capture.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        capture.bind((options.interface, _ETH_P_IP))
        while True:
            packet, ancillary, _flags, sender = capture.recvmsg(64, 64)
            header = (packet[0] & 0x0F) * 4
            port = int.from_bytes(packet[header + 2 : header + 4], "big")
            if sender[2] == socket.PACKET_OUTGOING or packet[9] != socket.IPPROTO_UDP or port != options.port:
                continue
            for _level, kind, content in ancillary:
                if kind == _SO_TIMESTAMPNS:
                    seconds, nanoseconds = _TIMESPEC.unpack_from(content)
                    source = socket.inet_ntoa(packet[12:16])
                    beats.setdefault(source, []).append(seconds + nanoseconds / 1e9)


if __name__ == "__main__":
    main()
