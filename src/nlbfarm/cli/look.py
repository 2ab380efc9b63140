"""``status``, ``buckets`` and ``explain``: questions to a running node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nlbfarm.cli import tables
from nlbfarm.cli.common import Exit, asking, echo_json, farm_options, json_option
from nlbfarm.errors import UsageError
from nlbfarm.explain import parse_question

__all__ = ["buckets", "explain", "status"]


def _ask(
    farm: str | None,
    config_file: Path | None,
    runtime_dir: Path,
    verb: str,
    args: dict[str, Any] | None = None,
) -> Any:
    return asking(farm, config_file, runtime_dir)(verb, args or {})


@click.command()
@farm_options
@json_option
def status(farm: str | None, config_file: Path | None, runtime_dir: Path, as_json: bool) -> int:
    """Show what the node on this host does, and what it sees of the others."""
    found = _ask(farm, config_file, runtime_dir, "status")
    if as_json:
        echo_json(found)
    else:
        click.echo(tables.status(found))
    return Exit.OK


@click.command()
@farm_options
@click.option("--group", metavar="NAME", help="Only this group.")
@json_option
def buckets(
    farm: str | None, config_file: Path | None, runtime_dir: Path, group: str | None, as_json: bool
) -> int:
    """Show which node owns which of the 256 buckets of each group."""
    found = _ask(farm, config_file, runtime_dir, "status")
    groups = [one for one in found["groups"] if group is None or one["name"] == group]
    if not groups:
        listed = ", ".join(one["name"] for one in found["groups"])
        raise UsageError(f'there is no group "{group}" (there: {listed})')
    if as_json:
        echo_json(groups)
    else:
        names = {node["id"]: node["name"] for node in found["nodes"]}
        click.echo("\n\n".join(tables.buckets(one, names, found["node"]["name"]) for one in groups))
    return Exit.OK


@click.command()
@click.argument("client", metavar="CLIENT[:PORT]")
@click.argument("service", metavar="VIP:PORT[/udp]")
@farm_options
@json_option
def explain(
    client: str, service: str, farm: str | None, config_file: Path | None, runtime_dir: Path, as_json: bool
) -> int:
    """Say which node serves a client, by which bucket, and why."""
    parse_question(client, service)  # what cannot be meant is told without a node
    found = _ask(farm, config_file, runtime_dir, "explain", {"client": client, "service": service})
    if as_json:
        echo_json(found)
    else:
        click.echo(tables.explanation(found))
    return Exit.OK
