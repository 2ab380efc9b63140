"""The farm that the corpus is for: VIPs, groups, rules, and who sends."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

from nlbfarm.core.buckets import ALL, BUCKETS, BucketState, BucketStates
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, IPAddress, Mode, Protocol, Rule, Vip

__all__ = [
    "BARE",
    "FARM",
    "HELD_PORTS",
    "MARKER_PORT",
    "NODE",
    "OPEN",
    "OTHER_INTERFACE",
    "PORTS",
    "SHUT",
    "TAGGED",
    "VIP",
    "VLAN",
    "States",
    "client",
    "marker_client",
    "policy",
    "states",
]

FARM = "conformance"
"""Name of the farm."""

VLAN = 7
"""Id of the VLAN that one VIP is on, where the host has VLAN devices."""


States = Mapping[str, BucketStates]
"""Of each group."""


def _pair(host: int) -> Mapping[int, IPAddress]:
    return {4: IPv4Address(f"192.0.2.{host}"), 6: IPv6Address(f"2001:db8::{host:x}")}


NODE = _pair(1)
"""The node's own addresses, which no filter looks at."""
VIP, OPEN, OTHER_INTERFACE, BARE, SHUT, TAGGED = map(_pair, range(100, 106))
"""VIPs by IP version: an ordinary one; one that takes what no rule covers; one on another interface; one
without rules; one whose first rule is blocked; one on a VLAN."""

MARKER_PORT = 7
"""UDP port of ``VIP`` and ``OTHER_INTERFACE`` whose buckets are always ``OWN``: when a packet to it has
passed, all before it have been judged."""
HELD_PORTS = (80, 25, 8080)
"""TCP ports that the node listens on: those of conversations."""
PORTS = (80, 443, 25, 587, 22, 514, 8080, 8081, 53, 8443, 9999, 1, 65535)
"""Ports of packets that need not be covered."""

_RULES = (
    ("web", "web", VIP, Protocol.TCP, (80, 443), Affinity.CLIENT_PORT),
    ("quic", "web", VIP, Protocol.UDP, (443, 8443), Affinity.CLIENT_PORT),
    ("mail", "mail", VIP, Protocol.TCP, (25, 587), Affinity.NETWORK),
    ("ssh", "shut", VIP, Protocol.TCP, (22,), Affinity.CLIENT),
    ("syslog", "shut", VIP, Protocol.UDP, (514,), Affinity.NETWORK),
    ("marker", "marker", VIP, Protocol.UDP, (MARKER_PORT,), Affinity.CLIENT),
    ("marker1-", "marker", OTHER_INTERFACE, Protocol.UDP, (MARKER_PORT,), Affinity.CLIENT),
    ("app", "sticky", OPEN, Protocol.TCP, (8080, 8081), Affinity.CLIENT),
    ("dns", "sticky", OPEN, Protocol.UDP, (53,), Affinity.NETWORK),
    ("elsewhere", "web", OTHER_INTERFACE, Protocol.TCP, (80, 443), Affinity.CLIENT_PORT),
    ("closed", "shut", SHUT, Protocol.TCP, (443,), Affinity.CLIENT_PORT),
    ("tagged", "sticky", TAGGED, Protocol.TCP, (80, 443), Affinity.CLIENT_PORT),
)


def policy(rng: random.Random, families: Collection[int], *, vlan: bool) -> FilterPolicy:
    """Return what the filter has to enforce, with random seeds.

    Args:
        rng: Where the seeds come from.
        families: IP versions, 4 and 6.
        vlan: Whether one VIP is on a VLAN device.
    """
    vips: list[Vip] = []
    for family in sorted(families):
        for vip, interface in (
            (VIP, "eth0"),
            (OPEN, "eth0"),
            (OTHER_INTERFACE, "eth1"),
            (BARE, "eth0"),
            (SHUT, "eth0"),
            *([(TAGGED, f"eth0.{VLAN}")] if vlan else []),
        ):
            vips.append(Vip(vip[family], interface, accept_uncovered=vip is OPEN))
    there = {vip.address for vip in vips}
    rules = (
        Rule(f"{name}{family}", group, vip[family], protocol, ports, affinity)
        for family in sorted(families)
        for name, group, vip, protocol, ports, affinity in _RULES
    )
    modes = {"web": Mode.BALANCED, "mail": Mode.FAILOVER, "shut": Mode.BLOCKED, "sticky": Mode.BALANCED}
    groups = (*(Group(name, rng.getrandbits(32), mode) for name, mode in modes.items()), Group("marker", 0))
    return FilterPolicy(FARM, tuple(vips), groups, tuple(rule for rule in rules if rule.vip in there))


def states(rng: random.Random, policy: FilterPolicy) -> Iterator[States]:
    """Yield bucket states for one phase after another: random ones, now and then all buckets alike."""
    uniform = {name: BucketStates(**{name: ALL}) for name in ("own", "adopt", "drain")}
    plan = [None, None, "own", None, "adopt", None, "drain", None, None, "", None, "own", "drain"]
    while True:
        for alike in plan:
            found = {}
            for group in policy.groups:
                found[group.name] = _random(rng) if alike is None else uniform.get(alike, BucketStates())
            yield {**found, "marker": BucketStates(own=ALL)}


def _random(rng: random.Random) -> BucketStates:
    bitmaps = dict.fromkeys(BucketState, 0)
    for bucket in range(BUCKETS):
        bitmaps[rng.choice(tuple(BucketState))] |= 1 << bucket
    return BucketStates(bitmaps[BucketState.OWN], bitmaps[BucketState.ADOPT], bitmaps[BucketState.DRAIN])


def marker_client(family: int, number: int) -> IPAddress:
    """Return one of 250 addresses that only markers come from."""
    base = 0xC6336400 if family == 4 else 0x20010DB8_000C << 80  # 198.51.100.0, 2001:db8:c::
    return type(VIP[family])(base + number % 250 + 1)


def client(rng: random.Random, family: int) -> IPAddress:
    """Return an address that in all likelihood nobody else has."""
    if family == 4:
        return ip_address(rng.randrange(0x0B000000, 0x7E000000))
    return ip_address(0x20010DB8_0001 << 80 | rng.getrandbits(80))
