"""Rule 3: release, then acquire (I1); drain and adopt (I3)."""

from __future__ import annotations

from itertools import product

import pytest
from tests.core.words import plan, settings, word

from nlbfarm.core.buckets import ALL, BucketState, BucketStates
from nlbfarm.core.commands import ApplyFilter
from nlbfarm.core.handoff import TRANSITIONS, Handoff, acquirable, everybody_knows, next_states
from nlbfarm.core.hearing import Peer
from nlbfarm.core.wire import Epoch, Heartbeat

PLAN = plan(3, {1: 1, 2: 1, 3: 1}, owner=1)
EARLIER = plan(2, {1: 1, 2: 1, 3: 1}, owner=2)
MINE = (ALL,)


def heard(*words: Heartbeat) -> dict[int, Peer]:
    return {one.sender: Peer(one.sender, one, 0.0) for one in words}


def gain(peers: dict[int, Peer], known: Epoch = PLAN.view.epoch, inside_since: float = 0.0) -> int:
    return acquirable(PLAN, MINE, known, inside_since, peers, settings(), 10.0)[0]


def test_everybody_knows_and_nobody_holds() -> None:
    assert gain(heard(word(2, follows=PLAN), word(3, follows=PLAN))) == ALL


def test_a_bucket_that_somebody_holds_is_not_taken_and_one_that_somebody_drains_is() -> None:
    peers = heard(word(2, follows=PLAN, holding=0b101), word(3, follows=PLAN, draining=0b10))
    assert gain(peers) == ALL ^ 0b101


def test_nothing_is_taken_before_everybody_knows_the_plan() -> None:
    assert gain(heard(word(2, follows=EARLIER), word(3, follows=PLAN))) == 0


def test_nothing_is_taken_while_a_member_is_not_heard() -> None:
    assert gain(heard(word(2, follows=PLAN))) == 0
    assert gain(heard(word(2, follows=PLAN), word(3, follows=PLAN, incarnation=2))) == 0


def test_nothing_is_taken_when_a_newer_epoch_is_known() -> None:
    peers = heard(word(2, follows=PLAN), word(3, follows=PLAN))
    assert gain(peers, known=Epoch(4, 2)) == 0


def test_a_node_that_is_heard_counts_even_if_it_is_no_member() -> None:
    other = plan(2, {4: 1}, owner=4)
    peers = heard(word(2, follows=PLAN), word(3, follows=PLAN), word(4, follows=other))
    assert gain(peers) == 0
    peers = heard(
        word(2, follows=PLAN), word(3, follows=PLAN), word(4, follows=other, known=PLAN.view.epoch, holding=1)
    )
    assert gain(peers) == ALL ^ 1


def test_an_outsider_that_holds_nothing_does_not_stand_in_the_way() -> None:
    assert gain(heard(word(2, follows=PLAN), word(3, follows=PLAN), word(4))) == ALL


def test_a_node_just_come_from_outside_waits_for_a_detection_time() -> None:
    peers = heard(word(2, follows=PLAN), word(3, follows=PLAN))
    assert gain(peers, inside_since=9.6) == 0
    assert gain(peers, inside_since=9.5) == ALL


def test_release_waits_until_every_live_member_knows() -> None:
    assert everybody_knows(PLAN, 1, heard(word(2, follows=PLAN), word(3, follows=PLAN)))
    assert not everybody_knows(PLAN, 1, heard(word(2, follows=PLAN), word(3, follows=EARLIER)))
    assert everybody_knows(PLAN, 1, heard(word(2, follows=PLAN)))
    assert everybody_knows(PLAN, 1, heard(word(2, follows=PLAN), word(3, follows=EARLIER, incarnation=2)))


@pytest.mark.parametrize("before", BucketState)
def test_the_bitmaps_do_what_the_table_says(before: BucketState) -> None:
    kinds = {BucketState.OWN: "own", BucketState.ADOPT: "adopt", BucketState.DRAIN: "drain"}
    has = BucketStates(**({kinds[before]: 1} if before in kinds else {}))
    for kept, gained, contested, flows in product((False, True), repeat=4):
        facts = {"kept": kept, "gained": gained, "contested": contested, "flows": flows}
        if kept and gained:
            continue  # what is held is not gained
        rows = [
            row
            for row in TRANSITIONS
            if before in row.before
            and all(getattr(row, name) in (None, value) for name, value in facts.items())
        ]
        if gained and before in (BucketState.OWN, BucketState.ADOPT):
            assert rows == []
            continue
        (row,) = rows
        found = next_states(has, **{name: int(value) for name, value in facts.items()})
        assert found.state(0) is row.after, facts


