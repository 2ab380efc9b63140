"""``[[services]]``: applications that a node starts, stops and looks after."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from nlbfarm.config.checker_types import Command, UserName
from nlbfarm.config.plugged import installed
from nlbfarm.config.types import (
    Bool,
    ConfigPath,
    Duration,
    Name,
    Section,
    between,
    choice,
    format_duration,
    shown,
    whole,
    written,
)
from nlbfarm.core.supervision import Action
from nlbfarm.plugins import Kind

__all__ = ["KINDS", "ONLY", "Scripts", "Service"]

KINDS = ("systemd", "windows", "command", "scripts", "type")
"""Keys that say what a service is: it has one of them."""

ONLY: Mapping[str, str] = {
    "directory": "command",
    "user": "command",
    "environment": "command",
    "stop_signal": "command",
    "outlive": "command",
    "options": "type",
}
"""Keys that belong to one kind of service alone."""

_HOW: Mapping[str, str] = {
    "command": 'command = ["/usr/sbin/acme", "--foreground"]',
    "scripts": "a table [services.scripts] below it",
    "systemd": 'systemd = "acme.service"',
    "windows": 'windows = "AcmeServer"',
}
"""How a service of nlbfarm's own kinds is written."""

_SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGABRT", "SIGPWR")
"""What programs end at; the file is the same on every node, so this does not ask the host."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,200}")
_SUFFIXES = (".service", ".target", ".socket", ".mount", ".path", ".timer", ".slice", ".scope")


def _unit(value: object) -> str:
    if not isinstance(value, str) or not _UNIT.fullmatch(value):
        raise ValueError(f'{shown(value)} is not the name of a unit; write "apache2.service"')
    return value if value.endswith(_SUFFIXES) else f"{value}.service"


def _windows(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 256 or set("/\\") & set(value):
        raise ValueError(f'{shown(value)} is not the name of a Windows service; write "W3SVC"')
    return value


def _signal(value: object) -> str:
    if not isinstance(value, str) or value not in _SIGNALS:
        known = ", ".join(_SIGNALS)
        raise ValueError(f"{shown(value)} is not a signal that asks a program to end; write one of {known}")
    return value


def _variables(value: object) -> object:
    if not isinstance(value, Mapping):
        return value  # pydantic says that it is no table
    for name, text in value.items():
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise ValueError(f"{shown(name)} is not the name of a variable; write letters, digits and _")
        if name.startswith("NLBFARM_"):
            raise ValueError(f"{name}: names that begin with NLBFARM_ are nlbfarm's own; choose another one")
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f'{name} = {shown(text)} is not a text; write it in quotes: {name} = "..."')
    return value


def _plugged(value: object) -> object:
    if isinstance(value, str) and value in _HOW:
        raise ValueError(f"{shown(value)} needs no type; write {_HOW[value]} instead")
    return value


_Wait = Annotated[Duration, between(timedelta(milliseconds=100), timedelta(hours=1))]
_Hold = Annotated[Duration, between(timedelta(0), timedelta(hours=1))]


class Scripts(Section):
    """``scripts`` of a ``[[services]]`` entry.

    Attributes:
        prestart: Is run before ``start``.
        start: Starts the application, and returns.
        stop: Stops it, and returns when it is gone.
        poststop: Is run after ``stop``.
        status: Exits with 0 if the application runs.
    """

    prestart: Command | None = None
    start: Command
    stop: Command
    poststop: Command | None = None
    status: Command | None = None


class Service(Section):
    """One ``[[services]]`` entry.

    Attributes:
        name: Its name.
        systemd: A unit of systemd.
        windows: A service of Windows.
        command: A program and its arguments that runs in the foreground, a child of the node.
        scripts: Programs that start and stop it.
        type: Name of an installed plug-in.
        options: What the plug-in is told.
        after: Services that are up before it is started, and stopped after it.
        start_timeout: From its start until its checkers answer; then it is restarted.
        stop_timeout: So long it may take to end politely; then it is killed.
        hold: So long the node keeps its clients while it is restarted.
        max_restarts: So often it is restarted in ``within``; then the node leaves.
        within: The time in which its restarts are counted.
        backoff: Pause before the second restart in a row; it doubles with each further one.
        longest_backoff: No pause between restarts is longer than this.
        on_exit: What the node does when it ends by itself.
        directory: Where the command runs.
        user: Who it runs as.
        environment: Further variables of its environment.
        stop_signal: What asks it to end.
        outlive: Whether it goes on when the node's process is killed.
    """

    name: Name
    systemd: Annotated[str, BeforeValidator(_unit), written(_UNIT.pattern)] | None = None
    windows: Annotated[str, BeforeValidator(_windows), written(r"[^/\\]{1,256}")] | None = None
    command: Command | None = None
    scripts: Scripts | None = None
    type: Annotated[str, installed(Kind.SERVICE), BeforeValidator(_plugged)] | None = None
    options: Mapping[str, Any] = Field(default_factory=dict)
    after: tuple[Name, ...] = ()
    start_timeout: _Wait = timedelta(seconds=30)
    stop_timeout: _Wait = timedelta(seconds=30)
    hold: _Hold = timedelta(seconds=3)
    max_restarts: Annotated[int, BeforeValidator(whole(0, 1000, "a number of restarts"))] = 3
    within: Annotated[Duration, between(timedelta(seconds=1), timedelta(days=365))] = timedelta(hours=24)
    backoff: _Hold = timedelta(seconds=1)
    longest_backoff: _Hold = timedelta(minutes=1)
    on_exit: Annotated[Action, choice(Action)] = Action.RESTART
    directory: ConfigPath | None = None
    user: UserName | None = None
    environment: Annotated[Mapping[str, str], BeforeValidator(_variables)] = Field(default_factory=dict)
    stop_signal: Annotated[str, BeforeValidator(_signal), written(enum=list(_SIGNALS))] = "SIGTERM"
    outlive: Bool = False

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Service:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            listed = ", ".join(KINDS[:-1])
            has = f"this one has {' and '.join(given)}" if given else "this one has none of them"
            raise ValueError(f"a service has exactly one of {listed} and {KINDS[-1]}; {has}")
        foreign = [key for key, kind in ONLY.items() if key in self.model_fields_set and kind != given[0]]
        if foreign:
            theirs = " and ".join(dict.fromkeys(ONLY[key] for key in foreign))
            verb = "is" if len(foreign) == 1 else "are"
            raise ValueError(
                f"{', '.join(foreign)} {verb} for a service with {theirs}, not for one with {given[0]}; "
                f"remove {'it' if len(foreign) == 1 else 'them'}"
            )
        if self.longest_backoff < self.backoff:
            raise ValueError(
                f'longest_backoff is "{format_duration(self.longest_backoff)}", less than backoff, '
                f'"{format_duration(self.backoff)}"; make it at least as long'
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_others_have(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the keys of other kinds out: what is dumped can be loaded."""
        mine = next(kind for kind in KINDS if getattr(self, kind) is not None)
        return {key: value for key, value in handler(self).items() if ONLY.get(key, mine) == mine}

    @property
    def kind(self) -> str:
        """What starts and stops it: ``"systemd"``, ``"command"``, …, or the name of a plug-in."""
        found = next(kind for kind in KINDS if getattr(self, kind) is not None)
        return self.type or found
