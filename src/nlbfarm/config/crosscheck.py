"""What has to fit together between the tables of a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from nlbfarm.config.draft import Draft, Entry
from nlbfarm.config.heartbeat import MAX_LEASE
from nlbfarm.config.nodes import MAX_NODES
from nlbfarm.config.supervised import doubts, supervised
from nlbfarm.config.types import format_duration, nearest
from nlbfarm.core import wire
from nlbfarm.core.policy import IPAddress
from nlbfarm.core.settings import Partition
from nlbfarm.errors import Problem

__all__ = ["crosscheck", "warnings"]


def crosscheck(draft: Draft) -> Iterator[Problem]:
    """Yield everything that does not fit together, as far as the draft's tables can be read."""
    yield from _timing(draft.singles["heartbeat"])
    yield from _unique(draft.nodes, "id", "the id")
    yield from _unique(draft.nodes, "name", "the name")
    yield from _addresses(draft.nodes)
    yield from _unique(draft.vips, "address", "the address")
    yield from _vips_are_no_nodes(draft)
    yield from _unique(draft.rules, "name", "the name")
    yield from _rule_vips(draft)
    yield from _ports(draft.rules)
    yield from _groups(draft.rules)
    yield from _powers(draft)
    yield from _unique(draft.services, "name", "the name")
    yield from _unique(draft.checkers, "name", "the name")
    yield from _unique(draft.failover_rules, "name", "the name")
    yield from supervised(draft)
    yield from _size(draft)


def warnings(draft: Draft) -> Iterator[Problem]:
    """Yield what is allowed but probably not meant."""
    nodes = draft.nodes
    if len(nodes) == 1:
        yield Problem("nodes", "only one server: nothing takes over when it is lost")
    if len(nodes) == 2 and draft.singles["farm"].get("partition") is Partition.MAJORITY:
        yield Problem(
            draft.singles["farm"].at("partition"),
            "with two nodes a majority is both of them: when one is lost, the other stops serving, too",
        )
    if nodes and all(len(node.get("addresses") or ()) == 1 for node in nodes):
        yield Problem(
            "nodes",
            "one heartbeat network only: when it fails, every node thinks that the others are lost; "
            "give each node an address on a second network if you can",
        )
    for group in sorted(_names(_group_of(rule) for rule in draft.rules)):
        if nodes and all(_power(node, group) == 0 for node in nodes):
            yield Problem("nodes", f'every node has power 0 in group "{group}": nobody serves it')
    yield from doubts(draft)


def _show(value: Any) -> str:
    return str(value) if isinstance(value, int) else f'"{value}"'


def _unique(entries: Sequence[Entry], key: str, what: str) -> Iterator[Problem]:
    first: dict[Any, Entry] = {}
    for entry in entries:
        value = entry.get(key)
        if value is None:
            continue
        if value in first:
            other = first[value].path if key in ("name", "address") else first[value].ref
            yield Problem(entry.at(key), f"{_show(value)} is already {what} of {other}")
        else:
            first[value] = entry


def _timing(heartbeat: Entry) -> Iterator[Problem]:
    interval: timedelta | None = heartbeat.get("interval")
    lost_after: int | None = heartbeat.get("lost_after")
    lease: timedelta | None = heartbeat.get("lease")
    if interval is None or lease is None:
        return
    shown = f'"{format_duration(lease)}"'
    if lost_after is not None and lease >= interval * lost_after:
        detection = format_duration(interval * lost_after)
        yield Problem(
            heartbeat.at("lease"),
            f"{shown} must be shorter than the detection time, {detection} (interval x lost_after): "
            "a lost node must have stopped serving before another takes over",
        )
    if lease < 2 * interval:
        if 2 * interval > MAX_LEASE:
            yield Problem(
                heartbeat.at("interval"),
                f'"{format_duration(interval)}" is too long: the lease must last at least two intervals, '
                f'and is at most "{format_duration(MAX_LEASE)}"',
            )
        else:
            yield Problem(
                heartbeat.at("lease"),
                f'{shown} must be at least two intervals, "{format_duration(2 * interval)}": '
                "one late heartbeat would interrupt the service",
            )


def _addresses(nodes: Sequence[Entry]) -> Iterator[Problem]:
    known = [(node, tuple(node.get("addresses"))) for node in nodes if node.get("addresses") is not None]
    first: dict[IPAddress, tuple[Entry, str]] = {}
    for node, addresses in known:
        for index, address in enumerate(addresses):
            where = node.at("addresses", index)
            if address in first:
                other, place = first[address]
                owner = "this node" if other is node else other.label or other.path
                yield Problem(where, f'"{address}" is already an address of {owner} ({place})')
            else:
                first[address] = (node, where)
    if not known:
        return
    # The usual length is right, whichever node comes first.
    lengths = [len(addresses) for _, addresses in known]
    usual = max(lengths, key=lambda length: (lengths.count(length), length))
    reference = next(addresses for _, addresses in known if len(addresses) == usual)
    for node, addresses in known:
        if len(addresses) != usual:
            yield Problem(
                node.at("addresses"),
                f"has {len(addresses)} where other nodes have {usual}: give every node one address on each "
                "heartbeat network, in the same order",
            )
            continue
        for index, (address, other) in enumerate(zip(addresses, reference, strict=True)):
            if address.version != other.version:
                yield Problem(
                    node.at("addresses", index),
                    f"IPv{address.version} where other nodes have IPv{other.version}: addresses in the same "
                    "place must be on the same network",
                )