CLOSED = BucketStates()


def started(flows: dict[str, dict[int, int]] | None = None) -> Handoff:
    return Handoff(settings(drain_timeout=10.0), flows or {}, 0.0)


def change(
    handoff: Handoff,
    now: float,
    *,
    kept: int = ALL,
    gained: int = 0,
    contested: int = 0,
    drain: bool = True,
) -> BucketStates | None:
    """Let the filter do the change that is due; return the states that follow, or ``None``."""
    command = handoff.change((kept,), (gained,), (contested,), now, drain=drain)
    if command is None:
        return None
    assert isinstance(command, ApplyFilter)
    handoff.filter_applied(command.serial, now)
    return command.states["web"]


def test_a_bucket_that_is_given_away_is_announced_as_held_until_the_filter_has_let_go() -> None:
    handoff = started()
    change(handoff, 0.0, gained=0b11)
    command = handoff.change((0b01,), (0,), (0,), 1.0)
    assert command is not None
    assert (handoff.holding, handoff.draining) == ((0b11,), (0,))
    handoff.filter_applied(command.serial, 1.001)
    assert (handoff.holding, handoff.draining) == ((0b01,), (0b10,))
    with pytest.raises(ValueError, match="no filter change 2"):
        handoff.filter_applied(command.serial, 1.001)


def test_a_drain_ends_when_no_flow_is_left_or_time_is_up() -> None:
    handoff = started()
    change(handoff, 0.0, gained=0b111)
    assert change(handoff, 1.0, kept=0) == BucketStates(drain=0b111)
    question = handoff.question(1.0)
    assert question is not None
    assert question.buckets == {"web": 0b111}
    assert handoff.question(1.2) is None
    handoff.flows_answered(question.serial, {"web": {1: 3}}, 1.3)
    assert handoff.flows_left == {"web": {1: 3}}
    assert change(handoff, 1.3) == BucketStates(drain=0b010)
    assert handoff.question(1.7) is None
    assert handoff.question(1.8) is not None
    assert change(handoff, 10.9) is None
    assert change(handoff, 11.0) == CLOSED
    assert list(handoff.deadlines()) == []


def test_an_answer_says_nothing_of_what_was_given_away_since_it_was_asked_for() -> None:
    handoff = started()
    change(handoff, 0.0, gained=0b11)
    change(handoff, 1.0, kept=0b10)
    question = handoff.question(1.0)
    assert question is not None
    change(handoff, 1.1, gained=0b01)
    assert change(handoff, 1.2, kept=0) == BucketStates(drain=0b11)
    handoff.flows_answered(question.serial, {}, 1.3)
    assert change(handoff, 1.3) is None
    assert handoff.question(1.8) is not None


def test_an_answer_that_does_not_come_is_asked_for_again_and_a_late_one_ignored() -> None:
    handoff = started()
    change(handoff, 0.0, gained=0b1)
    change(handoff, 1.0, kept=0)
    first = handoff.question(1.0)
    second = handoff.question(6.0)
    assert first is not None
    assert second is not None
    handoff.flows_answered(first.serial, {}, 6.1)
    assert change(handoff, 6.1) is None
    handoff.flows_answered(second.serial, {}, 6.2)
    assert change(handoff, 6.2) == CLOSED


def test_what_others_drain_is_adopted_and_owned_when_they_are_done() -> None:
    handoff = started()
    assert change(handoff, 0.0, gained=0b11, contested=0b01) == BucketStates(own=0b10, adopt=0b01)
    assert handoff.holding == (0b11,)
    assert change(handoff, 1.0) == BucketStates(own=0b11)
    assert change(handoff, 2.0, contested=0b10) == BucketStates(own=0b01, adopt=0b10)


def test_a_drained_bucket_may_come_back() -> None:
    handoff = started()
    change(handoff, 0.0, gained=0b1)
    change(handoff, 1.0, kept=0)
    assert change(handoff, 2.0, gained=0b1) == BucketStates(own=0b1)
    assert change(handoff, 3.0, kept=0) == BucketStates(drain=0b1)


def test_without_a_drain_the_bucket_is_foreign_at_once() -> None:
    handoff = started()
    change(handoff, 0.0, gained=0b1)
    assert change(handoff, 1.0, kept=0, drain=False) == CLOSED


def test_flows_of_an_earlier_process_are_drained_from_the_start() -> None:
    handoff = started({"web": {3: 2}})
    assert change(handoff, 0.0) == BucketStates(drain=0b1000)
    assert handoff.flows_left == {"web": {3: 2}}
