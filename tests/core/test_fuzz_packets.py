"""A small share of ``scripts/fuzz_packets.py``, and that it notices what it looks for."""

from __future__ import annotations

import random

import pytest
from scripts.fuzz_packets import Report, main, run

from nlbfarm.core import judging
from nlbfarm.core.judging import Judge


def test_nothing_breaks(rng: random.Random, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--packets", "4000", "--seed", str(rng.getrandbits(32))]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for reason in ("malformed", "own", "foreign", "not-new", "uncovered", "not-filtered"):
        assert reason in printed.out


def test_an_exception_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes, snap: int | None = None) -> None:
        raise IndexError(f"{len(data)} bytes")

    monkeypatch.setattr(judging, "read", broken)
    assert any("IndexError" in failure for failure in run(50, 1).failures)


def test_a_wrong_verdict_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Judge._place

    def beside(self: Judge, *arguments: object) -> int:
        found = place(self, *arguments)  # type: ignore[arg-type]
        return found if found < 0 else found ^ 1

    monkeypatch.setattr(Judge, "_place", beside)
    assert any("oracle" in failure for failure in run(1000, 1).failures)


def test_growth_is_that_of_the_second_half() -> None:
    assert Report(resident_mib=[10, 50, 60, 61, 62, 61]).growth_mib == 1
    assert Report(resident_mib=[10, 10, 10, 20]).growth_mib == 10
    assert Report().growth_mib == 0
