"""What the filter benchmark puts before the sink: nlbfarm's backends, and what they are compared with."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks._filter_host import Node
from benchmarks._filter_load import HALF, INTERFACE, VIP, XT_CLUSTER_SEED, policy
from nlbfarm.backends import choose
from nlbfarm.core.buckets import ALL, Bitmap, BucketStates
from nlbfarm.errors import NlbfarmError
from nlbfarm.interfaces import FilterBackend

_BEFORE_CONNTRACK = -201  # where nlbfarm's first chain stands
_AFTER_CONNTRACK = -199
_RENEW_S = 0.1
_LEASE_S = 0.9
_READY_S = 20.0
_OWNED: Mapping[int, Bitmap] = {0: 0, 50: HALF, 100: ALL}

QUEUE = 4242
"""The queue of the callback that only drops."""


@dataclass(frozen=True, slots=True)
class Running:
    """A filter that is in place.

    Args:
        processes: Ids of its own processes.
        counts: Returns how many packets these have decided on, and how many found a buffer full; ``None`` if
            NFQUEUE counts them (``Node.queued``).
    """

    processes: tuple[int, ...] = ()
    counts: Callable[[], Awaitable[tuple[int, int]]] | None = None


Put = Callable[[Node, int, int], AbstractAsyncContextManager[Running]]
"""Puts a filter in place: node, per cent of buckets owned, number of rules."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One filter, or what one is compared with.

    Args:
        name: As in the results.
        put: Puts it in place.
        user_space: Whether processes of its own decide.
        drops: Whether it drops anything.
        tracks: Whether conntrack sees the flows that it accepts.
        nlbfarm: Whether it is one of nlbfarm's.
        missing: Says why it cannot be measured here; empty if it can.
    """

    name: str
    put: Put
    user_space: bool = False
    drops: bool = True
    tracks: bool = False
    nlbfarm: bool = False
    missing: Callable[[], str] = field(default=lambda: "")


@asynccontextmanager
async def empty(node: Node, owned: int, rules: int) -> AsyncIterator[Running]:
    """An nft chain without a rule."""
    _chain(node, _BEFORE_CONNTRACK, "")
    yield Running()


@asynccontextmanager
async def conntrack(node: Node, owned: int, rules: int) -> AsyncIterator[Running]:
    """Nothing but connection tracking: what part of the cost is not the filter's."""
    _chain(node, _AFTER_CONNTRACK, "ct state invalid")
    yield Running()


@asynccontextmanager
async def plain_drop(node: Node, owned: int, rules: int) -> AsyncIterator[Running]:
    """An nft chain that drops everything, where nlbfarm's first chain stands."""
    _chain(node, _BEFORE_CONNTRACK, "drop")
    yield Running()


@asynccontextmanager
async def xt_cluster(node: Node, owned: int, rules: int) -> AsyncIterator[Running]:
    """Node 1 of 2 by iptables' match ``cluster``, in as few matches as do (iptables-extensions(8)): one rule.

    With several services, one rule for each, as their ports must be named; they are passed one after another.
    """
    rule = f"-A PREROUTING -i {INTERFACE} -d {VIP}/32 {{}}-m cluster --cluster-total-nodes 2"
    rule += f" ! --cluster-local-node 1 --cluster-hash-seed {XT_CLUSTER_SEED:#x} -j DROP"
    ports = (
        [f"-p tcp --dport {port} " for entry in policy(rules).rules for port in entry.ports]
        if rules > 1
        else [""]
    )
    lines = ["*mangle", *(rule.format(port) for port in ports), "COMMIT", ""]
    node.run("iptables-restore", stdin="\n".join(lines))
    yield Running()


@asynccontextmanager
async def iptables_drop(node: Node, owned: int, rules: int) -> AsyncIterator[Running]:
    """An iptables rule that drops all that is for the VIP, where xt_cluster's stands; no conntrack."""
    node.run("iptables", "-t", "mangle", "-A", "PREROUTING", "-i", INTERFACE, "-d", str(VIP), "-j", "DROP")
    yield Running()


def _chain(node: Node, priority: int, rule: str) -> None:
    hook = f"type filter hook prerouting priority {priority}; policy accept;"
    node.run(
        "nft", "-f", "-", stdin=f"table inet subject {{\n\tchain only {{\n\t\t{hook}\n\t\t{rule}\n\t}}\n}}\n"
    )


