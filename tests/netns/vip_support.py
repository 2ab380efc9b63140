"""A switch with nodes and a client, a network namespace each, for the tests of virtual IPs."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from nlbfarm.core.group_mac import group_mac
from nlbfarm.interfaces import VipSpec
from nlbfarm.vip import LinuxVIPManager

VIP = IPv4Address("192.0.2.100")
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*words: str) -> str:
    """Run ``ip`` and return what it printed."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20).stdout


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Move this thread into a namespace; threads that it starts meanwhile are there as well."""
    with open("/proc/thread-self/ns/net", "rb") as home, open(f"/run/netns/{namespace}", "rb") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@dataclass(frozen=True)
class Machine:
    """A namespace with ``eth0`` on the switch, and its own address there."""

    namespace: str
    address: IPv4Address

    @property
    def mac(self) -> str:
        """MAC of ``eth0``."""
        link: list[dict[str, str]] = json.loads(self.ip("-json", "link", "show", "eth0"))
        return link[0]["address"]

    def ip(self, *words: str) -> str:
        """Run ``ip`` there."""
        return ip("-netns", self.namespace, *words)

    def run(self, *words: str) -> str:
        """Run a program there."""
        return ip("netns", "exec", self.namespace, *words)

    def sysctl(self, name: str, value: object) -> None:
        """Set a sysctl there, its name as a path below /proc/sys/net."""
        with inside(self.namespace):
            Path("/proc/sys/net", name).write_text(f"{value}\n")

    def neighbour(self, address: IPv4Address) -> dict[str, Any]:
        """Return the entry for an address, empty if there is none."""
        found: list[dict[str, Any]] = json.loads(self.ip("-json", "neigh", "show", str(address)) or "[]")
        return found[0] if found else {}

    def snapshot(self) -> dict[str, object]:
        """Return all that a VIP manager may touch, in a form to be compared."""
        with inside(self.namespace):
            conf = Path("/proc/sys/net/ipv4/conf")
            sysctls = {
                str(p.relative_to(conf)): p.read_text() for p in conf.glob("*/*") if p.name != "stable_secret"
            }
            multicast = Path("/proc/net/dev_mcast").read_text()
        return {
            "addresses": self.ip("address"),
            "routes": self.ip("route", "show", "table", "all"),
            "multicast": self.ip("maddr"),
            "multicast references": multicast,
            "sysctls": sysctls,
            "ruleset": self.run("nft", "list", "ruleset"),
        }


@dataclass(frozen=True)
class Network:
    """A switch with two nodes and a client."""

    nodes: list[Machine]
    client: Machine


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Build a switch, two nodes and a client; all of it is gone afterwards."""
    prefix = f"nfh5-{os.getpid()}-{next(_numbers)}"
    switch = f"{prefix}-switch"
    names = [switch]
    machines = []
    try:
        ip("netns", "add", switch)
        ip("-netns", switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-netns", switch, "link", "set", "br0", "up")
        for number, role in ((11, "node1"), (12, "node2"), (50, "client")):
            name = f"{prefix}-{role}"
            ip("netns", "add", name)
            names.append(name)
            machine = Machine(name, IPv4Address(f"192.0.2.{number}"))
            machine.ip("link", "add", "eth0", "type", "veth", "peer", "name", role, "netns", switch)
            ip("-netns", switch, "link", "set", role, "master", "br0", "up")
            machine.ip("address", "add", f"{machine.address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                # No addresses of IPv6 that come and go by themselves between two snapshots.
                machine.sysctl(f"ipv6/conf/{link}/disable_ipv6", 1)
                machine.ip("link", "set", link, "up")
            machines.append(machine)
        yield Network(machines[:2], machines[2])
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)


def spec(address: IPv4Address = VIP, interface: str = "eth0") -> VipSpec:
    """Return the VIP that the tests use."""
    return VipSpec(address, interface, "multicast", group_mac(address))


def journal_of(tmp_path: Path, machine: Machine) -> Path:
    """Return where the journal of a manager on that machine is."""
    return tmp_path / machine.namespace / "journal.json"


@contextlib.asynccontextmanager
async def vip_up(tmp_path: Path, machine: Machine, *vips: IPv4Address) -> AsyncIterator[LinuxVIPManager]:
    """Have the VIPs up on a machine; yields their manager."""
    manager = LinuxVIPManager([spec(vip) for vip in vips or (VIP,)], journal_of(tmp_path, machine))
    with inside(machine.namespace):
        await manager.open()
        try:
            await manager.up()
        except BaseException:
            await manager.close()
            raise
    try:
        yield manager
    finally:
        with inside(machine.namespace):
            await manager.close()


# What the hash filter does in a farm: it makes TCP take packets that came in a multicast frame.
_ACCEPT = """
table ip test {{
  chain pre {{
    type filter hook prerouting priority raw; policy accept;
    ip daddr {vip} meta pkttype set host
  }}
}}
"""


def accept_multicast_frames(machine: Machine) -> None:
    """Let a node answer TCP at the VIP."""
    words = ["ip", "netns", "exec", machine.namespace, "nft", "-f", "-"]
    subprocess.run(words, input=_ACCEPT.format(vip=VIP), check=True, text=True, timeout=20)


async def until(condition: Callable[[], bool], what: str, bound: float = 10.0) -> None:
    """Wait for a condition; fail with ``what`` when it has not come true within ``bound`` seconds."""
    deadline = time.monotonic() + bound
    while not condition():
        assert time.monotonic() < deadline, f"not within {bound} s: {what}"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def echo_server(machine: Machine, address: IPv4Address, port: int) -> AsyncIterator[None]:
    """Answer TCP with the name of the machine's namespace."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(machine.namespace.encode())
        writer.close()

    with inside(machine.namespace):
        server = await asyncio.start_server(serve, str(address), port)
    async with server:
        yield


async def fetch(machine: Machine, address: IPv4Address, port: int, source: IPv4Address | None = None) -> str:
    """Connect from a machine and return what the server said."""
    with inside(machine.namespace):
        local = (str(source), 0) if source is not None else None
        opening = asyncio.open_connection(str(address), port, local_addr=local)
        reader, writer = await asyncio.wait_for(opening, 5)
    try:
        return (await asyncio.wait_for(reader.read(), 5)).decode()
    finally:
        writer.close()
        await writer.wait_closed()


def flood(directory: Path) -> Path:
    """Write a batch for ``ip`` with more changes of addresses than a notification queue holds."""
    batch = directory / "batch"
    changes = [f"address {verb} 203.0.113.{n}/32 dev lo" for n in range(1, 250) for verb in ("add", "del")]
    batch.write_text("\n".join(changes * 6) + "\n")
    return batch
