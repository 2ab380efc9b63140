"""``[events]``: how much of what happens is kept on disk. Each host may have its own."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from nlbfarm.config.types import Section, shown, whole, written

__all__ = ["Events", "Size", "format_size", "parse_size"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|KiB|MiB|GiB)")
_UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6, "KiB": 2**10, "KB": 10**3}
_LEAST, _MOST = 10_000, 100_000_000


def parse_size(value: object) -> int:
    """Return the bytes that ``value`` (``"1MB"``, ``"64KiB"``) stands for; a unit is required.

    Raises:
        ValueError: It is not a string of a number and one of KB, MB, GB, KiB, MiB, GiB.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f'a size needs a unit, in quotes: write "{value}KB" or "{value}MB"')
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'{shown(value)} is not a size; write a number and a unit, like "500KB" or "1MB"')
    return round(float(match[1]) * _UNITS[match[2]])


def format_size(value: int) -> str:
    """Return ``value`` in the spelling of the file, in the largest unit that keeps it a whole number."""
    for unit, size in _UNITS.items():
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return f"{value / 1000:.3f}KB"


def _bounded(value: int) -> int:
    if not _LEAST <= value <= _MOST:
        bounds = f'from "{format_size(_LEAST)}" to "{format_size(_MOST)}"'
        raise ValueError(f'"{format_size(value)}" is out of range; write a size {bounds}')
    return value


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str),
    written(rf"\s*{_SIZE.pattern}\s*"),
]
"""A number of bytes with its unit: ``"1MB"``, ``"64KiB"``."""


class Events(Section):
    """``[events]``.

    Attributes:
        max_size: A file of the journal that would become larger is put aside.
        files: So many are kept, the one that is written included.
    """

    max_size: Annotated[Size, AfterValidator(_bounded)] = 1_000_000
    files: Annotated[int, BeforeValidator(whole(2, 100, "a number of files"))] = 5
