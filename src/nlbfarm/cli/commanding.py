"""``start``, ``stop``, ``drain``, ``restart``, ``pause``, ``power``, ``failback``, ``reload``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from nlbfarm.api.control import HANDLER_SECONDS
from nlbfarm.cli.common import Exit, asking, echo_json, farm_options, json_option
from nlbfarm.cli.waiting import Ask, Goal, Waiter, row
from nlbfarm.config.types import nearest
from nlbfarm.errors import NlbfarmError, UsageError

__all__ = ["drain", "failback", "pause", "power", "reload", "restart", "start", "stop"]

ANSWER_S = HANDLER_SECONDS + 2.0

_REFUSED = (
    "nothing was changed: this needs a new process on every node, with the same file "
    "(nlbfarm-node restart --process):"
)

F = TypeVar("F", bound=Callable[..., Any])

_nodes = click.argument("nodes", nargs=-1, metavar="[NODE]...")
_all = click.option("--all", "everybody", is_flag=True, help="All nodes of the farm.")
_wait = click.option("--wait", is_flag=True, help="Return when it is done; show how far it is.")
_now = click.option("--now", is_flag=True, help="Do not wait for established connections: they break.")
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Wait no longer than this for each node; by default drain_timeout and 30 s.",
)


def _options(*extra: Callable[[Any], Any]) -> Callable[[F], F]:
    def add(verb: F) -> F:
        options: tuple[Callable[[Any], Any], ...] = (
            json_option,
            farm_options,
            _timeout,
            *extra,
            _wait,
            _all,
            _nodes,
        )
        for option in options:
            verb = option(verb)
        return verb

    return add


@click.command()
@_options()
def start(nodes: tuple[str, ...], everybody: bool, wait: bool, **options: Any) -> int:
    """Let nodes serve that were stopped or drained, and end a maintenance (without NODE: this one)."""
    return _Command("start", {}, **options).run(nodes, everybody, wait)


@click.command()
@_options(_now)
def stop(nodes: tuple[str, ...], everybody: bool, wait: bool, now: bool, **options: Any) -> int:
    """Take nodes out of the farm, after their connections, until they are started."""
    return _Command("stop", {"now": now}, **options).run(nodes, everybody, wait)


@click.command()
@_options(_now)
def drain(nodes: tuple[str, ...], everybody: bool, wait: bool, now: bool, **options: Any) -> int:
    """Give the clients of nodes to the others, connections last, until they are started."""
    return _Command("drain", {"now": now}, **options).run(nodes, everybody, wait)


@click.command()
@_options()
def pause(nodes: tuple[str, ...], everybody: bool, wait: bool, **options: Any) -> int:
    """Begin a maintenance: nodes serve on, checkers look, nothing is done about it, until "start"."""
    return _Command("pause", {}, **options).run(nodes, everybody, wait)


@click.command()
@click.option(
    "--process",
    is_flag=True,
    help="Replace the node's process (an upgrade); connections stay, nothing is drained.",
)
@_options(_now)
def restart(
    nodes: tuple[str, ...], everybody: bool, wait: bool, now: bool, process: bool, **options: Any
) -> int:
    """Stop nodes and start them again; several: one after the other, each waited for."""
    if now and process:
        raise UsageError("give --now or --process, not both: a process is replaced at once anyway")
    command = _Command("restart", {"process": True} if process else {"now": now}, **options)
    return command.run(nodes, everybody, wait)


@click.command()
@click.argument("node", metavar="NODE")
@click.argument("value", metavar="N|default")
@click.option("--group", metavar="NAME", help="Only in this group.")
@farm_options
@json_option
def power(node: str, value: str, group: str | None, as_json: bool, **where: Any) -> int:
    """Change a node's weight while it runs; it is kept. "default" is that of the configuration."""
    if value != "default" and not (value.isascii() and value.isdigit()):
        raise UsageError(f'"{value}" is no power: write a number from 0 to 65535, or default')
    ask = asking(**where, timeout=ANSWER_S)
    status = ask("status", {})
    groups = [one["name"] for one in status["groups"]]
    if group is not None and group not in groups:
        raise UsageError(f'there is no group "{group}"{nearest(group, groups)} (there: {", ".join(groups)})')
    args = {"node": _one(status, node), "power": None if value == "default" else int(value)}
    answer = ask("power", args | {"group": group})
    if as_json:
        echo_json(answer)
    else:
        click.echo(f"{answer['node']['name']}: {answer['detail']}")
    return Exit.OK


@click.command()
@click.option("--group", metavar="NAME", help="Only this group.")
@farm_options
@json_option
def failback(group: str | None, as_json: bool, **where: Any) -> int:
    """Give failover groups back to the node with the highest power (failback = "manual")."""
    answer = asking(**where, timeout=ANSWER_S)("failback", {} if group is None else {"group": group})
    if as_json:
        echo_json(answer)
    else:
        click.echo(f"{answer['node']['name']}: {answer['detail']}")
    return Exit.OK


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@farm_options
@json_option
def reload(dry_run: bool, as_json: bool, **where: Any) -> int:
    """Let the node of this host take over its changed configuration, if it can while it runs."""
    answer = asking(**where, timeout=ANSWER_S)("reload", {"dry_run": dry_run})
    if as_json:
        echo_json(answer)
    elif answer["problems"]:
        click.echo(
            "\n  ".join([f"{answer['file']} is wrong; nothing was changed:", *answer["problems"]]), err=True
        )
    elif answer["refused"]:
        click.echo("\n  ".join([_REFUSED, *answer["refused"]]), err=True)
    elif not answer["changed"]:
        click.echo("nothing has changed")
    else:
        click.echo("\n  ".join(["would change:" if dry_run else "changed:", *answer["changed"]]))
    if answer["problems"]:
        return Exit.CONFIG
    return Exit.FAILED if answer["refused"] else Exit.OK


