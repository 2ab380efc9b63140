"""The judge against the oracle, packet by packet, and what it promises beyond verdicts."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.raw_packets import (
    BARE6,
    MORE4,
    OPEN4,
    POLICY,
    VIP4,
    Traffic,
    cut4,
    cut6,
    icmp,
    ipv4,
    ipv6,
    options,
    tcp,
    udp,
)
from tests.core.reference import ADOPT, GROUPS, OWN, Reference, judge

from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.decision import ICMP, ICMPV6, Decision, Reason, Verdict
from nlbfarm.core.hashing import bucket_of, flow_key
from nlbfarm.core.judging import Judge
from nlbfarm.core.packets import ACK
from nlbfarm.core.policy import Affinity, Group, Protocol, Rule, Vip
from nlbfarm.errors import UsageError

TCP, UDP = Protocol.TCP, Protocol.UDP
SYN4, ACK4 = ipv4(TCP, tcp()), ipv4(TCP, tcp(flags=ACK))
SYN6, ACK6 = ipv6(TCP, tcp()), ipv6(TCP, tcp(flags=ACK))


def some_states(rng: random.Random) -> dict[str, BucketStates]:
    states = {}
    for name in GROUPS:
        if rng.random() < 0.9:
            own = rng.choice((0, ALL, rng.getrandbits(256)))
            adopt = rng.choice((0, ALL, rng.getrandbits(256))) & ~own
            states[name] = BucketStates(
                own, adopt, rng.choice((0, ALL, rng.getrandbits(256))) & ~own & ~adopt
            )
    return states


def conversation(rng: random.Random, packets: int) -> Counter[str]:
    """Send random traffic through two judges and the reference, which must agree; returns the reasons."""
    fast, telling, reference = Judge(POLICY), Judge(POLICY), Reference(POLICY)
    traffic = Traffic(rng)
    reasons: Counter[str] = Counter()
    now = 0.0
    for number in range(packets):
        now += 1e-5
        if number % 400 == 0:
            states = some_states(rng)
            for each in (fast, telling):
                each.apply(states)
            reference.states = states
        if number % 90 == 0:
            end = now + rng.choice((-1.0, 1.0, 1.0, 3e-4))
            fast.lease_end = telling.lease_end = reference.lease_end = end
        data = traffic.packet()
        interface = traffic.interface(data)
        expected = reference.decide(data, interface, now)
        assert telling.decide(data, interface, now) == expected, (data.hex(), interface)
        raw = memoryview(data) if rng.random() < 0.3 else data
        assert fast.judge(raw, interface, now) is expected.accepted, (data.hex(), interface, expected)
        reasons[f"{'' if expected.group is None else 'group '}{expected.reason}"] += 1
    asked = dict.fromkeys(GROUPS, ALL)
    for each in (fast, telling):
        assert each.counters() == reference.counters()
        assert each.flows(asked) == reference.established()
    return reasons


def test_every_verdict_is_the_oracles(rng: random.Random) -> None:
    reasons = conversation(rng, 10_000)
    # Every way a packet can go was gone, most of them often.
    assert set(reasons) == {
        *("group own", "group adopt", "group drain", "group foreign", "group not-new", "group no-lease"),
        *("group blocked", "uncovered", "icmp-error", "malformed", "no-lease", "not-filtered"),
    }
    assert min(reasons.values()) > 5


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_every_verdict_is_the_oracles_in_short(seed: int) -> None:
    conversation(random.Random(seed), 60)


@given(st.binary(max_size=100), st.sampled_from(["eth0", "eth1", "lo"]))
def test_any_bytes(data: bytes, interface: str) -> None:
    for start in (b"", ipv4(TCP, b"")[:20], ipv6(TCP, b"")[:40], b"\x45"):
        reference = Reference(POLICY)
        reference.states, reference.lease_end = OWN, 1000.0
        expected = reference.decide(start + data, interface, 1.0)
        assert judge().decide(start + data, interface, 1.0) == expected
        assert judge().judge(memoryview(start + data), interface, 1.0) is expected.accepted


class TestLease:
    def test_it_begins_closed(self) -> None:
        fresh = Judge(POLICY)
        assert not fresh.judge(SYN4, "eth0", 0.0)
        fresh.apply(OWN)
        for now in (-1e9, 0.0, 1e9):
            assert fresh.decide(SYN4, "eth0", now).reason == "no-lease"

    def test_it_ends_at_its_end(self) -> None:
        made = judge()
        assert made.judge(SYN4, "eth0", 999.999)
        for data in (SYN4, ACK4, ipv4(UDP, udp()), ipv4(ICMP, icmp(8)), ipv4(ICMP, icmp(3))):
            assert not made.judge(data, "eth0", 1000.0)
        assert made.judge(ipv6(ICMPV6, icmp(135)), "eth0", 1000.0), "neighbour discovery is not filtered"

    def test_what_it_dropped_is_not_remembered(self) -> None:
        made = judge(ADOPT)
        made.judge(SYN4, "eth0", 1000.0)
        made.lease_end = 2000.0
        assert made.decide(ACK4, "eth0", 1000.0).reason == "not-new"


class TestInterfaces:
    """Addresses of VIPs are looked at only where they belong."""

    def test_elsewhere_nothing_is_filtered(self) -> None:
        made = judge({})
        assert not made.judge(SYN4, "eth0", 0.0)
        for interface in ("eth1", "lo", ""):
            assert made.judge(SYN4, interface, 0.0)
        assert made.judge(b"", "lo", 0.0)
        assert made.counters().other == {}

    def test_a_flow_on_another_interface_is_not_that_flow(self) -> None:
        made = judge()
        made.judge(SYN4, "eth0", 0.0)
        made.judge(ACK4, "eth0", 0.0)
        assert made.decide(ACK4, "eth1", 0.0).reason == "not-filtered"
        assert made.judge(ACK4, "eth1", 0.0)
        assert made.counters().groups["web"] == {"own": 2}

    def test_who_cannot_be_addressed_is_dropped_where_vips_are(self) -> None:
        made = judge()
        assert made.decide(b"\x45", "eth0", 0.0) == Decision(Verdict.DROP, Reason.MALFORMED)
        assert not made.judge(b"", "eth0", 0.0)
        assert made.counters().other == {"malformed": 2}


class TestWhatNoRuleCovers:
    def test_a_vip_that_takes_it(self) -> None:
        made = judge({})
        data = ipv4(TCP, tcp(port=8080), destination=OPEN4)
        assert made.judge(data, "eth1", 0.0)
        assert made.decide(data, "eth1", 1000.0) == Decision(Verdict.DROP, Reason.NO_LEASE)
        assert made.judge(ipv4(47, b"", destination=OPEN4), "eth1", 0.0)
        assert made.counters().other == {"uncovered": 2, "no-lease": 1}

    def test_a_vip_without_rules(self) -> None:
        made = judge()
        for data in (tcp(), icmp(128)):
            packet = ipv6(TCP if data == tcp() else ICMPV6, data, destination=BARE6)
            assert made.decide(packet, "eth1", 0.0) == Decision(Verdict.DROP, Reason.UNCOVERED)
        assert made.judge(ipv6(ICMPV6, icmp(1), destination=BARE6), "eth1", 0.0)

    def test_blocked(self) -> None:
        made = judge()
        data = ipv4(TCP, tcp(port=99))
        assert made.decide(data, "eth0", 0.0) == Decision(Verdict.DROP, Reason.BLOCKED, "shut")
        assert not made.judge(data, "eth0", 0.0)
        assert not made.judge(data, "eth0", 2000.0)
        assert made.counters().groups["shut"] == {"blocked": 3}


class TestFragments:
    @pytest.mark.parametrize(
        "pieces",
        [
            cut4(ipv4(UDP, udp(payload=bytes(100))), 16),
            cut6(ipv6(UDP, udp(payload=bytes(100))), 16),
            cut4(ipv4(ICMP, icmp(8, bytes(100))), 16),
            cut6(ipv6(TCP, tcp(payload=bytes(100)), extensions=[options(60)]), 32),
        ],
    )
    def test_they_follow_the_first(self, pieces: list[bytes]) -> None:
        made = judge()
        assert not any(made.judge(piece, "eth0", 0.0) for piece in pieces[1:])
        assert all(made.judge(piece, "eth0", 0.0) for piece in pieces)
        made.apply({})
        assert not any(made.judge(piece, "eth0", 0.0) for piece in pieces)

    def test_none_slips_other_flags_under_an_established_flow(self) -> None:
        made = judge(ADOPT)
        made.judge(SYN4, "eth0", 0.0)
        tiny = ipv4(TCP, tcp(flags=ACK)[:16], fragment=MORE4)
        assert made.decide(tiny, "eth0", 0.0).reason == "malformed"
        assert made.decide(ipv4(TCP, bytes(8), fragment=1), "eth0", 0.0).reason == "malformed"


class TestStates:
    def test_a_group_left_out_is_foreign(self) -> None:
        made = judge()
        made.apply({"dns": BucketStates(own=ALL)})
        assert made.decide(SYN4, "eth0", 0.0).reason == "foreign"
        assert made.judge(ipv4(UDP, udp()), "eth0", 0.0)

    def test_an_unknown_group_changes_nothing(self) -> None:
        made = judge()
        with pytest.raises(UsageError, match="nobody in the policy of farm shop"):
            made.apply({"nobody": BucketStates(own=ALL)})
        assert made.judge(SYN4, "eth0", 0.0)
        with pytest.raises(UsageError, match="nobody"):
            made.flows({"nobody": 1})

    def test_every_bucket_of_every_group_is_looked_up_where_it_is(self) -> None:
        for bucket in (0, 1, 127, 255):
            made = judge({"mail": BucketStates(own=1 << bucket)})
            for host in range(300):
                source = IPv4Address(f"203.0.{host >> 8}.{host & 255}")
                place = bucket_of(flow_key(Affinity.CLIENT, source, 0), 5)
                data = ipv4(TCP, tcp(port=25), source=source)
                assert made.decide(data, "eth0", 0.0).bucket == place
                assert made.judge(data, "eth0", 0.0) is (place == bucket)

    def test_the_first_of_several_rules_for_a_port(self) -> None:
        """The configuration forbids them; the oracle has an answer all the same."""
        policy = replace(POLICY, rules=(*POLICY.rules, Rule("again", "dns", VIP4, TCP, (80, 81))))
        made, reference = Judge(policy), Reference(policy)
        for port in (80, 81, 25):
            data = ipv4(TCP, tcp(port=port))
            assert made.decide(data, "eth0", 0.0) == reference.decide(data, "eth0", 0.0)

    def test_many_groups(self, rng: random.Random) -> None:
        groups = tuple(Group(f"g{index}", rng.getrandbits(32)) for index in range(300))
        rules = tuple(
            Rule(f"r{index}", group.name, VIP4, TCP, (1000 + index,)) for index, group in enumerate(groups)
        )
        policy = replace(POLICY, vips=(Vip(VIP4, "eth0"),), groups=groups, rules=rules)
        made, reference = Judge(policy), Reference(policy)
        reference.states = {group.name: BucketStates(own=rng.getrandbits(256)) for group in groups}
        made.apply(reference.states)
        made.lease_end = reference.lease_end = 1.0
        for _ in range(1000):
            data = ipv4(TCP, tcp(rng.getrandbits(16), 995 + rng.randrange(310)))
            assert made.judge(data, "eth0", 0.0) is reference.decide(data, "eth0", 0.0).accepted
        assert made.counters() == reference.counters()
