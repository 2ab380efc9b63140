"""Domain types of the configuration: no bare ``str`` or ``int`` where a value has a meaning.

Every validator takes what TOML gives and raises ``ValueError`` with a sentence that says what to
write instead; ``nlbfarm.config.draft`` adds the path.
"""

from __future__ import annotations

import difflib
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema

from nlbfarm.core.policy import IPAddress

__all__ = [
    "Address",
    "Bool",
    "ConfigPath",
    "Described",
    "Duration",
    "GroupMac",
    "InterfaceName",
    "Name",
    "NodeId",
    "NonEmpty",
    "Port",
    "Power",
    "Section",
    "UnicastAddress",
    "between",
    "choice",
    "format_duration",
    "nearest",
    "parse_duration",
    "shown",
    "unicast",
    "unsupported",
    "whole",
    "written",
]


class Section(BaseModel):
    """Base of every table of the file: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Described(ABC):
    """A validator that can say what it accepts, for the JSON Schema (``nlbfarm.config.schema``)."""

    @abstractmethod
    def described(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Return what it accepts, given the schema of what it makes of that."""


def written(pattern: str = "", **keywords: object) -> WithJsonSchema:
    """Return the JSON Schema of a text that ``pattern`` matches as a whole, if one is given."""
    said = {"pattern": f"^(?:{pattern})$"} if pattern else {}
    return WithJsonSchema({"type": "string", **said, **keywords})


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``'; did you mean "x"?'`` for the known word that is nearest to ``word``, or ``""``."""
    found = difflib.get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.6)
    return f'; did you mean "{found[0]}"?' if found else ""


def shown(value: object) -> str:
    """Return ``value`` as a TOML user would write it, shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d)")
_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


def parse_duration(value: object) -> timedelta:
    """Return the time that ``value`` (``"100ms"``, ``"5s"``, ``"1.5h"``) stands for; a unit is required.

    Raises:
        ValueError: It is not a string of a number and one of us, ms, s, m, h, d.
    """
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match:
            try:
                return timedelta(microseconds=round(float(match[1]) * _UNITS[match[2]]))
            except OverflowError:
                raise ValueError(f"{shown(value)} is too long a time") from None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f'a time needs a unit, in quotes: write "{value}ms" or "{value}s"')
    raise ValueError(f'{shown(value)} is not a time; write a number and a unit, like "100ms", "5s" or "24h"')


def format_duration(value: timedelta) -> str:
    """Return ``value`` in the spelling of the file, in the largest unit that keeps it a whole number."""
    micros = round(value / timedelta(microseconds=1))
    for unit in ("d", "h", "m", "s", "ms"):
        if micros and micros % _UNITS[unit] == 0:
            return f"{micros // _UNITS[unit]}{unit}"
    return f"{micros}us" if micros else "0s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    written(rf"\s*{_DURATION.pattern}\s*"),
]
"""A length of time with its unit: ``"100ms"``, ``"5s"``, ``"24h"``."""


@dataclass(frozen=True, slots=True)
class _Whole(Described):
    low: int
    high: int
    what: str

    def __call__(self, value: object) -> int:
        low, high = self.low, self.high
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(
                f"{shown(value)} is not {self.what}; write a number from {low} to {high}, no quotes"
            )
        if not low <= value <= high:
            raise ValueError(f"{value} is out of range; {self.what} is from {low} to {high}")
        return value

    def described(self, schema: dict[str, Any]) -> dict[str, Any]:
        return schema | {"minimum": self.low, "maximum": self.high}


def whole(low: int, high: int, what: str = "a whole number") -> Callable[[object], int]:
    """Return a validator for a whole number ``low <= n <= high``; text and fractions are refused."""
    return _Whole(low, high, what)


@dataclass(frozen=True, slots=True)
class _Between(Described):
    low: timedelta
    high: timedelta

    @property
    def bounds(self) -> str:
        return f'from "{format_duration(self.low)}" to "{format_duration(self.high)}"'

    def __call__(self, value: timedelta) -> timedelta:
        if not self.low <= value <= self.high:
            raise ValueError(f'"{format_duration(value)}" is out of range; write a time {self.bounds}')
        return value

    def described(self, schema: dict[str, Any]) -> dict[str, Any]:
        return schema | {"description": f"A time {self.bounds}."}


class _After(AfterValidator):
    """A validator after one that has a JSON Schema of its own, which pydantic would take as it is."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return cast(Described, self.func).described(handler(schema))


def between(low: timedelta, high: timedelta) -> AfterValidator:
    """Return a validator for a time from ``low`` to ``high``."""
    return _After(_Between(low, high))


Port = Annotated[int, BeforeValidator(whole(1, 65535, "a port"))]
"""A TCP or UDP port, 1..65535."""

NodeId = Annotated[int, BeforeValidator(whole(1, 255, "a node id"))]
"""The stable number of a node, 1..255."""

Power = Annotated[int, BeforeValidator(whole(0, 65535, "a power"))]
"""A node's weight in a group, 0..65535; 0 takes no buckets."""


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is not a yes or no; write true or false, no quotes")
    return value


