"""Load for the filter benchmark: which packets, and the generator that sends them.

The packets of a kind are the same for every filter. Who is accepted lies in the bucket maps: each packet is
of a client whose bucket is in the half that "50 % owned" owns, or in the other, by nlbfarm's hash and by
xt_cluster's hash at once.

A generator is a trafgen of Debian's netsniff-ng with one list of packets, for the whole run: stopped
(SIGSTOP) but for the time of a measurement, so that reading its list costs once, and so that its CPU time
and the interface's counters can be read while neither moves.
"""

from __future__ import annotations

import contextlib
import enum
import os
import random
import select
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import psutil
from tests.netns.support import Namespace

from nlbfarm.core.buckets import Bitmap
from nlbfarm.core.hashing import bucket_of, flow_key
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, Protocol, Rule, Vip

VIP = IPv4Address("192.0.2.100")
NODE_MAC, WIRE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
INTERFACE = "eth0"
HALF: Bitmap = sum(1 << bucket for bucket in range(0, 256, 2))
"""The buckets that are owned at 50 %."""

XT_CLUSTER_SEED = 0x6E6C6266
_CLIENTS = (IPv4Address("198.51.100.0"), IPv4Address("203.0.113.0"))  # two /24 of RFC 5737
_GROUPS = 10  # more do not fit into a heartbeat
_SYN, _ACK = 2, 16
_COUNT = 2_000_000_000  # what a generator sends at most
_TRAFGEN_START_S = 60.0
_STOP_S = 5.0


class Kind(enum.StrEnum):
    """What the packets of a load are to the filter."""

    REJECTED = "rejected"  # SYNs of clients of the half that is not owned, again and again
    SCATTERED = "every packet of another flow"  # SYNs of clients of every bucket, hardly one twice
    NEW = "accepted, new"  # SYNs, each of a flow of its own for a while, of clients of the half that is owned
    ESTABLISHED = "accepted, established"  # ACKs of flows of such clients, opened before


FLOWS = {Kind.REJECTED: 1024, Kind.NEW: 8192, Kind.ESTABLISHED: 1024}
"""How many flows the packets of a kind are of."""


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow: a client's address and port, and the VIP's port."""

    client: IPv4Address
    client_port: int
    port: int


def policy(rules: int) -> FilterPolicy:
    """Return a policy of one VIP with so many TCP services, one port each, in at most ten groups."""
    groups = tuple(Group(f"group{index}", 0x5EED + index) for index in range(min(rules, _GROUPS)))
    return FilterPolicy(
        "benchmark",
        (Vip(VIP, INTERFACE),),
        groups,
        tuple(
            Rule(f"service{index}", groups[index % len(groups)].name, VIP, Protocol.TCP, (8000 + index,))
            for index in range(rules)
        ),
    )


def pick(kind: Kind, rules: int, count: int, seed: int = 1) -> list[Flow]:
    """Return ``count`` different flows that suit ``kind``, over all services alike.

    Args:
        kind: Whether their buckets are of the owned half, and their clients of xt_cluster's first node.
        rules: Services of the policy.
        count: How many.
        seed: Of the random choice.
    """
    chance = random.Random(seed)
    rule_of = policy(rules)
    owned = kind is not Kind.REJECTED
    found: dict[Flow, None] = {}
    clients = [
        client
        for base in _CLIENTS
        for client in (base + host for host in range(1, 255))
        if (bucket_of(client.packed, XT_CLUSTER_SEED) < 128) is owned
    ]
    while len(found) < count:
        rule = rule_of.rules[len(found) % rules]
        flow = Flow(chance.choice(clients), chance.randrange(1024, 65536), rule.ports[0])
        key = flow_key(Affinity.CLIENT_PORT, flow.client, flow.client_port)
        if bool(HALF >> bucket_of(key, rule_of.group(rule.group).seed) & 1) is owned:
            found[flow] = None
    return list(found)


def load(kind: Kind, rules: int) -> str:
    """Return the packets of a load in trafgen's language (trafgen(8))."""
    if kind is Kind.SCATTERED:
        entries = policy(rules).rules
        return "".join(_scattered(_CLIENTS[index % 2], rule.ports[0]) for index, rule in enumerate(entries))
    make = ack if kind is Kind.ESTABLISHED else syn
    return "".join(f"{{ {', '.join(map(str, make(flow)))} }}\n" for flow in pick(kind, rules, FLOWS[kind]))


