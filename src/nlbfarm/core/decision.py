"""The oracle: what a filter does with a packet, and why. Every backend is compared with it.

The checks, in this order; the first that speaks decides:

1. Not for a VIP, or not on that VIP's interface: not filtered. Neither is neighbour discovery; ARP never
   gets here.
2. Not to be understood (truncated, headers that are not so, a fragment whose first was never seen;
   ``nlbfarm.core.packets`` has all of it): dropped.
3. An ICMP error: accepted by every node. It comes from a router, no hash fits it, and a node that does not
   know the flow it speaks of ignores it; path MTU discovery needs it.
4. Covered by no rule: dropped on every node, unless the VIP says ``accept_uncovered``.
5. The group is ``blocked``: dropped.
6. The state of its bucket:

   =========== ========== ========================= ================
   state       a new flow established here          any other packet
   =========== ========== ========================= ================
   ``OWN``     accept     accept                    accept
   ``ADOPT``   accept     accept                    drop
   ``DRAIN``   drop       accept                    drop
   ``FOREIGN`` drop       drop                      drop
   =========== ========== ========================= ================

Wherever this says *accept* (1 excepted), it is only while the lease runs. The lease is asked right after the
bucket is found not to be foreign, so a packet that is dropped anyway does not cost the look-up.

*New flow*: TCP SYN without ACK. *Established here*: a flow whose first packet this node accepted for the
VIP and that it remembers by a mark of its own. UDP and ICMP echo requests have no SYN and would look new to
both sides of a move: for them ``ADOPT`` is ``OWN`` and ``DRAIN`` is ``FOREIGN``.

An ICMP echo request belongs to the group of the VIP's first rule, in the order of the policy, with the
client's address as key: one node answers a ping. To a VIP without rules it is uncovered.

Answers to connections that a node itself opened *from* the VIP are refused: they are packets like any other,
and as a rule uncovered. A node's own connections use its own address.

Fragments carry the facts of their first fragment.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from nlbfarm.core.buckets import BucketState, BucketStates
from nlbfarm.core.hashing import bucket_of, echo_key, flow_key
from nlbfarm.core.policy import FilterPolicy, Group, IPAddress, Mode, Protocol, Rule, Vip

__all__ = [
    "ICMP",
    "ICMPV6",
    "Decision",
    "IcmpKind",
    "PacketFacts",
    "Reason",
    "Verdict",
    "decide",
    "icmp_kind",
]

ICMP = 1
"""Protocol number of ICMP (IPv4)."""

ICMPV6 = 58
"""Protocol number of ICMPv6."""


class Verdict(enum.Enum):
    """What happens to a packet."""

    ACCEPT = "accept"
    DROP = "drop"


class Reason(enum.StrEnum):
    """Why; also the names of the counters in ``nlbfarm.interfaces.FilterCounters``."""

    NOT_FILTERED = "not-filtered"
    MALFORMED = "malformed"
    ICMP_ERROR = "icmp-error"
    UNCOVERED = "uncovered"
    BLOCKED = "blocked"
    FOREIGN = "foreign"
    NO_LEASE = "no-lease"
    OWN = "own"
    ADOPT = "adopt"
    DRAIN = "drain"
    NOT_NEW = "not-new"


class IcmpKind(enum.Enum):
    """What matters here of an ICMP or ICMPv6 message's type."""

    ECHO_REQUEST = "echo-request"
    ERROR = "error"
    NEIGHBOUR = "neighbour"
    OTHER = "other"


def icmp_kind(version: int, icmp_type: int) -> IcmpKind:
    """Sort an ICMP message by its type.

    ``ERROR`` is what a router reports about a packet of ours: unreachable, time exceeded, parameter problem
    and, in IPv6, packet too big. Redirects and the obsolete source quench (RFC 6633) are not among them.

    Args:
        version: 4 or 6.
        icmp_type: The message's type, 0..255.

    Source: RFC 792, RFC 4443 section 2.1, RFC 4861 section 4 (neighbour discovery, 133..137).
    """
    if version == 4:
        kinds = {8: IcmpKind.ECHO_REQUEST, 3: IcmpKind.ERROR, 11: IcmpKind.ERROR, 12: IcmpKind.ERROR}
        return kinds.get(icmp_type, IcmpKind.OTHER)
    if 1 <= icmp_type <= 4:
        return IcmpKind.ERROR
    if icmp_type == 128:
        return IcmpKind.ECHO_REQUEST
    if 133 <= icmp_type <= 137:
        return IcmpKind.NEIGHBOUR
    return IcmpKind.OTHER


