"""Waiting until nodes have done what they were told, and saying how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from nlbfarm.api.control import NodeNotRunningError
from nlbfarm.errors import NlbfarmError, UsageError
from nlbfarm.runtime.administration import cut_short

__all__ = ["Goal", "Waiter", "row"]

LOOK_S = 0.25
LINE_S = 2.0
"""Without a terminal a node's progress is told at most this often."""

SETTLED_S = 3.0
"""A node that owns nothing is given its share within this time, or has none."""

LAST_WORD_S = 1.0
"""So long after a node has drained its last word about that is waited for."""

_APART = ("hash secret differs", "configuration differs")
_ENDED = {"stop": "stopped", "drain": "drained"}

Ask = Callable[[str, Mapping[str, Any]], Any]
"""Asks the node of this host: a verb and its arguments."""


@dataclass
class Goal:
    """What one node was told, and what is seen of it.

    Args:
        node, name: The node.
        verb: ``start``, ``stop``, ``drain`` or ``restart``.
        process: Whether its process is replaced.
        order: Number of the order that told it; ``None`` if it is the node of this host.
        before: Its row of ``status`` before.
        epoch: Counter of the view's epoch before.
    """

    node: int
    name: str
    verb: str
    process: bool
    order: int | None
    before: Mapping[str, Any]
    epoch: int
    cut_before: int = 0
    """Connections that the node of this host had cut before."""
    left: bool = False
    """Whether it has been seen to be gone (``restart``)."""
    whole_since: float | None = None
    held: Mapping[str, int] = field(default_factory=dict)
    """What it held then."""
    done: bool = False
    ended: str = ""
    """What is to be said of its end, if that is not the usual thing."""

    def look(self, status: Mapping[str, Any], now: float) -> bool:
        """Return whether it has done what it was told, going by what the node of this host says.

        Raises:
            NlbfarmError: It never will: it is not heard any more, or configured otherwise.
        """
        mine = row(status, self.node)
        if not mine["heard"] and self.verb in ("stop", "drain") and not self.process:
            if mine["reason"] != "left in good order":
                raise NlbfarmError(f"{self.name} is not heard any more ({mine['reason']})")
            return True
        idle = not mine["holding"] and not mine["draining"]
        if self.verb == "drain":
            return idle and mine["state"] in ("DRAINING", "STOP")
        if self.verb == "stop":
            return idle and mine["state"] == "STOP" and not mine["in_view"]
        if self.verb == "restart" and not self.left:
            self.left = self._has_left(status, mine)
            return False
        if self.process and mine["heard"] and mine["state"] in ("STOP", "DRAINING"):
            self.ended = "has a new process, and still is drained or stopped: start lets it serve"
            return True
        self._refuse_other_configuration(status, mine)
        return self._is_whole(status, mine, now)

    def _refuse_other_configuration(self, status: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        """Raise if it cannot get a share, because it is configured otherwise than those that serve."""
        if mine["self"]:
            others = [one["name"] for one in status["nodes"] if one["heard"] and one["problem"] in _APART]
        else:
            others = [status["node"]["name"]] if mine["heard"] and mine["problem"] in _APART else []
        if others and mine["state"] == "UP" and not mine["in_view"]:
            raise NlbfarmError(
                f"{self.name} runs, but is configured otherwise than {', '.join(others)}: they do not serve "
                "together. If that is meant, give restart --process for each of the other nodes, one after "
                "the other, without --wait"
            )

    def _has_left(self, status: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
        if self.process:
            return bool((mine["incarnation"] or 0) > (self.before["incarnation"] or 0))
        # It may have left and come back between two looks: that takes two views.
        views = status["epoch"][0] - self.epoch if status["epoch"] and self.epoch else 0
        return mine["state"] == "STOP" or not _inside(status, mine) or views >= 2

    def _is_whole(self, status: Mapping[str, Any], mine: Mapping[str, Any], now: float) -> bool:
        """Whether it serves, and holds all that it owns."""
        # Who is in no view does not know the shares: then they are what does not change any more.
        known, held = status["inside"], mine["holding"]
        shares = {group["name"]: group["buckets"].get(str(self.node), 0) for group in status["groups"]}
        if not known:
            shares = held
        whole = (
            mine["heard"]
            and mine["state"] == "UP"
            and _inside(status, mine)
            and all(held.get(group, 0) == share for group, share in shares.items())
        )
        if not whole:
            self.whole_since = None
            return False
        if self.whole_since is None or held != self.held:
            self.whole_since, self.held = now, held
        return (known and any(shares.values())) or now - self.whole_since >= SETTLED_S

    def text(self, status: Mapping[str, Any], ordered: str) -> str:
        """Return how far it is.

        Args:
            status: What the node of this host says.
            ordered: What the node itself said of the order last.
        """
        mine = row(status, self.node)
        if not mine["heard"]:
            return f"{self.name}: not heard ({mine['reason']})"
        held, drained = sum(mine["holding"].values()), sum(mine["draining"].values())
        if self.process and not self.left:
            return f"{self.name}: its process is being replaced"
        leaving = self.verb in ("stop", "drain") or (self.verb == "restart" and not self.left)
        if leaving and held:
            return f"{self.name}: {held} buckets not taken over yet"
        if leaving and drained:
            if self.order is None and status["connections_left"]:
                return f"{self.name}: {status['connections_left']} connections left in {drained} buckets"
            return (
                f"{self.name}: {ordered}"
                if "connections" in ordered
                else f"{self.name}: {drained} buckets drain"
            )
        reason = f" ({mine['reason']})" if mine["reason"] else ""
        share = sum(group["buckets"].get(str(self.node), 0) for group in status["groups"])
        of = f" of {share}" if status["inside"] else ""
        holds = f", holds {held}{of} buckets" if mine["state"] == "UP" else ""
        return f"{self.name}: {mine['state']}{reason}{holds}"


class Waiter:
    """Waits for goals.

    Args:
        ask: Asks the node of this host.
        timeout: Seconds to wait for each round of goals; ``None``: a drain, and some more.
        terminal: Whether the progress is shown in one line that changes, on standard error.
    """

    def __init__(self, ask: Ask, timeout: float | None, *, terminal: bool) -> None:
        self._ask = ask
        self._timeout = timeout
        self._terminal = terminal
        self._width = 0
        self._told: dict[int, tuple[str, float]] = {}

    def wait(self, goals: Sequence[Goal], *, drain_timeout: float) -> None:
        """Return when all goals are reached.

        Raises:
            NlbfarmError: They were not in time, or never will be; the nodes go on with what they were told.
        """
        begun = time.monotonic()
        timeout = self._timeout if self._timeout is not None else drain_timeout + 30.0
        anew = any(goal.process and goal.order is None for goal in goals)
        texts: list[str] = []
        try:
            while True:
                now = time.monotonic()
                try:
                    status = self._ask("status", {})
                except (NodeNotRunningError, NlbfarmError):
                    if not anew:
                        raise
                    status = None  # the node of this host is just being replaced
                texts = self._look(goals, status, now, begun, drain_timeout)
                if all(goal.done for goal in goals):
                    return
                if now - begun >= timeout:
                    why = "; ".join(texts) or "the node of this host does not answer"
                    raise NlbfarmError(f"not done after {timeout:g} s: {why}. What was begun goes on")
                time.sleep(LOOK_S)
        finally:
            self._clear()

    def _look(
        self, goals: Sequence[Goal], status: Mapping[str, Any] | None, now: float, begun: float, drain: float
    ) -> list[str]:
        """Judge every goal, tell the progress, and return what is said of those not reached."""
        if status is None:
            return []
        texts = []
        for goal in goals:
            if goal.done:
                continue
            goal.done = goal.look(status, now)
            if goal.done:
                goal.ended = goal.ended or self._cut(goal, status)
                self._clear()
                continue
            text = goal.text(status, self._ordered(goal))
            if "connections left" in text or "drain" in text:
                text += f", {now - begun:.0f} s of at most {drain:g} s"
            texts.append(text)
            if not self._terminal:
                self._line(goal.node, text, now)
        if self._terminal and texts:
            line = "; ".join(texts)
            line = line if len(line) <= 110 else line[:107] + "..."
            click.echo("\r" + line.ljust(self._width), err=True, nl=False)
            self._width = len(line)
        return texts

    def _cut(self, goal: Goal, status: Mapping[str, Any]) -> str:
        """Return what is to be said if a drain did not wait for all connections."""
        if goal.verb not in ("stop", "drain"):
            return ""
        if goal.order is None:
            return cut_short(_ENDED[goal.verb], status.get("connections_cut", 0) - goal.cut_before)
        until = time.monotonic() + LAST_WORD_S
        while time.monotonic() < until:
            try:
                answer = self._ask("order", {"number": goal.order})
            except UsageError:
                return ""
            if answer["ended"] is not None:
                return str(answer["text"]) if answer["ended"] == "done" else ""
            time.sleep(LOOK_S)
        return ""

    def _ordered(self, goal: Goal) -> str:
        if goal.order is None:
            return ""
        try:
            return str(self._ask("order", {"number": goal.order})["text"])
        except UsageError:  # forgotten: this node's process is another one by now
            return ""

    def _line(self, node: int, text: str, now: float) -> None:
        said, at = self._told.get(node, ("", float("-inf")))
        news = text.split(", ", maxsplit=1)[0]
        if news != said and now - at >= LINE_S:
            self._told[node] = (news, now)
            click.echo(text, err=True)

    def _clear(self) -> None:
        if self._terminal and self._width:
            click.echo("\r" + " " * self._width + "\r", err=True, nl=False)
            self._width = 0


def _inside(status: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Whether a node is in the view of the node of this host; if that has none, in any."""
    return bool(mine["in_view"] if status["inside"] else mine["inside"])


def row(status: Mapping[str, Any], node: int) -> Mapping[str, Any]:
    """Return what ``status`` says of one node.

    Raises:
        NlbfarmError: It is no longer in the configuration of the node that was asked.
    """
    for one in status["nodes"]:
        if one["id"] == node:
            found: Mapping[str, Any] = one
            return found
    raise NlbfarmError(f"node {node} is no longer in the configuration of this node")
