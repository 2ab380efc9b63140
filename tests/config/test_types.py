"""Domain types."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.config.types import format_duration, nearest, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100ms", 0.1), ("5s", 5), ("24h", 86400), ("1.5m", 90), ("250us", 0.00025), ("2 s", 2), ("7d", 604800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value", ["", "5", "s", "-5s", "5 parsecs", "1e3s", "5s5", 5, 0.1, True, None, [], "9" * 30 + "d"]
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match=r"time|unit"):
        parse_duration(value)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=100)))
def test_durations_are_written_as_they_are_read(value: timedelta) -> None:
    assert parse_duration(format_duration(value)) == value


def test_nearest() -> None:
    assert nearest("intervall", ["interval", "lease"]) == '; did you mean "interval"?'
    assert nearest("xyz", ["interval", "lease"]) == ""
