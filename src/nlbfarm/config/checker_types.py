"""What all ``[[checkers]]`` have in common, and the types of their values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from nlbfarm.config.types import Duration, Name, Section, between, choice, shown, whole, written
from nlbfarm.core.supervision import Action

__all__ = [
    "CheckerEntry",
    "Command",
    "Expression",
    "HostHeader",
    "HostName",
    "OnFailure",
    "Percent",
    "ProcessName",
    "Statuses",
    "Url",
    "UserName",
]

OnFailure = Action
"""What a node does when a checker fails."""

_ELSEWHERE: Mapping[object, OnFailure] = {"stopstart": OnFailure.RESTART, "noaction": OnFailure.NONE}
"""Words of SafeKit, whose administrators know them, and what is meant here."""


def _on_failure(value: object) -> object:
    if isinstance(value, str) and value in _ELSEWHERE:
        raise ValueError(f'{shown(value)} is called otherwise here; use "{_ELSEWHERE[value]}"')
    return value


_Count = Annotated[int, BeforeValidator(whole(1, 1000, "a number of checks"))]
_Interval = Annotated[Duration, between(timedelta(milliseconds=100), timedelta(days=1))]
_Timeout = Annotated[Duration, between(timedelta(milliseconds=10), timedelta(hours=1))]
_Pause = Annotated[Duration, between(timedelta(0), timedelta(days=1))]


class CheckerEntry(Section):
    """A ``[[checkers]]`` entry.

    Attributes:
        name: Its name.
        service: The service that it belongs to: it looks while that one runs, and restarts it.
        interval: Time from one look to the next.
        timeout: A look that takes longer has failed.
        rise: Good looks in a row after which a resource that was down is up.
        fall: Bad looks in a row after which a resource that was up is down.
        initial_delay: Time from the start of the node, or of its service, to the first look.
        on_failure: What the node does while, or when, the resource is down.
        confirm: For so long other nodes get to find the same before this one gives its clients away.
    """

    name: Name
    service: Name | None = None
    interval: _Interval = timedelta(seconds=10)
    timeout: _Timeout = timedelta(seconds=5)
    rise: _Count = 1
    fall: _Count = 2
    initial_delay: _Pause = timedelta(0)
    on_failure: Annotated[OnFailure, choice(OnFailure), BeforeValidator(_on_failure)] = OnFailure.WAIT
    confirm: _Pause | None = None

    often_shared: ClassVar[bool] = False
    """Whether what this type looks at is mostly the same for every node: a gateway, another farm."""

    @property
    def confirm_s(self) -> float:
        """How long a failure is announced before it counts, seconds: ``confirm``, or what suits the type."""
        if self.confirm is not None:
            return self.confirm.total_seconds()
        # By then every node has looked once more, and its look has ended.
        return (self.interval + self.timeout).total_seconds() if self.often_shared else 0.0


def _url(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not a URL")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{shown(value)} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f'{shown(value)} is not a URL of HTTP; write "http://127.0.0.1/health"')
    if not parts.hostname or any(character.isspace() for character in value):
        raise ValueError(f'{shown(value)} names no host; write "http://127.0.0.1/health"')
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL with a user name or a password is not supported")
    if port == 0:
        raise ValueError(f"{shown(value)}: port 0 cannot be reached")
    return value


Url = Annotated[str, BeforeValidator(_url), written(r"https?://\S+")]
"""A URL of HTTP, with or without TLS."""


def _statuses(value: object) -> tuple[int, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    found: set[int] = set()
    for item in items:
        if isinstance(item, int) and not isinstance(item, bool):
            low = high = item
        elif isinstance(item, str) and len(item) == 7 and item[3] == "-" and item.isascii():
            if not (item[:3].isdigit() and item[4:].isdigit()):
                raise ValueError(f'{shown(item)} is not a range of HTTP statuses, like "200-399"')
            low, high = int(item[:3]), int(item[4:])
        else:
            raise ValueError(f'{shown(item)} is not an HTTP status; write 200, "200-399" or [200, "300-308"]')
        if not 100 <= low <= high <= 599:
            raise ValueError(f"{shown(item)}: HTTP statuses are from 100 to 599, the lower one first")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


_STATUS = [
    {"type": "integer", "minimum": 100, "maximum": 599},
    {"type": "string", "pattern": "^[1-5][0-9]{2}-[1-5][0-9]{2}$"},
]
"""One status, or a range of them, as JSON Schema has it."""


def _ranges(statuses: tuple[int, ...]) -> list[str]:
    found: list[tuple[int, int]] = []
    for status in statuses:
        if found and status == found[-1][1] + 1:
            found[-1] = (found[-1][0], status)
        else:
            found.append((status, status))
    return [f"{low}-{high}" for low, high in found]


Statuses = Annotated[
    tuple[int, ...],
    BeforeValidator(_statuses),
    PlainSerializer(_ranges, return_type=list[str]),
    WithJsonSchema({"anyOf": [*_STATUS, {"type": "array", "minItems": 1, "items": {"anyOf": _STATUS}}]}),
]
"""Statuses of HTTP: ``200``, ``"200-399"`` or a list of those."""

_HOST = r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?"


def _named(pattern: str) -> BeforeValidator:
    def validate(value: object) -> str:
        if not isinstance(value, str) or len(value) > 255 or not re.fullmatch(pattern, value):
            raise ValueError(f'{shown(value)} is not the name of a host, like "shop.example"')
        return value

    return BeforeValidator(validate)


_HOST_PORT = _HOST + r"(?::\d{1,5})?"

HostName = Annotated[str, _named(_HOST), written(_HOST)]
"""Name of a host."""

HostHeader = Annotated[str, _named(_HOST_PORT), written(_HOST_PORT)]
"""Name of a host, with a port or without."""


def _expression(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f'{shown(value)} is not a regular expression, like "status: (ok|up)"')
    if len(value) > 1000:
        raise ValueError("is too long for a regular expression: 1,000 characters at most")
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{shown(value)} is not a regular expression: {error}; write a \\ before a character that is "
            "meant as it is, and the whole in single quotes: '1\\.5'"
        ) from None
    return value


Expression = Annotated[str, BeforeValidator(_expression), written(minLength=1, maxLength=1000)]
"""A regular expression of Python, searched for anywhere in a text."""


def _percent(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shown(value)} is not a percentage; write a number from 0 to 100, no quotes")
    if not 0 <= value <= 100:
        raise ValueError(f"{value} is out of range; a percentage is from 0 to 100")
    return float(value)


Percent = Annotated[
    float, BeforeValidator(_percent), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100})
]
"""A share, 0..100."""


def _process_name(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > 255:
        raise ValueError(f'{shown(value)} is not the name of a program, like "httpd"')
    if "/" in value or "\\" in value:
        raise ValueError(f"{shown(value)} is the path of a program; write executable = {shown(value)}")
    return value


ProcessName = Annotated[str, BeforeValidator(_process_name), written(r"[^/\\]{1,255}")]
"""Name of a program, as ``ps -e`` shows it."""


def _command(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(
            f"{shown(value)} is one text, and no shell takes it apart; write a list of its words: "
            '["/usr/local/bin/check-shop", "--quick"]'
        )
    words = tuple(value) if isinstance(value, list | tuple) else ()
    if not words or not all(isinstance(word, str) and "\0" not in word for word in words) or not words[0]:
        raise ValueError(f'{shown(value)} is not a command, like ["/usr/local/bin/check-shop", "--quick"]')
    program = words[0]
    if ("/" in program or "\\" in program) and not re.match(r"/|[A-Za-z]:[\\/]|\\\\", program):
        raise ValueError(
            f"{shown(program)} starts at a directory that depends on where the node was started; write the "
            "whole path, or the name alone of a program that is on the PATH"
        )
    return words


Command = Annotated[
    tuple[str, ...],
    BeforeValidator(_command),
    WithJsonSchema({"type": "array", "minItems": 1, "items": {"type": "string"}}),
]
"""A program and its arguments."""


def _user(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.@-]{0,255}\$?", value):
        raise ValueError(f'{shown(value)} is not the name of a user of the host, like "nobody"')
    return value


UserName = Annotated[str, BeforeValidator(_user), written(minLength=1)]
"""Name of a user of the host."""
