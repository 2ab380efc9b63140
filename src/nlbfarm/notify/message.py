"""Several events as one message, and whom it goes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nlbfarm.errors import NlbfarmError
from nlbfarm.events import NodeEvent, Severity

__all__ = ["DeliveryError", "Message", "Target"]

LONGEST_SUBJECT = 150


class DeliveryError(NlbfarmError):
    """A message did not arrive; says why, and no secret of the target."""


@dataclass(frozen=True, slots=True)
class Message:
    """What happened on a node in some time.

    Args:
        farm, node: Names of the farm and of the node.
        events: What is told, oldest first; at least one.
        left_out: So many more happened, and are not told.
        missed: So many events of earlier messages did not reach this target.
    """

    farm: str
    node: str
    events: tuple[NodeEvent, ...]
    left_out: int = 0
    missed: int = 0

    @property
    def worst(self) -> NodeEvent:
        """The first of the most severe events."""
        return max(self.events, key=lambda event: event.severity.rank)

    @property
    def severity(self) -> Severity:
        """How severe the most severe event is."""
        return self.worst.severity

    @property
    def subject(self) -> str:
        """One line: whose events, how many, and the worst of them."""
        count = len(self.events) + self.left_out
        text = f"[{self.farm}/{self.node}] {f'{count} events: ' if count > 1 else ''}{self.worst.text}"
        return text if len(text) <= LONGEST_SUBJECT else text[: LONGEST_SUBJECT - 3] + "..."

    @property
    def body(self) -> str:
        """A line for each event, with the time of the node and its distance from UTC."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for event in self.events:
            time = datetime.fromtimestamp(event.time).astimezone().isoformat(sep=" ", timespec="seconds")
            yield f"{time} {event.severity.value}: {event.text}"
        if self.left_out:
            yield f"and {self.left_out} more: nlbfarm-node events --last {len(self.events) + self.left_out}"
        if self.missed:
            yield f"{self.missed} events before these could not be told: nlbfarm-node events"

    def as_json(self) -> dict[str, Any]:
        """Return it as a script reads it (``docs/events.md``)."""
        return {
            "farm": self.farm,
            "node": self.node,
            "subject": self.subject,
            "severity": self.severity.value,
            "events": [event.as_json() for event in self.events],
            "left_out": self.left_out,
            "missed": self.missed,
        }


class Target(ABC):
    """Whom messages go to.

    Attributes:
        name: What the log calls it; holds no secret.
    """

    name: str

    @abstractmethod
    def send(self, message: Message) -> None:
        """Deliver a message; blocks the calling thread until that is done or has failed.

        Raises:
            DeliveryError: It did not arrive.
        """
