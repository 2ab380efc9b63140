"""``check``, ``keygen`` and ``backends``: what one needs before a node runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nlbfarm.cli.common import Exit, echo_json, json_option, runtime_option, state_option
from nlbfarm.cli.figures import FILE, measured
from nlbfarm.cli.tables import columns
from nlbfarm.config.digest import config_digest
from nlbfarm.config.draft import Draft, Entry
from nlbfarm.config.host import Host, host_problems, host_warnings, identify, read_host
from nlbfarm.config.keys import generate
from nlbfarm.config.loading import Examined, examine
from nlbfarm.config.types import nearest
from nlbfarm.errors import HostError, NlbfarmError, Problem, UsageError

if TYPE_CHECKING:
    from nlbfarm.cli.trying import Trial

__all__ = ["backends", "check", "keygen"]


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, readable=False, path_type=Path))
@click.option(
    "--host",
    "with_host",
    is_flag=True,
    help="Look at this host, too: interfaces, addresses, filter, services; try each checker once.",
)
@click.option("--node", metavar="NAME", help="Which node this host is, for --host.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of a configuration, for an editor.")
@runtime_option
@json_option
def check(
    file: Path | None, with_host: bool, node: str | None, schema: bool, runtime_dir: Path, as_json: bool
) -> int:
    """Say everything that is wrong with a configuration; changes nothing."""
    if schema:
        if file is not None or with_host:
            raise UsageError("--schema looks at nothing; give it without FILE and --host")
        from nlbfarm.config.schema import schema_text

        click.echo(schema_text(), nl=False)
        return Exit.OK
    if file is None:
        raise UsageError("which configuration? write: nlbfarm-node check FILE")
    if node is not None and not with_host:
        raise UsageError("--node says which node this host is; give --host, too")
    examined = examine(file)
    found = _on_this_host(examined, node, runtime_dir) if with_host else _Found()
    code = Exit.CONFIG if examined.problems else Exit.HOST if found.problems else Exit.OK
    if as_json:
        echo_json(_as_json(file, examined, found, code))
    else:
        for line in _as_text(file, examined, found):
            click.echo(line)
    return code


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found on this host.

    Args:
        node: Which node it is.
        problems: What it lacks.
        warnings: What works but is probably not meant.
        down: What checkers found.
        services, checkers: What was tried.
    """

    node: Entry | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    down: tuple[Problem, ...] = ()
    services: tuple[Trial, ...] = ()
    checkers: tuple[Trial, ...] = ()


def _on_this_host(examined: Examined, name: str | None, runtime_dir: Path) -> _Found:
    draft = examined.draft
    if draft is None:
        return _Found()
    host = read_host()
    entry, doubts = _this_node(examined, name, host)
    problems = [*host_problems(draft, entry, host), *_backend_problems(draft)]
    warnings = [*host_warnings(draft, entry, host)]
    if examined.config is None or entry is None:
        return _Found(entry, (*doubts, *examined.located(problems)), examined.located(warnings))
    from nlbfarm.cli.trying import try_out

    trials = asyncio.run(try_out(examined.config, entry.get("id"), runtime_dir))
    return _Found(
        entry,
        (*doubts, *examined.located([*problems, *trials.problems()])),
        examined.located([*warnings, *trials.notes()]),
        examined.located(trials.down()),
        trials.services,
        trials.checkers,
    )


def _as_json(file: Path, examined: Examined, found: _Found, code: Exit) -> dict[str, Any]:
    config = examined.config
    warnings = (*examined.warnings, *found.warnings, *found.down)
    return {
        "file": str(file),
        "ok": code is Exit.OK,
        "problems": [
            {"kind": kind, "path": problem.path, "message": problem.message}
            for kind, problems in (("configuration", examined.problems), ("host", found.problems))
            for problem in problems
        ],
        "warnings": [{"path": warning.path, "message": warning.message} for warning in warnings],
        "farm": config.farm.name if config else None,
        "node": {"id": found.node.get("id"), "name": found.node.get("name")} if found.node else None,
        "digest": config_digest(config).hex() if config else None,
        "services": [trial.as_json() for trial in found.services],
        "checkers": [trial.as_json() for trial in found.checkers],
    }


def _as_text(file: Path, examined: Examined, found: _Found) -> Iterator[str]:
    config, problems = examined.config, (*examined.problems, *found.problems)
    if problems:
        yield f"{file}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"
        yield from (f"  {problem}" for problem in problems)
    elif config is not None:
        parts = (
            _count(config.nodes, "node"),
            _count(config.vips, "virtual IP"),
            _count(config.rules, "rule"),
        )
        where = f"; this host is {found.node.get('name')}" if found.node else ""
        yield f"{file}: farm {config.farm.name} is right: {', '.join(parts)}{where}"
    yield from (f"  warning: {warning}" for warning in (*examined.warnings, *found.warnings))
    yield from _table("services on this host", found.services, good="runs", bad="does not run")
    yield from _table("checkers, each tried once", found.checkers, good="good", bad="BAD")


def _table(head: str, trials: Sequence[Trial], *, good: str, bad: str) -> Iterator[str]:
    words = {True: good, False: bad, None: "-"}
    rows = [("NAME", "TYPE", "RESULT", "DETAIL")]
    for one in trials:
        seen = ("UNUSABLE", "see above") if one.problems else (words[one.ok], one.detail)
        rows.append((one.name, one.type, *seen))
    if trials:
        yield head
        yield columns(rows)


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
