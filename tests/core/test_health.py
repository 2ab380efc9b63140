"""Rise and fall."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.core.health import Health
from nlbfarm.errors import UsageError


@pytest.mark.parametrize("first", [True, False])
def test_the_first_result_decides_at_once(first: bool) -> None:
    health = Health(rise=3, fall=3)
    assert health.healthy is None
    assert health.observe(first) is first
    assert health.healthy is first


def test_it_takes_fall_bad_results_in_a_row_to_fall_and_rise_good_ones_to_rise() -> None:
    health = Health(rise=2, fall=3)
    results = [True, False, False, True, False, False, False, True, False, True, True]
    answers = [health.observe(ok) for ok in results]
    assert answers == [True, None, None, None, None, None, False, None, None, None, True]


def test_against_says_how_far_it_has_come() -> None:
    health = Health(rise=1, fall=3)
    health.observe(True)
    health.observe(False)
    health.observe(False)
    assert (health.healthy, health.against) == (True, 2)
    health.observe(True)
    assert (health.healthy, health.against) == (True, 0)


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.booleans(), min_size=1, max_size=60))
def test_the_state_is_what_the_last_long_enough_run_says(rise: int, fall: int, results: list[bool]) -> None:
    health = Health(rise, fall)
    told = [answer for ok in results if (answer := health.observe(ok)) is not None]
    expected, run = results[0], 0
    for before, ok in zip([results[0], *results], results, strict=False):
        run = run + 1 if ok is before else 1
        if run >= (rise if ok else fall):
            expected = ok
    assert health.healthy is expected is told[-1]
    # It tells changes only, so what it tells alternates.
    assert all(a is not b for a, b in pairwise(told))


@pytest.mark.parametrize(("rise", "fall"), [(0, 1), (1, 0), (-1, 2), (True, 1), (1, 1.5), ("2", 1)])
def test_a_threshold_that_cannot_be_meant_is_refused(rise: Any, fall: Any) -> None:
    with pytest.raises(UsageError):
        Health(rise, fall)


@pytest.mark.parametrize("result", [None, 1, 0, "ok", []])
def test_an_illegal_result_raises_and_changes_nothing(result: Any) -> None:
    health = Health(rise=2, fall=2)
    with pytest.raises(UsageError):
        health.observe(result)
    assert health.healthy is None


@pytest.mark.parametrize("result", [None, 1, 0, "ok", []])
def test_an_illegal_result_in_the_middle_raises_and_changes_nothing(result: Any) -> None:
    health = Health(rise=2, fall=2)
    health.observe(True)
    health.observe(False)
    with pytest.raises(UsageError):
        health.observe(result)
    assert (health.healthy, health.against) == (True, 1)
    assert health.observe(False) is False