class _Command:
    """One command for some nodes.

    Args:
        verb: Its name.
        args: Its arguments.
        timeout: Seconds to wait for each round.
        as_json: Whether to print JSON.
        where: Which farm is meant.
    """

    def __init__(
        self, verb: str, args: Mapping[str, Any], *, timeout: float | None, as_json: bool, **where: Any
    ) -> None:
        self._verb = verb
        self._args = {key: value for key, value in args.items() if value}
        self._timeout = timeout
        self._as_json = as_json
        self._where = where
        self._done: list[dict[str, Any]] = []

    def run(self, nodes: Sequence[str], everybody: bool, wait: bool) -> int:
        """Do it; return the exit code."""
        rolls = self._verb == "restart" and (everybody or len(set(nodes)) > 1)
        if self._timeout is not None and not wait and not rolls:
            raise UsageError("--timeout is for --wait")
        ask = asking(**self._where, timeout=ANSWER_S)
        status = ask("status", {})
        targets = _targets(status, nodes, everybody)
        self._warn(status, targets)
        rolling = self._verb == "restart" and len(targets) > 1
        rounds = [[target] for target in targets] if rolling else [targets]
        waiter = Waiter(ask, self._timeout, terminal=sys.stderr.isatty())
        code = Exit.OK
        remaining = [row(status, target)["name"] for target in targets] if rolling else []
        try:
            for targets in rounds:
                goals = self._tell(ask, targets)
                if len(goals) < len(targets):
                    code = Exit.FAILED
                if goals and (wait or rolling):
                    self._await(waiter, goals, float(status["drain_timeout_s"]))
                if code is not Exit.OK and rolling:
                    break
                remaining = remaining[1:]
        except NlbfarmError as error:
            click.echo(f"nlbfarm-node: {error}", err=True)
            code = Exit.FAILED
        except KeyboardInterrupt:
            click.echo(
                f"no longer waited for; the {self._verb} goes on (nlbfarm-node status shows it)", err=True
            )
            code = Exit.INTERRUPTED
        if remaining and code is not Exit.OK:
            rest = f"; not begun: {', '.join(remaining[1:])}" if remaining[1:] else ""
            click.echo(f"nlbfarm-node: got as far as {remaining[0]}{rest}", err=True)
        if self._as_json:
            echo_json({"verb": self._verb, "nodes": self._done})
        return code

    def _tell(self, ask: Ask, targets: Sequence[int]) -> list[Goal]:
        """Tell these nodes what to do; return a goal for each that does it."""
        goals = []
        for target in targets:
            status = ask("status", {})
            before = row(status, target)
            entry: dict[str, Any] = {"id": target, "name": before["name"], "ok": False, "reached": False}
            self._done.append(entry)
            try:
                answer = ask(self._verb, {"node": target, **self._args})
            except NlbfarmError as error:
                entry["detail"] = str(error)
                name = "" if str(error).startswith(before["name"]) else f"{before['name']}: "
                click.echo(f"nlbfarm-node: {name}{error}", err=True)
                continue
            entry |= {"ok": True, "detail": answer["detail"]}
            if not self._as_json:
                click.echo(f"{before['name']}: {answer['detail']}")
            goals.append(
                Goal(
                    node=target,
                    name=before["name"],
                    verb=self._verb,
                    process="process" in self._args,
                    order=answer["order"],
                    before=before,
                    epoch=status["epoch"][0] if status["epoch"] else 0,
                    cut_before=status.get("connections_cut", 0),
                )
            )
        return goals

    def _await(self, waiter: Waiter, goals: Sequence[Goal], drain_timeout: float) -> None:
        words = {
            "start": "serves",
            "stop": "stopped",
            "drain": "drained",
            "restart": "serves again",
            "pause": "in maintenance",
        }
        waiter.wait(goals, drain_timeout=0.0 if "now" in self._args else drain_timeout)
        for goal in goals:
            entry = next(one for one in self._done if one["id"] == goal.node)
            ended = goal.ended or words[self._verb]
            entry["reached"] = True
            if not self._as_json and ended != entry["detail"]:
                click.echo(f"{goal.name}: {ended}")
            entry["detail"] = ended

    def _warn(self, status: Mapping[str, Any], targets: Sequence[int]) -> None:
        """Say so when nobody is left to serve."""
        if self._verb in ("start", "pause") or "process" in self._args:
            return
        serving = [one["id"] for one in status["nodes"] if one["heard"] and one["state"] == "UP"]
        rolling = self._verb == "restart" and len(serving) > 1
        if serving and not rolling and not set(serving) - set(targets):
            until = "it is back" if self._verb == "restart" else "one is started"
            click.echo(f"warning: no other node serves: the service is down until {until}", err=True)


def _targets(status: Mapping[str, Any], nodes: Sequence[str], everybody: bool) -> list[int]:
    """Return the ids of the nodes that are meant, this one last: through it the others are told."""
    own = status["node"]["id"]
    if everybody:
        if nodes:
            raise UsageError("name nodes, or give --all, not both")
        found = [one["id"] for one in status["nodes"]]
    else:
        found = list(dict.fromkeys(_one(status, name) for name in nodes)) or [own]
    return sorted(found, key=lambda node: (node == own, found.index(node)))


def _one(status: Mapping[str, Any], name: str) -> int:
    names = {one["name"]: one["id"] for one in status["nodes"]}
    if name not in names:
        raise UsageError(f'no node is called "{name}"{nearest(name, names)} (there: {", ".join(names)})')
    return int(names[name])
