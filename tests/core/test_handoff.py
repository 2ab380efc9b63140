"""Rule 3: release, then acquire (I1)."""

from tests.core.words import plan, settings, word

from nlbfarm.core.buckets import ALL
from nlbfarm.core.handoff import acquirable, everybody_knows
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


def test_a_bucket_that_somebody_holds_or_drains_is_not_taken() -> None:
    assert (
        gain(heard(word(2, follows=PLAN, holding=0b101), word(3, follows=PLAN, draining=0b10))) == ALL ^ 0b111
    )


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