def backend(name: str, *, counts: bool = False, **options: Any) -> Put:
    """Return what opens nlbfarm's backend of that name, with bucket states and a lease that does not end.

    Args:
        name: As in the configuration.
        counts: Whether to ask it how many packets its processes have decided on.
        options: For its constructor.
    """

    @asynccontextmanager
    async def put(node: Node, owned: int, rules: int) -> AsyncIterator[Running]:
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        made, _ = await choose(name)
        filter_backend: FilterBackend = type(made)(**options)
        damages: list[str] = []
        what = policy(rules)
        await filter_backend.open(what, damages.append)
        renewing = None
        try:
            await filter_backend.apply({group.name: BucketStates(own=_OWNED[owned]) for group in what.groups})
            if not filter_backend.lease(_LEASE_S):
                raise RuntimeError(f"{name} did not take the lease")
            renewing = asyncio.ensure_future(_renew(filter_backend))
            children = {child.pid for child in psutil.Process().children(recursive=True)}
            processes = tuple(sorted(children - before))
            yield Running(processes, (lambda: _counts(filter_backend)) if counts else None)
            if damages:
                raise RuntimeError(f"{name}: {damages[0]}")
        finally:
            if renewing is not None:
                renewing.cancel()
            await filter_backend.close()

    return put


async def _renew(filter_backend: FilterBackend) -> None:
    while True:
        await asyncio.sleep(_RENEW_S)
        filter_backend.lease(_LEASE_S)


async def _counts(filter_backend: FilterBackend) -> tuple[int, int]:
    counters = await filter_backend.counters()
    lost = sum(counters.other.get(name, 0) for name in ("queue-full", "lost"))
    judged = sum(sum(group.values()) for group in counters.groups.values()) + sum(counters.other.values())
    return judged - lost, lost


def lacking(name: str) -> Callable[[], str]:
    """Return what says why the backend of that name cannot be measured here."""

    def why() -> str:
        try:
            asyncio.run(_close_at_once(name))
        except NlbfarmError as error:
            return str(error)
        return ""

    return why


async def _close_at_once(name: str) -> None:
    made, _ = await choose(name)
    await made.close()


def dropping(kind: str) -> Put:
    """Return what starts a process that drops each packet it gets and does nothing else.

    Args:
        kind: Of ``benchmarks._filter_dropping``.
    """

    @asynccontextmanager
    async def put(node: Node, owned: int, rules: int) -> AsyncIterator[Running]:
        if kind.startswith("queue"):
            rule = ["-t", "mangle", "-A", "PREROUTING", "-i", INTERFACE, "-d", str(VIP)]
            node.run("iptables", *rule, "-j", "NFQUEUE", "--queue-num", str(QUEUE))
        with _dropper(kind) as (process, counted):
            said = await asyncio.wait_for(asyncio.to_thread(_line, process), _READY_S)
            if said != b"ready\n":
                raise RuntimeError(f"the process that drops packets ({kind}) did not start")
            yield Running((process.pid,), None if kind.startswith("queue") else lambda: _read(counted))

    return put


@contextmanager
def _dropper(kind: str) -> Iterator[tuple[subprocess.Popen[bytes], mmap.mmap]]:
    page = os.memfd_create("dropped")
    try:
        os.ftruncate(page, mmap.PAGESIZE)
        command = [sys.executable, "-m", "benchmarks._filter_dropping", kind, str(page)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[page])
        try:
            with mmap.mmap(page, mmap.PAGESIZE) as counted:
                yield process, counted
        finally:
            process.kill()
            process.communicate()
    finally:
        os.close(page)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


async def _read(counted: mmap.mmap) -> tuple[int, int]:
    return struct.unpack_from("=Q", counted)[0], 0


def importable(module: str, extra: str) -> Callable[[], str]:
    """Return what says whether a module is installed."""

    def why() -> str:
        with contextlib.suppress(ImportError):
            __import__(module)
            return ""
        return f"the Python package {module} is not installed: pip install 'nlbfarm[{extra}]'"

    return why


def program(name: str) -> Callable[[], str]:
    """Return what says whether a program is on the host."""
    return lambda: "" if shutil.which(name) else f"the program {name} is missing"
