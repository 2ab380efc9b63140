"""The table of first fragments: bounded, and forgetting in time."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest

from nlbfarm.core.fragments import FRAGMENT_TIME, FragmentTable


def test_a_later_fragment_finds_its_first() -> None:
    table: FragmentTable[str] = FragmentTable()
    table.first(b"one", "first", 24, 0.0)
    assert table.later(b"one", 24, 0.0) == "first"
    assert table.later(b"one", 1480, 1.0) == "first"
    assert table.later(b"one", 23, 1.0) is None, "it overlaps the first"
    assert table.later(b"one", 24, 1.0) == "first", "and that is no reason to forget it"
    assert table.later(b"two", 24, 1.0) is None


def test_the_newest_first_fragment_counts() -> None:
    table: FragmentTable[str] = FragmentTable()
    table.first(b"one", "first", 24, 0.0)
    table.first(b"one", "second", 32, 20.0)
    assert table.later(b"one", 24, 20.0) is None
    assert table.later(b"one", 32, 20.0 + FRAGMENT_TIME - 0.1) == "second"
    assert len(table) == 1


def test_it_forgets() -> None:
    table: FragmentTable[str] = FragmentTable(lifetime=5)
    table.first(b"one", "first", 24, 0.0)
    table.first(b"two", "first", 24, 1.0)
    table.forget(b"one")
    table.forget(b"one")
    assert table.later(b"one", 24, 1.0) is None
    assert table.later(b"two", 24, 5.9) == "first"
    assert table.later(b"two", 24, 6.0) is None
    assert len(table) == 0
    table.first(b"three", "first", 24, 6.0)
    table.clear()
    assert len(table) == 0


def test_expire_takes_what_is_over() -> None:
    table: FragmentTable[str] = FragmentTable(lifetime=5)
    for moment, datagram in enumerate((b"one", b"two", b"three", b"one")):
        table.first(datagram, "first", 24, float(moment))
    table.expire(5.5)
    assert len(table) == 3
    table.expire(6.0)
    assert len(table) == 2
    assert table.later(b"one", 24, 6.0) == "first"
    table.expire(100.0)
    assert len(table) == 0


def test_when_it_is_full_the_oldest_goes() -> None:
    table: FragmentTable[int] = FragmentTable(capacity=3)
    for number in range(10):
        table.first(bytes((number,)), number, 8, 0.0)
        assert len(table) == min(number + 1, 3)
    assert [table.later(bytes((number,)), 8, 0.0) for number in range(10)] == [*[None] * 7, 7, 8, 9]


@pytest.mark.parametrize(("capacity", "lifetime"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_no_table_at_all(capacity: int, lifetime: float) -> None:
    with pytest.raises(ValueError, match=f"{capacity} datagrams"):
        FragmentTable[str](capacity, lifetime)


def test_against_a_plain_model(rng: random.Random) -> None:
    table: FragmentTable[int] = FragmentTable(capacity=8, lifetime=4.0)
    model: OrderedDict[bytes, tuple[int, int, float]] = OrderedDict()
    now = 0.0
    for step in range(3000):
        now += rng.choice((0.0, 0.1, 0.5))
        datagram = bytes((rng.randrange(12),))
        if rng.random() < 0.4:
            end = rng.choice((8, 16, 24))
            table.first(datagram, step, end, now)
            model.pop(datagram, None)
            model[datagram] = step, end, now
            while len(model) > 8:
                model.popitem(last=False)
        elif rng.random() < 0.1:
            table.expire(now)
        else:
            offset = rng.choice((8, 16, 24))
            value, end, began = model.get(datagram, (0, 99, 0.0))
            expected = value if offset >= end and now - began < 4.0 else None
            assert table.later(datagram, offset, now) == expected
            if now - began >= 4.0:
                model.pop(datagram, None)
        for old in [key for key, (_, _, began) in model.items() if now - began >= 4.0]:
            del model[old]
            table.expire(now)
        assert len(table) <= 8
