"""Conditions of failover rules."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.core.supervision.expressions import parse

DOWN, UP = {"a": False, "b": False, "c": False}, {"a": True, "b": True, "c": True}


@pytest.mark.parametrize(
    ("text", "results", "expected"),
    [
        ("a down", DOWN, True),
        ("a up", DOWN, False),
        ("a down and b down", {"a": False, "b": True}, False),
        ("a down or b down", {"a": False, "b": True}, True),
        ("not a up", DOWN, True),
        ("not not a up", UP, True),
        ("a up or b up and c down", {"a": True, "b": False, "c": True}, True),
        ("(a up or b up) and c down", {"a": True, "b": False, "c": True}, False),
        ("2 of (a, b, c) down", {"a": False, "b": True, "c": False}, True),
        ("2 of (a, b, c) down", {"a": False, "b": True, "c": True}, False),
        ("all of (a,b) up", UP, True),
        ("any of (a, b) up", {"a": False, "b": True}, True),
        ("a down and b down", {"a": False}, None),
        ("a down and b down", {"a": True}, False),
        ("a down or b down", {"a": False}, True),
        ("2 of (a, b, c) down", {"a": False, "b": False}, True),
        ("2 of (a, b, c) down", {"a": True, "b": True}, False),
        ("not a down", {}, None),
        ("2 down", {"2": False}, True),
        ("gw-1.eth0 down", {"gw-1.eth0": False}, True),
    ],
)
def test_what_a_condition_says(text: str, results: dict[str, bool | None], expected: bool | None) -> None:
    assert parse(text).value(results) is expected


def test_a_condition_knows_whom_it_names() -> None:
    assert parse("2 of (a, b) down or not (c up and d.1 down)").names() == {"a", "b", "c", "d.1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the condition ends where the name of a checker should follow"),
        ("a", 'the condition ends where "up" or "down" should follow'),
        ("a down b down", '"b" at character 8: "and", "or" or the end should stand here'),
        ("a dwon", '"dwon" at character 3: "up" or "down" should stand here'),
        ("(a down", 'the condition ends where ")" should follow'),
        ("a & b", '"&" at character 3 cannot stand in a condition'),
        ("and down", '"and" at character 1: the name of a checker should stand here'),
        ("3 of (a, b) down", '"3 of" at character 1: write a number from 1 to 2, all or any'),
        ("0 of (a) down", '"0 of" at character 1: write a number from 1 to 1, all or any'),
        ("any (a, b) down", '"(" at character 5: "of" should stand here'),
        ("not " * 30 + "a up", "the condition is nested more than 20 deep"),
    ],
)
def test_a_wrong_condition_says_where(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        parse(text)


@given(st.text(alphabet="ab() ,ofnadupw12", max_size=40))
def test_any_text_is_a_condition_or_an_error(text: str) -> None:
    try:
        found = parse(text)
    except ValueError:
        return
    assert found.value(dict.fromkeys(found.names(), True)) in (True, False)
    assert found.value({}) is None
