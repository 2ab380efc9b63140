"""Conditions of failover rules.

::

    gw1 down and gw2 down
    2 of (probe1, probe2, probe3) down
    any of (db1, db2) up and not page down

A condition is true, false, or unknown as long as a checker that matters has not looked yet; ``and``, ``or``
and ``not`` are those of Kleene's three-valued logic. ``not`` binds before ``and``, ``and`` before ``or``.
Names are those of checkers; the words of the language cannot be names here.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Expression", "parse"]

Results = Mapping[str, bool | None]
"""What each checker says; ``None``: nothing yet."""

_TOKEN = re.compile(r"\s*(?:(?P<mark>[(),])|(?P<word>[A-Za-z0-9][A-Za-z0-9_.-]*))")
_WORDS = frozenset({"and", "or", "not", "of", "all", "any", "up", "down"})
_DEEPEST = 20


class Expression(ABC):
    """A condition over the results of checkers."""

    @abstractmethod
    def value(self, results: Results) -> bool | None:
        """Return whether it holds; ``None`` if that is not known yet."""

    @abstractmethod
    def names(self) -> frozenset[str]:
        """Return the checkers that it names."""


@dataclass(frozen=True, slots=True)
class _Is(Expression):
    name: str
    up: bool

    def value(self, results: Results) -> bool | None:
        found = results.get(self.name)
        return None if found is None else found is self.up

    def names(self) -> frozenset[str]:
        return frozenset({self.name})


@dataclass(frozen=True, slots=True)
class _Not(Expression):
    part: Expression

    def value(self, results: Results) -> bool | None:
        found = self.part.value(results)
        return None if found is None else not found

    def names(self) -> frozenset[str]:
        return self.part.names()


@dataclass(frozen=True, slots=True)
class _AtLeast(Expression):
    """So many of the parts hold: all of them is *and*, one is *or*."""

    count: int
    parts: tuple[Expression, ...]

    def value(self, results: Results) -> bool | None:
        found = [part.value(results) for part in self.parts]
        true, unknown = found.count(True), found.count(None)
        if true >= self.count:
            return True
        return None if true + unknown >= self.count else False

    def names(self) -> frozenset[str]:
        return frozenset().union(*(part.names() for part in self.parts))


def parse(text: str) -> Expression:
    """Return the condition that ``text`` stands for.

    Raises:
        ValueError: It is none; says where, and what could stand there.
    """
    parser = _Parser(_tokens(text), text)
    found = parser.either()
    if parser.token:
        raise parser.expected('"and", "or" or the end')
    return found


def _tokens(text: str) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    at = 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise ValueError(f'"{text[at]}" at character {at + 1} cannot stand in a condition')
        found.append((match[match.lastgroup or 0], match.start(match.lastgroup or 0)))
        at = match.end()
    return found


class _Parser:
    """Recursive descent, one method for each level."""

    def __init__(self, tokens: list[tuple[str, int]], text: str) -> None:
        self._tokens = tokens
        self._text = text
        self._next = 0
        self._depth = 0

    @property
    def token(self) -> str:
        """The word at hand; empty at the end."""
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def expected(self, what: str) -> ValueError:
        """Return the error for what stands at this place instead of ``what``."""
        if not self.token:
            return ValueError(f"the condition ends where {what} should follow")
        return ValueError(
            f'"{self.token}" at character {self._tokens[self._next][1] + 1}: {what} should stand here'
        )

    def _take(self, *words: str) -> bool:
        if self.token in words:
            self._next += 1
            return True
        return False

    def _must(self, word: str) -> None:
        if not self._take(word):
            raise self.expected(f'"{word}"')

    def _joined(self, word: str, part: Callable[[], Expression], needed: Callable[[int], int]) -> Expression:
        parts = [part()]
        while self._take(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else _AtLeast(needed(len(parts)), tuple(parts))

    def either(self) -> Expression:
        return self._joined("or", self._both, lambda _: 1)

    def _both(self) -> Expression:
        return self._joined("and", self._negated, lambda count: count)

    def _negated(self) -> Expression:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError(f"the condition is nested more than {_DEEPEST} deep")
        try:
            return _Not(self._negated()) if self._take("not") else self._atom()
        finally:
            self._depth -= 1

    def _atom(self) -> Expression:
        if self._take("("):
            found = self.either()
            self._must(")")
            return found
        if self.token in ("all", "any") or (self.token.isdigit() and self._peek() == "of"):
            return self._counted()
        name = self._name()
        return _Is(name, self._state())

    def _peek(self) -> str:
        return self._tokens[self._next + 1][0] if self._next + 1 < len(self._tokens) else ""

    def _counted(self) -> Expression:
        at, word = self._next, self.token
        self._next += 1
        self._must("of")
        self._must("(")
        names = [self._name()]
        while self._take(","):
            names.append(self._name())
        self._must(")")
        up = self._state()
        count = {"all": len(names), "any": 1}.get(word) or int(word)
        if not 1 <= count <= len(names):
            place = self._tokens[at][1] + 1
            raise ValueError(
                f'"{word} of" at character {place}: write a number from 1 to {len(names)}, all or any'
            )
        return _AtLeast(count, tuple(_Is(name, up) for name in names))

    def _name(self) -> str:
        if not self.token or self.token in _WORDS or not self.token[0].isalnum():
            raise self.expected("the name of a checker")
        self._next += 1
        return self._tokens[self._next - 1][0]

    def _state(self) -> bool:
        if self._take("up"):
            return True
        if self._take("down"):
            return False
        raise self.expected('"up" or "down"')
