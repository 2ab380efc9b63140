"""Whole conversations, which go on while their buckets change hands."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from nlbfarm.core.buckets import BucketStates
from nlbfarm.core.decision import ICMP, ICMPV6, IcmpKind, PacketFacts, decide
from nlbfarm.core.policy import FilterPolicy, IPAddress, Protocol
from nlbfarm.testing.conformance import wire
from nlbfarm.testing.conformance.fragmenting import in_pieces
from nlbfarm.testing.conformance.scene import HELD_PORTS, OPEN, OTHER_INTERFACE, VIP, client

__all__ = ["ROUNDS", "Said", "TcpConversation", "UntrackedConversation"]

ROUNDS = 4
"""Rounds of a phase: who waits for an answer speaks again in a later one."""

_FAR = 5_000_000
_WORD = 1 << 32


@dataclass(frozen=True, slots=True)
class Said:
    """What a conversation sends in one round; the fields are those of ``Packet``.

    More than one piece: a datagram in fragments, each with its facts.
    """

    category: str
    data: bytes
    pieces: tuple[tuple[bytes, PacketFacts], ...]
    whole: PacketFacts
    established: bool = False
    transport: int | None = None


class TcpConversation:
    """A client that connects and speaks, whatever comes back.

    It is established here once its SYN met a filter that was to accept it; its packets can be followed only
    by a filter that knows that. One whose SYN was dropped is, to this node, a connection of another.

    Args:
        rng: Where all that is random comes from.
        family: 4 or 6.
        policy: What it meets.
        number: Returns a number for each packet.
    """

    def __init__(
        self, rng: random.Random, family: int, policy: FilterPolicy, number: Callable[[], int]
    ) -> None:
        self._rng, self._family, self._policy, self._number = rng, family, policy, number
        interfaces = {vip.address: vip.interface for vip in policy.vips}
        places: list[tuple[IPAddress, int]] = [
            (rule.vip, port)
            for rule in policy.rules
            if rule.protocol is Protocol.TCP
            and rule.vip in {VIP[family], OPEN[family], OTHER_INTERFACE[family]}
            for port in rule.ports
            if port in HELD_PORTS
        ]
        vip, port = rng.choice(places)
        self._facts = PacketFacts(
            interfaces[vip], client(rng, family), vip, Protocol.TCP, rng.randrange(1024, 65536), port
        )
        self._first = rng.getrandbits(32)
        self._next = (self._first + 1) % _WORD
        self._opened = self._completed = self._finished = False
        self._phases = 0
        self._life = rng.randrange(2, 7)
        self.over = False
        """It says nothing any more."""

    def phase(self, states: Mapping[str, BucketStates], lease: bool) -> Iterator[tuple[int, Said]]:
        """Yield what it says in the next phase, and in which rounds."""
        self._phases += 1
        for at, what in enumerate(self._plan()):
            yield at, self._say(what, states, lease)
        if self._phases >= self._life:
            self.over = True

    def _plan(self) -> list[str]:
        rng = self._rng
        if self._phases == 1:
            return ["syn", *rng.choice((["ack"], ["ack", "data"], ["syn again", "ack", "data"], []))]
        if not self._opened:
            return rng.choice(
                (["ack"], ["data"], ["syn again"], ["syn again", "ack", "data"], ["fin"], ["rst"])
            )
        if not self._completed:
            return rng.choice((["ack"], ["ack", "data"], ["syn again", "ack", "out of window"]))
        if self._phases >= self._life:
            return rng.choice(
                (["data", "fin", "ack"], ["fin", "fin", "ack"], ["rst"], ["data", "data", "rst"])
            )
        some = ("data", "data", "ack", "out of window", "syn again", "bad checksum", "in fragments")
        return [rng.choice(some) for _ in range(rng.randrange(1, ROUNDS + 1))]

    def _say(self, what: str, states: Mapping[str, BucketStates], lease: bool) -> Said:
        syn = what in ("syn", "syn again")
        facts = replace(self._facts, syn=syn, ack=not syn)
        accepted = decide(self._policy, states, lease, replace(facts, established_here=self._opened)).accepted
        # Nothing is out of the window of a connection that the node's own stack does not hold.
        if what == "out of window" and not self._completed:
            what = "data"
        payload = self._rng.randbytes(self._rng.randrange(1, 200)) if what in _SPEAKING else b""
        if what == "in fragments":
            payload = self._rng.randbytes(3000 if self._family == 6 else 600)
        sequence = self._first if syn else self._next
        if what == "out of window":
            sequence = (sequence + _FAR) % _WORD
        flags = {"fin": wire.FIN | wire.ACK, "rst": wire.RST | wire.ACK}.get(
            what, wire.SYN if syn else wire.ACK
        )
        established, known = self._opened, self._opened and not syn
        data = self._segment(flags, sequence, payload, known)
        if what == "bad checksum":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if accepted:
            self._accepted(what, len(payload))
        whose = "held" if established else "another's"
        category = f"conversation: {'first SYN' if what == 'syn' else f'{what}, {whose}'}"
        transport = (20 if self._family == 4 else 40) if known else None
        pieces: tuple[tuple[bytes, PacketFacts], ...] = ((data, facts),)
        if what == "in fragments":
            sizes = [240, 240] if self._family == 4 else [1280, 1280]
            cut = wire.cut(data, sizes, number=self._rng.getrandbits(32))
            pieces = in_pieces(cut, facts, range(len(cut)))
            transport = transport and (transport if self._family == 4 else transport + 8)
        return Said(category, data, pieces, facts, established, transport)

    def _segment(self, flags: int, sequence: int, payload: bytes, known: bool) -> bytes:
        facts = self._facts
        assert facts.source_port is not None
        assert facts.destination_port is not None
        segment = wire.tcp(
            facts.source,
            facts.destination,
            (facts.source_port, facts.destination_port),
            flags | (wire.PSH if payload else 0),
            sequence=sequence,
            answers=1 if known else (0 if flags & wire.SYN else self._rng.getrandbits(32)),
            payload=payload,
        )
        if self._family == 4:
            return wire.ipv4(facts.source, facts.destination, Protocol.TCP, segment, number=self._number())
        return wire.ipv6(facts.source, facts.destination, Protocol.TCP, segment, number=self._number())

    def _accepted(self, what: str, length: int) -> None:
        if what in ("syn", "syn again"):
            self._opened = True
        elif not self._opened:
            return
        elif what in ("ack", "data", "fin", "in fragments"):
            self._completed = True
        if what in ("data", "in fragments") and self._completed:
            self._next = (self._next + length) % _WORD
        elif what == "fin" and not self._finished:
            self._finished = True
            self._next = (self._next + 1) % _WORD
        elif what == "rst":
            self.over = True


_SPEAKING = frozenset({"data", "out of window", "bad checksum"})


class UntrackedConversation:
    """A client that sends UDP, or pings, once in every phase.

    Args:
        rng: Where all that is random comes from.
        family: 4 or 6.
        policy: What it meets.
        number: Returns a number for each packet.
    """

    def __init__(
        self, rng: random.Random, family: int, policy: FilterPolicy, number: Callable[[], int]
    ) -> None:
        self._rng, self._family, self._number = rng, family, number
        self._left = rng.randrange(2, 9)
        self._ping = rng.random() < 0.3
        interfaces = {vip.address: vip.interface for vip in policy.vips}
        served = [
            (rule.vip, port)
            for rule in policy.rules
            if rule.protocol is Protocol.UDP and rule.vip.version == family and rule.group != "marker"
            for port in rule.ports
        ]
        vip, port = rng.choice(served)
        facts = PacketFacts(
            interfaces[vip], client(rng, family), vip, Protocol.UDP, rng.randrange(65536), port
        )
        if self._ping:
            facts = replace(
                facts,
                protocol=ICMP if family == 4 else ICMPV6,
                source_port=None,
                destination_port=None,
                icmp=IcmpKind.ECHO_REQUEST,
            )
        self._facts = facts
        self.over = False
        """It says nothing any more."""

    def phase(self, states: Mapping[str, BucketStates], lease: bool) -> Iterator[tuple[int, Said]]:
        """Yield what it says in the next phase, and in which round."""
        facts, rng = self._facts, self._rng
        if self._ping:
            kind = 8 if self._family == 4 else 128
            payload = wire.icmp(facts.source, facts.destination, kind, rng.randbytes(60))
        else:
            assert facts.source_port is not None
            assert facts.destination_port is not None
            ports = facts.source_port, facts.destination_port
            payload = wire.udp(facts.source, facts.destination, ports, rng.randbytes(30))
        packet = wire.ipv4 if self._family == 4 else wire.ipv6
        data = packet(facts.source, facts.destination, facts.protocol, payload, number=self._number())
        category = f"conversation: {'pings' if self._ping else 'udp'} across phases"
        self._left -= 1
        self.over = self._left == 0
        yield rng.randrange(ROUNDS), Said(category, data, ((data, facts),), facts)
