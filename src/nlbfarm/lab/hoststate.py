"""What a host looks like, to compare: ruleset, addresses, multicast MACs, routes, sysctls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from nlbfarm.lab.world import World

__all__ = ["HostState", "difference", "read"]

_COUNTER = re.compile(r"counter packets \d+ bytes \d+")
_EXPIRES = re.compile(r" expires \S+")

# What changes by itself on an idle host is left out: IPv6 link-local addresses and groups (duplicate address
# detection runs for a second), learned neighbours, lifetimes.
_SYSCTLS = "find /proc/sys/net/ipv4 /proc/sys/net/netfilter -type f -perm -400 | xargs grep -HsI ''"
_UNSTABLE_SYSCTL = re.compile(
    r"/(nf_conntrack_count|tcp_fastopen_key|fib_notify_on_flag_change|ipfrag_\w+|ip6frag_\w+|route/flush|inet_peer_\w+)"
)


@dataclass(frozen=True, slots=True)
class HostState:
    """One look at a host; each section maps a stable key to a value.

    Args:
        sections: Section name (``ruleset``, ``addresses``, ``multicast``, ``routes``, ``sysctls``) to its
            entries.
    """

    sections: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def read(world: World, ns: str) -> HostState:
    """Read the state of the host in namespace ``ns``."""
    ruleset = world.run(["nft", "--stateless", "list", "ruleset"], ns=ns, check=False).out
    addresses = json.loads(world.run(["ip", "-json", "address"], ns=ns).out)
    multicast = json.loads(world.run(["ip", "-json", "maddress"], ns=ns).out)
    routes = world.run(["ip", "-4", "route", "show", "table", "all"], ns=ns).out
    sysctls = world.run(["sh", "-c", _SYSCTLS], ns=ns, check=False).out
    return HostState(
        {
            "ruleset": _tables(ruleset),
            "addresses": _addresses(addresses),
            "multicast": _multicast(multicast),
            "routes": {line.strip(): "present" for line in routes.splitlines() if line.strip()},
            "sysctls": dict(
                line.split(":", 1)
                for line in sysctls.splitlines()
                if ":" in line and not _UNSTABLE_SYSCTL.search(line)
            ),
        }
    )


def difference(before: HostState, after: HostState) -> list[str]:
    """Return a line for everything that differs; empty if the host is as it was."""
    lines = []
    for section in before.sections.keys() | after.sections.keys():
        old, new = before.sections.get(section, {}), after.sections.get(section, {})
        lines += [
            f"{section}: {key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
            for key in old.keys() | new.keys()
            if old.get(key) != new.get(key)
        ]
    return sorted(lines)


def _tables(ruleset: str) -> dict[str, str]:
    tables: dict[str, list[str]] = {}
    current: list[str] = []
    for line in _EXPIRES.sub("", _COUNTER.sub("counter", ruleset)).splitlines():
        if line.startswith("table "):
            current = tables.setdefault(line.removesuffix(" {"), [])
        current.append(line)
    return {name: "\n".join(lines) for name, lines in tables.items()}


def _addresses(links: list[dict[str, object]]) -> dict[str, str]:
    found = {}
    for link in links:
        name = link["ifname"]
        flags = link.get("flags", [])
        assert isinstance(flags, list)
        found[f"{name} flags"] = " ".join(sorted(flags))
        found[f"{name} mac"] = str(link.get("address"))
        entries = link.get("addr_info", [])
        assert isinstance(entries, list)
        for entry in entries:
            if entry.get("scope") != "link":
                found[f"{name} {entry['local']}/{entry['prefixlen']}"] = (
                    f"{entry.get('scope')} {entry.get('label', '')}"
                )
    return found


def _multicast(links: list[dict[str, object]]) -> dict[str, str]:
    found = {}
    for link in links:
        groups = link.get("maddr", [])
        assert isinstance(groups, list)
        for group in groups:
            what = group.get("link") or group.get("address")
            if what and not str(what).startswith(("33:33", "ff0")):
                found[f"{link['ifname']} {what}"] = f"users {group.get('users', 1)}"
    return found
