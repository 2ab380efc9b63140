"""The corpus: a seeded mixture of all categories, in phases."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import UsageError
from nlbfarm.testing.conformance import fragmenting, scene, singles
from nlbfarm.testing.conformance.conversations import ROUNDS, TcpConversation, UntrackedConversation
from nlbfarm.testing.conformance.packet import Corpus, Datagram, Packet, Phase

__all__ = ["MAX_PACKETS", "make_corpus"]

MAX_PACKETS = 60_000
"""Packets of one IP version at most: each has an identification of its own, 16 bits in IPv4."""

_PHASES, _SMALLEST, _LARGEST = 16, 50, 500
"""Phases of a corpus, at least; and packets of one IP version in one, or a little more."""
_CONVERSING = 0.3
"""The share of packets that belong to conversations."""
_FRAGMENTED = 0.12
"""The share of packets that are fragments."""
_NO_LEASE, _EVERY = frozenset({0, 7}), 12
"""Phases, of every twelve, without a lease."""


def make_corpus(
    seed: int = 1, packets: int = 20_000, families: Collection[int] = (4, 6), *, vlan: bool = False
) -> Corpus:
    """Make the corpus of that seed: the same arguments give the same packets, byte for byte.

    Args:
        seed: Where all that is random comes from.
        packets: How many there shall be, all in all; there may be some more.
        families: IP versions, of 4 and 6.
        vlan: Whether packets may come with a VLAN tag, to a device of that VLAN.

    Raises:
        UsageError: No IP version, or more than ``MAX_PACKETS`` for one.
    """
    if not families or not set(families) <= {4, 6}:
        raise UsageError(f"families is {families!r}: write 4, 6 or both")
    each = -(-packets // len(families))
    if not 0 < each <= MAX_PACKETS:
        raise UsageError(f"{packets} packets: at least 1, and at most {MAX_PACKETS} for each IP version")
    rng = random.Random(f"nlbfarm conformance {seed}")
    policy = scene.policy(rng, families, vlan=vlan)
    writers = [_Writer(rng, family, policy, each, vlan=vlan) for family in sorted(families)]
    index = itertools.count()
    phases = []
    for number, states in enumerate(scene.states(rng, policy)):
        if all(writer.left <= 0 for writer in writers):
            break
        lease = number % _EVERY not in _NO_LEASE
        rounds: list[list[list[Packet]]] = [[] for _ in range(ROUNDS)]
        for writer in writers:
            for at, item in writer.phase(states, lease, index):
                rounds[at].append(item)
        phases.append(Phase(number, states, lease, tuple(tuple(_mixed(rng, items)) for items in rounds)))
    datagrams = {key: datagram for writer in writers for key, datagram in writer.datagrams.items()}
    untried = () if vlan else ("VLAN-tagged frames: this host has no VLAN devices",)
    return Corpus(seed, policy, tuple(phases), datagrams, untried)


def _mixed(rng: random.Random, items: Sequence[Sequence[Packet]]) -> Iterator[Packet]:
    """Yield the packets of all items at random, but those of each item (a datagram) in their order."""
    turns = [item for item, packets in enumerate(items) for _ in packets]
    rng.shuffle(turns)
    following = [iter(packets) for packets in items]
    for item in turns:
        yield next(following[item])


class _Writer:
    """Writes the packets of one IP version, phase by phase."""

    def __init__(
        self, rng: random.Random, family: int, policy: FilterPolicy, packets: int, *, vlan: bool
    ) -> None:
        self._rng, self._family, self._policy = rng, family, policy
        self.left = packets
        self._room = max(_SMALLEST, min(_LARGEST, packets // _PHASES))
        self.datagrams: dict[int, Datagram] = {}
        self._numbers = itertools.count(1)
        self._singles = singles.Singles(rng, family, policy)
        self._fragmenter = fragmenting.Fragmenter(rng, family, self._singles)
        self._kinds = {
            name: weights[family]
            for name, (weights, _) in singles.CATEGORIES.items()
            if family in weights and (vlan or name != "VLAN tag")
        }
        self._fragmented = {
            name: weights[family] for name, weights in fragmenting.CATEGORIES.items() if family in weights
        }
        self._live: dict[int, TcpConversation | UntrackedConversation] = {}
        self._conversations = itertools.count(family, 10)

    def phase(
        self, states: scene.States, lease: bool, index: Iterator[int]
    ) -> Iterator[tuple[int, list[Packet]]]:
        """Yield the items of a phase, one packet or one datagram each, with their rounds."""
        room = min(self._room, self.left)
        if room <= 0:
            return
        written = 0
        while written < room * _CONVERSING and len(self._live) < room:
            kind = TcpConversation if self._rng.random() < 0.8 else UntrackedConversation
            number = next(self._conversations)
            self._live[number] = kind(self._rng, self._family, self._policy, self._next)
            written += 5
        written = 0
        for number, conversation in list(self._live.items()):
            for at, said in conversation.phase(states, lease):
                item = self._item(
                    index,
                    said.category,
                    said.pieces,
                    Datagram(-1, said.whole, said.data, said.established),
                    number,
                    said.transport,
                )
                written += len(item)
                yield at, item
            if conversation.over:
                del self._live[number]
        fragments = 0
        while fragments < room * _FRAGMENTED:
            name = self._chosen(self._fragmented)
            made = self._fragmenter.make(name, self._next())
            item = self._item(index, made.category, made.pieces, Datagram(-1, made.facts, made.data))
            fragments += len(item)
            yield self._rng.randrange(ROUNDS), item
        written += fragments
        while written < room:
            single = self._singles.make(self._chosen(self._kinds), self._next())
            pieces = ((single.data, single.facts),)
            yield (
                self._rng.randrange(ROUNDS),
                self._item(
                    index, single.category, pieces, Datagram(-1, single.facts, single.data), tag=single.tag
                ),
            )
            written += 1
        self.left -= written

    def _next(self) -> int:
        return next(self._numbers)

    def _chosen(self, weights: dict[str, int]) -> str:
        return self._rng.choices(tuple(weights), tuple(weights.values()))[0]

    def _item(
        self,
        index: Iterator[int],
        category: str,
        pieces: Sequence[tuple[bytes, PacketFacts]],
        whole: Datagram,
        conversation: int | None = None,
        transport: int | None = None,
        *,
        tag: int | None = None,
    ) -> list[Packet]:
        datagram = None
        if len(pieces) > 1 or "fragment" in category:
            datagram = len(self.datagrams) * 10 + self._family
            self.datagrams[datagram] = replace(whole, number=datagram)
        to_group = self._rng.random() < 0.5
        return [
            Packet(
                next(index),
                category,
                data,
                facts,
                whole.established,
                conversation,
                datagram,
                transport if place == 0 else None,
                tag,
                to_group,
            )
            for place, (data, facts) in enumerate(pieces)
        ]
