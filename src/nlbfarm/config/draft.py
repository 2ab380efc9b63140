"""A configuration on its way in: each table read by itself, so that all errors are found at once.

A table with an error keeps the values of its other keys: the checks between tables then still
see them, and the user gets those errors in the same run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, cast, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from nlbfarm.config.checkers import CHECKER_TYPES, OTHER_WORDS, PluginChecker
from nlbfarm.config.control import Control
from nlbfarm.config.events import Events
from nlbfarm.config.failover_rules import FailoverRule
from nlbfarm.config.farm import Farm
from nlbfarm.config.filter import Filter
from nlbfarm.config.handoff import Handoff
from nlbfarm.config.heartbeat import Heartbeat
from nlbfarm.config.log import Log
from nlbfarm.config.nodes import Node
from nlbfarm.config.notify import Notify
from nlbfarm.config.plugged import choices
from nlbfarm.config.rules import Rule
from nlbfarm.config.services import Service
from nlbfarm.config.types import Section, nearest, shown
from nlbfarm.config.vips import Vip
from nlbfarm.errors import Problem
from nlbfarm.plugins import Kind

__all__ = ["Draft", "Entry", "field_reader", "join", "read"]

SINGLE: Mapping[str, type[Section]] = {
    "farm": Farm,
    "heartbeat": Heartbeat,
    "handoff": Handoff,
    "filter": Filter,
    "events": Events,
    "notify": Notify,
    "log": Log,
    "control": Control,
}
"""Tables that are there once."""

LISTS: Mapping[str, type[Section] | None] = {
    "nodes": Node,
    "vips": Vip,
    "rules": Rule,
    "services": Service,
    "checkers": None,
    "failover_rules": FailoverRule,
}
"""Tables that are there once for each thing; a checker's model depends on its type."""

REQUIRED = {"nodes": "server", "vips": "virtual address", "rules": "service"}

LATER = frozenset({"api", "console", "metrics"})
"""Tables of other versions of nlbfarm."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Entry:
    """One table of the file.

    Args:
        path: Where it is: ``"farm"``, ``"nodes[1]"`` (counted from 0).
        label: What it is, for people: ``'node "web2"'``; empty if it has no name.
        values: Its keys that are right, defaults included.
        model: All of it, if all of it is right.
    """

    path: str
    label: str
    values: Mapping[str, Any]
    model: Section | None

    def get(self, key: str) -> Any:
        """Return the value of ``key``, or ``None`` if it is missing or wrong."""
        return self.values.get(key)

    def at(self, *parts: str | int) -> str:
        """Return the path of something in it: ``at("addresses", 0)``."""
        return join(self.path, *parts)

    @property
    def ref(self) -> str:
        """Return how another table's message names it: ``nodes[0] "web1"``."""
        name = self.values.get("name") or self.values.get("address")
        return f'{self.path} "{name}"' if name is not None else self.path


@dataclass(frozen=True)
class Draft:
    """All tables of a file, as far as they can be read."""

    singles: Mapping[str, Entry]
    lists: Mapping[str, tuple[Entry, ...]]
    problems: tuple[Problem, ...] = field(default=())

    @property
    def nodes(self) -> tuple[Entry, ...]:
        """The ``[[nodes]]``."""
        return self.lists["nodes"]

    @property
    def vips(self) -> tuple[Entry, ...]:
        """The ``[[vips]]``."""
        return self.lists["vips"]

    @property
    def rules(self) -> tuple[Entry, ...]:
        """The ``[[rules]]``."""
        return self.lists["rules"]

    @property
    def services(self) -> tuple[Entry, ...]:
        """The ``[[services]]``."""
        return self.lists["services"]

    @property
    def failover_rules(self) -> tuple[Entry, ...]:
        """The ``[[failover_rules]]``."""
        return self.lists["failover_rules"]

    @property
    def checkers(self) -> tuple[Entry, ...]:
        """The ``[[checkers]]``."""
        return self.lists["checkers"]

    def entries(self) -> Iterator[Entry]:
        """Yield every table."""
        yield from self.singles.values()
        for entries in self.lists.values():
            yield from entries


def singular(table: str) -> str:
    """Return what one entry of a list of tables is called: ``"failover rule"``."""
    return table[:-1].replace("_", " ")


def join(path: str, *parts: str | int) -> str:
    """Return the path of ``parts`` below ``path``, in the spelling of the file."""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            key = part if _BARE_KEY.fullmatch(part) else '"' + part.replace('"', '\\"') + '"'
            path += f".{key}" if path else key
    return path


