"""``[[failover_rules]]``: what a node does when several checkers say so."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from nlbfarm.config.types import Duration, Name, Section, between, choice, shown, written
from nlbfarm.core.supervision import Action
from nlbfarm.core.supervision.expressions import Expression, parse

__all__ = ["Condition", "FailoverRule"]


class Condition:
    """A condition over checkers, and how it is written."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.expression: Expression = parse(text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and other.expression == self.expression

    def __hash__(self) -> int:
        return hash(self.expression)

    def __repr__(self) -> str:
        return f"Condition({self.text!r})"


def _condition(value: Any) -> Condition:
    if isinstance(value, Condition):
        return value
    if not isinstance(value, str):
        raise ValueError(f'{shown(value)} is not a condition; write "gw1 down and gw2 down"')
    return Condition(value)


class FailoverRule(Section):
    """One ``[[failover_rules]]`` entry.

    Attributes:
        name: Its name.
        when: When it holds: ``"gw1 down and gw2 down"``, ``"2 of (probe1, probe2, probe3) down"``.
        action: What the node does then.
        service: Which service is restarted, with the action ``restart``.
        confirm: So long other nodes have to find the same before this one gives its clients away.
    """

    name: Name
    when: Annotated[
        Condition,
        BeforeValidator(_condition),
        PlainSerializer(lambda one: one.text, return_type=str),
        written(minLength=1),
    ]
    action: Annotated[Action, choice(Action)] = Action.WAIT
    service: Name | None = None
    confirm: Annotated[Duration, between(timedelta(0), timedelta(hours=1))] = timedelta(seconds=10)
