"""The configuration of a lab's farm, as TOML."""

from __future__ import annotations

from collections.abc import Sequence

from nlbfarm.lab import topology

__all__ = ["FARM", "GROUP", "farm_toml"]

FARM = "lab"
"""Name of the farm in the lab."""

GROUP = "web"
"""Name of its only group."""


def farm_toml(
    names: Sequence[str],
    *,
    backend: str = "auto",
    checker: bool = True,
    farm: str = "",
    heartbeat: str = "",
    extra: str = "",
) -> str:
    """Return the configuration of a lab's farm.

    Args:
        names: Names of the nodes; ids count from 1.
        backend: ``filter.backend``.
        checker: Whether each node looks at its web server.
        farm: Lines of the section ``[farm]``.
        heartbeat: Lines of the section ``[heartbeat]``.
        extra: More TOML, put at the end.
    """
    lines = [
        f'[farm]\nname = "{FARM}"\nkey_file = "{FARM}.key"\n{farm}',
        f"[heartbeat]\n{heartbeat}",
        f'[filter]\nbackend = "{backend}"',
        '[log]\nformat = "json"',
    ]
    for number, name in enumerate(names, 1):
        addresses = ", ".join(f'"{address}"' for address in topology.node_addresses(number))
        lines.append(f'[[nodes]]\nid = {number}\nname = "{name}"\naddresses = [{addresses}]')
    lines.append(f'[[vips]]\naddress = "{topology.VIP}"\ninterface = "eth0"\ndelivery = "multicast"')
    lines.append(f'[[rules]]\nname = "{GROUP}"\nvip = "{topology.VIP}"\nprotocol = "tcp"\nports = [80]')
    if checker:
        lines.append(
            '[[checkers]]\nname = "page"\ntype = "http"\nurl = "http://127.0.0.1/health"\n'
            'interval = "1s"\ntimeout = "1s"\nfall = 2\non_failure = "wait"'
        )
    return "\n\n".join([*lines, extra]).strip() + "\n"
