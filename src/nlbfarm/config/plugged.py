"""Names of plug-ins in a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BeforeValidator

from nlbfarm.config.types import Described, nearest, shown
from nlbfarm.errors import PluginError
from nlbfarm.plugins import BUILT_IN, Kind, available

__all__ = ["choices", "installed"]


def choices(kind: Kind) -> Sequence[str]:
    """Return the names of all that is installed for ``kind``, ours first; imports none of them.

    Raises:
        ValueError: Two packages bring one name.
    """
    try:
        return tuple(available(kind))
    except PluginError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Installed(Described):
    kind: Kind
    words: tuple[str, ...]

    def __call__(self, value: object) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        known = [*self.words, *choices(self.kind)]
        listed = " or ".join(f'"{word}"' for word in known)
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is not a word; write {listed}")
        if value not in known:
            raise ValueError(
                f"{shown(value)} is not known, nor installed for {self.kind.value}; write {listed}"
                f"{nearest(value, known)}"
            )
        return value

    def described(self, schema: dict[str, Any]) -> dict[str, Any]:
        # What is installed differs from host to host: an editor proposes what is everywhere.
        known = [*self.words, *BUILT_IN[self.kind]]
        return {"anyOf": [{"enum": known}, schema]} if known else schema


def installed(kind: Kind, *words: str) -> BeforeValidator:
    """Return a validator for the name of something that is installed for ``kind``, or one of ``words``."""
    return BeforeValidator(_Installed(kind, words))
