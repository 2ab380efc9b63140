"""How numbers, lists and output read in a sentence."""

from __future__ import annotations

import pytest

from nlbfarm.checkers.words import clipped, many, one_line, seconds, series, size


@pytest.mark.parametrize(
    ("duration", "text"),
    [(5, "5 s"), (0.2, "0.2 s"), (0.01234, "0.012 s"), (1.25, "1.2 s"), (37.44, "37.4 s"), (3600, "3600 s")],
)
def test_seconds(duration: float, text: str) -> None:
    assert seconds(duration) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1_500_000, "1.5 MB"),
        (999_950_000, "1 GB"),
        (2e15, "2000 TB"),
    ],
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_series_and_many() -> None:
    assert [series([]), series(["a"]), series("ab"), series("abc", "or")] == ["", "a", "a and b", "a, b or c"]
    assert [many(0, "day"), many(1, "day"), many(2, "day"), many(2, "process", "processes")] == [
        "0 days",
        "1 day",
        "2 days",
        "2 processes",
    ]


def test_one_line_can_always_be_printed() -> None:
    assert one_line(" a\tb\n\n c\x00\x1b[31m\udcff ") == "a b c??[31m?"
    assert one_line("x" * 300).endswith("x...")
    assert clipped("x" * 300, 10) == "xxxxxxx..."
