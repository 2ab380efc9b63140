"""How the answers of a node look on a terminal: plain text in columns."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["buckets", "columns", "explanation", "status"]

_LETTERS = string.ascii_lowercase + string.digits
_ROW = 64


def columns(rows: Sequence[Sequence[object]], indent: str = "  ") -> str:
    """Return ``rows``, the first of them the heads, with their columns aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in cells
    )


def status(found: Mapping[str, Any]) -> str:
    """Return the answer of the verb ``status`` as text."""
    node, names = found["node"], {one["id"]: one["name"] for one in found["nodes"]}
    reason = f" ({found['reason']})" if found["reason"] else ""
    lines = [f"farm {found['farm']}, node {node['name']} (id {node['id']}): {found['state']}{reason}"]
    epoch = found["epoch"]
    if found["inside"] and epoch is not None:
        leader = names.get(found["leader"], found["leader"])
        lines.append(f"  in view {epoch[0]}, led by {leader}; lease: {_lease(found['lease_ms'])}")
    else:
        lines.append(f"  in no view; lease: {_lease(found['lease_ms'])}")
    lines += _handover(found)
    backend = found["backend"]
    lines.append(
        f"  {found['delivery']} delivery, filter {backend['name']}"
        + (f" ({backend['detail']})" if backend.get("detail") else "")
    )
    lines.append(f"  running for {_span(found['uptime_s'])}, pid {found['pid']}, nlbfarm {found['version']}")
    lines += ["", "nodes", columns(_nodes(found)), *_remarks(found), *_legend(found), "", "virtual IPs"]
    lines.append(
        columns(
            [("ADDRESS", "INTERFACE", "HERE")]
            + [(vip["address"], vip["interface"], "yes" if vip["present"] else "no") for vip in found["vips"]]
        )
    )
    if found["services"]:
        lines += ["", "services", columns(_services(found["services"]))]
    if found["checkers"]:
        lines += ["", "checkers", columns(_checkers(found["checkers"]))]
    rules = [one for one in found["failover_rules"] if one["ok"] is False]
    lines += [f"  rule {one['detail']} (action: {one['action']})" for one in rules]
    if found["warnings"]:
        lines += ["", "warnings"] + [f"  {warning}" for warning in found["warnings"]]
    return "\n".join(lines)


def _nodes(found: Mapping[str, Any]) -> list[Sequence[object]]:
    groups = found["groups"]
    rows: list[Sequence[object]] = [
        (
            "NAME",
            "ID",
            "STATE",
            "IN VIEW",
            "HEARD",
            "ANSWERED",
            "NETWORKS",
            *(group["name"] for group in groups),
        )
    ]
    for node in found["nodes"]:
        shares = [_share(group["buckets"].get(str(node["id"]), 0)) for group in groups]
        if node["self"]:
            seen: Sequence[object] = ("(this one)", "", "")
        else:
            alive = "".join("+" if network["alive"] else "-" for network in node["networks"])
            seen = (_ago(node["last_heard_ms"]), _ago(node["acknowledged_ms"]), alive)
        state = node["state"] if node["self"] or node["heard"] else "lost"
        rows.append((node["name"], node["id"], state, "yes" if node["in_view"] else "no", *seen, *shares))
    return rows


def _handover(found: Mapping[str, Any]) -> list[str]:
    """Say what the administrator wants of the node, and what it still has of what it gives away."""
    lines = []
    if found["admin"] != "run":
        word = "drained" if found["admin"] == "drain" else "stopped"
        lines.append(f"  {word} until it is started (nlbfarm-node start), also after a reboot")
    if found["damping"] is not None:
        left, failures = found["damping"]["remaining_s"], found["damping"]["failures"]
        lines.append(
            f"  waits {left:.0f} s more: failed {failures} times in a row (nlbfarm-node start ends it)"
        )
    buckets = sum(group["drain"] for group in found["groups"])
    if buckets:
        left = f"{found['connections_left']} connections left in " if found["connections_left"] else ""
        lines.append(f"  gives away: {left}{buckets} buckets, for at most {found['drain_timeout_s']:g} s")
    return lines


