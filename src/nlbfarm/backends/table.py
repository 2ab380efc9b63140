"""Our table in the kernel: made, changed, compared and removed. Its methods block: for a worker thread."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlbfarm.backends.marks import LABEL_BIT, Marks
from nlbfarm.backends.netlink import NetlinkTables
from nlbfarm.backends.render import changes, elements, open_script
from nlbfarm.backends.ruleset import close_script, counter_names, group_map, table_name
from nlbfarm.core.buckets import BucketStates
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import FilterCounters
from nlbfarm.nft import Nft, NftError

__all__ = ["Table", "diagnose"]

_LOOSE = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_loose")

# What the table is made of, each with what to tell an administrator whose kernel lacks it. Only ever dry run.
_TABLE = "nlbfarm/probe"
_HASH = "the jhash expression (CONFIG_NFT_HASH)"
_FEATURES = (
    ("nftables tables of family inet (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)", ""),
    (
        _HASH,
        "chain c {\n meta mark set jhash ip saddr . th sport mod 256 seed 1\n }",
    ),
    (
        "verdict maps (CONFIG_NF_TABLES)",
        "map m {\n type mark : verdict; size 256;\n }\n chain c {\n meta mark vmap @m\n }",
    ),
    (
        "sets written by the packet path (CONFIG_NF_TABLES, Linux 5.3)",
        """set s {
            type nf_proto; flags dynamic,timeout;
        }
        chain c {
            update @s { meta nfproto timeout 1s }
            delete @s { meta nfproto }
            meta nfproto @s accept
        }""",
    ),
    (
        "conntrack labels (CONFIG_NFT_CT, CONFIG_NF_CONNTRACK_LABELS)",
        f"chain c {{\n ct label set {LABEL_BIT}\n ct label {LABEL_BIT} accept\n }}",
    ),
    (
        "rewriting the packet type at prerouting (meta pkttype set)",
        "chain c {\n type filter hook prerouting priority 0;\n meta pkttype set host\n }",
    ),
    ("named counters (CONFIG_NF_TABLES)", "counter n { }\n chain c {\n counter name n\n }"),
)
_SOCKET = "chain c {\n type filter hook prerouting priority 0;\n socket wildcard 0 accept\n }"


def _probe_script(body: str) -> str:
    return f"table inet {_TABLE} {{\n{body}\n}}\n"


def diagnose(nft: Nft, *, hashing: bool = True) -> str:
    """Return what keeps a backend from working here, as one sentence, or an empty one; changes nothing.

    Args:
        nft: Whom to ask.
        hashing: Whether the kernel has to compute the hash.
    """
    for feature, body in _FEATURES:
        if feature == _HASH and not hashing:
            continue
        try:
            nft.check(_probe_script(body))
        except NftError as error:
            if error.permission:
                return str(error)
            return f"this kernel (or libnftables) lacks {feature}: {error}"
    return ""


class Table:
    """The farm's table, and what was last put into it.

    Args:
        policy: What it enforces.

    Raises:
        HostError: libnftables is missing.
    """

    def __init__(self, policy: FilterPolicy) -> None:
        self._nft = Nft()
        self._netlink = NetlinkTables()
        self._policy = policy
        self._name = table_name(policy.farm)
        self._states: Mapping[str, BucketStates] = {}
        self._shape: list[str] = []
        self._remembering = {"lease"}  # the sets that the packet path writes
        self._counted: dict[str, int] = {}  # by earlier lives of the table
        self._latest: dict[str, int] = {}  # by this life of it, when last read

    @property
    def port_id(self) -> int:
        """By which notifications name the changes that ``apply`` makes."""
        return self._netlink.port_id

    def build(self) -> Marks:
        """Put the table in place, closed, with the last applied states, instead of any that is there.

        Returns:
            The marks that renew its lease.

        Raises:
            HostError: It was refused, and why; nothing was changed.
        """
        self._read_counters()
        marks = Marks(secrets.randbelow((1 << 20) - (1 << 16)) + (1 << 16))
        self._put(marks)
        for name, packets in self._latest.items():
            self._counted[name] = self._counted.get(name, 0) + packets
        self._latest = {}
        self._shape = self._read_shape()
        return marks

    def _put(self, marks: Marks) -> None:
        """Run the script that makes the table."""
        script = open_script(self._policy, self._states, marks, socket_match=self._socket_match())
        try:
            self._nft.run(script)
        except NftError as error:
            raise HostError(diagnose(self._nft) or str(error)) from error

    def apply(self, states: Mapping[str, BucketStates]) -> None:
        """Make the bucket states those of ``states``, in one transaction.

        Raises:
            HostError: It was refused; the earlier states still hold.
            UsageError: A group that the policy does not have.
        """
        self.require_groups(states)
        self._netlink.change(self._name, changes(self._policy, self._states, states))
        self._states = dict(states)

    def require_groups(self, named: Mapping[str, object]) -> None:
        """Make sure that the policy has these groups; does not block.

        Raises:
            UsageError: It does not have one of them.
        """
        strange = named.keys() - {group.name for group in self._policy.groups}
        if strange:
            raise UsageError(f"no group of this policy: {', '.join(sorted(strange))}")

    def difference(self) -> str:
        """Say in what way the kernel's table is not as we left it; empty if it is."""
        try:
            shape = self._read_shape()
        except NftError as error:
            return f"table inet {self._name} cannot be read: {error}"
        if shape == self._shape:
            return ""
        strange = set(shape) ^ set(self._shape)
        return f"table inet {self._name} was changed by somebody else ({len(strange)} differences)"

    def counters(self) -> FilterCounters:
        """Read the counters, those of earlier lives of the table included."""
        self._read_counters()
        groups: dict[str, dict[str, int]] = {}
        other: dict[str, int] = {}
        for name, group, verdict in counter_names(self._policy):
            total = self._counted.get(name, 0) + self._latest.get(name, 0)
            (other if group is None else groups.setdefault(group, {}))[verdict] = total
        return FilterCounters(groups, other)

    def remove(self) -> None:
        """Remove the table and let go of the library; may be called twice.

        Raises:
            HostError: The kernel refused.
        """
        try:
            self._nft.run(close_script(self._policy.farm))
        finally:
            self._nft.close()
            self._netlink.close()

    def _socket_match(self) -> bool:
        try:
            self._nft.check(_probe_script(_SOCKET))
        except NftError:
            return False
        try:
            return _LOOSE.read_text().strip() != "0"
        except OSError:
            return True  # conntrack is not loaded yet; 1 is its default

    def _elements(self, index: int, states: BucketStates) -> dict[int, str]:
        return elements(index, states)

    def _read_counters(self) -> None:
        self._latest.update(self._netlink.counters(self._name))

    def _read_shape(self) -> list[str]:
        """Return all that is in the table, comparable: without counts, leases and what ``apply`` changes."""
        buckets = {group_map(index): index for index in range(len(self._policy.groups))}
        items: list[str] = []
        for item in self._nft.read(f"list table inet {self._name}"):
            for kind, content in item.items():
                if kind == "metainfo":
                    continue
                if kind == "counter":
                    content.pop("packets")
                    content.pop("bytes")
                elif kind in ("set", "map"):
                    index = buckets.get(content["name"]) if kind == "map" else None
                    found = content.pop("elem", [])
                    if index is not None:
                        found = self._strange(index, found)
                    elif content["name"] in self._remembering:
                        found = []
                    items.extend(
                        f"{kind} {content['name']} {json.dumps(element, sort_keys=True)}" for element in found
                    )
                items.append(f"{kind} {json.dumps(content, sort_keys=True)}")
        return sorted(items)

    def _strange(self, index: int, found: list[Any]) -> list[Any]:
        """Return what is in a group's map and should not be, and the other way round."""
        group = self._policy.groups[index].name
        expected = self._elements(index, self._states.get(group, BucketStates()))
        kernel = {bucket: verdict["goto"]["target"] for bucket, verdict in found}
        return sorted(set(kernel.items()) ^ set(expected.items()))
