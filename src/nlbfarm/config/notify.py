"""``[notify]``: who is told of what happens. Each host may have its own; most of it is secret."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer

from nlbfarm.config.types import ConfigPath, Duration, Section, between, choice, nearest, shown, written
from nlbfarm.config.unreadable import why_unreadable
from nlbfarm.errors import ConfigError, Problem
from nlbfarm.events.model import Severity
from nlbfarm.events.sentences import EVENTS
from nlbfarm.notify.targets import problem, redacted

__all__ = ["DEFAULT_EVENTS", "Notify", "load_targets"]

DEFAULT_EVENTS = (
    "node.state",
    "node.fitness",
    "node.taken_out",
    "node.paused",
    "node.resumed",
    "node.deaf",
    "node.failed",
    "node.close_failed",
    "node.removed",
    "node.reload_*",
    "peer.heard",
    "peer.left",
    "peer.lost",
    "peer.network_*",
    "peer.configured_otherwise",
    "heartbeat.failed",
    "checker.*",
    "rule.changed",
    "service.*",
    "filter.*",
    "vip.*",
    "drain.cut_short",
    "admin.unreadable",
    "events.not_saved",
)
"""What concerns who is served, and by whom."""

_LARGEST_FILE = 64 * 1024


def _list(value: object) -> object:
    # Said here, because pydantic's own message, and with it ours, would quote the value.
    if not isinstance(value, list | tuple):
        raise ValueError('must be a list: write it in brackets, ["..."]')
    return value


def _target(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(
            'a target is text, like "mailto://user:password@mail.example.com?to=ops@example.com"'
        )
    wrong = problem(value)
    if wrong is not None:
        raise ValueError(wrong)
    return value


Target = Annotated[
    str,
    BeforeValidator(_target),
    PlainSerializer(redacted, return_type=str),
    written(r"[A-Za-z][A-Za-z0-9+.-]*://.*"),
]
"""The URL of somebody who is told; never shown, and never part of a dump."""


def _pattern(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f'{shown(value)} is not the name of an event; write "peer.lost" or "service.*"')
    if not any(fnmatch.fnmatchcase(name, value) for name in EVENTS):
        known = {*EVENTS, *(f"{name.partition('.')[0]}.*" for name in EVENTS)}
        raise ValueError(
            f"no event is called {shown(value)}{nearest(value, known)} (docs/events.md has all of them)"
        )
    return value


def _word(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(
            f'{shown(value)} is not a word of a command; write script = ["/usr/local/bin/page-me"]'
        )
    return value


class Notify(Section):
    """``[notify]``.

    Attributes:
        targets: Mail, webhooks, chats: URLs as apprise knows them (the extra ``notify``).
        targets_file: A file with more of them, one a line, that nobody else may read.
        script: A program and its arguments that gets each message on its standard input; empty: none.
        events: Which events are told: names, in which ``*`` stands for any text.
        severity: Of those, the ones that are at least so severe.
        batch: A message in so long at most.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    targets: Annotated[tuple[Target, ...], BeforeValidator(_list)] = Field(default=(), repr=False)
    targets_file: ConfigPath | None = None
    script: Annotated[tuple[Annotated[str, BeforeValidator(_word)], ...], BeforeValidator(_list)] = ()
    events: Annotated[tuple[Annotated[str, BeforeValidator(_pattern)], ...], BeforeValidator(_list)] = (
        DEFAULT_EVENTS
    )
    severity: Annotated[Severity, choice(Severity)] = Severity.WARNING
    batch: Annotated[Duration, between(timedelta(seconds=1), timedelta(hours=1))] = timedelta(minutes=1)

    def everyone(self) -> tuple[str, ...]:
        """Return the URLs of all targets, those of ``targets_file`` included.

        Raises:
            ConfigError: That file cannot be used.
        """
        return self.targets + (load_targets(self.targets_file) if self.targets_file is not None else ())


def load_targets(path: Path) -> tuple[str, ...]:
    """Read a file of targets: a URL a line; empty lines, and those that begin with ``#``, are left out.

    Args:
        path: The file.

    Raises:
        ConfigError: It is missing, others may read it, or a line is no target; every problem at once. No line
            is quoted.
    """
    try:
        # Without O_NONBLOCK a FIFO of this name would hold us up for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise _unusable(
            path, "there is no such file; write a URL a line into it, and run: chmod 600 it"
        ) from None
    except OSError as error:
        raise _unusable(path, why_unreadable(path, error)) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _unusable(path, "is not a file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    problems = []
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        problems.append(
            Problem("", f"mode {stat.S_IMODE(mode):04o} lets others read the targets; run: chmod 600 {path}")
        )
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise _unusable(path, "is not UTF-8 text") from None
    if len(content) > _LARGEST_FILE:
        raise _unusable(path, f"has more than {_LARGEST_FILE} bytes")
    found = list(_urls(lines))
    problems += (Problem(f"line {number}", wrong) for number, url in found if (wrong := problem(url)))
    if problems:
        raise ConfigError(str(path), problems)
    return tuple(url for _, url in found)


def _urls(lines: list[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, start=1):
        url = line.strip()
        if url and not url.startswith("#"):
            yield number, url


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(str(path), [Problem("", why)])