def _scattered(clients: IPv4Address, port: int) -> str:
    frame = syn(Flow(clients, 0, port))
    text = [*map(str, frame[:24]), "csumip(14, 33)", *map(str, frame[26:29])]
    text += [
        "drnd(1)",
        *map(str, frame[30:34]),
        "drnd(2)",
        *map(str, frame[36:50]),
        "csumtcp(14, 34)",
        "0, 0",
    ]
    return f"{{ {', '.join(text)} }}\n"


def syn(flow: Flow) -> bytes:
    """Return the frame that opens ``flow``."""
    return _frame(_tcp(flow.client, flow.client_port, VIP, flow.port, 0, 0, _SYN))


def answer(flow: Flow) -> bytes:
    """Return the packet, from the IP header on, with which a server answers ``syn(flow)``."""
    return _tcp(VIP, flow.port, flow.client, flow.client_port, 0, 1, _SYN | _ACK)


def ack(flow: Flow) -> bytes:
    """Return the frame that completes the handshake, and that any number of times can follow it."""
    return _frame(_tcp(flow.client, flow.client_port, VIP, flow.port, 1, 1, _ACK))


def _frame(packet: bytes) -> bytes:
    return bytes.fromhex((NODE_MAC + WIRE_MAC).replace(":", "")) + b"\x08\x00" + packet


def _tcp(
    source: IPv4Address,
    sport: int,
    destination: IPv4Address,
    dport: int,
    sequence: int,
    acknowledge: int,
    flags: int,
) -> bytes:
    ends = source.packed + destination.packed
    tcp = struct.pack("!HHIIBBHHH", sport, dport, sequence, acknowledge, 5 << 4, flags, 65535, 0, 0)
    total = _checksum(ends + struct.pack("!HH", Protocol.TCP, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", total) + tcp[18:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, Protocol.TCP, 0) + ends
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:] + tcp


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Generator:
    """A trafgen that sends one list of packets, stopped unless ``sending``.

    It runs on after a stop where it was. It sends at most two thousand million packets, and ends
    with this process, at the latest after ``lifetime`` seconds.

    Args:
        outside: The namespace of ``interface``.
        interface: Where to send.
        file: What to send in this order, over and over (``load``).
        cpu: The CPU it runs on.
        lifetime: Seconds.

    Raises:
        RuntimeError: trafgen does not start; with what it said.
    """

    def __init__(self, outside: Namespace, interface: str, file: Path, cpu: int, lifetime: int) -> None:
        command = ["setpriv", "--pdeathsig", "TERM", "timeout", "--kill-after=1", str(lifetime)]
        command += ["trafgen", "--out", interface, "--in", str(file)]
        command += ["--cpus", "1", "--num", str(_COUNT), "--notouch-irq", "--no-sock-mem", "--no-cpu-stats"]
        with outside.entered():
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            self.pid = self._started()
            os.sched_setaffinity(self.pid, {cpu})  # it took CPU 0 by itself
        except BaseException:
            self.close()
            raise

    def _started(self) -> int:
        """Wait until it sends, stop it, and return the id of the process that does."""
        said = b""
        deadline = time.monotonic() + _TRAFGEN_START_S
        assert self._process.stdout is not None
        while b"Running" not in said:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))
            part = os.read(self._process.stdout.fileno(), 4096) if ready else b""
            said += part
            if not part:
                raise RuntimeError(f"trafgen does not send: {said.decode(errors='replace').strip()}")
        # timeout(1), trafgen, and the process of it that sends.
        (_, sender) = psutil.Process(self._process.pid).children(recursive=True)
        self.pid = sender.pid
        self._stop()
        return self.pid

    def prefer_others(self) -> None:
        """Let any other process on its CPU go first (SCHED_IDLE)."""
        os.sched_setscheduler(self.pid, os.SCHED_IDLE, os.sched_param(0))

    def prefer_nobody(self) -> None:
        """Take that back."""
        os.sched_setscheduler(self.pid, os.SCHED_OTHER, os.sched_param(0))

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Send while the context lasts."""
        os.kill(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_S
        while _state(self.pid) != "T":
            if time.monotonic() > deadline:
                raise RuntimeError("trafgen does not stop")
            time.sleep(0.0002)

    def close(self) -> None:
        """End it; may be called twice."""
        if self._process.poll() is None:
            self._process.terminate()  # timeout(1) passes it on, and lets what is stopped go on
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
