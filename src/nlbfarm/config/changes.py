"""What differs between two configurations of a farm, and what of it a running node can take over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlbfarm.config.digest import dump
from nlbfarm.config.keys import FarmKeys
from nlbfarm.config.root import FarmConfig
from nlbfarm.core.policy import IPAddress
from nlbfarm.core.settings import Partition

__all__ = ["Changes", "compare"]

_SECTIONS = ("farm", "heartbeat", "handoff", "filter", "events", "notify", "log", "control")
_RELOADED = frozenset({"handoff", "log.level"})
"""Sections, and keys of sections, that a running node takes over."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The differences, a sentence each, with their path in the user's spelling.

    Args:
        taken: What a running node takes over.
        refused: What it takes a new process for (``nlbfarm-node restart --process``), or more.
    """

    taken: tuple[str, ...]
    refused: tuple[str, ...]


def compare(
    before: FarmConfig,
    after: FarmConfig,
    keys_before: FarmKeys,
    keys_after: FarmKeys,
    node: int,
    addresses: Sequence[IPAddress],
) -> Changes:
    """Compare what a node runs with and what was loaded.

    Args:
        before, after: The configurations.
        keys_before, keys_after: The key files.
        node: Id of the node.
        addresses: The heartbeat addresses that it runs with.
    """
    taken: list[str] = []
    refused: list[str] = []
    old, new = _dumped(before), _dumped(after)
    for section in _SECTIONS:
        for key, change in _values(old[section], new[section]):
            path = f"{section}.{key}"
            if path == "farm.key_file":
                continue  # what is in it counts
            (taken if _RELOADED & {section, path} else refused).append(f"{path}: {change}")
    if before.notify != after.notify and old["notify"] == new["notify"]:
        refused.append("notify.targets: another secret in one of them")
    for table in ("vips", "rules", "services", "checkers", "failover_rules"):
        name = "address" if table == "vips" else "name"
        changes = [f"{table} {change}" for change in _entries(_by(old[table], name), _by(new[table], name))]
        (taken if table in ("checkers", "failover_rules") else refused).extend(changes)
    _nodes(before, after, node, addresses, taken, refused)
    _keys(keys_before, keys_after, taken, refused)
    return Changes(tuple(taken), tuple(refused))


def _dumped(config: FarmConfig) -> dict[str, Any]:
    """Return the configuration in one of the ways in which it can be written."""
    data = dump(config)
    for vip, spec in zip(data["vips"], config.vips, strict=True):
        vip["mac"] = spec.group_mac
    for rule, model in zip(data["rules"], config.rules, strict=True):
        rule |= {"ports": sorted(model.ports), "group": model.group_name}
    return data


def _nodes(
    before: FarmConfig,
    after: FarmConfig,
    node: int,
    addresses: Sequence[IPAddress],
    taken: list[str],
    refused: list[str],
) -> None:
    old = {one.id: one for one in before.nodes}
    new = {one.id: one for one in after.nodes}
    for number in sorted(old.keys() | new.keys()):
        was, now = old.get(number), new.get(number)
        if now is None:
            assert was is not None
            end = ", which is this one: it drains and stops" if number == node else ""
            taken.append(f'nodes "{was.name}" (id {number}) is removed{end}')
            continue
        if number == node and tuple(addresses) != now.addresses:
            change = f"{_listed(addresses)} -> {_listed(now.addresses)}"
            refused.append(f'nodes "{now.name}".addresses: {change}, and they are those of this node')
        if was is None:
            taken.append(f'nodes "{now.name}" (id {number}) is new')
            continue
        if was.name != now.name:
            taken.append(f'nodes "{was.name}" (id {number}) is called "{now.name}"')
        if was.addresses != now.addresses and number != node:
            taken.append(
                f'nodes "{now.name}".addresses: {_listed(was.addresses)} -> {_listed(now.addresses)}'
            )
        for group in after.group_names():
            weights = was.power_in(group), now.power_in(group)
            if weights[0] != weights[1]:
                taken.append(f'nodes "{now.name}": power in group {group} {weights[0]} -> {weights[1]}')
    moved = len(old.keys() ^ new.keys())
    if after.farm.partition is Partition.MAJORITY and moved > 1:
        refused.append(
            f'nodes: {moved} are added or removed, but with partition = "majority" that is done one at '
            "a time, each reloaded on every node before the next: two majorities could otherwise have no "
            "node in common"
        )


def _keys(before: FarmKeys, after: FarmKeys, taken: list[str], refused: list[str]) -> None:
    if before.hash_secret != after.hash_secret:
        refused.append("the hash secret in the key file: almost every client would move to another node")
    for number in sorted(before.heartbeat.keys() | after.heartbeat.keys()):
        was, now = before.heartbeat.get(number), after.heartbeat.get(number)
        if was != now:
            word = "is new" if was is None else "is removed" if now is None else "is another one"
            taken.append(f"heartbeat key {number} in the key file {word}")
    if before.active != after.active:
        taken.append(f"heartbeats are signed with key {after.active}, no longer with key {before.active}")


def _by(entries: Sequence[Mapping[str, Any]], name: str) -> dict[str, Mapping[str, Any]]:
    return {entry[name]: entry for entry in entries}


def _entries(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what differs between the tables of one kind, told apart by their names."""
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f'"{name}" is removed'
        elif name not in old:
            yield f'"{name}" is new'
        else:
            for key, change in _values(old[name], new[name]):
                yield f'"{name}".{key}: {change}'


def _values(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key):
            continue
        if key == "environment":  # passwords are in it; this goes into logs
            differ = dict(_values(old.get(key) or {}, new.get(key) or {}))
            yield key, f"other values of {', '.join(differ)}"
        else:
            yield key, f"{_text(old.get(key))} -> {_text(new.get(key))}"


def _text(value: object) -> str:
    return "nothing" if value is None else json.dumps(value)


def _listed(addresses: Sequence[IPAddress]) -> str:
    return _text([str(address) for address in addresses])