def read(data: Mapping[str, Any], base: Path | None) -> Draft:
    """Read every table of ``data``.

    Args:
        data: What a TOML parser returned.
        base: Directory that relative file names start from; ``None`` leaves them relative.

    Returns:
        The draft, with every problem that a table has by itself.
    """
    problems = [_unknown_table(key) for key in data if key not in SINGLE and key not in LISTS]
    singles: dict[str, Entry] = {}
    for key, model in SINGLE.items():
        raw = data.get(key, {})
        if isinstance(raw, list):
            problems.append(Problem(key, f"there is only one such table; write [{key}], not [[{key}]]"))
            raw = raw[0] if len(raw) == 1 else None
        singles[key] = _entry(model, raw, key, "", base, problems)
    lists: dict[str, tuple[Entry, ...]] = {}
    for key, item in LISTS.items():
        raw = data.get(key, [])
        if isinstance(raw, dict):
            problems.append(Problem(key, f"write [[{key}]] with two brackets: there can be several"))
            raw = [raw]
        elif not isinstance(raw, list):
            problems.append(Problem(key, f"{shown(raw)} is not a table; write [[{key}]]"))
            raw = []
        elif not raw and key in REQUIRED:
            problems.append(Problem(key, f"missing; write a [[{key}]] table for each {REQUIRED[key]}"))
        lists[key] = tuple(
            _entry(item, one, f"{key}[{index}]", singular(key), base, problems)
            for index, one in enumerate(raw)
        )
    return Draft(singles, lists, tuple(problems))


def _unknown_table(key: str) -> Problem:
    if key in LATER:
        return Problem(join("", key), "not known by this version of nlbfarm; remove it")
    known = [*SINGLE, *LISTS]
    return Problem(join("", key), f"unknown{nearest(key, known)} (known: {', '.join(known)})")


def _entry(
    model: type[Section] | None, raw: Any, path: str, kind: str, base: Path | None, problems: list[Problem]
) -> Entry:
    label = ""
    if isinstance(raw, Mapping):
        name = raw.get("address" if kind == "vip" else "name")
        label = f'{kind} "{name}"' if kind and isinstance(name, str) else ""
    if not isinstance(raw, Mapping):
        if raw is not None:
            problems.append(Problem(path, f"{shown(raw)} is not a table"))
        return Entry(path, label, {}, None)
    if model is None:
        model = _checker_model(raw, path, problems)
        if model is None:
            return Entry(path, label, {"name": raw["name"]} if isinstance(raw.get("name"), str) else {}, None)
    context = {"base": base}
    try:
        whole = model.model_validate(raw, context=context)
    except ValidationError as error:
        bad = set()
        for one in error.errors(include_url=False):
            location = one["loc"]
            bad.add(location[0] if location else "")
            if one["type"] == "too_short" and one["input"]:
                continue  # it is not empty, but nothing in it is right, which is told item by item
            problems.append(Problem(join(path, *location), _message(model, cast(Mapping[str, Any], one))))
        return Entry(path, label, _good_values(model, raw, bad, context), None)
    return Entry(path, label, {key: getattr(whole, key) for key in model.model_fields}, whole)


def _checker_model(raw: Mapping[str, Any], path: str, problems: list[Problem]) -> type[Section] | None:
    kind = raw.get("type")
    if isinstance(kind, str) and kind in CHECKER_TYPES:
        return CHECKER_TYPES[kind]
    try:
        known = choices(Kind.CHECKER)
    except ValueError as error:
        problems.append(Problem(join(path, "type"), str(error)))
        return None
    if isinstance(kind, str) and kind in known:
        return PluginChecker
    names = [*CHECKER_TYPES, *(word for word in known if word not in CHECKER_TYPES)]
    listed = " or ".join(f'"{word}"' for word in names)
    if kind is None:
        message = f"missing; write {listed}"
    elif isinstance(kind, str) and kind in OTHER_WORDS:
        message = f"{shown(kind)} is called otherwise here; write {OTHER_WORDS[kind]}"
    else:
        message = f"{shown(kind)} is not known, nor installed; write {listed}"
        message += nearest(kind, names) if isinstance(kind, str) else ""
    problems.append(Problem(join(path, "type"), message))
    return None


def _message(model: type[Section], error: Mapping[str, Any]) -> str:
    value = error.get("input")
    match error["type"]:
        case "missing":
            return "missing; it is required"
        case "extra_forbidden":
            key, known = str(error["loc"][-1]), _within(model, error["loc"][:-1]).model_fields
            return f"unknown key{nearest(key, known)} (known: {', '.join(known)})"
        case "value_error":
            return str(error["ctx"]["error"])
        case "too_short":
            return "empty; at least one is needed"
        case "tuple_type" | "list_type":
            return f"{shown(value)} is not a list; write it in brackets: [{shown(value)}]"
        case "mapping_type" | "dict_type":
            return f"{shown(value)} is not a table; write {{ name = value }}"
    return f"{error['msg']} (it is {shown(value)})"


def _within(model: type[Section], location: Sequence[str | int]) -> type[Section]:
    """Return the model of a table inside a table."""
    for part in location:
        field = model.model_fields.get(str(part))
        kind = field.annotation if field is not None else None
        for inner in (kind, *get_args(kind)):
            if isinstance(inner, type) and issubclass(inner, Section):
                model = inner
    return model


@cache
def field_reader(model: type[Section], key: str) -> TypeAdapter[Any]:
    """Return what reads the value of one key of a table by itself."""
    info = model.model_fields[key]
    kind: Any = info.annotation
    for extra in info.metadata:
        kind = Annotated[kind, extra]
    return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))


def _good_values(
    model: type[Section], raw: Mapping[str, Any], bad: set[Any], context: Mapping[str, Any]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, info in model.model_fields.items():
        if key in bad:
            continue
        if key in raw:
            values[key] = field_reader(model, key).validate_python(raw[key], context=dict(context))
        else:
            values[key] = info.get_default(call_default_factory=True)
    return values
