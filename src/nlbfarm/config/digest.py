"""Digests that nodes compare: do we agree on what we serve, without saying what it is."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from nlbfarm.config.keys import FarmKeys
from nlbfarm.config.root import FarmConfig
from nlbfarm.config.rules import Failback

__all__ = ["canonical", "config_digest", "dump", "former_digest", "secret_digest"]

DIGEST_BYTES = 8
"""As many as a heartbeat carries; they show mistakes, not attacks: heartbeats are authenticated."""


_OWN = ("log", "control", "filter", "services", "checkers", "failover_rules", "events", "notify", "handoff")


def dump(config: FarmConfig) -> dict[str, Any]:
    """Return the configuration with all defaults, as JSON has it, in the spelling of the file."""
    return config.model_dump(mode="json", exclude_none=True)


def canonical(config: FarmConfig) -> dict[str, Any]:
    """Return what all nodes of a farm must agree on, independent of how it is written.

    Left out is what a host may have for itself: ``[log]``, ``[control]``, ``[filter]`` (but for a bucket
    function: nodes with different ones would serve a client twice, or not at all), ``[[services]]``,
    ``[[checkers]]``, ``[[failover_rules]]``, ``[events]``, ``[notify]``, ``farm.last_node``, where the key
    file is, the name of a VIP's interface, and whether real-time priority is wanted. Tables whose order has
    no meaning are sorted.

    Left out, too, is what changes by ``reload`` on one node after the other, in any order: nodes that
    disagree on it for a while must go on to serve together.

    - ``[[nodes]]``: a bucket is given to members of a view only, and a node joins a view only when every
      member of it hears the node: one that a member does not know yet waits, and nothing else happens. One
      that a member no longer knows is not heard by it, and is left out. Names are for messages; powers are
      what each node announces of itself, not what others have in their files. With ``partition =
      "majority"`` the majorities of two configurations that differ by one node always share a node; so a
      reload adds or removes one at a time (``nlbfarm.config.changes``).
    - ``[handoff]``: how patient each node is decides how connections end, never who accepts new ones.
    """
    data = _with_nodes(config)
    del data["nodes"]
    return data


def _with_nodes(config: FarmConfig) -> dict[str, Any]:
    data = dump(config)
    for own in _OWN:
        data.pop(own, None)
    if config.filter.bucket_function:
        data["bucket_function"] = config.filter.bucket_function
    del data["farm"]["key_file"], data["farm"]["last_node"]
    del data["heartbeat"]["realtime"]
    for vip, model in zip(data["vips"], config.vips, strict=True):
        del vip["interface"]
        vip["mac"] = model.group_mac
    for rule, spec in zip(data["rules"], config.rules, strict=True):
        rule["ports"] = sorted(spec.ports)
        rule["group"] = spec.group_name
        if spec.failback is Failback.AUTO:
            del rule["failback"]  # as it always was: a farm is upgraded node by node
    for node in data["nodes"]:
        powers, power = node.pop("powers"), node.pop("power")
        node["powers"] = {group: powers.get(group, power) for group in config.group_names()}
    data["nodes"].sort(key=lambda node: node["id"])
    data["vips"].sort(key=lambda vip: vip["address"])
    data["rules"].sort(key=lambda rule: rule["name"])
    return data


def config_digest(config: FarmConfig) -> bytes:
    """Return 8 bytes that are the same on every node that serves by the same rules (see ``canonical``)."""
    return _digest(2, canonical(config))


def former_digest(config: FarmConfig) -> bytes:
    """Return the digest that nodes of wire version 1 compare: it covers ``[[nodes]]``, too."""
    return _digest(1, _with_nodes(config))


def _digest(version: int, data: dict[str, Any]) -> bytes:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(b"nlbfarm configuration %d\n" % version + text.encode()).digest()[:DIGEST_BYTES]


def secret_digest(keys: FarmKeys) -> bytes:
    """Return 8 bytes that tell two hash secrets apart and say nothing about either."""
    return hmac.digest(keys.hash_secret, b"nlbfarm hash secret check", "sha256")[:DIGEST_BYTES]
