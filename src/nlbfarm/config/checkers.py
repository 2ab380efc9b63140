"""``[[checkers]]``: what a node looks at before it says that it can serve."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, Tag

from nlbfarm.config.plugged import installed
from nlbfarm.config.types import (
    Duration,
    Name,
    NonEmpty,
    Port,
    Section,
    UnicastAddress,
    between,
    choice,
    shown,
    whole,
)
from nlbfarm.plugins import Kind

__all__ = ["CHECKER_TYPES", "Checker", "HttpChecker", "OnFailure", "PluginChecker", "TcpChecker"]


class OnFailure(StrEnum):
    """What a node does when a checker fails."""

    WAIT = "wait"


_Count = Annotated[int, BeforeValidator(whole(1, 1000, "a number of checks"))]


_Interval = Annotated[Duration, between(timedelta(milliseconds=100), timedelta(days=1))]
_Timeout = Annotated[Duration, between(timedelta(milliseconds=10), timedelta(hours=1))]


class _Common(Section):
    name: Name
    interval: _Interval = timedelta(seconds=10)
    timeout: _Timeout = timedelta(seconds=5)
    rise: _Count = 1
    fall: _Count = 2
    on_failure: Annotated[
        OnFailure, choice(OnFailure, later=("restart", "stopstart", "stop", "noaction"))
    ] = OnFailure.WAIT


class TcpChecker(_Common):
    """A ``[[checkers]]`` entry of type ``tcp``: is a connection accepted?

    Attributes:
        name: Its name.
        interval: Time from one look to the next.
        timeout: A look that takes longer has failed.
        rise: Good looks in a row after which a resource that was down is up.
        fall: Bad looks in a row after which a resource that was up is down.
        on_failure: ``wait``: the node gives its buckets away until the resource is back.
        address: Address to connect to.
        port: Port to connect to.
    """

    type: Literal["tcp"] = "tcp"
    address: UnicastAddress = IPv4Address("127.0.0.1")
    port: Port


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


Url = Annotated[str, BeforeValidator(_url)]


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
]


class HttpChecker(_Common):
    """A ``[[checkers]]`` entry of type ``http``: is a page answered?

    Attributes:
        url: What to get.
        status: Statuses that count as healthy, written ``200``, ``"200-399"`` or a list of those.

    The others are those of ``TcpChecker``.
    """

    type: Literal["http"] = "http"
    url: Url
    status: Annotated[Statuses, NonEmpty] = tuple(range(200, 400))


class PluginChecker(_Common):
    """A ``[[checkers]]`` entry whose type is the name of an installed plug-in.

    Attributes:
        options: What the plug-in's class gets as keyword arguments; which there are is its business.

    The others are those of ``TcpChecker``.
    """

    type: Annotated[str, installed(Kind.CHECKER)]
    options: Mapping[str, Any] = Field(default_factory=dict)


CHECKER_TYPES: dict[str, type[TcpChecker] | type[HttpChecker]] = {"tcp": TcpChecker, "http": HttpChecker}
"""Model of each ``type``."""


def _kind(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if kind is None or kind in CHECKER_TYPES else "plug-in"


Checker = Annotated[
    Annotated[TcpChecker, Tag("tcp")]
    | Annotated[HttpChecker, Tag("http")]
    | Annotated[PluginChecker, Tag("plug-in")],
    Discriminator(_kind),
]
"""Any checker; ``type`` tells which."""

LATER_TYPES = ("ping", "interface", "process", "script")
"""Types that nlbfarm names but this version does not have."""
