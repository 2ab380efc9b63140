"""Names of plug-ins in a configuration."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BeforeValidator

from nlbfarm.config.types import nearest, shown
from nlbfarm.errors import PluginError
from nlbfarm.plugins import Kind, available

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


def installed(kind: Kind, *words: str) -> BeforeValidator:
    """Return a validator for the name of something that is installed for ``kind``, or one of ``words``."""

    def validate(value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        known = [*words, *choices(kind)]
        listed = " or ".join(f'"{word}"' for word in known)
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is not a word; write {listed}")
        if value not in known:
            raise ValueError(
                f"{shown(value)} is not known, nor installed for {kind.value}; write {listed}"
                f"{nearest(value, known)}"
            )
        return value

    return BeforeValidator(validate)
