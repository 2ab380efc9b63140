"""The corpus: what is in it, and that its facts are those of its bytes."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from nlbfarm.core import packets
from nlbfarm.core.decision import Reason
from nlbfarm.core.fragments import FragmentTable
from nlbfarm.errors import UsageError
from nlbfarm.testing.conformance import Corpus, make_corpus, wire
from nlbfarm.testing.conformance.fragmenting import CATEGORIES as FRAGMENTED
from nlbfarm.testing.conformance.singles import CATEGORIES


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(seed=7, packets=12_000)


def test_the_same_seed_gives_the_same_packets() -> None:
    first, again = (make_corpus(seed=3, packets=1_000) for _ in range(2))
    assert first == again
    other = make_corpus(seed=4, packets=1_000)
    assert [packet.data for packet in first.packets()] != [packet.data for packet in other.packets()]


def test_all_of_it_is_there(corpus: Corpus) -> None:
    assert len(corpus) >= 12_000
    assert {phase.lease for phase in corpus.phases} == {True, False}
    found = {(packet.category, packet.version) for packet in corpus.packets()}
    singles = {(name, version) for name, (weights, _) in CATEGORIES.items() for version in weights}
    fragmented = {(name, version) for name, weights in FRAGMENTED.items() for version in weights}
    assert found >= (singles | fragmented) - {("VLAN tag", 4), ("VLAN tag", 6)}
    assert {category for category, _ in found if category.startswith("conversation")} >= {
        "conversation: first SYN",
        "conversation: syn again, held",
        "conversation: data, held",
        "conversation: data, another's",
        "conversation: out of window, held",
        "conversation: in fragments, held",
        "conversation: fin, held",
        "conversation: rst, held",
        "conversation: udp across phases",
        "conversation: pings across phases",
    }
    assert corpus.untried == ("VLAN-tagged frames: this host has no VLAN devices",)
    assert {packet.to_group for packet in corpus.packets()} == {True, False}


@pytest.mark.parametrize("whole", [True, False])
def test_every_verdict_has_many_packets(corpus: Corpus, whole: bool) -> None:
    reasons = Counter(
        corpus.decision(phase, packet, whole=whole).reason
        for phase in corpus.phases
        for packet in phase.packets()
    )
    assert set(reasons) == set(Reason)
    assert all(count >= 80 for count in reasons.values()), reasons


def test_conversations_live_through_changes_of_ownership(corpus: Corpus) -> None:
    """The packets of one established flow meet every state that its bucket can have."""
    met = defaultdict(set)
    for phase in corpus.phases:
        for packet in phase.packets():
            decision = corpus.decision(phase, packet, whole=True)
            if packet.established and decision.group is not None and decision.bucket is not None:
                met[packet.conversation].add(phase.states[decision.group].state(decision.bucket))
    assert sum(len(states) >= 3 for states in met.values()) >= 30


def test_facts_are_those_of_the_bytes(corpus: Corpus) -> None:
    """The generator says what it made; the parser of the user-space filters reads the same from the bytes."""
    table: FragmentTable[packets.Packet] = FragmentTable()
    for packet in corpus.packets():
        read = packets.facts(packet.data, packet.facts.interface, fragments=table)
        if read is None or not read.understood:
            assert not packet.facts.understood, packet
        else:
            assert read == packet.facts, packet


def test_packets_can_be_told_apart(corpus: Corpus) -> None:
    twice = [data for data, count in Counter(packet.data for packet in corpus.packets()).items() if count > 1]
    of = defaultdict(set)
    for packet in corpus.packets():
        of[packet.data].add(packet.category)
    # Cut to a few bytes, packets are alike; no host looks at them.
    assert {category for data in twice for category in of[data]} <= {
        "fragments, one twice",
        "truncated packet",
    }


def test_with_vlan_devices_there_are_tagged_frames() -> None:
    corpus = make_corpus(packets=3_000, vlan=True)
    tagged = [packet for packet in corpus.packets() if packet.category == "VLAN tag"]
    assert {packet.facts.interface for packet in tagged} == {"eth0.7"}
    assert {packet.tag for packet in tagged} == {7}
    assert corpus.untried == ()


def test_one_family_only() -> None:
    corpus = make_corpus(packets=1_000, families=(6,))
    assert {packet.version for packet in corpus.packets()} == {6}
    assert {vip.address.version for vip in corpus.policy.vips} == {6}


def test_a_part_of_it_is_whole(corpus: Corpus) -> None:
    wanted = next(packet for packet in corpus.packets() if packet.category == "conversation: data, held")
    piece = next(packet for packet in corpus.packets() if packet.category == "fragments, in order")
    part = corpus.only([wanted.index, piece.index])
    assert {packet.conversation for packet in part.packets()} == {wanted.conversation, None}
    assert any(packet.category == "conversation: first SYN" for packet in part.packets())
    assert {packet.datagram for packet in part.packets() if packet.conversation is None} == {piece.datagram}
    assert [phase.states for phase in part.phases] == [phase.states for phase in corpus.phases]


@pytest.mark.parametrize(
    "arguments", [{"families": ()}, {"families": (5,)}, {"packets": 0}, {"packets": 120_001}]
)
def test_what_cannot_be_made_is_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make_corpus(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, 1, 0xFFFF, 0x12345678, 0xFFFFFFFF])
@pytest.mark.parametrize("version", [4, 6])
def test_an_acknowledgement_number_put_in_later(corpus: Corpus, version: int, number: int) -> None:
    packet = next(
        packet
        for packet in corpus.packets()
        if packet.transport is not None and packet.datagram is None and packet.version == version
    )
    assert packet.transport is not None
    data = wire.acknowledge(packet.data, packet.transport, number)
    assert int.from_bytes(data[packet.transport + 8 : packet.transport + 12], "big") == number
    facts = packet.facts
    length = len(data) - packet.transport
    pseudo = facts.source.packed + facts.destination.packed + length.to_bytes(4, "big") + b"\0\0\0\x06"
    if "bad checksum" not in packet.category:
        assert wire.checksum(pseudo + data[packet.transport :]) == 0