def _remarks(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for node in found["nodes"]:
        texts = [] if node["self"] else [text for text in (node["reason"], node["problem"]) if text]
        draining = sum(node["draining"].values())
        if draining and not node["self"]:
            texts.append(f"drains {draining} buckets")
        texts += _powers(node)
        if texts:
            lines.append(f"  {node['name']}: {', '.join(texts)}")
    return lines


def _powers(node: Mapping[str, Any]) -> list[str]:
    """Say which powers of a node are not those of the configuration."""
    configured, announced = node["configured_power"], node["power"]
    if configured is None or announced is None:
        return []
    return [
        f"power {power} in group {group} (configured: {configured[group]})"
        for group, power in announced.items()
        if group in configured and power != configured[group]
    ]


def _legend(found: Mapping[str, Any]) -> list[str]:
    if all(node["self"] for node in found["nodes"]):
        return []
    return ["  NETWORKS: a sign for each heartbeat network in its order; + heard on it lately, - not"]


def _share(count: int) -> str:
    return f"{count} ({count * 100 / 256:.0f} %)" if count else "-"


def _services(services: Sequence[Mapping[str, Any]]) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = [("NAME", "TYPE", "PHASE", "SINCE", "RESTARTS", "REASON")]
    for one in services:
        used = f"{one['restarts']} of {one['max_restarts']} in {_span(one['within_s'])}"
        rows.append((one["name"], one["type"], one["phase"], _span(one["since_s"]), used, one["reason"]))
    return rows


def _checkers(checkers: Sequence[Mapping[str, Any]]) -> list[Sequence[object]]:
    words = {True: "good", False: "BAD", None: "not looked yet"}
    rows: list[Sequence[object]] = [("NAME", "TYPE", "RESULT", "SINCE", "IF IT FAILS", "DETAIL")]
    for one in checkers:
        does = f"{one['on_failure']} {one['service'] or ''}".rstrip()
        rows.append((one["name"], one["type"], words[one["ok"]], _span(one["since_s"]), does, one["detail"]))
    return rows


def _lease(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms left" if milliseconds > 0 else "run out, nothing is accepted"


def _ago(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "never"
    if milliseconds < 10_000:
        return f"{milliseconds:.0f} ms ago"
    return f"{_span(milliseconds / 1000)} ago"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    total = int(seconds)
    for size, unit, small, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= size:
            return f"{total // size} {unit} {total % size // small} {name}"
    return f"{total} s"


def buckets(group: Mapping[str, Any], names: Mapping[int, str], here: str) -> str:
    """Return one group's buckets as text.

    Args:
        group: An item of ``groups`` of the verb ``status``.
        names: The nodes' names by id.
        here: Name of the node that was asked.
    """
    letters = dict(zip(sorted(names), _LETTERS, strict=False))
    placement: Sequence[int] = group["placement"]
    counts = [(names[node], placement.count(node)) for node in sorted(names)]
    nobody = sum(1 for owner in placement if owner not in names)
    lines = [f"group {group['name']} ({group['mode']}), 256 buckets"]
    lines += [
        f"  {letters[node]}  {name}: {_share(count)}"
        for node, (name, count) in zip(sorted(names), counts, strict=True)
    ]
    if nobody:
        lines.append(f"  .  nobody: {_share(nobody)}")
    text = "".join(letters.get(owner, ".") for owner in placement)
    lines.append("")
    lines += [f"  {start:3d}  {text[start : start + _ROW]}" for start in range(0, len(text), _ROW)]
    states = [
        f"{group[key]} {word}"
        for key, word in (("own", "owned"), ("adopt", "being adopted"), ("drain", "draining"))
    ]
    lines += ["", f"  filter of {here}: {', '.join(states)}"]
    return "\n".join(lines)


def explanation(found: Mapping[str, Any]) -> str:
    """Return the answer of the verb ``explain`` as text."""
    rows: list[Sequence[object]] = []
    for key, word in (
        ("rule", "rule"),
        ("group", "group"),
        ("affinity", "affinity"),
        ("key", "key"),
        ("bucket", "bucket"),
        ("here", "state here"),
    ):
        if found[key] is not None:
            rows.append((word, found[key]))
    if found["owner"] is not None:
        rows.append(("owner", f"{found['owner']['name']} (id {found['owner']['id']})"))
    if found["distribution"]:
        rows += [(name, _share(count)) for name, count in found["distribution"].items()]
    reason: str = found["reason"]
    return reason + (f"\n{columns(rows)}" if rows else "")
