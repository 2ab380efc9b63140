"""``check``, ``keygen`` and ``backends``: what one needs before a node runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from nlbfarm.cli.common import Exit, echo_json, json_option, state_option
from nlbfarm.cli.figures import FILE, measured
from nlbfarm.config.digest import config_digest
from nlbfarm.config.draft import Draft, Entry
from nlbfarm.config.host import Host, host_problems, host_warnings, identify, read_host
from nlbfarm.config.keys import generate
from nlbfarm.config.loading import Examined, examine
from nlbfarm.config.types import nearest
from nlbfarm.errors import HostError, NlbfarmError, Problem, UsageError

__all__ = ["backends", "check", "keygen"]


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, readable=False, path_type=Path))
@click.option(
    "--host", "with_host", is_flag=True, help="Look at this host, too: interfaces, addresses, filter."
)
@click.option("--node", metavar="NAME", help="Which node this host is, for --host.")
@json_option
def check(file: Path, with_host: bool, node: str | None, as_json: bool) -> int:
    """Say everything that is wrong with a configuration; changes nothing."""
    if node is not None and not with_host:
        raise UsageError("--node says which node this host is; give --host, too")
    examined = examine(file)
    warnings = list(examined.warnings)
    found: list[Problem] = []
    entry: Entry | None = None
    if with_host and examined.draft is not None:
        host = read_host()
        entry, doubts = _this_node(examined, node, host)
        found += doubts
        found += examined.located(
            [*host_problems(examined.draft, entry, host), *_backend_problems(examined.draft)]
        )
        warnings += examined.located(host_warnings(examined.draft, entry, host))
    code = Exit.CONFIG if examined.problems else Exit.HOST if found else Exit.OK
    config = examined.config
    if as_json:
        echo_json(
            {
                "file": str(file),
                "ok": code is Exit.OK,
                "problems": [
                    {"kind": kind, "path": problem.path, "message": problem.message}
                    for kind, problems in (("configuration", examined.problems), ("host", found))
                    for problem in problems
                ],
                "warnings": [{"path": warning.path, "message": warning.message} for warning in warnings],
                "farm": config.farm.name if config else None,
                "node": {"id": entry.get("id"), "name": entry.get("name")} if entry else None,
                "digest": config_digest(config).hex() if config else None,
            }
        )
        return code
    total = len(examined.problems) + len(found)
    if total:
        click.echo(f"{file}: {total} problem{'s' if total > 1 else ''}")
        for problem in (*examined.problems, *found):
            click.echo(f"  {problem}")
    elif config is not None:
        parts = (
            _count(config.nodes, "node"),
            _count(config.vips, "virtual IP"),
            _count(config.rules, "rule"),
        )
        where = f"; this host is {entry.get('name')}" if entry else ""
        click.echo(f"{file}: farm {config.farm.name} is right: {', '.join(parts)}{where}")
    for warning in warnings:
        click.echo(f"  warning: {warning}")
    return code


def _count(things: tuple[Any, ...], word: str) -> str:
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


def _this_node(examined: Examined, name: str | None, host: Host) -> tuple[Entry | None, list[Problem]]:
    draft = examined.draft
    assert draft is not None
    if examined.config is not None:
        try:
            node_id = identify(examined.config, name, host)
        except UsageError:
            raise
        except HostError as error:
            return None, [Problem("nodes", str(error))]
        return next(node for node in draft.nodes if node.get("id") == node_id), []
    # The configuration is wrong somewhere: look as far as can be seen, and leave doubts for later.
    mine = [
        node
        for node in draft.nodes
        if (
            node.get("name") == name
            if name is not None
            else host.addresses & set(node.get("addresses") or ())
        )
    ]
    return (mine[0] if len(mine) == 1 else None), []


def _backend_problems(draft: Draft) -> Iterator[Problem]:
    name = draft.singles["filter"].get("backend")
    if name is None:
        return
    from nlbfarm.backends import Options, choose

    known = [name for name, _, _ in asyncio.run(_survey())]
    if name != "auto" and name not in known:
        yield Problem(
            "filter.backend",
            f'"{name}" is not installed here{nearest(name, known)} (there: auto, {", ".join(known)})',
        )
        return
    try:
        asyncio.run(choose(name, Options(bucket=draft.singles["filter"].get("bucket_function") or "")))
    except NlbfarmError as error:
        yield Problem("filter.backend", str(error))


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def keygen(file: Path, force: bool) -> int:
    """Make the key file of a farm, once; then copy it to every node."""
    generate(file, force=force)
    click.echo(f"{file}: new keys, mode 0600; copy the file to every node over a safe channel (scp -p)")
    return Exit.OK


async def _survey() -> list[tuple[str, bool, str]]:
    from nlbfarm.backends import survey

    return [(name, found.usable, found.detail) for name, found in await survey()]


@click.command()
@click.option(
    "--benchmark",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"What the filter benchmark measured; by default {FILE} in the state directory, if it is there.",
)
@state_option
@json_option
def backends(benchmark: Path | None, state_dir: Path, as_json: bool) -> int:
    """List the packet filters, whether they work on this host and what a packet costs there."""
    if benchmark is None and (state_dir / FILE).is_file():
        benchmark = state_dir / FILE
    costs = measured(benchmark) if benchmark is not None else {}
    found = asyncio.run(_survey())
    if as_json:
        echo_json(
            [
                {"name": name, "usable": usable, "detail": detail, "added_ns": costs.get(name, {})}
                for name, usable, detail in found
            ]
        )
        return Exit.OK
    width = max((len(name) for name, _, _ in found), default=0)
    for name, usable, detail in found:
        click.echo(f"{name:<{width}}  {'works' if usable else 'no   '}  {detail}")
        if name in costs:
            of_kinds = "; ".join(f"{kind}: {ns:,.0f} ns" for kind, ns in costs[name].items())
            click.echo(f"{'':<{width}}         a packet costs, as measured here: {of_kinds}")
    return Exit.OK
