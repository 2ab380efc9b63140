"""Which line of the file a path is on, so that nobody has to count tables."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["line_numbers", "line_of"]

_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.-]+)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*=")


def line_numbers(text: str) -> Mapping[str, int]:
    """Return the line, counted from 1, of each table and key that is written in the plain way.

    Args:
        text: A valid TOML document. With multi-line strings in it, nothing is returned: their
            content could look like keys, and no line is better than a wrong one.
    """
    if '"""' in text or "'''" in text:
        return {}
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header:
            table = header[2]
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                found.setdefault(table, number)
                table = f"{table}[{counts[table]}]"
            else:
                first, dot, rest = table.partition(".")
                table = f"{first}[{counts[first]}]{dot}{rest}" if first in counts else table
            found.setdefault(table, number)
            continue
        key = _KEY.match(line)
        if key:
            found.setdefault(f"{table}.{key[1]}" if table else key[1], number)
    return found


def line_of(path: str, lines: Mapping[str, int]) -> int | None:
    """Return the line of ``path``, or of the nearest thing around it; ``None`` if not known."""
    while path:
        if path in lines:
            return lines[path]
        path = path[: max(path.rfind("."), path.rfind("["))] if ("." in path or "[" in path) else ""
    return None
