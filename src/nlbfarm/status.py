"""What a running node says of itself: the result of the control verb ``status`` (docs/cli.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nlbfarm import __version__
from nlbfarm.core.buckets import BUCKETS, NOBODY, Bitmap, BucketState
from nlbfarm.core.condition import shown
from nlbfarm.core.hearing import Peer
from nlbfarm.core.policy import IPAddress
from nlbfarm.core.wire import Heartbeat, NodeState
from nlbfarm.errors import NlbfarmError
from nlbfarm.interfaces import FilterCounters

if TYPE_CHECKING:
    from nlbfarm.core.node import Node
    from nlbfarm.runtime import Runtime

__all__ = ["status"]

LETTERS = {BucketState.OWN: "O", BucketState.ADOPT: "A", BucketState.DRAIN: "D", BucketState.FOREIGN: "."}


async def status(runtime: Runtime) -> dict[str, Any]:
    """Return the state of the node, of its farm as it sees it, and of this host."""
    parts, node = runtime.parts, runtime.running()
    now = parts.clock.monotonic()
    settings, administration, supervising = parts.settings, runtime.administration, runtime.supervising
    warnings = [*administration.warnings, *runtime.rejections.warnings(now)]
    try:
        counters = await parts.backend.counters()
    except NlbfarmError as error:
        counters = FilterCounters()
        warnings.append(f"the filter's counters cannot be read: {error}")
    plan = node.membership.plan
    nodes = [_node(runtime, node, number, now) for number in sorted(node.settings.nodes)]
    warnings += _differences(runtime, nodes, now)
    heartbeats = parts.heartbeat.stats()
    return {
        "farm": parts.policy.farm,
        "node": {"id": settings.node, "name": settings.nodes[settings.node]},
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": round(now - runtime.started_at, 3),
        "state": node.state.name,
        "reason": node.reason,
        "fitness": node.fitness.name.lower(),
        "admin": administration.wanted.value,
        "damping": (
            {"failures": administration.failures, "remaining_s": round(administration.waits_s, 1)}
            if administration.waits_s > 0
            else None
        ),
        "drain_timeout_s": settings.drain_timeout,
        "connections_left": sum(_left(node, group) for group in settings.groups),
        "connections_cut": administration.cut,
        "incarnation": node.incarnation,
        "epoch": list(plan.view.epoch) if plan is not None else None,
        "inside": plan is not None,
        "leader": node.leader(now),
        "lease_ms": round(max(0.0, node.lease_until - now) * 1e3, 1),
        "backend": {"name": parts.backend.name, "detail": parts.backend_detail},
        "delivery": parts.delivery,
        "nodes": nodes,
        "groups": _groups(runtime, node),
        "vips": [
            {
                "address": str(vip.address),
                "interface": vip.interface,
                "present": bool(runtime.vips.present.get(vip.address)),
            }
            for vip in parts.policy.vips
        ],
        "checkers": [
            {
                "name": check.name,
                "type": check.kind,
                "service": check.service,
                "on_failure": check.action.value,
                "ok": supervising.checking.states[check.name].ok,
                "detail": supervising.checking.states[check.name].detail,
                "since_s": round(now - supervising.checking.states[check.name].since, 3),
            }
            for check in parts.checks
        ],
        "services": [_service(runtime, name, now) for name in supervising.services],
        "failover_rules": [
            {"name": name, "action": rule.action.value, "ok": rule.ok, "detail": rule.detail}
            for name, rule in supervising.machine.rules.items()
        ],
        "paused": administration.state.paused,
        "counters": {
            "groups": {name: dict(counts) for name, counts in counters.groups.items()},
            "other": dict(counters.other),
        },
        "heartbeat": {
            "networks": [asdict(network) for network in heartbeats.networks],
            "rejected": dict(runtime.rejections.counts),
            "notes": list(heartbeats.notes),
        },
        "warnings": warnings,
    }


def _service(runtime: Runtime, name: str, now: float) -> dict[str, Any]:
    supervising = runtime.supervising
    state, machine = supervising.machine.services[name], supervising.machine
    return {
        "name": name,
        "type": supervising.services[name].kind,
        "phase": state.phase.value,
        "reason": state.reason,
        "since_s": round(max(0.0, now - state.since), 3) if state.since > 0 else None,
        "restarts": state.spec.max_restarts - machine.restarts_left(name, now),
        "max_restarts": state.spec.max_restarts,
        "within_s": state.spec.within,
    }


def _node(runtime: Runtime, node: Node, number: int, now: float) -> dict[str, Any]:
    settings, groups = node.settings, node.settings.groups
    plan = node.membership.plan
    members = {member.node for member in plan.view.members} if plan is not None else set()
    row: dict[str, Any] = {
        "id": number,
        "name": settings.nodes[number],
        "self": number == settings.node,
        "in_view": number in members,
        "networks": [],
    }
    if number == settings.node:
        return row | {
            "heard": True,
            "state": node.state.name,
            "reason": node.reason,
            "inside": plan is not None,
            "incarnation": node.incarnation,
            "last_heard_ms": 0.0,
            "acknowledged_ms": 0.0,
            "problem": "",
            "power": dict(zip(groups, node.powers, strict=True)),
            "configured_power": dict(zip(groups, runtime.parts.settings.powers, strict=True)),
            "holding": _counts(groups, node.holding),
            "draining": _counts(groups, node.draining),
            "wire_version": runtime.parts.codec.newest,
        }
    peer = node.hearing.peers.get(number)
    addresses = runtime.parts.peers.get(number, ())
    configured = runtime.parts.peer_powers.get(number)
    row["networks"] = _networks(peer, addresses, settings.detection, now)
    if peer is None:
        return row | {
            "heard": False,
            "state": "STOP",
            "reason": "never heard",
            "inside": False,
            "incarnation": None,
            "last_heard_ms": None,
            "acknowledged_ms": None,
            "problem": "",
            "power": None,
            "configured_power": configured,
            "holding": {},
            "draining": {},
            "wire_version": None,
        }
    word = peer.heartbeat
    heard = now < node.hearing.lost_at(peer)
    problem = ""
    if word.secret_digest != settings.secret_digest:
        problem = "hash secret differs"
    elif word.config_digest != settings.config_digest:
        problem = "configuration differs"
    elif number in node.retired:
        problem = "no longer in this node's configuration"
    agrees = len(word.powers) == len(groups)
    seen = shown(word.state, word.reason, word.fitness, node.best())
    return row | {
        "heard": heard,
        "state": seen[0].name if heard else "STOP",
        "reason": seen[1] if heard else _silence(word),
        "inside": word.inside,
        "incarnation": word.incarnation,
        "last_heard_ms": _ms(now, peer.last_heard),
        "acknowledged_ms": _ms(now, peer.acked_at),
        "problem": problem,
        "power": dict(zip(groups, word.powers, strict=True)) if agrees else None,
        "configured_power": configured,
        "holding": _counts(groups, word.holding) if heard and agrees else {},
        "draining": _counts(groups, word.draining) if heard and agrees else {},
        "wire_version": runtime.versions.of(number),
    }


def _counts(groups: Sequence[str], bitmaps: Sequence[Bitmap]) -> dict[str, int]:
    """Return how many buckets each group has in ``bitmaps``; groups without one are left out."""
    return {group: bitmap.bit_count() for group, bitmap in zip(groups, bitmaps, strict=True) if bitmap}


def _left(node: Node, group: str) -> int:
    return sum(node.flows_left.get(group, {}).values())


_DIFFERENCES = {
    "hash secret differs": "has another hash secret: copy the key file of one node to all nodes",
    "configuration differs": (
        "is configured otherwise: compare the configuration files of both (nlbfarm-node check --json has "
        "the digest); until they agree the two do not serve together"
    ),
}


def _differences(runtime: Runtime, nodes: Sequence[Mapping[str, Any]], now: float) -> list[str]:
    """Say what keeps the nodes from working together as they could."""
    behind = runtime.versions.behind(now)
    found = []
    for row in nodes:
        if not row["heard"]:
            continue
        if row["problem"] in _DIFFERENCES:
            found.append(f"{row['name']} {_DIFFERENCES[row['problem']]}")
        if row["id"] in behind:
            versions = f"wire version {behind[row['id']]}, this node {runtime.parts.codec.newest}"
            found.append(
                f"{row['name']} speaks {versions}: until it is upgraded, connections are not kept when "
                "clients move, and it takes no commands from other nodes"
            )
    return found


def _silence(word: Heartbeat) -> str:
    return "left in good order" if word.state is NodeState.STOP else "no heartbeat"


def _networks(
    peer: Peer | None, addresses: Sequence[IPAddress], detection: float, now: float
) -> list[dict[str, Any]]:
    rows = []
    for index, address in enumerate(addresses):
        at = peer.networks[index][1] if peer is not None and index in peer.networks else None
        rows.append(
            {
                "index": index,
                "address": str(address),
                "alive": at is not None and now - at < detection,
                "last_heard_ms": _ms(now, at),
            }
        )
    return rows


def _groups(runtime: Runtime, node: Node) -> list[dict[str, Any]]:
    plan = node.membership.plan
    rows = []
    for index, group in enumerate(runtime.parts.policy.groups):
        placement = plan.placements[index] if plan is not None else (NOBODY,) * BUCKETS
        applied = node.applied[index]
        counts: Mapping[int, int] = {
            owner: placement.count(owner) for owner in sorted(set(placement)) if owner != NOBODY
        }
        rows.append(
            {
                "name": group.name,
                "mode": group.mode.value,
                "buckets": {str(owner): count for owner, count in counts.items()},
                "own": applied.own.bit_count(),
                "adopt": applied.adopt.bit_count(),
                "drain": applied.drain.bit_count(),
                "connections_left": _left(node, group.name),
                "placement": list(placement),
                "states": "".join(LETTERS[applied.state(bucket)] for bucket in range(BUCKETS)),
            }
        )
    return rows


def _ms(now: float, at: float | None) -> float | None:
    return None if at is None else round((now - at) * 1e3, 1)
