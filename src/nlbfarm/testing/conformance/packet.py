"""What a corpus is made of: packets, datagrams that come in fragments, and phases."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from nlbfarm.core.buckets import BucketStates
from nlbfarm.core.decision import Decision, PacketFacts, decide
from nlbfarm.core.policy import FilterPolicy

__all__ = ["Corpus", "Datagram", "Packet", "Phase"]


@dataclass(frozen=True, slots=True)
class Datagram:
    """An IP packet that comes in fragments.

    Args:
        number: What its fragments have as ``Packet.datagram``.
        facts: Those of the whole packet.
        data: The whole packet; ``None`` if it never comes to be, for want of a piece, or because two overlap.
        established: Its flow is established here.
    """

    number: int
    facts: PacketFacts
    data: bytes | None
    established: bool = False


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet on the wire.

    Args:
        index: Its number in the corpus, by which it can be replayed.
        category: What it is an example of.
        data: Its bytes, from the IP header on.
        facts: What a decision looks at; of a fragment, that of its first fragment, as far as that has come.
        established: Its flow is established here, as the oracle has it: its SYN was to be accepted.
        conversation: Number of the conversation that it belongs to; packets of one are replayed together.
        datagram: The datagram that it is a fragment of.
        transport: Where its TCP header begins, if it acknowledges a SYN-ACK, whose number nobody knows
            before.
        tag: VLAN id of an 802.1Q tag.
        to_group: It is sent to the group MAC, not to the node's own.
    """

    index: int
    category: str
    data: bytes
    facts: PacketFacts
    established: bool = False
    conversation: int | None = None
    datagram: int | None = None
    transport: int | None = None
    tag: int | None = None
    to_group: bool = False

    @property
    def version(self) -> int:
        """The IP version, 4 or 6, that its frame says."""
        return self.facts.destination.version


@dataclass(frozen=True, slots=True)
class Phase:
    """Packets that meet the same bucket states.

    Args:
        number: 0 is the first.
        states: The states of each group.
        lease: Whether the filter has a lease.
        rounds: The packets, in order. Those of a round may come at any pace; between two rounds everybody
            waits until all have been judged and answered.
    """

    number: int
    states: Mapping[str, BucketStates]
    lease: bool
    rounds: tuple[tuple[Packet, ...], ...]

    def packets(self) -> Iterator[Packet]:
        """Yield all packets, in order."""
        for packets in self.rounds:
            yield from packets


@dataclass(frozen=True, slots=True)
class Corpus:
    """Packets, and what the oracle says of each.

    Args:
        seed: What it was made from.
        policy: What the filter is to enforce.
        phases: The packets.
        datagrams: Those that come in fragments, by number.
        untried: What could not be made, and why; a line each.
    """

    seed: int
    policy: FilterPolicy
    phases: tuple[Phase, ...]
    datagrams: Mapping[int, Datagram]
    untried: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of packets."""
        return sum(len(packets) for phase in self.phases for packets in phase.rounds)

    def packets(self) -> Iterator[Packet]:
        """Yield all packets, in order."""
        for phase in self.phases:
            yield from phase.packets()

    def decision(self, phase: Phase, packet: Packet, *, whole: bool) -> Decision:
        """Return the oracle's decision.

        Args:
            phase: When it is sent.
            packet: The packet.
            whole: Whether the filter sees datagrams as a whole, as one behind connection tracking does, not
                their fragments.
        """
        facts, established = packet.facts, packet.established
        if whole and packet.datagram is not None:
            datagram = self.datagrams[packet.datagram]
            facts, established = datagram.facts, datagram.established
        if established:
            facts = replace(facts, established_here=True)
        return decide(self.policy, phase.states, phase.lease, facts)

    def only(self, indices: Collection[int]) -> Corpus:
        """Return the corpus with these packets and what they need: their conversations and fragments."""
        chosen = [packet for packet in self.packets() if packet.index in indices]
        conversations = {packet.conversation for packet in chosen} - {None}
        datagrams = {packet.datagram for packet in chosen} - {None}

        def kept(packets: tuple[Packet, ...]) -> tuple[Packet, ...]:
            return tuple(
                packet
                for packet in packets
                if packet.index in indices
                or packet.conversation in conversations
                or packet.datagram in datagrams
            )

        phases = tuple(replace(phase, rounds=tuple(map(kept, phase.rounds))) for phase in self.phases)
        return replace(self, phases=phases)
