"""Numbers, lists and other programs' output, in the words of a result's ``detail``."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["clipped", "many", "one_line", "seconds", "series", "size"]

_UNITS = ("B", "KB", "MB", "GB", "TB")


def seconds(duration: float) -> str:
    """Return ``duration`` in seconds as people write it: ``"5 s"``, ``"0.5 s"``."""
    return f"{round(duration, 3 if duration < 1 else 1):g} s"


def size(count: float) -> str:
    """Return ``count`` bytes in the largest unit of 1,000 that fits: ``"1.5 GB"``."""
    for unit in _UNITS:
        if abs(count) < 999.5 or unit == _UNITS[-1]:
            break
        count /= 1000
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"


def many(count: int, one: str, several: str = "") -> str:
    """Return ``"1 process"``, ``"3 processes"``; ``several`` is ``one`` with an "s" if it is empty."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def series(items: Iterable[object], last: str = "and") -> str:
    """Return ``"a, b and c"``."""
    *first, final = [str(item) for item in items] or [""]
    return f"{', '.join(first)} {last} {final}" if first else final


def clipped(text: str, length: int = 200) -> str:
    """Return ``text``, shortened at its end."""
    return text if len(text) <= length else text[: length - 3] + "..."


def one_line(text: str, length: int = 200) -> str:
    """Return ``text`` on one line that can be printed: what a program wrote may have any character in it."""
    words = " ".join(text.split())
    return clipped("".join(one if one.isprintable() else "?" for one in words), length)