def _vips_are_no_nodes(draft: Draft) -> Iterator[Problem]:
    owners = {address: node for node in draft.nodes for address in (node.get("addresses") or ())}
    for vip in draft.vips:
        node = owners.get(vip.get("address"))
        if node is not None:
            yield Problem(
                vip.at("address"),
                f'"{vip.get("address")}" is {node.label or node.path}\'s own address; '
                "a virtual IP must be an address of its own, free on the network",
            )


def _rule_vips(draft: Draft) -> Iterator[Problem]:
    known = [vip.get("address") for vip in draft.vips]
    if None in known:
        return  # the one that is wrong may be the one that is meant
    for rule in draft.rules:
        vip = rule.get("vip")
        if vip is not None and vip not in known:
            listed = ", ".join(str(address) for address in known) or "none"
            yield Problem(
                rule.at("vip"), f'"{vip}" is not the address of any [[vips]] table (there: {listed})'
            )


def _ports(rules: Sequence[Entry]) -> Iterator[Problem]:
    taken: dict[tuple[Any, Any, int], Entry] = {}
    for rule in rules:
        for index, port in enumerate(rule.get("ports") or ()):
            key = (rule.get("vip"), rule.get("protocol"), port)
            if None in key:
                continue
            other = taken.setdefault(key, rule)
            if other is rule:
                if port in rule.get("ports")[:index]:
                    yield Problem(rule.at("ports", index), f"{port} is there twice")
            else:
                yield Problem(
                    rule.at("ports", index),
                    f"{key[1]} port {port} of {key[0]} already belongs to {other.label or other.path}; "
                    "a port belongs to one rule",
                )


def _group_of(rule: Entry) -> Any:
    return rule.get("name") if rule.get("group") is None else rule.get("group")


def _groups(rules: Sequence[Entry]) -> Iterator[Problem]:
    loners = {rule.get("name") for rule in rules if "group" in rule.values and rule.get("group") is None}
    first: dict[str, Entry] = {}
    for rule in rules:
        group = rule.get("group")
        if group is None:
            continue
        if group in loners:
            yield Problem(
                rule.at("group"),
                f'"{group}" is the own group of rule "{group}"; if they shall share one, write '
                f'group = "{group}" in that rule, too, otherwise choose another name',
            )
            continue
        other = first.setdefault(group, rule)
        for key, why in (
            ("affinity", "or a client would belong to two nodes at once"),
            ("mode", "because a group is placed as a whole"),
            ("failback", "because a group is placed as a whole"),
        ):
            mine, theirs = rule.get(key), other.get(key)
            if mine is not None and theirs is not None and mine != theirs:
                yield Problem(
                    rule.at(key),
                    f'"{mine}", but {other.label or other.path} of the same group "{group}" has "{theirs}": '
                    f"rules of a group need the same {key}, {why}",
                )


def _power(node: Entry, group: str) -> Any:
    powers = node.get("powers")
    return powers[group] if powers is not None and group in powers else node.get("power")


def _powers(draft: Draft) -> Iterator[Problem]:
    groups = {_group_of(rule) for rule in draft.rules}
    if None in groups or not groups:
        return
    for node in draft.nodes:
        for group in node.get("powers") or ():
            if group not in groups:
                listed = ", ".join(sorted(groups))
                message = f"no rule has this group{nearest(group, groups)} (there: {listed})"
                yield Problem(node.at("powers", group), message)


def _size(draft: Draft) -> Iterator[Problem]:
    nodes = len(draft.nodes)
    groups = len(_names(_group_of(rule) for rule in draft.rules))
    if nodes > MAX_NODES:
        yield Problem("nodes", f"{nodes} servers are too many; a farm has at most {MAX_NODES}")
    elif wire.largest_heartbeat(max(nodes, 1), groups) > wire.MAX_DATAGRAM:
        most = max(
            (
                count
                for count in range(groups)
                if wire.largest_heartbeat(max(nodes, 1), count) <= wire.MAX_DATAGRAM
            ),
            default=0,
        )
        yield Problem(
            "rules",
            f"{groups} groups are too many for {nodes} servers: a heartbeat would not fit into one packet "
            f"of {wire.MAX_DATAGRAM} bytes; at most {most} are possible, let rules share a group",
        )


def _names(names: Iterable[Any]) -> set[str]:
    return {name for name in names if name is not None}
