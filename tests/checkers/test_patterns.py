"""Regular expressions: found, not found, and stopped when they take too long."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.checkers.support import LONG, SHORT

from nlbfarm.checkers.patterns import Pattern
from nlbfarm.errors import HostError, UsageError

PLAIN = [r"ready", r"a|b", r"1\.5\+", r"[abc]\?", r"(?i)up", r"(?:a|b)", r"^x$", r"\*\+\{"]
REPEATING = [r"a+", r"a*", r"a?", r"a{2}", r"(?=a)", r"[*]"]


def forbidden(*_: object, **__: object) -> None:
    pytest.fail("started a process")


@pytest.mark.parametrize("text", PLAIN)
def test_without_repetition_no_process_is_started(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", forbidden)
    Pattern(text, "body").found_in(["some text"], LONG)


@pytest.mark.parametrize("text", REPEATING)
def test_with_repetition_one_is(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", forbidden)
    with pytest.raises(pytest.fail.Exception):
        Pattern(text, "body").found_in(["some text"], LONG)
    assert Pattern(text, "body").found_in([], LONG) == []


@pytest.mark.parametrize("text", ["aä", "[a]+ä"])
def test_both_find_the_same(text: str) -> None:
    texts = ["aä", "nothing", "\0x aä \0", "two\nlines\naaä", "", "not utf-8: \udcff aä"]
    assert Pattern(text, "body").found_in(texts, LONG) == [True, False, True, True, False, True]


def test_a_search_that_takes_too_long_is_ended() -> None:
    with pytest.raises(
        HostError, match=r'search for the body "\(a\+\)\+b" takes longer than 0\.2 s; write a simp'
    ):
        Pattern("(a+)+b", "body").found_in(["a" * 100], SHORT)


def test_no_expression() -> None:
    with pytest.raises(UsageError, match=r"arguments: '\[' is not a regular expression: unterminated"):
        Pattern("[", "arguments")


def test_a_frozen_program_has_no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert Pattern("a|b", "body").found_in(["b"], LONG) == [True]
    with pytest.raises(UsageError, match=r"body: 'a\+' repeats something .* write plain words"):
        Pattern("a+", "body")


def test_an_interpreter_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(HostError, match="cannot start /nowhere/python"):
        Pattern("a+", "body").found_in(["a"], LONG)
