"""The configuration of a lab's farm, as TOML."""

from __future__ import annotations

from collections.abc import Sequence

from nlbfarm.lab import topology
from nlbfarm.lab.servers import Server
from nlbfarm.lab.supervisor import ROOT

__all__ = ["FARM", "GROUP", "PAGE", "SERVICE", "command", "farm_toml"]

FARM = "lab"
"""Name of the farm in the lab."""

GROUP = "web"
"""Name of its only group."""

SERVICE = "server"
"""Name of the web server among the services, where the nodes run it themselves."""

PAGE = "page"
"""Name of the checker that looks at the web server."""


def farm_toml(
    names: Sequence[str],
    *,
    backend: str = "auto",
    checker: bool = True,
    farm: str = "",
    heartbeat: str = "",
    rule: str = "",
    powers: Sequence[int] = (),
    service: str = "",
    extra: str = "",
) -> str:
    """Return the configuration of a lab's farm.

    Args:
        names: Names of the nodes; ids count from 1.
        backend: ``filter.backend``.
        checker: Whether each node looks at its web server: every second, or with a service, to restart it,
            twice a second.
        farm: Lines of the section ``[farm]``.
        heartbeat: Lines of the section ``[heartbeat]``.
        rule: More lines of the rule.
        powers: The powers of the first nodes, where they are not 1.
        service: Lines of the ``[[services]]`` entry that is the web server, without its name; empty: there
            is none.
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
        power = f"\npower = {powers[number - 1]}" if number <= len(powers) else ""
        lines.append(f'[[nodes]]\nid = {number}\nname = "{name}"\naddresses = [{addresses}]{power}')
    lines.append(f'[[vips]]\naddress = "{topology.VIP}"\ninterface = "eth0"\ndelivery = "multicast"')
    lines.append(
        f'[[rules]]\nname = "{GROUP}"\nvip = "{topology.VIP}"\nprotocol = "tcp"\nports = [80]\n{rule}'.strip()
    )
    if service:
        lines.append(f'[[services]]\nname = "{SERVICE}"\n{service}')
    if checker:
        often = "500ms" if service else "1s"
        action = f'"restart"\nservice = "{SERVICE}"' if service else '"wait"'
        lines.append(
            f'[[checkers]]\nname = "{PAGE}"\ntype = "http"\nurl = "http://127.0.0.1/health"\n'
            f'interval = "{often}"\ntimeout = "{often}"\nfall = 2\non_failure = {action}'
        )
    return "\n\n".join([*lines, extra]).strip() + "\n"


def command(server: Server) -> str:
    """Return the line of TOML that has every node run its own web server, the same line on all of them.

    With the variable ``DELAY`` in its ``environment`` it takes so many seconds longer to start.
    """
    # The shell fills in the one word that differs between the nodes, and is gone.
    words = " ".join(f'"{word}"' for word in server.argv(ROOT / "$NLBFARM_NODE" / "server"))
    return f"""command = ['sh', '-c', '[ "$DELAY" ] && sleep "$DELAY"; exec {words}']"""
