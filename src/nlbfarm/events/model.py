"""One thing that happened on a node, and its form in JSON."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

__all__ = ["NodeEvent", "Severity", "plain"]


class Severity(enum.StrEnum):
    """How much an event concerns whoever is responsible for the node; compared with ``rank``."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """0 for ``info``, and more for what is worse."""
        return _RANKS[self]


_END_OF_CALENDAR = 253_402_214_400.0
"""The last day of the year 9999: what is later cannot be shown as a date."""

_RANKS = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """One thing that happened on a node.

    Args:
        sequence: Its number in this life of the node, from 1; 0 as long as it is not published.
        time: When, in seconds since 1970 on the node's clock.
        name: What, a stable name: ``"checker.changed"``.
        severity: How much it concerns an administrator.
        text: A sentence for a person.
        fields: The particulars, as JSON has them (``plain``).
    """

    sequence: int
    time: float
    name: str
    severity: Severity
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the event as ``docs/events.md`` describes it."""
        return {
            "sequence": self.sequence,
            "time": self.time,
            "name": self.name,
            "severity": self.severity.value,
            "text": self.text,
            "fields": dict(self.fields),
        }

    def line(self) -> str:
        """Return it as one line of JSON, without its end."""
        return json.dumps(self.as_json(), separators=(",", ":"))

    @classmethod
    def from_json(cls, data: object) -> NodeEvent:
        """Return the event that ``as_json`` stands for; keys that it does not know are left out.

        Raises:
            ValueError: It stands for none.
        """
        try:
            if not isinstance(data, Mapping):
                raise TypeError
            time = float(data["time"])
            if not 0 <= time < _END_OF_CALENDAR:
                raise ValueError
            return cls(
                sequence=int(data["sequence"]),
                time=time,
                name=str(data["name"]),
                severity=Severity(data["severity"]),
                text=str(data["text"]),
                fields=dict(data["fields"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError("this is not an event of a node") from None


def plain(value: object) -> Any:
    """Return ``value`` as JSON has it, and independent of what becomes of ``value`` later."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        # JSON has no infinity; a program that reads the line must not stumble over it.
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)
