"""The oracle: the table of DESIGN section 4 row by row, and the order of the checks."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.core.buckets import ALL, BucketState, BucketStates
from nlbfarm.core.decision import (
    ICMP,
    ICMPV6,
    Decision,
    IcmpKind,
    PacketFacts,
    Reason,
    Verdict,
    decide,
    icmp_kind,
)
from nlbfarm.core.hashing import bucket_of, echo_key, flow_key
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, IPAddress, Mode, Protocol, Rule, Vip

VIP4 = IPv4Address("192.0.2.100")
VIP6 = IPv6Address("2001:db8::100")
OPEN = IPv4Address("192.0.2.101")
CLIENT4 = IPv4Address("198.51.100.7")
CLIENT6 = IPv6Address("2001:db8:5:6::7")

POLICY = FilterPolicy(
    farm="shop",
    vips=(Vip(VIP4, "eth0"), Vip(VIP6, "eth0"), Vip(OPEN, "eth1", accept_uncovered=True)),
    groups=(
        Group("web", 0x1234),
        Group("dns", 77),
        Group("mail", 5, Mode.FAILOVER),
        Group("shut", 9, Mode.BLOCKED),
    ),
    rules=(
        Rule("web", "web", VIP4, Protocol.TCP, (80, 443)),
        Rule("web6", "web", VIP6, Protocol.TCP, (80, 443), Affinity.NETWORK),
        Rule("dns", "dns", VIP4, Protocol.UDP, (53,), Affinity.CLIENT),
        Rule("dns6", "dns", VIP6, Protocol.UDP, (53,)),
        Rule("mail", "mail", VIP4, Protocol.TCP, (25,), Affinity.CLIENT),
        Rule("shut", "shut", VIP4, Protocol.TCP, (99,)),
    ),
)

IN_STATE = {
    BucketState.OWN: BucketStates(own=ALL),
    BucketState.ADOPT: BucketStates(adopt=ALL),
    BucketState.DRAIN: BucketStates(drain=ALL),
    BucketState.FOREIGN: BucketStates(),
}


def every_group(state: BucketState) -> dict[str, BucketStates]:
    return {group.name: IN_STATE[state] for group in POLICY.groups}


OWN = every_group(BucketState.OWN)


def tcp(
    vip: IPAddress = VIP4,
    port: int = 80,
    *,
    flags: str = "S",
    established: bool = False,
    source_port: int = 40000,
) -> PacketFacts:
    return PacketFacts(
        interface="eth1" if vip == OPEN else "eth0",
        source=CLIENT4 if vip.version == 4 else CLIENT6,
        destination=vip,
        protocol=Protocol.TCP,
        source_port=source_port,
        destination_port=port,
        syn="S" in flags,
        ack="A" in flags,
        established_here=established,
    )


def udp(vip: IPAddress = VIP4, port: int = 53) -> PacketFacts:
    return replace(tcp(vip, port, flags=""), protocol=Protocol.UDP)


def icmp(kind: IcmpKind | None, vip: IPAddress = VIP4) -> PacketFacts:
    return replace(
        tcp(vip, flags=""),
        protocol=ICMP if vip.version == 4 else ICMPV6,
        source_port=None,
        destination_port=None,
        icmp=kind,
    )


NEW = {"flags": "S"}
AGAIN = {"flags": "S", "established": True}
ESTABLISHED = {"flags": "A", "established": True}
OTHER = {"flags": "A"}
STRAY_SYN_ACK = {"flags": "SA"}
RST = {"flags": ""}


@pytest.mark.parametrize("vip", [VIP4, VIP6], ids=str)
@pytest.mark.parametrize(
    ("state", "packet", "accepted", "reason"),
    [
        (BucketState.OWN, NEW, True, "own"),
        (BucketState.OWN, AGAIN, True, "own"),
        (BucketState.OWN, ESTABLISHED, True, "own"),
        (BucketState.OWN, OTHER, True, "own"),
        (BucketState.OWN, STRAY_SYN_ACK, True, "own"),
        (BucketState.OWN, RST, True, "own"),
        (BucketState.ADOPT, NEW, True, "adopt"),
        (BucketState.ADOPT, AGAIN, True, "adopt"),
        (BucketState.ADOPT, ESTABLISHED, True, "adopt"),
        (BucketState.ADOPT, OTHER, False, "not-new"),
        (BucketState.ADOPT, STRAY_SYN_ACK, False, "not-new"),
        (BucketState.ADOPT, RST, False, "not-new"),
        (BucketState.DRAIN, NEW, False, "not-new"),
        (BucketState.DRAIN, AGAIN, True, "drain"),
        (BucketState.DRAIN, ESTABLISHED, True, "drain"),
        (BucketState.DRAIN, OTHER, False, "not-new"),
        (BucketState.DRAIN, STRAY_SYN_ACK, False, "not-new"),
        (BucketState.DRAIN, RST, False, "not-new"),
        (BucketState.FOREIGN, NEW, False, "foreign"),
        (BucketState.FOREIGN, AGAIN, False, "foreign"),
        (BucketState.FOREIGN, ESTABLISHED, False, "foreign"),
        (BucketState.FOREIGN, OTHER, False, "foreign"),
        (BucketState.FOREIGN, STRAY_SYN_ACK, False, "foreign"),
        (BucketState.FOREIGN, RST, False, "foreign"),
    ],
)
def test_the_table(
    vip: IPAddress, state: BucketState, packet: dict[str, bool | str], accepted: bool, reason: str
) -> None:
    decision = decide(POLICY, every_group(state), True, tcp(vip, **packet))  # type: ignore[arg-type]
    assert decision.accepted is accepted
    assert decision.reason == reason
    assert decision.group == "web"
    assert decision.bucket is not None


@pytest.mark.parametrize("packet", [udp(), udp(VIP6), icmp(IcmpKind.ECHO_REQUEST)])
@pytest.mark.parametrize(
    ("state", "accepted", "reason"),
    [
        (BucketState.OWN, True, "own"),
        (BucketState.ADOPT, True, "own"),
        (BucketState.DRAIN, False, "foreign"),
        (BucketState.FOREIGN, False, "foreign"),
    ],
)
@pytest.mark.parametrize("established", [False, True])
def test_udp_and_echo_switch_at_once(
    packet: PacketFacts, state: BucketState, accepted: bool, reason: str, established: bool
) -> None:
    decision = decide(POLICY, every_group(state), True, replace(packet, established_here=established))
    assert (decision.accepted, decision.reason) == (accepted, reason)


@pytest.mark.parametrize(
    ("packet", "seed", "key"),
    [
        (tcp(VIP4), 0x1234, flow_key(Affinity.CLIENT_PORT, CLIENT4, 40000)),
        (tcp(VIP6), 0x1234, flow_key(Affinity.NETWORK, CLIENT6, 0)),
        (tcp(VIP4, 25), 5, flow_key(Affinity.CLIENT, CLIENT4, 0)),
        (udp(VIP4), 77, flow_key(Affinity.CLIENT, CLIENT4, 0)),
        (udp(VIP6), 77, flow_key(Affinity.CLIENT_PORT, CLIENT6, 40000)),
        (icmp(IcmpKind.ECHO_REQUEST, VIP4), 0x1234, echo_key(CLIENT4)),
        (icmp(IcmpKind.ECHO_REQUEST, VIP6), 0x1234, echo_key(CLIENT6)),
    ],
)
def test_the_bucket_is_the_rules(packet: PacketFacts, seed: int, key: bytes) -> None:
    bucket = bucket_of(key, seed)
    owned = {group.name: BucketStates(own=1 << bucket) for group in POLICY.groups}
    decision = decide(POLICY, owned, True, packet)
    assert (decision.verdict, decision.bucket) == (Verdict.ACCEPT, bucket)
    others = {group.name: BucketStates(own=ALL ^ 1 << bucket) for group in POLICY.groups}
    assert decide(POLICY, others, True, packet).reason == "foreign"


@given(st.integers(0, 65535), st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_exactly_one_of_several_nodes_accepts(port: int, client: IPAddress) -> None:
    vip = VIP4 if client.version == 4 else VIP6
    packets = [replace(p, source=client) for p in (tcp(vip, source_port=port), udp(vip))]
    packets.append(replace(icmp(IcmpKind.ECHO_REQUEST, vip), source=client))
    thirds = [sum(1 << bucket for bucket in range(first, 256, 3)) for first in range(3)]
    nodes = [{group.name: BucketStates(own=third) for group in POLICY.groups} for third in thirds]
    for packet in packets:
        assert sum(decide(POLICY, states, True, packet).accepted for states in nodes) == 1


class TestNotFiltered:
    """Nothing of ours: accepted, lease or not."""

    @pytest.mark.parametrize("running", [True, False])
    @pytest.mark.parametrize(
        "packet",
        [
            replace(tcp(), destination=IPv4Address("192.0.2.99")),
            replace(tcp(), interface="lo"),  # a client on the node itself
            replace(tcp(), interface="eth1"),
            replace(tcp(), interface="lo", malformed=True),
            icmp(IcmpKind.NEIGHBOUR, VIP6),
        ],
    )
    def test_accepted(self, packet: PacketFacts, running: bool) -> None:
        assert decide(POLICY, {}, running, packet) == Decision(Verdict.ACCEPT, Reason.NOT_FILTERED)


class TestUncovered:
    @pytest.mark.parametrize(
        "packet",
        [
            tcp(port=8080),
            udp(port=80),
            tcp(port=53),
            tcp(VIP6, 25),
            icmp(IcmpKind.OTHER),
            replace(tcp(), protocol=47, source_port=None, destination_port=None),
            replace(icmp(IcmpKind.ECHO_REQUEST, VIP6), protocol=ICMP),  # ICMPv4 inside IPv6
            # The answer to a connection that this node opened from the VIP.
            replace(tcp(port=51000, flags="SA"), source_port=443),
        ],
    )
    def test_dropped_by_every_node(self, packet: PacketFacts) -> None:
        for running in (True, False):
            assert decide(POLICY, OWN, running, packet) == Decision(Verdict.DROP, Reason.UNCOVERED)

    @pytest.mark.parametrize("packet", [tcp(OPEN, 8080), udp(OPEN), icmp(IcmpKind.ECHO_REQUEST, OPEN)])
    def test_accepted_by_every_node_where_the_vip_says_so_but_not_without_a_lease(
        self, packet: PacketFacts
    ) -> None:
        assert decide(POLICY, {}, True, packet) == Decision(Verdict.ACCEPT, Reason.UNCOVERED)
        assert decide(POLICY, {}, False, packet) == Decision(Verdict.DROP, Reason.NO_LEASE)


class TestIcmpErrors:
    @pytest.mark.parametrize("vip", [VIP4, VIP6, OPEN], ids=str)
    def test_accepted_by_every_node_while_the_lease_runs(self, vip: IPAddress) -> None:
        packet = icmp(IcmpKind.ERROR, vip)
        assert decide(POLICY, {}, True, packet) == Decision(Verdict.ACCEPT, Reason.ICMP_ERROR)
        assert decide(POLICY, {}, False, packet) == Decision(Verdict.DROP, Reason.NO_LEASE)

    @pytest.mark.parametrize(
        ("version", "icmp_type", "kind"),
        [
            (4, 0, IcmpKind.OTHER),
            (4, 3, IcmpKind.ERROR),
            (4, 4, IcmpKind.OTHER),
            (4, 5, IcmpKind.OTHER),
            (4, 8, IcmpKind.ECHO_REQUEST),
            (4, 11, IcmpKind.ERROR),
            (4, 12, IcmpKind.ERROR),
            (4, 128, IcmpKind.OTHER),
            (6, 0, IcmpKind.OTHER),
            (6, 1, IcmpKind.ERROR),
            (6, 2, IcmpKind.ERROR),
            (6, 3, IcmpKind.ERROR),
            (6, 4, IcmpKind.ERROR),
            (6, 5, IcmpKind.OTHER),
            (6, 8, IcmpKind.OTHER),
            (6, 128, IcmpKind.ECHO_REQUEST),
            (6, 129, IcmpKind.OTHER),
            (6, 132, IcmpKind.OTHER),
            (6, 133, IcmpKind.NEIGHBOUR),
            (6, 137, IcmpKind.NEIGHBOUR),
            (6, 138, IcmpKind.OTHER),
        ],
    )
    def test_kinds(self, version: int, icmp_type: int, kind: IcmpKind) -> None:
        assert icmp_kind(version, icmp_type) is kind


class TestMalformed:
    @pytest.mark.parametrize(
        "packet",
        [
            replace(tcp(), malformed=True),
            replace(tcp(OPEN), malformed=True),
            replace(tcp(), source_port=None),
            replace(udp(), destination_port=None),
            icmp(None),
            icmp(None, VIP6),
        ],
    )
    def test_dropped_whatever_else_holds(self, packet: PacketFacts) -> None:
        for running in (True, False):
            assert decide(POLICY, OWN, running, packet) == Decision(Verdict.DROP, Reason.MALFORMED)

    def test_facts_of_two_versions_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"198\.51\.100\.7"):
            replace(tcp(), destination=VIP6)


class TestBlocked:
    @pytest.mark.parametrize("running", [True, False])
    @pytest.mark.parametrize("state", list(BucketState))
    def test_dropped_by_every_node(self, running: bool, state: BucketState) -> None:
        decision = decide(POLICY, every_group(state), running, tcp(port=99, established=True))
        assert decision == Decision(Verdict.DROP, Reason.BLOCKED, "shut")


class TestLease:
    def test_without_it_nothing_is_accepted_not_even_what_is_established(self) -> None:
        vips: list[IPAddress] = [VIP4, VIP6, OPEN]
        packets = [
            tcp(vip, port, flags=flags, established=established)
            for vip, port, flags, established in product(vips, (80, 25, 99), ("S", "A"), (False, True))
        ]
        packets += [udp(vip) for vip in vips]
        packets += [icmp(kind) for kind in (IcmpKind.ECHO_REQUEST, IcmpKind.ERROR, IcmpKind.OTHER)]
        for packet, state in product(packets, BucketState):
            assert not decide(POLICY, every_group(state), False, packet).accepted

    def test_it_is_asked_after_the_bucket_and_before_the_flow(self) -> None:
        reasons = [
            decide(POLICY, every_group(state), False, tcp(flags="A")).reason
            for state in (BucketState.FOREIGN, BucketState.DRAIN, BucketState.ADOPT, BucketState.OWN)
        ]
        assert reasons == ["foreign", "no-lease", "no-lease", "no-lease"]


def test_a_group_that_is_left_out_is_foreign() -> None:
    assert decide(POLICY, {"dns": IN_STATE[BucketState.OWN]}, True, tcp()).reason == "foreign"


def test_echo_goes_to_the_group_of_the_vips_first_rule() -> None:
    request = icmp(IcmpKind.ECHO_REQUEST)
    assert decide(POLICY, OWN, True, request).group == "web"
    reordered = replace(POLICY, rules=POLICY.rules[2:] + POLICY.rules[:2])
    assert decide(reordered, OWN, True, request).group == "dns"


addresses = st.sampled_from([VIP4, VIP6, OPEN, ip_address("192.0.2.9"), ip_address("2001:db8::9")])


@given(
    destination=addresses,
    protocol=st.sampled_from([1, 2, 6, 17, 47, 58, 132]),
    ports=st.none() | st.sampled_from([25, 53, 80, 99, 443, 8080]),
    bits=st.integers(0, 15),
    kind=st.none() | st.sampled_from(IcmpKind),
    own=st.integers(0, ALL),
    adopt=st.integers(0, ALL),
    drain=st.integers(0, ALL),
    running=st.booleans(),
    interface=st.sampled_from(["eth0", "eth1", "lo"]),
)
def test_the_laws_hold_for_any_packet(
    destination: IPAddress,
    protocol: int,
    ports: int | None,
    bits: int,
    kind: IcmpKind | None,
    own: int,
    adopt: int,
    drain: int,
    running: bool,
    interface: str,
) -> None:
    packet = PacketFacts(
        interface=interface,
        source=CLIENT4 if destination.version == 4 else CLIENT6,
        destination=destination,
        protocol=protocol,
        source_port=ports,
        destination_port=ports,
        syn=bool(bits & 1),
        ack=bool(bits & 2),
        established_here=bool(bits & 4),
        icmp=kind,
        malformed=bits == 15,
    )
    states = BucketStates(own=own, adopt=adopt & ~own, drain=drain & ~adopt & ~own)
    decision = decide(POLICY, {group.name: states for group in POLICY.groups}, running, packet)
    if not running:
        assert not decision.accepted or decision.reason == "not-filtered"
    if decision.accepted and decision.group is not None:
        assert decision.bucket is not None
        state = states.state(decision.bucket)
        assert state is not BucketState.FOREIGN
        assert decision.reason in ("own", "adopt", "drain")
        if state is BucketState.DRAIN:
            assert packet.established_here
            assert packet.protocol == Protocol.TCP
    if decision.group is None:
        assert decision.reason in ("not-filtered", "malformed", "icmp-error", "uncovered", "no-lease")
