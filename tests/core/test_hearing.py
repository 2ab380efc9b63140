"""Rule 1: who is heard, and who acknowledges."""

from dataclasses import replace

from tests.core.words import settings, word

from nlbfarm.core.hearing import SENT_KEPT, Arrival, Hearing
from nlbfarm.core.wire import Fitness


def hearing() -> Hearing:
    return Hearing(settings(), 0.0)


def test_a_peer_is_lost_after_the_detection_time_and_not_before() -> None:
    peers = hearing()
    peers.arrived(word(2), 0, 10.0, incarnation=7)
    assert [peer.node for peer in peers.heard(10.499)] == [2]
    assert list(peers.heard(10.5)) == []


def test_a_word_of_an_earlier_life_is_refused_and_changes_nothing() -> None:
    peers = hearing()
    peers.arrived(word(2, 5, incarnation=100), 0, 1.0, 7)
    assert peers.arrived(word(2, 900, incarnation=99), 0, 1.4, 7) is Arrival.OLD_LIFE
    peer = peers.peers[2]
    assert (peer.incarnation, peer.heartbeat.sequence, peer.last_heard, peer.networks) == (
        100,
        5,
        1.0,
        {0: (5, 1.0)},
    )


def test_a_replayed_word_of_this_life_does_not_keep_a_peer_alive() -> None:
    peers = hearing()
    peers.arrived(word(2, 5), 0, 1.0, 7)
    assert peers.arrived(word(2, 5), 0, 1.4, 7) is Arrival.DUPLICATE
    assert peers.arrived(word(2, 4), 0, 1.4, 7) is Arrival.DUPLICATE
    assert peers.peers[2].last_heard == 1.0
    assert peers.peers[2].networks == {0: (5, 1.0)}


def test_each_network_has_its_own_liveness() -> None:
    peers = hearing()
    peers.arrived(word(2, 5), 0, 1.0, 7)
    assert peers.arrived(word(2, 5), 1, 1.01, 7) is Arrival.DUPLICATE
    peers.arrived(word(2, 6), 1, 1.1, 7)
    assert peers.peers[2].networks == {0: (5, 1.0), 1: (6, 1.1)}


def test_an_echo_counts_from_when_the_echoed_heartbeat_was_sent() -> None:
    peers = hearing()
    peers.sent(41, 0.9)
    peers.sent(42, 1.0)
    peers.arrived(word(2, hears={1: (7, 42)}), 0, 1.2, incarnation=7)
    peer = peers.peers[2]
    assert peer.acked_at == 1.0
    assert peers.hears_us(peer, 1.5)
    assert not peers.hears_us(peer, 1.51)
    assert not peers.overdue(peer, 1.2)
    assert peers.overdue(peer, 1.21)


def test_an_echo_of_another_life_or_of_nothing_we_sent_proves_nothing() -> None:
    peers = hearing()
    peers.sent(42, 1.0)
    peers.arrived(word(2, 1, hears={1: (6, 42)}), 0, 1.1, incarnation=7)
    peers.arrived(word(2, 2, hears={1: (7, 43)}), 0, 1.1, incarnation=7)
    assert peers.peers[2].acked_at is None


def test_an_older_echo_does_not_take_a_newer_one_back() -> None:
    peers = hearing()
    peers.sent(1, 1.0)
    peers.sent(2, 1.1)
    peers.arrived(word(2, 1, hears={1: (7, 2)}), 0, 1.2, 7)
    peers.arrived(word(2, 2, hears={1: (7, 1)}), 0, 1.3, 7)
    assert peers.peers[2].acked_at == 1.1


def test_a_new_life_starts_from_nothing() -> None:
    peers = hearing()
    peers.sent(1, 1.0)
    peers.arrived(word(2, 900, hears={1: (7, 1)}), 0, 1.1, 7)
    assert peers.arrived(word(2, 1, incarnation=2), 0, 2.0, 7) is Arrival.NEWS
    peer = peers.peers[2]
    assert (peer.first_heard, peer.acked_at, peer.networks) == (2.0, None, {0: (1, 2.0)})


def test_own_lateness_stretches_the_judgement() -> None:
    peers = hearing()
    peers.arrived(word(2), 0, 1.0, 7)
    peers.patience = 0.4
    assert list(peers.heard(1.89))
    assert not list(peers.heard(1.9))


def test_the_memory_of_sent_heartbeats_is_bounded() -> None:
    peers = hearing()
    for sequence in range(1, SENT_KEPT + 10):
        peers.sent(sequence, float(sequence))
    peers.arrived(word(2, hears={1: (7, 3)}), 0, 600.0, 7)
    assert peers.peers[2].acked_at is None


def test_an_old_word_of_a_node_that_was_forgotten_and_named_again_is_no_news() -> None:
    configured = settings()
    hearing = Hearing(configured, 0.0)
    hearing.arrived(word(2, 7), 0, 1.0, 1)
    hearing.configure(replace(configured, nodes={1: "web1", 3: "web3"}))
    hearing.configure(configured)
    assert hearing.arrived(word(2, 6), 0, 2.0, 1) is Arrival.DUPLICATE
    assert list(hearing.heard(2.0)) == []
    assert hearing.arrived(word(2, 8), 0, 3.0, 1) is Arrival.NEWS


def test_another_fitness_is_news_and_another_sequence_is_none() -> None:
    peers = hearing()
    for sequence, at in enumerate((1.0, 1.1, 1.2), 1):
        peers.sent(sequence, at)
        last = peers.arrived(word(2, sequence, hears={1: (7, sequence)}), 0, at, incarnation=7)
    assert last is Arrival.SAME
    suspect = replace(word(2, 4, hears={1: (7, 3)}), fitness=Fitness.SUSPECT)
    assert peers.arrived(suspect, 0, 1.3, incarnation=7) is Arrival.NEWS
    degraded = replace(suspect, sequence=5, fitness=Fitness.DEGRADED)
    assert peers.arrived(degraded, 0, 1.35, incarnation=7) is Arrival.NEWS
