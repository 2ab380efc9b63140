"""What a running node says of itself: the result of the control verb ``status`` (docs/cli.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nlbfarm import __version__
from nlbfarm.core.buckets import BUCKETS, NOBODY
from nlbfarm.core.hearing import Peer
from nlbfarm.core.policy import IPAddress
from nlbfarm.core.wire import Heartbeat, NodeState
from nlbfarm.errors import NlbfarmError
from nlbfarm.interfaces import FilterCounters

if TYPE_CHECKING:
    from nlbfarm.core.node import Node
    from nlbfarm.runtime import Runtime

__all__ = ["status"]

LETTERS = {True: "O", False: "."}


async def status(runtime: Runtime) -> dict[str, Any]:
    """Return the state of the node, of its farm as it sees it, and of this host."""
    parts, node = runtime.parts, runtime.node
    if node is None:
        raise NlbfarmError("the node is still starting: try again in a moment")
    now = parts.clock.monotonic()
    settings = parts.settings
    warnings = runtime.rejections.warnings(now)
    try:
        counters = await parts.backend.counters()
    except NlbfarmError as error:
        counters = FilterCounters()
        warnings.append(f"the filter's counters cannot be read: {error}")
    membership = node.membership
    plan = membership.plan
    heartbeats = parts.heartbeat.stats()
    return {
        "farm": parts.policy.farm,
        "node": {"id": settings.node, "name": settings.nodes[settings.node]},
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": round(now - runtime.started_at, 3),
        "state": node.state.name,
        "reason": node.reason,
        "incarnation": node.incarnation,
        "epoch": list(plan.view.epoch) if plan is not None else None,
        "inside": plan is not None,
        "leader": node.leader(now),
        "lease_ms": round(max(0.0, node.lease_until - now) * 1e3, 1),
        "backend": {"name": parts.backend.name, "detail": parts.backend_detail},
        "delivery": parts.delivery,
        "nodes": [_node(runtime, node, number, now) for number in sorted(settings.nodes)],
        "groups": _groups(runtime, node),
        "vips": [
            {
                "address": str(vip.address),
                "interface": vip.interface,
                "present": bool(runtime.present.get(vip.address)),
            }
            for vip in parts.policy.vips
        ],
        "checkers": [
            {
                "name": check.name,
                "type": check.kind,
                "ok": runtime.checks[check.name].ok,
                "detail": runtime.checks[check.name].detail,
                "since_s": round(now - runtime.checks[check.name].since, 3),
            }
            for check in parts.checks
        ],
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


def _node(runtime: Runtime, node: Node, number: int, now: float) -> dict[str, Any]:
    settings = runtime.parts.settings
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
        }
    peer = node.hearing.peers.get(number)
    addresses = runtime.parts.peers.get(number, ())
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
        }
    word = peer.heartbeat
    heard = now < node.hearing.lost_at(peer)
    problem = ""
    if word.secret_digest != settings.secret_digest:
        problem = "hash secret differs"
    elif word.config_digest != settings.config_digest:
        problem = "configuration differs"
    return row | {
        "heard": heard,
        "state": word.state.name if heard else "STOP",
        "reason": word.reason if heard else _silence(word),
        "inside": word.inside,
        "incarnation": word.incarnation,
        "last_heard_ms": _ms(now, peer.last_heard),
        "acknowledged_ms": _ms(now, peer.acked_at),
        "problem": problem,
    }


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
        own = node.applied[index]
        counts: Mapping[int, int] = {
            owner: placement.count(owner) for owner in sorted(set(placement)) if owner != NOBODY
        }
        rows.append(
            {
                "name": group.name,
                "mode": group.mode.value,
                "buckets": {str(owner): count for owner, count in counts.items()},
                "own": own.bit_count(),
                "adopt": 0,
                "drain": 0,
                "placement": list(placement),
                "states": "".join(LETTERS[bool(own >> bucket & 1)] for bucket in range(BUCKETS)),
            }
        )
    return rows


def _ms(now: float, at: float | None) -> float | None:
    return None if at is None else round((now - at) * 1e3, 1)
