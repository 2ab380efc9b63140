"""The host of the filter benchmark: a wire into a fresh namespace, clocks and counters.

What a packet costs is read from CPU clocks. trafgen hands a packet to the wire and the kernel takes it
through the whole receiving path, filter included, within the same system call; a process's CPU clock counts
both, and stands still while somebody else uses the CPU. Where a kernel keeps time in soft interrupts apart
(CONFIG_IRQ_TIME_ACCOUNTING), the clock misses the filter: there the time counts for which trafgen was
neither stopped nor waiting for the CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.netns.support import Namespace, cable

from benchmarks._filter_load import INTERFACE, NODE_MAC, VIP, WIRE_MAC, Flow, Generator, ack, answer, syn
from nlbfarm.backends.netlink import NETLINK_NETFILTER, message
from nlbfarm.nft import Nft

_BATCH = 256  # flows opened at once: fewer than wait in a queue by default
_OPEN_S = 10.0
_POLL_S = 0.002
_DELETE, _REQUEST, _ACK = 1 << 8 | 2, 0x1, 0x4  # IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK, NLM_F_*
_TRIAL_S = 0.3

_SINK = f"""
table inet sink {{
	counter arrived {{ }}
	chain end {{
		type filter hook input priority {2**31 - 1}; policy accept;
		iifname "{INTERFACE}" counter name arrived drop
	}}
}}
"""
# Registered before conntrack's last hook, which has the same priority, it comes after it: new flows are
# confirmed, and what is accepted costs no more of the stack than routing.


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen while a generator sent.

    Args:
        seconds: Wall time.
        packets: Packets that arrived on the node's interface.
        accepted: How many of them got past the filter.
        generator_ns: CPU time of the generator, the kernel's work for each packet included.
        ksoftirqd_ns: CPU time of the thread to which the kernel may leave some of that work.
        user_ns: CPU time of the filter's processes.
    """

    seconds: float
    packets: int
    accepted: int
    generator_ns: int
    ksoftirqd_ns: int
    user_ns: int

    @property
    def ns(self) -> float:
        """CPU time of all, a packet."""
        return (self.generator_ns + self.ksoftirqd_ns + self.user_ns) / max(self.packets, 1)


