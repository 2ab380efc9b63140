"""``events``: what happened on the node of this host, and what happens now."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import click

from nlbfarm.api.control import NodeNotRunningError, stream
from nlbfarm.cli.common import (
    Exit,
    control_path,
    farm_options,
    find_farm,
    json_option,
    running_farms,
    state_option,
)
from nlbfarm.config.types import parse_duration
from nlbfarm.errors import NlbfarmError, UsageError
from nlbfarm.events.answering import MOST
from nlbfarm.events.model import NodeEvent
from nlbfarm.events.reading import read

__all__ = ["events", "events_path"]

_LAST = 20
_ANSWER_S = 15.0
"""A little longer than the node takes to find out that its disk does not answer."""

_WIDTH = max(len(name) for name in ("warning", "error", "info"))


def events_path(state_dir: Path, farm: str) -> Path:
    """Return the journal of what happened on a farm's node."""
    return state_dir / farm / "events.jsonl"


@click.command()
@farm_options
@state_option
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option(
    "--last",
    "-n",
    type=click.IntRange(0, MOST),
    metavar="N",
    help=f"So many of the past, the newest.  [default: {_LAST}, or all since --since]",
)
@click.option(
    "--since",
    metavar="TIME",
    help='None before: "2h" ago, "12:30" today, or "2025-06-01 12:30" (local time).',
)
@json_option
def events(
    farm: str | None,
    config_file: Path | None,
    runtime_dir: Path,
    state_dir: Path,
    follow: bool,
    last: int | None,
    since: str | None,
    as_json: bool,
) -> int:
    """Show what happened on the node of this host, also before it was started; --json: an object a line."""
    begin = _begin(since) if since is not None else None
    count = last if last is not None else (_LAST if begin is None else MOST)
    name = _farm(farm, config_file, runtime_dir, state_dir)
    args = {"last": count, "since": begin, "follow": follow}
    found = stream(control_path(runtime_dir, name), "events", args, timeout=_ANSWER_S)
    begun = False
    try:
        for one in found:
            begun = True
            _show(NodeEvent.from_json(one), as_json)
    except NodeNotRunningError as error:
        if begun or follow or not _recorded(events_path(state_dir, name)):
            raise _with_others(error, name, runtime_dir) from None
        click.echo(f"nlbfarm-node: {error}; this is its journal, {events_path(state_dir, name)}", err=True)
        _show_all(read(events_path(state_dir, name), last=count, since=begin), as_json)
    except ValueError as error:
        raise NlbfarmError(f"the node answered something else than events: {error}") from None
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return Exit.OK


def _farm(farm: str | None, config_file: Path | None, runtime_dir: Path, state_dir: Path) -> str:
    """Return the farm that is meant; that of a node which has ended in good order has left a journal only."""
    name = find_farm(farm, config_file, runtime_dir)
    if name is not None:
        return name
    recorded = sorted(path.parent.name for path in state_dir.glob("*/events.jsonl"))
    if len(recorded) > 1:
        raise UsageError(f"there are several farms here; say which with --farm: {', '.join(recorded)}")
    if not recorded:
        raise NodeNotRunningError(
            f"no node is running here: no farm has a socket in {runtime_dir}, nor events in {state_dir}"
        )
    return recorded[0]


def _recorded(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # we may not look: let whoever reads it say so


def _with_others(error: NodeNotRunningError, farm: str, runtime_dir: Path) -> NodeNotRunningError:
    others = [other for other in running_farms(runtime_dir) if other != farm]
    return (
        NodeNotRunningError(f"{error}; running here: {', '.join(others)} (--farm NAME)") if others else error
    )


def _begin(text: str) -> float:
    """Return the time that ``--since`` means, seconds since 1970."""
    now = datetime.now().astimezone()
    try:
        return (now - parse_duration(text)).timestamp()
    except (ValueError, OverflowError):
        pass
    for spelling in (text, f"{now:%Y-%m-%d} {text}"):
        try:
            found = datetime.fromisoformat(spelling)
            return (found if found.tzinfo else found.astimezone()).timestamp()
        except (ValueError, OverflowError, OSError):
            continue
    raise UsageError(
        f'--since "{text}" is no time; write "90s", "2h" or "3d" for so long ago, "12:30" for today, or '
        '"2025-06-01 12:30"'
    )


def _show_all(found: Iterable[NodeEvent], as_json: bool) -> None:
    for event in found:
        _show(event, as_json)


def _show(event: NodeEvent, as_json: bool) -> None:
    if as_json:
        line = json.dumps(event.as_json())
    else:
        time = datetime.fromtimestamp(event.time).astimezone()
        line = f"{time:%Y-%m-%d %H:%M:%S}  {event.severity.value:<{_WIDTH}}  {event.text}  ({event.name})"
    click.echo(line)  # flushes: who follows through a pipe sees each event as it comes
