"""What the question costs in which buckets flows are left, and how long it holds up the event loop.

The tracked connections are put into the kernel of a network namespace of the benchmark's own; none of them is
real, and nothing else happens there.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable
from ipaddress import IPv4Address
from typing import Any, TypeVar

from nlbfarm.backends.flows import SETTLE_S
from nlbfarm.backends.marks import LABEL_BIT
from nlbfarm.backends.netlink import NETLINK_NETFILTER, attribute, message
from nlbfarm.backends.nftables import NftablesBackend
from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.policy import FilterPolicy, Group, Protocol, Rule, Vip

SIZES = (100, 5_000, 50_000)
_VIP = IPv4Address("192.0.2.100")
_TICK_S = 0.001
_NEW, _DELETE = 1 << 8 | 0, 1 << 8 | 2  # IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK
_REQUEST, _ACK, _CREATE = 0x1, 0x4, 0x400  # NLM_F_*
_ESTABLISHED, _TIME_WAIT = 3, 7
_NESTED = 0x8000

_T = TypeVar("_T")


def measure(seconds: float) -> dict[str, Any]:
    """Return, for each number of connections, the cost of the first and of a repeated question.

    Args:
        seconds: For how long the question is repeated, all sizes together.
    """
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    unshare = shutil.which("unshare") or "unshare"
    inside = [sys.executable, "-m", "benchmarks.flows", str(seconds / len(SIZES))]
    done = subprocess.run(
        [unshare, *user, "--net", *inside],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=seconds + 120,
    )
    sizes = json.loads(done.stdout)
    return {
        "benchmark": "flows",
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "settle_ms": SETTLE_S * 1000,
        "connections": sizes,
        "first_call_ratio": {
            f"{size}/{SIZES[0]}": round(sizes[str(size)]["first_ms"] / sizes[str(SIZES[0])]["first_ms"], 2)
            for size in SIZES[1:]
        },
        "repeated_call_ratio": {
            f"{size}/{SIZES[0]}": round(
                sizes[str(size)]["repeated_ms"] / sizes[str(SIZES[0])]["repeated_ms"], 2
            )
            for size in SIZES[1:]
        },
    }


async def _measure_here(seconds: float) -> dict[int, dict[str, Any]]:
    policy = FilterPolicy(
        "flows", (Vip(_VIP, "eth0"),), (Group("web", 7),), (Rule("web", "web", _VIP, Protocol.TCP, (80,)),)
    )
    found = {}
    for size in SIZES:
        backend = NftablesBackend()
        await backend.open(policy, lambda _: None)
        try:
            _track(range(size), _ESTABLISHED)
            found[size] = await _questions(backend, size, seconds)
        finally:
            await backend.close()
            _flush()
    return found


async def _questions(backend: NftablesBackend, size: int, seconds: float) -> dict[str, Any]:
    await backend.apply({"web": BucketStates(drain=ALL)})
    await asyncio.sleep(SETTLE_S)
    _, _, idle_gap, _ = await _watched(asyncio.sleep(0.5))
    counts, first_ms, first_gap, first_cpu = await _watched(backend.flows({"web": ALL}))
    assert sum(counts["web"].values()) == size
    took, gaps, cpu = [], [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        _, ms, gap, used = await _watched(backend.flows({"web": ALL}))
        took.append(ms)
        gaps.append(gap)
        cpu.append(used)
        await asyncio.sleep(0.05)
    _track(range(size // 2), _TIME_WAIT)
    counts, half_ms, half_gap, _ = await _watched(backend.flows({"web": ALL}))
    left = sum(counts["web"].values())
    _track(range(size), _TIME_WAIT)
    counts, end_ms, end_gap, _ = await _watched(backend.flows({"web": ALL}))
    assert not counts["web"]
    return {
        "first_ms": round(first_ms, 2),
        "first_cpu_ms": round(first_cpu, 2),
        "first_longest_stall_ms": round(first_gap, 2),
        "repeated_ms": round(statistics.median(took), 2),
        "repeated_cpu_ms": round(statistics.median(cpu), 2),
        "repeated_longest_stall_ms": round(max(gaps), 2),
        "repeated_calls": len(took),
        "half_ended_ms": round(half_ms, 2),
        "half_ended_longest_stall_ms": round(half_gap, 2),
        "half_ended_counted": left,
        "all_ended_ms": round(end_ms, 2),
        "all_ended_longest_stall_ms": round(end_gap, 2),
        "idle_longest_stall_ms": round(idle_gap, 2),
    }


async def _watched(question: Awaitable[_T]) -> tuple[_T, float, float, float]:
    """Return the answer, and in milliseconds: how long it took, the longest gap of a ticker, CPU time."""
    gaps = [0.0]

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.perf_counter()
            gaps.append(now - last - _TICK_S)
            last = now

    ticker = asyncio.ensure_future(tick())
    await asyncio.sleep(10 * _TICK_S)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    answer = await question
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    ticker.cancel()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return answer, took * 1000, max(gaps) * 1000, cpu * 1000


def _track(numbers: range, state: int) -> None:
    """Put connections into the kernel's table, or change their state."""
    labels = (1 << LABEL_BIT).to_bytes(16, sys.byteorder)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asking:
        asking.settimeout(5)
        for first in range(0, len(numbers), 200):
            batch = [_connection(number, state, labels) for number in numbers[first : first + 200]]
            asking.send(b"".join(batch))
            for _ in batch:
                (error,) = struct.unpack_from("=i", asking.recv(4096), 16)
                if error:
                    raise OSError(-error, os.strerror(-error))


def _connection(number: int, state: int, labels: bytes) -> bytes:
    client = IPv4Address((198 << 24 | 51 << 16 | 100 << 8) + number // 50_000).packed
    port = struct.pack("!H", 10_000 + number % 50_000)
    web = struct.pack("!H", 80)

    def end_points(kind: int, source: bytes, destination: bytes, sport: bytes, dport: bytes) -> bytes:
        addresses = attribute(1, source) + attribute(2, destination)
        protocol = attribute(1, b"\x06") + attribute(2, sport) + attribute(3, dport)
        return attribute(kind | _NESTED, attribute(1 | _NESTED, addresses) + attribute(2 | _NESTED, protocol))

    body = (
        end_points(1, client, _VIP.packed, port, web)
        + end_points(2, _VIP.packed, client, web, port)
        + attribute(7, struct.pack("!I", 600))  # CTA_TIMEOUT
        + attribute(4 | _NESTED, attribute(1 | _NESTED, attribute(1, bytes([state]))))  # CTA_PROTOINFO
        + attribute(22, labels)  # CTA_LABELS
    )
    return message(_NEW, _REQUEST | _ACK | _CREATE, number, socket.AF_INET, 0, body)


def _flush() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asking:
        asking.settimeout(5)
        asking.send(message(_DELETE, _REQUEST | _ACK, 1, socket.AF_INET, 0))
        asking.recv(4096)


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print(json.dumps(asyncio.run(_measure_here(float(sys.argv[1])))))
