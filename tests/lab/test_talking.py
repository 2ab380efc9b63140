"""The talker sees every kind of damage, and none where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.lab.hand import RULE, SEED, first, replace, serve_by_hand

from nlbfarm.lab import Lab, Talking, topology

pytestmark = pytest.mark.netns

HELD = 128


@pytest.fixture
def by_hand() -> Iterator[Lab]:
    with Lab(nodes=2, server="builtin") as lab:
        serve_by_hand(lab, "web1", "0-127")
        serve_by_hand(lab, "web2", "128-255")
        yield lab


def syns_sent_again(lab: Lab) -> int:
    """Return the client kernel's own count."""
    lines = lab.exec(topology.CLIENT, ["cat", "/proc/net/netstat"]).out.splitlines()
    return int(lines[1].split()[lines[0].split().index("TCPSynRetrans")])


def test_held_connections_talk_on_and_turn_over_in_good_order(by_hand: Lab) -> None:
    with Talking(by_hand, held=HELD, interval=0.5, rate=100, seed=SEED) as talking:
        assert talking.holders() == {"web1": HELD // 2, "web2": HELD // 2}
        assert talking.held_in(range(128)) == {"web1": HELD // 2}
        since, before = time.monotonic(), talking.answers
        until = talking.watch(2)
        assert talking.answers - before >= HELD
        talking.turn_over()
        assert talking.standing == HELD
        tally = talking.tally(since, until)
    assert tally.established == HELD
    assert tally.new_connections >= 100
    assert (tally.broken_connections, tally.failed_connections, tally.syn_retransmits) == (0, 0, 0)
    assert talking.trouble(0) == []
    assert {fresh.node for fresh in talking.fresh()} == {"web1", "web2"}


def test_a_bucket_that_moves_without_a_handoff_breaks_its_connections(by_hand: Lab) -> None:
    with Talking(by_hand, held=HELD, interval=0.5, rate=100, seed=SEED) as talking:
        since = time.monotonic()
        replace(by_hand, "web1", "0-63")
        replace(by_hand, "web2", "64-255")
        by_hand.wait_for(lambda: talking.standing == HELD * 3 // 4, 10, "the moved connections to break")
        tally = talking.tally(since, time.monotonic())
        assert tally.broken_connections == HELD // 4
        assert {broken.bucket for broken in talking.broken(since)} <= set(range(64, 128))
        assert {broken.node for broken in talking.broken(since)} == {"web1"}
        # They come back when their clients come back.
        talking.turn_over()
        by_hand.wait_for(lambda: talking.standing == HELD, 10, "all connections to stand again")
        assert talking.holders() == {"web1": HELD // 4, "web2": HELD * 3 // 4}


def test_a_lost_syn_is_counted_and_a_server_that_is_silent_is_a_failure(by_hand: Lab) -> None:
    with Talking(by_hand, held=2, rate=200, timeout=4, seed=SEED) as talking:
        before, since = syns_sent_again(by_hand), time.monotonic()
        first(by_hand, "web1", "tcp flags syn limit rate over 1/minute burst 1 packets drop")
        first(by_hand, "web2", f"{RULE} 192-223 tcp flags != syn drop")
        by_hand.wait_for(lambda: syns_sent_again(by_hand) >= before + 20, 10, "SYNs to be sent again")
        replace(by_hand, "web1", "0-127")
        until = time.monotonic()
        talking.wait_until(until + 3)
        fresh = talking.fresh(since, until)
        assert sum(one.syn_retransmits for one in fresh) > 0
        assert sum(one.syn_retransmits for one in talking.fresh(since)) == syns_sent_again(by_hand) - before
        late = [one for one in fresh if one.syn_retransmits and one.answered]
        assert min(one.answered - one.start for one in late if one.answered) >= 0.9
        failed = {one.bucket for one in fresh if one.answered is None}
        assert failed
        assert failed <= set(range(192, 224))
        assert {one.why for one in fresh if one.answered is None} == {"no answer"}
