"""Rule 4: until when the filter may accept."""

import pytest
from tests.core.words import plan, settings, word

from nlbfarm.core.hearing import Peer
from nlbfarm.core.lease import lease_end
from nlbfarm.core.settings import Partition
from nlbfarm.core.wire import Epoch, Heartbeat

SETTINGS = settings()
INSIDE = plan(3, {1: 1, 2: 1}, owner=1)


def peer(heartbeat: Heartbeat, *, first: float, last: float, acked: float | None) -> Peer:
    made = Peer(heartbeat.sender, heartbeat, first)
    made.last_heard = last
    made.acked_at = acked
    return made


def test_alone_the_lease_is_as_long_as_configured() -> None:
    assert lease_end([], 10.0, SETTINGS) == pytest.approx(10.3)


def test_an_acknowledging_peer_limits_it_to_before_it_would_take_over() -> None:
    fresh = peer(word(2, follows=INSIDE), first=0.0, last=9.95, acked=9.9)
    stale = peer(word(3, follows=INSIDE), first=0.0, last=9.95, acked=9.7)
    assert lease_end([fresh], 10.0, SETTINGS) == pytest.approx(10.3)
    assert lease_end([fresh, stale], 10.0, SETTINGS) == pytest.approx(9.7 + 0.45)


def test_a_peer_that_is_heard_but_does_not_acknowledge_ends_it() -> None:
    deaf = peer(word(2, follows=INSIDE), first=9.0, last=10.0, acked=9.4)
    assert lease_end([deaf], 10.0, SETTINGS) < 10.0


def test_a_peer_not_yet_acknowledging_counts_from_when_it_was_first_heard() -> None:
    new = peer(word(2, follows=INSIDE), first=9.8, last=9.9, acked=None)
    assert lease_end([new], 10.0, SETTINGS) == pytest.approx(9.8 + 0.45)


def test_what_a_new_peer_heard_of_long_ago_does_not_end_it() -> None:
    """A copy that went astray is the first that a restarted process hears, and so what it echoes first."""
    new = peer(word(2, follows=INSIDE), first=9.8, last=9.9, acked=8.0)
    assert lease_end([new], 10.0, SETTINGS) == pytest.approx(9.8 + 0.45)


def test_a_peer_that_died_does_not_limit_it_but_one_that_ignored_us_does() -> None:
    died = peer(word(2, follows=INSIDE), first=0.0, last=9.7, acked=9.6)
    ignoring = peer(word(2, follows=INSIDE), first=0.0, last=9.7, acked=9.4)
    assert lease_end([died], 10.0, SETTINGS) == pytest.approx(10.3)
    assert lease_end([ignoring], 10.0, SETTINGS) < 10.0


def test_a_word_from_before_that_arrives_astray_costs_nothing() -> None:
    stray = peer(word(2, follows=INSIDE), first=10.0, last=10.0, acked=None)
    assert lease_end([stray], 10.2, SETTINGS) == pytest.approx(10.45)
    assert lease_end([stray], 10.26, SETTINGS) == pytest.approx(10.56)
    deaf = peer(word(2, follows=INSIDE), first=10.0, last=10.3, acked=None)
    assert lease_end([deaf], 10.56, SETTINGS) < 10.56


def test_an_outsider_limits_it_only_while_it_holds_something() -> None:
    idle = peer(word(2, known=Epoch(3, 1)), first=1.0, last=9.9, acked=None)
    holding = peer(word(2, known=Epoch(3, 1), holding=1), first=1.0, last=9.9, acked=None)
    draining = peer(word(2, known=Epoch(3, 1), draining=2), first=1.0, last=9.9, acked=None)
    assert lease_end([idle], 10.0, SETTINGS) == pytest.approx(10.3)
    assert lease_end([holding], 10.0, SETTINGS) < 10.0
    assert lease_end([draining], 10.0, SETTINGS) == pytest.approx(10.3)


def test_with_a_majority_rule_the_lease_needs_fresh_acknowledgements_of_more_than_half() -> None:
    five = {node: f"web{node}" for node in range(1, 6)}
    strict = settings(nodes=five, partition=Partition.MAJORITY)
    fresh = [peer(word(node, follows=INSIDE), first=0.0, last=9.95, acked=9.9) for node in (2, 3)]
    died = peer(word(3, follows=INSIDE), first=0.0, last=9.65, acked=9.6)
    assert lease_end(fresh, 10.0, strict) == pytest.approx(10.3)
    assert lease_end(fresh[:1], 10.0, strict) <= 10.0
    assert lease_end([fresh[0], died], 10.0, strict) == pytest.approx(9.6 + 0.45)
