"""Which wire version is spoken to whom, and farms that are updated and put back node by node."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.wire_words import KEY, example

from nlbfarm.core.versions import COPY_S, EAGER_COPIES, SETTLED_S, Versions, spoken
from nlbfarm.core.wire import Codec, Echo, Fitness, Heartbeat, Keyring, NodeState, PlanRequest, version_of
from nlbfarm.errors import PeerError

BEAT = example()
REQUEST = PlanRequest(1, 11, bytes(16), 0)
TICK = 0.1


def only_oldest(versions: Versions, now: float) -> None:
    """Let the eager copies go out."""
    for _ in range(EAGER_COPIES):
        versions.speak(BEAT, (2,), now)


def test_a_peer_that_was_not_heard_is_spoken_to_in_the_oldest_version_with_copies_in_the_newest() -> None:
    versions = Versions([2, 3], newest=2)
    assert versions.of(2) == 1
    for _ in range(EAGER_COPIES):
        assert versions.speak(BEAT, (2,), 10.0) == [(2, (2,)), (1, (2,))]
    assert versions.speak(BEAT, (2,), 10.9) == [(1, (2,))]
    assert versions.speak(BEAT, (2, 3), 10.9) == [(2, (3,)), (1, (2, 3))]
    assert versions.speak(BEAT, (2,), 10.0 + COPY_S) == [(2, (2,)), (1, (2,))]
    assert versions.speak(BEAT, (2,), 10.1 + COPY_S) == [(1, (2,))]


def test_nothing_but_heartbeats_is_said_twice() -> None:
    versions = Versions([2], newest=2)
    assert versions.speak(REQUEST, (2,), 0.0) == [(1, (2,))]
    versions.heard(2, 20, 2, 0.0)
    assert versions.speak(REQUEST, (2,), 0.0) == [(2, (2,))]


def test_a_peer_heard_in_the_newest_version_is_spoken_to_in_it_alone() -> None:
    versions = Versions([2, 3], newest=2)
    versions.heard(2, 20, 2, 0.0)
    versions.heard(3, 30, 2, 0.0)
    assert versions.of(2) == 2
    assert versions.speak(BEAT, (2, 3), 0.0) == [(2, (2, 3))]


@given(st.lists(st.sampled_from([1, 2]), min_size=1), st.randoms())
def test_within_a_life_the_newest_counts_in_any_order(heard: list[int], rng: random.Random) -> None:
    versions = Versions([2], newest=2)
    for now, version in enumerate(heard):
        versions.heard(2, 20, version, now)
        versions.heard(2, rng.randint(0, 19), rng.randint(1, 2), now)
        assert versions.of(2) == max(heard[: now + 1])


def test_a_new_life_starts_with_what_it_is_heard_in() -> None:
    versions = Versions([2], newest=2)
    versions.heard(2, 20, 2, 0.0)
    versions.heard(2, 21, 1, 1.0)
    assert versions.of(2) == 1
    assert versions.speak(BEAT, (2,), 1.0) == [(2, (2,)), (1, (2,))]
    versions.heard(2, 20, 2, 1.1)
    assert versions.of(2) == 1
    versions.heard(2, 21, 2, 1.2)
    assert versions.of(2) == 2


def test_a_node_that_lost_its_incarnations_is_given_something_it_can_read() -> None:
    """Put back to the older release, without its file, its clock behind: our echo is its only way out."""
    versions = Versions([2], newest=2)
    versions.heard(2, 20, 2, 0.0)
    versions.heard(2, 7, 1, 1.0)
    assert versions.of(2) == 2
    only_oldest(versions, 1.0)
    assert versions.speak(BEAT, (2,), 1.1) == [(2, (2,))]
    assert versions.speak(BEAT, (2,), 1.0 + COPY_S) == [(2, (2,)), (1, (2,))]
    assert versions.speak(BEAT, (2,), 1.1 + COPY_S) == [(2, (2,))]


def test_who_stays_behind_is_named_but_not_right_after_its_start() -> None:
    versions = Versions([2, 3, 4], newest=2)
    versions.heard(2, 20, 1, 0.0)
    versions.heard(3, 30, 2, 0.0)
    assert versions.behind(SETTLED_S / 2) == {}
    assert versions.behind(SETTLED_S) == {2: 1}
    versions.heard(2, 21, 1, 5.0)
    assert versions.behind(5.0) == {}
    assert versions.behind(5.0 + SETTLED_S) == {2: 1}
    assert Versions([2], newest=1).behind(9.0) == {}


def test_earlier_versions_have_no_fitness_and_are_told_to_wait() -> None:
    up = dataclasses.replace(BEAT, state=NodeState.UP)
    for fitness in Fitness:
        beat = dataclasses.replace(up, fitness=fitness)
        assert spoken(beat, 3) is beat
        for version in (1, 2):
            said = spoken(beat, version)
            assert isinstance(said, Heartbeat)
            assert said.fitness is Fitness.SOUND
            assert said.state is (NodeState.UP if fitness <= Fitness.SUSPECT else NodeState.WAIT)
    assert spoken(REQUEST, 1) is REQUEST


def test_strangers_are_ignored_and_peers_change_with_the_configuration() -> None:
    versions = Versions([2, 3], newest=2)
    versions.heard(9, 1, 2, 0.0)
    assert versions.of(9) == 1
    assert versions.speak(BEAT, (9,), 0.0) == [(1, (9,))]
    versions.heard(2, 20, 2, 0.0)
    versions.configure([2, 9])
    assert versions.of(2) == 2
    versions.heard(9, 1, 2, 0.0)
    versions.heard(3, 30, 2, 0.0)
    assert (versions.of(9), versions.of(3)) == (2, 1)


# --- whole farms, at the level of heartbeats --------------------------------------------------


class Host:
    """A node of one release: its codec, what it knows of versions, and whom it has heard in this tick."""

    def __init__(self, node: int, release: int, incarnation: int) -> None:
        self.node = node
        self.release = release
        self.incarnation = incarnation
        self.sequence = 0
        self.codec = Codec("shop", Keyring({7: KEY}, 7), newest=release)
        self.peers = tuple({1, 2, 3} - {node})
        self.versions = Versions(self.peers, newest=release)
        self.echoes: dict[int, Echo] = {}
        self.heard: set[int] = set()
        self.refused: set[str] = set()

    def beat(self) -> Heartbeat:
        self.sequence += 1
        return dataclasses.replace(
            BEAT,
            inside=False,
            view=None,
            plan=None,
            plan_digest=None,
            sender=self.node,
            incarnation=self.incarnation,
            sequence=self.sequence,
            echoes=tuple(self.echoes[node] for node in sorted(self.echoes)),
        )

    def receive(self, data: bytes, now: float) -> None:
        try:
            message = self.codec.decode(data)
        except PeerError as error:
            self.refused.add(error.kind)
            return
        assert isinstance(message, Heartbeat)
        self.versions.heard(message.sender, message.incarnation, version_of(data), now)
        self.echoes[message.sender] = Echo(message.sender, message.incarnation, message.sequence)
        self.heard.add(message.sender)


class Farm:
    """Three hosts on a network that may lose datagrams."""

    def __init__(self, releases: dict[int, int], seed: int = 0, loss: float = 0.0) -> None:
        self.now = 0.0
        self.lives = 0
        self.hosts: dict[int, Host] = {}
        self.loss = loss
        self.random = random.Random(seed)
        for node, release in releases.items():
            self.restart(node, release)

    def restart(self, node: int, release: int) -> None:
        self.lives += 1
        self.hosts[node] = Host(node, release, self.lives)

    def tick(self) -> int:
        """Let everybody speak once; return how many datagrams that took."""
        self.now += TICK
        sent = []
        for host in self.hosts.values():
            host.heard.clear()
            host.refused.clear()
            beat = host.beat()
            for version, nodes in host.versions.speak(beat, host.peers, self.now):
                data = host.codec.encode(beat, version)
                sent += [(node, data) for node in nodes]
        for node, data in sent:
            if self.random.random() >= self.loss:
                self.hosts[node].receive(data, self.now)
        return len(sent)

    @property
    def talks(self) -> bool:
        """Whether everybody heard everybody in this tick."""
        return all(len(host.heard) == 2 for host in self.hosts.values())

    def spoken(self) -> set[tuple[int, int, int]]:
        return {
            (host.node, peer, host.versions.of(peer)) for host in self.hosts.values() for peer in host.peers
        }

    def best(self) -> set[tuple[int, int, int]]:
        """Return the newest version that each pair has in common."""
        hosts = self.hosts.values()
        return {(a.node, b.node, min(a.release, b.release)) for a, b in itertools.permutations(hosts, 2)}


@pytest.mark.parametrize("up", list(itertools.permutations((1, 2, 3))))
@pytest.mark.parametrize("down", list(itertools.permutations((1, 2, 3))))
@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 3), (1, 3)])
def test_a_farm_is_updated_and_put_back_node_by_node(
    up: tuple[int, ...], down: tuple[int, ...], old: int, new: int
) -> None:
    """Everybody hears everybody all the way; only one tick is lost where a peer cannot know better yet."""
    farm = Farm({1: old, 2: old, 3: old})
    farm.tick()
    steps = [(node, new) for node in up] + [(node, old) for node in down]
    for node, release in steps:
        farm.tick()
        assert farm.talks
        farm.restart(node, release)
        farm.tick()
        assert farm.talks or release == old
        for _ in range(2):
            farm.tick()
            assert farm.talks
        assert farm.spoken() == farm.best()
    for host in farm.hosts.values():
        assert host.release == old


def test_an_old_node_is_sent_a_few_copies_and_then_one_a_second() -> None:
    farm = Farm({1: 1, 2: 2, 3: 2})
    ticks = 100
    spoken = sum(farm.tick() for _ in range(ticks))
    copies_between_new = 4  # the first words of two new nodes, and what was on its way then
    copies = spoken - 6 * ticks
    assert copies <= 2 * (EAGER_COPIES + 1 + ticks * TICK / COPY_S) + copies_between_new
    assert farm.hosts[1].refused <= {"version"}
    assert farm.hosts[2].versions.behind(farm.now) == {1: 1}


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3])), max_size=8),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.05, 0.3, 0.6]),
)
def test_whatever_is_updated_and_lost_they_come_to_the_best_version(
    steps: list[tuple[int, int]], seed: int, loss: float
) -> None:
    farm = Farm({1: 1, 2: 1, 3: 1}, seed, loss)
    for node, release in steps:
        farm.restart(node, release)
        for _ in range(farm.random.randint(0, 15)):
            farm.tick()
    farm.loss = 0.0
    for _ in range(round(COPY_S / TICK) + 3):
        farm.tick()
    assert farm.talks
    assert farm.spoken() == farm.best()