@dataclass(frozen=True, slots=True)
class PacketFacts:
    """What a decision looks at, of one packet that arrived.

    A later fragment carries the facts of its first fragment; if that was never seen, it is ``malformed``.

    Args:
        interface: Name of the interface it arrived on.
        source, destination: Its addresses, of one version.
        protocol: Protocol number (IPv6: of the last header).
        source_port, destination_port: TCP and UDP only; ``None`` there means that the header is cut off.
        syn, ack: TCP flags.
        established_here: It belongs to a flow whose first packet this node accepted for the VIP. A SYN sent
            again does, and so does a packet outside the window.
        icmp: The kind of ICMP or ICMPv6 message; ``None`` there means that the header is cut off.
        malformed: It cannot be understood.

    Raises:
        ValueError: If the addresses are of two versions.
    """

    interface: str
    source: IPAddress
    destination: IPAddress
    protocol: int
    source_port: int | None = None
    destination_port: int | None = None
    syn: bool = False
    ack: bool = False
    established_here: bool = False
    icmp: IcmpKind | None = None
    malformed: bool = False

    def __post_init__(self) -> None:
        if self.source.version != self.destination.version:
            raise ValueError(f"a packet from {self.source} to {self.destination}")

    @property
    def is_icmp(self) -> bool:
        """Whether it is ICMP over IPv4 or ICMPv6 over IPv6."""
        return self.protocol == (ICMP if self.destination.version == 4 else ICMPV6)

    @property
    def opens_flow(self) -> bool:
        """Whether it is the first packet of a TCP connection: SYN without ACK."""
        return self.protocol == Protocol.TCP and self.syn and not self.ack

    @property
    def understood(self) -> bool:
        """Whether all that a decision needs is there."""
        if self.malformed:
            return False
        if self.protocol in (Protocol.TCP, Protocol.UDP):
            return self.source_port is not None and self.destination_port is not None
        return self.icmp is not None or not self.is_icmp


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a packet, and why.

    Args:
        verdict: Accept or drop.
        reason: Why; a counter's name.
        group: Name of the group it belongs to; ``None`` outside every group.
        bucket: Its bucket, if one was looked at.
    """

    verdict: Verdict
    reason: Reason
    group: str | None = None
    bucket: int | None = None

    @property
    def accepted(self) -> bool:
        """Whether the packet may pass."""
        return self.verdict is Verdict.ACCEPT


def decide(
    policy: FilterPolicy,
    states: Mapping[str, BucketStates],
    lease_running: bool,
    packet: PacketFacts,
) -> Decision:
    """Decide what the filter of one node does with one packet that arrived there.

    Args:
        policy: What the filter enforces.
        states: The bucket states of each group; a group left out is all ``FOREIGN``.
        lease_running: Whether the filter may accept now.
        packet: The packet.
    """
    vip = _vip(policy, packet)
    if vip is None or (packet.is_icmp and packet.icmp is IcmpKind.NEIGHBOUR):
        return Decision(Verdict.ACCEPT, Reason.NOT_FILTERED)
    if not packet.understood:
        return Decision(Verdict.DROP, Reason.MALFORMED)
    if packet.is_icmp and packet.icmp is IcmpKind.ERROR:
        return _leased(lease_running, Reason.ICMP_ERROR)

    rule = _rule(policy, packet)
    if rule is None:
        if vip.accept_uncovered:
            return _leased(lease_running, Reason.UNCOVERED)
        return Decision(Verdict.DROP, Reason.UNCOVERED)

    group = policy.group(rule.group)
    if group.mode is Mode.BLOCKED:
        return Decision(Verdict.DROP, Reason.BLOCKED, group.name)

    bucket = _bucket(rule, group, packet)
    state = states.get(group.name, BucketStates()).state(bucket)
    if packet.protocol != Protocol.TCP:  # no SYN: a move switches at once
        state = {BucketState.ADOPT: BucketState.OWN, BucketState.DRAIN: BucketState.FOREIGN}.get(state, state)

    if state is BucketState.FOREIGN:
        return Decision(Verdict.DROP, Reason.FOREIGN, group.name, bucket)
    if not lease_running:
        return Decision(Verdict.DROP, Reason.NO_LEASE, group.name, bucket)
    if state is BucketState.OWN:
        return Decision(Verdict.ACCEPT, Reason.OWN, group.name, bucket)
    if state is BucketState.ADOPT and (packet.opens_flow or packet.established_here):
        return Decision(Verdict.ACCEPT, Reason.ADOPT, group.name, bucket)
    if state is BucketState.DRAIN and packet.established_here:
        return Decision(Verdict.ACCEPT, Reason.DRAIN, group.name, bucket)
    return Decision(Verdict.DROP, Reason.NOT_NEW, group.name, bucket)


def _leased(lease_running: bool, reason: Reason) -> Decision:
    if lease_running:
        return Decision(Verdict.ACCEPT, reason)
    return Decision(Verdict.DROP, Reason.NO_LEASE)


def _vip(policy: FilterPolicy, packet: PacketFacts) -> Vip | None:
    for vip in policy.vips:
        if vip.address == packet.destination and vip.interface == packet.interface:
            return vip
    return None


def _rule(policy: FilterPolicy, packet: PacketFacts) -> Rule | None:
    echo = packet.is_icmp and packet.icmp is IcmpKind.ECHO_REQUEST
    for rule in policy.rules:
        if rule.vip != packet.destination:
            continue
        if echo or (rule.protocol == packet.protocol and packet.destination_port in rule.ports):
            return rule
    return None


def _bucket(rule: Rule, group: Group, packet: PacketFacts) -> int:
    if packet.is_icmp:
        key = echo_key(packet.source)
    else:
        key = flow_key(rule.affinity, packet.source, packet.source_port or 0)
    return bucket_of(key, group.seed)
