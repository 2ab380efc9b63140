"""Digests that nodes compare: do we agree on what we serve, without saying what it is."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from nlbfarm.config.keys import FarmKeys
from nlbfarm.config.root import FarmConfig

__all__ = ["canonical", "config_digest", "dump", "secret_digest"]

DIGEST_BYTES = 8
"""As many as a heartbeat carries; they show mistakes, not attacks: heartbeats are authenticated."""


def dump(config: FarmConfig) -> dict[str, Any]:
    """Return the configuration with all defaults, as JSON has it, in the spelling of the file."""
    return config.model_dump(mode="json", exclude_none=True)


def canonical(config: FarmConfig) -> dict[str, Any]:
    """Return what all nodes of a farm must agree on, independent of how it is written.

    Left out is what a host may have for itself: ``[log]``, ``[control]``, ``[filter]``,
    ``[[checkers]]``, where the key file is, the name of a VIP's interface, and whether
    real-time priority is wanted. Tables whose order has no meaning are sorted; the order of a
    node's addresses has one, it says which network is which.
    """
    data = dump(config)
    for local in ("log", "control", "filter", "checkers"):
        data.pop(local, None)
    del data["farm"]["key_file"]
    del data["heartbeat"]["realtime"]
    for node in data["nodes"]:
        powers, power = node.pop("powers"), node.pop("power")
        node["powers"] = {group: powers.get(group, power) for group in config.group_names()}
    for vip, model in zip(data["vips"], config.vips, strict=True):
        del vip["interface"]
        vip["mac"] = model.group_mac
    for rule, spec in zip(data["rules"], config.rules, strict=True):
        rule["ports"] = sorted(spec.ports)
        rule["group"] = spec.group_name
    data["nodes"].sort(key=lambda node: node["id"])
    data["vips"].sort(key=lambda vip: vip["address"])
    data["rules"].sort(key=lambda rule: rule["name"])
    return data


def config_digest(config: FarmConfig) -> bytes:
    """Return 8 bytes that are the same on every node that serves by the same rules (see ``canonical``)."""
    text = json.dumps(canonical(config), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(b"nlbfarm configuration 1\n" + text.encode()).digest()[:DIGEST_BYTES]


def secret_digest(keys: FarmKeys) -> bytes:
    """Return 8 bytes that tell two hash secrets apart and say nothing about either."""
    return hmac.digest(keys.hash_secret, b"nlbfarm hash secret check", "sha256")[:DIGEST_BYTES]
