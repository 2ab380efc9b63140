"""A node that fails again and again waits longer and longer; one that was merely rebooted does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlbfarm.damping import LONGEST_WAIT_S, SHORT_S, Starts
from nlbfarm.errors import HostError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop" / "starts.json"


def failing(path: Path, count: int, pause: float = 3.0) -> list[float]:
    """Return the waits of lives that each end unasked ``pause`` seconds after they were allowed to serve."""
    now, waits = 1_000_000.0, []
    for _ in range(count):
        waits.append(Starts(path).begin(now))
        now += waits[-1] + pause
    return waits


def test_the_third_failure_in_a_row_waits_and_each_further_one_longer(path: Path) -> None:
    assert failing(path, 12) == [0, 0, 0, 5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert LONGEST_WAIT_S == 300


def test_lives_that_last_are_no_failures(path: Path) -> None:
    assert failing(path, 6, pause=SHORT_S + 1) == [0] * 6


def test_a_failure_while_it_waits_is_one_too(path: Path) -> None:
    assert failing(path, 4)[-1] == 5
    assert Starts(path).begin(1_000_000.0 + 9 + 1) == 10


def test_an_end_in_good_order_is_forgiven(path: Path) -> None:
    failing(path, 4)
    starts = Starts(path)
    assert starts.begin(1_000_010.0) == 10
    starts.end()
    assert failing(path, 3) == [0, 0, 0]


def test_the_administrator_forgives(path: Path) -> None:
    failing(path, 4)
    starts = Starts(path)
    starts.begin(1_000_010.0)
    starts.forgive(1_000_012.0)
    assert starts.failures == 0
    again = Starts(path)
    assert (again.begin(1_000_013.0), again.failures) == (0, 1)


def test_a_clock_that_went_back_is_no_failure(path: Path) -> None:
    failing(path, 4)
    assert Starts(path).begin(500_000.0) == 0


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", '{"version": 9}', '{"version": 1, "running": true}']
)
def test_a_damaged_file_counts_anew(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    assert Starts(path).begin(1_000_000.0) == 0


def test_without_a_file_nobody_waits() -> None:
    starts = Starts(None)
    assert starts.begin(1.0) == 0
    starts.end()


@pytest.mark.posix("POSIX' error for a file in place of a directory")
def test_a_state_directory_that_cannot_be_used_says_so(path: Path) -> None:
    path.parent.write_text("no directory")
    with pytest.raises(HostError, match="cannot be read"):
        Starts(path).begin(1.0)
