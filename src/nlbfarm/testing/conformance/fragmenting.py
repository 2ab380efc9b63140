"""Datagrams in fragments, and what a filter that does not put them together knows of each fragment."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nlbfarm.core.decision import IcmpKind, PacketFacts
from nlbfarm.core.policy import Protocol
from nlbfarm.testing.conformance import wire
from nlbfarm.testing.conformance.singles import Singles

__all__ = ["CATEGORIES", "Fragmented", "Fragmenter", "in_pieces"]

_LEAST6 = 1240
"""Payload bytes of an IPv6 fragment that is not below the 1,280 bytes which every link carries."""
_MOST6 = 1440
_LEAST = 24
"""Payload bytes of a fragment that holds any transport header."""
_DESTINATION = 60


@dataclass(frozen=True, slots=True)
class Fragmented:
    """A datagram in fragments: each with its facts, in the order in which they are sent.

    ``data`` is the whole packet, or ``None`` if no host can put it together.
    """

    category: str
    facts: PacketFacts
    data: bytes | None
    pieces: tuple[tuple[bytes, PacketFacts], ...]


def in_pieces(
    pieces: Sequence[bytes], facts: PacketFacts, order: Sequence[int]
) -> tuple[tuple[bytes, PacketFacts], ...]:
    """Say of each fragment what a filter knows of it when it comes: those before the first are strangers."""
    found = []
    known = False
    for index in order:
        known |= index == 0
        found.append((pieces[index], facts if known else replace(facts, malformed=True)))
    return tuple(found)


class Fragmenter:
    """Makes fragmented datagrams of one IP version.

    Args:
        rng: Where all that is random comes from.
        family: 4 or 6.
        singles: What makes the datagrams.
    """

    def __init__(self, rng: random.Random, family: int, singles: Singles) -> None:
        self._rng, self._family, self._singles = rng, family, singles
        self._number = rng.getrandbits(24)

    def make(self, category: str, number: int) -> Fragmented:
        """Return a datagram of that category, which carries ``number``."""
        self._number += 1
        small = category.startswith("fragments below 1280")
        facts, packet = self._whole(number, small=small or category.startswith(("tiny", "atomic")))
        if category == "tiny first fragment":
            return self._tiny(category, facts, packet)
        if category == "atomic fragment":
            piece = wire.fragment(packet, 0, packet[40:], more=False, number=self._number)
            return Fragmented(category, facts, packet, ((piece, facts),))
        if category == "ports behind the first fragment":
            return self._late_ports(category, number)
        pieces = wire.cut(packet, self._sizes(packet, small), number=self._number)
        order = list(range(len(pieces)))
        if category == "fragments, reordered":
            while order[0] == 0:
                self._rng.shuffle(order)
        elif category == "fragments, first missing":
            del order[0]
            self._rng.shuffle(order)
        elif category == "fragments, last missing":
            del order[-1]
        elif category == "fragments, one twice":
            order.insert(1, 0)
        elif category == "fragments, overlapping":
            return self._overlapping(category, facts, packet, pieces)
        data = None if category.endswith("missing") else packet
        return Fragmented(category, facts, data, in_pieces(pieces, facts, order))

    def _whole(self, number: int, *, small: bool) -> tuple[PacketFacts, bytes]:
        singles, rng = self._singles, self._rng
        facts = singles.facts()
        length = rng.randrange(1300, 3900) if self._family == 6 and not small else rng.randrange(48, 900)
        kind = rng.choice(("udp", "udp", "syn", "tcp", "echo"))
        if kind == "echo":
            facts = replace(facts, protocol=1 if self._family == 4 else 58, icmp=IcmpKind.ECHO_REQUEST)
            kind_of = 8 if self._family == 4 else 128
            payload = wire.icmp(facts.source, facts.destination, kind_of, rng.randbytes(4 + length))
        elif kind == "udp":
            facts = singles.ported(facts, Protocol.UDP)
            payload = singles.datagram(facts, length)
        else:
            facts = replace(singles.ported(facts, Protocol.TCP), syn=kind == "syn", ack=kind == "tcp")
            payload = singles.segment(facts, 0, rng.randbytes(length))
        return facts, singles.packet(facts, payload, number=number)

    def _sizes(self, packet: bytes, small: bool) -> list[int]:
        """Return the sizes of all fragments but the last, two to five fragments in all."""
        left = len(packet) - (20 if self._family == 4 else 40)
        sizes: list[int] = []
        if self._family == 6 and not small:
            while not sizes or left > _MOST6:
                sizes.append(self._rng.randrange(_LEAST6, min(_MOST6, left - 1) + 1) // 8 * 8)
                left -= sizes[-1]
            return sizes
        for _ in range(self._rng.choice((1, 1, 2, 4))):
            if left <= _LEAST:
                break
            sizes.append(self._rng.randrange(_LEAST, left) // 8 * 8)
            left -= sizes[-1]
        return sizes

    def _overlapping(
        self, category: str, facts: PacketFacts, packet: bytes, pieces: list[bytes]
    ) -> Fragmented:
        header = 20 if self._family == 4 else 48
        start = len(pieces[0]) - header - 8
        extra = self._rng.randbytes(24 if self._family == 4 else _LEAST6)
        false = wire.fragment(packet, start, extra, more=True, number=self._number)
        sent = [(piece, facts) for piece in pieces]
        # It would write over what was judged (RFC 1858 section 4, RFC 5722).
        return Fragmented(
            category, facts, None, (sent[0], (false, replace(facts, malformed=True)), *sent[1:])
        )

    def _tiny(self, category: str, facts: PacketFacts, packet: bytes) -> Fragmented:
        pieces = wire.cut(packet, [8], number=self._number)
        # Eight bytes are the whole header of UDP and ICMP, and not half of TCP's (RFC 1858).
        if facts.protocol != Protocol.TCP:
            return Fragmented(category, facts, packet, in_pieces(pieces, facts, range(len(pieces))))
        unknown = replace(facts, malformed=True)
        sent = in_pieces(pieces, unknown, range(len(pieces)))
        if self._family == 6:  # no host puts it together (RFC 7112)
            return Fragmented(category, unknown, None, sent)
        return Fragmented(category, facts, packet, sent)

    def _late_ports(self, category: str, number: int) -> Fragmented:
        """An extension header fills the first fragment: RFC 7112 forbids it, and no host puts it together."""
        facts = self._singles.ported(self._singles.facts(), Protocol.UDP)
        padding = (bytes([1, 254]) + bytes(254)) * 4 + bytes([1, 212]) + bytes(212)  # PadN, 1238 bytes
        following, headers = wire.extensions([(_DESTINATION, bytes([154]) + padding)], Protocol.UDP)
        payload = headers + self._singles.datagram(facts)
        packet = self._singles.packet(facts, payload, number=number, protocol=following)
        pieces = wire.cut(packet, [len(headers)], number=self._number)
        unknown = replace(facts, malformed=True)
        return Fragmented(category, unknown, None, in_pieces(pieces, unknown, range(len(pieces))))


CATEGORIES: dict[str, dict[int, int]] = {
    "fragments, in order": {4: 6, 6: 6},
    "fragments, reordered": {4: 4, 6: 4},
    "fragments, first missing": {4: 3, 6: 3},
    "fragments, last missing": {4: 2, 6: 2},
    "fragments, one twice": {4: 2, 6: 2},
    "fragments, overlapping": {4: 3, 6: 3},
    "tiny first fragment": {4: 3, 6: 2},
    "fragments below 1280 bytes": {6: 2},
    "atomic fragment": {6: 3},
    "ports behind the first fragment": {6: 2},
}
"""By name: the weight for each IP version that has it."""