class Node:
    """A namespace with the VIP, a sink behind whatever filter is put before it, and the end of a wire.

    Args:
        namespace: Already set up; to be closed by whoever made it.
        wire: Socket of the wire's other end.
    """

    def __init__(self, namespace: Namespace, wire: socket.socket) -> None:
        self._namespace = namespace
        self._wire = wire
        with contextlib.ExitStack() as stack:
            stack.enter_context(namespace.entered())
            # What is opened here stays of this namespace, wherever the thread is later.
            self._nft = stack.enter_context(contextlib.closing(Nft()))
            net = Path("/proc/thread-self/net")
            self._devices = stack.enter_context((net / "dev").open())
            self._queues = stack.enter_context((net / "netfilter/nfnetlink_queue").open())
            self._count = stack.enter_context(Path("/proc/sys/net/netfilter/nf_conntrack_count").open())
            self._server = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            stack.enter_context(self._server)
            self._conntrack = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
            stack.enter_context(self._conntrack)
            self._opened = stack.pop_all()

    def close(self) -> None:
        """Close what reads the counters."""
        self._opened.close()

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Be in its namespace, with the calling thread."""
        return self._namespace.entered()

    def run(self, *command: str, stdin: str | None = None) -> str:
        """Run a program in the namespace."""
        return self._namespace.run(*command, stdin=stdin)

    async def connect(self, flows: Sequence[Flow]) -> None:
        """Open these connections: by handshakes whose server's half is written here, too.

        Raises:
            RuntimeError: The filter did not accept them.
        """
        for first in range(0, len(flows), _BATCH):
            batch = flows[first : first + _BATCH]
            expected = self.accepted() + len(batch)
            for flow in batch:
                self._wire.send(syn(flow))
            await self._await(expected)
            for flow in batch:
                self._server.sendto(answer(flow), (str(flow.client), 0))
                self._wire.send(ack(flow))
            await self._await(expected + len(batch))

    async def _await(self, expected: int) -> None:
        deadline = time.monotonic() + _OPEN_S
        while (accepted := self.accepted()) < expected:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{expected - accepted} packets of handshakes were not accepted")
            await asyncio.sleep(_POLL_S)

    def accepted(self) -> int:
        """Return how many packets have come to the sink."""
        listed = self._nft.read("list counters table inet sink")
        return next(int(item["counter"]["packets"]) for item in listed if "counter" in item)

    def received(self) -> int:
        """Return how many packets have come to the interface."""
        for line in _again(self._devices):
            name, _, counts = line.partition(":")
            if name.strip() == INTERFACE:
                return int(counts.split()[1])
        raise RuntimeError(f"no {INTERFACE} here")

    def tracked(self) -> int:
        """Return how many connections conntrack has."""
        return int(_again(self._count)[0])

    def forget(self) -> None:
        """Let conntrack forget all connections."""
        self._conntrack.send(message(_DELETE, _REQUEST | _ACK, 1, socket.AF_INET, 0))
        self._conntrack.recv(4096)

    def queued(self) -> tuple[int, int]:
        """Return how many packets NFQUEUE has handed to user space, and how many found a queue full."""
        handed = lost = 0
        for line in _again(self._queues):
            # Queue, port id, waiting, copy mode, copy range, dropped, dropped at the socket, last id, 1
            fields = [int(field) for field in line.split()]
            handed += fields[7] - fields[6]
            lost += fields[5] + fields[6]
        return handed, lost


def _again(file: TextIO) -> list[str]:
    file.seek(0)
    return file.readlines()


class Wire:
    """A cable whose one end stays with a generator and whose other end moves from node to node."""

    def __init__(self) -> None:
        self.outside, self._depot = Namespace(), Namespace()
        for namespace in (self.outside, self._depot):
            _no_ipv6(namespace)
        cable(self.outside, "wire", self._depot, INTERFACE)
        self.outside.run("ip", "link", "set", "wire", "address", WIRE_MAC)
        with self.outside.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.bind(("wire", 0))

    @contextlib.contextmanager
    def node(self) -> Iterator[Node]:
        """Make a node at its end."""
        namespace = Namespace()
        try:
            _no_ipv6(namespace)
            for where in ("all", "default"):
                namespace.sysctl(f"net.ipv4.conf.{where}.rp_filter", "0")
            self._depot.run("ip", "link", "set", INTERFACE, "netns", namespace.path)
            try:
                lines = [
                    # NOARP: answers go out without a neighbour being asked for.
                    f"link set {INTERFACE} address {NODE_MAC} arp off up",
                    f"address add {VIP}/32 dev {INTERFACE}",
                    f"route add default dev {INTERFACE}",
                ]
                namespace.run("ip", "-batch", "-", stdin="\n".join(lines))
                namespace.run("nft", "-f", "-", stdin=_SINK)
                with contextlib.closing(Node(namespace, self._socket)) as node:
                    yield node
            finally:
                namespace.run("ip", "link", "set", INTERFACE, "netns", self._depot.path)
        finally:
            namespace.close()

    def close(self) -> None:
        """Take it away."""
        self._socket.close()
        self.outside.close()
        self._depot.close()


def _no_ipv6(namespace: Namespace) -> None:
    """Keep neighbour discovery out of the counts."""
    for where in ("all", "default"):
        with contextlib.suppress(FileNotFoundError):
            namespace.sysctl(f"net.ipv6.conf.{where}.disable_ipv6", "1")


class Meter:
    """Reads clocks and counters before and after a generator sends.

    Args:
        cpu: The CPU of the generator.
        softirq_apart: Whether CPU clocks miss the time in soft interrupts.
    """

    def __init__(self, cpu: int, *, softirq_apart: bool = False) -> None:
        self.cpu = cpu
        self._ksoftirqd = _kernel_thread(f"ksoftirqd/{cpu}")
        self._apart = softirq_apart

    async def measure(
        self,
        node: Node,
        generator: Generator,
        *,
        cpu_seconds: float,
        most_seconds: float,
        most_packets: int = 0,
        processes: Collection[int] = (),
        settle: Callable[[Node, Collection[int]], Awaitable[None]] | None = None,
    ) -> Window:
        """Let ``generator`` send, and return what was seen.

        Args:
            node: Where the packets arrive.
            generator: Who sends them.
            cpu_seconds: Ends when the generator has used so much CPU time,
            most_seconds: or so much time has passed,
            most_packets: or so many packets have arrived (0: no limit).
            processes: The filter's own.
            settle: Waits until these have judged what they have.
        """
        accepted, waited = node.accepted(), _waited(generator.pid)
        first = self._clocks(node, generator, processes)
        start = time.perf_counter()
        with generator.sending():
            while time.perf_counter() - start < most_seconds:
                await asyncio.sleep(_POLL_S)
                if cpu_clock(generator.pid) - first[0] >= cpu_seconds * 1e9:
                    break
                if most_packets and node.received() - first[3] >= most_packets:
                    break
        seconds = time.perf_counter() - start
        if settle is not None:
            await settle(node, processes)
        generated, ksoftirqd, user, packets = (
            after - before
            for after, before in zip(self._clocks(node, generator, processes), first, strict=True)
        )
        if self._apart:
            generated = int(seconds * 1e9) - (_waited(generator.pid) - waited)
        return Window(seconds, packets, node.accepted() - accepted, generated, ksoftirqd, user)

    def _clocks(
        self, node: Node, generator: Generator, processes: Collection[int]
    ) -> tuple[int, int, int, int]:
        return (
            cpu_clock(generator.pid),
            cpu_clock(self._ksoftirqd) if self._ksoftirqd else 0,
            sum(cpu_clock(pid) for pid in processes),
            node.received(),
        )


def softirq_apart(wire: Wire, generator: Generator) -> bool:
    """Find out whether this kernel leaves soft interrupts out of the CPU time of the process they interrupt.

    Args:
        wire: To a node.
        generator: Its packets cost at least as much in the receiving path as before.
    """
    with wire.node():
        before = cpu_clock(generator.pid), _waited(generator.pid), time.perf_counter()
        with generator.sending():
            time.sleep(_TRIAL_S)
        used, waited = cpu_clock(generator.pid) - before[0], _waited(generator.pid) - before[1]
        return used < 0.75 * ((time.perf_counter() - before[2]) * 1e9 - waited)


def cpu_clock(pid: int) -> int:
    """Return the CPU time, in ns, of a process and all its threads (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns(~pid << 3 | 2)  # CPUCLOCK_SCHED, linux/posix-timers.h


def pin(pid: int, cpu: int) -> None:
    """Keep a process, with all its threads, on one CPU."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), {cpu})


def _waited(pid: int) -> int:
    """Return for how many ns a process has waited for a CPU."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])


def _kernel_thread(name: str) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "comm").read_text().strip() == name:
                    return int(entry.name)
    return 0  # in a process-id namespace of its own