Bool = Annotated[bool, BeforeValidator(_boolean)]
"""``true`` or ``false``, nothing that merely looks like it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"{shown(value)} is not a name; use 1 to 32 letters, digits, '-', '_' or '.', "
            "the first a letter or a digit"
        )
    return value


Name = Annotated[str, BeforeValidator(_name), written(_NAME.pattern)]
"""Name of a farm, node, rule, group or checker: it goes into file names, tables and messages."""


_LINUX_INTERFACE = re.compile(r"[^\s/:\x00]{1,15}")
_WINDOWS_INTERFACE = re.compile(r"\S(?:[^\x00-\x1f]{0,254}\S)?")


def _interface(value: object) -> str:
    # The kernel's rule (net/core/dev.c, dev_valid_name), less what cannot be meant here; Windows has names
    # such as "Ethernet 2" (netioapi.h: IF_MAX_STRING_SIZE).
    windows = sys.platform == "win32"
    valid = _WINDOWS_INTERFACE if windows else _LINUX_INTERFACE
    if not isinstance(value, str) or not valid.fullmatch(value) or value in (".", ".."):
        like = "Ethernet 2" if windows else "eth0"
        raise ValueError(f'{shown(value)} is not the name of a network interface, like "{like}"')
    return value


InterfaceName = Annotated[str, BeforeValidator(_interface), written(_WINDOWS_INTERFACE.pattern)]
"""Name of a network interface, as ``ip link`` shows it (Windows: ``Get-NetAdapter``)."""


def _address(value: object) -> IPAddress:
    if isinstance(value, IPv4Address | IPv6Address):
        return value
    if isinstance(value, str):
        if "/" in value:
            raise ValueError(f'{shown(value)}: write the address alone, without "/{value.partition("/")[2]}"')
        try:
            found = ip_address(value)
        except ValueError:
            pass
        else:
            if isinstance(found, IPv6Address) and found.scope_id is not None:
                raise ValueError(f"{shown(value)}: an address with a zone (%) differs from host to host")
            return found
    raise ValueError(f'{shown(value)} is not an IP address, like "192.0.2.11"')


def unicast(value: object) -> IPAddress:
    """Return the address of one machine that ``value`` names; ``ValueError`` for any other."""
    address = _address(value)
    if address.is_multicast or address.is_unspecified or address == IPv4Address("255.255.255.255"):
        raise ValueError(f"{shown(str(address))} is not the address of a single machine")
    if isinstance(address, IPv6Address) and address.is_link_local:
        raise ValueError(f"{shown(str(address))} is link-local, it means something else on each network")
    return address


_as_text = PlainSerializer(str, return_type=str)

_an_address = written(anyOf=[{"format": "ipv4"}, {"format": "ipv6"}])

Address = Annotated[IPAddress, BeforeValidator(_address), _as_text, _an_address]
"""An IP address without a prefix length."""

UnicastAddress = Annotated[IPAddress, BeforeValidator(unicast), _as_text, _an_address]
"""An IP address that one machine can have."""


_MAC = r"(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}"


def _group_mac(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(_MAC, value):
        raise ValueError(f'{shown(value)} is not a MAC address, like "01:00:5e:7f:02:64"')
    mac = value.lower().replace("-", ":")
    # IEEE 802: the lowest bit of the first byte says group; all ones is broadcast.
    if not int(mac[:2], 16) & 1 or mac == "ff:ff:ff:ff:ff:ff":
        raise ValueError(f'{shown(value)} is not a multicast MAC; the first byte must be odd, like "01:..."')
    return mac


GroupMac = Annotated[str, BeforeValidator(_group_mac), written(_MAC)]
"""A multicast MAC address, lower case with colons."""


def _path(value: object, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        path = value
    elif isinstance(value, str) and value and "\0" not in value:
        path = Path(value)
    else:
        raise ValueError(f"{shown(value)} is not the name of a file")
    base = (info.context or {}).get("base")
    return path if base is None else Path(base) / path


ConfigPath = Annotated[Path, BeforeValidator(_path), _as_text, written(minLength=1)]
"""A file; a relative name starts at the directory of the configuration file."""

E = TypeVar("E", bound=StrEnum)


def unsupported(what: str) -> ValueError:
    """Return the error for a word that nlbfarm knows but this version cannot do."""
    return ValueError(f"{what} is not supported by this version of nlbfarm")


def choice(kind: type[E], later: Iterable[str] = ()) -> BeforeValidator:
    """Return a validator for one word of ``kind``; a word of ``later`` is known but not supported yet."""
    known = [member.value for member in kind]
    listed = " or ".join(f'"{word}"' for word in known)
    planned = frozenset(later)

    def validate(value: Any) -> E:
        if isinstance(value, str):
            if value in known:
                return kind(value)
            if value in planned:
                raise unsupported(shown(value))
            raise ValueError(f"{shown(value)} is not known; write {listed}{nearest(value, known)}")
        raise ValueError(f"{shown(value)} is not a word; write {listed}")

    return BeforeValidator(validate)


NonEmpty = Field(min_length=1)
"""At least one item."""
