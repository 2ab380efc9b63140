"""What the judge does beside verdicts: flows, bounds, a vendor's bucket function, packets cut short."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest
from tests.core.raw_packets import (
    CLIENT4,
    CLIENT6,
    MORE4,
    VIP4,
    VIP6,
    cut4,
    icmp,
    ipv4,
    ipv6,
    tcp,
    udp,
)
from tests.core.reference import ADOPT, DRAIN, OWN, judge

from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.decision import ICMP, Decision, PacketFacts, Reason, Verdict
from nlbfarm.core.fragments import MAX_FRAGMENTED
from nlbfarm.core.hashing import bucket_of, flow_key
from nlbfarm.core.packets import ACK, FIN, RST, SYN, facts
from nlbfarm.core.policy import Affinity, Group, Protocol, Rule
from nlbfarm.errors import UsageError

TCP, UDP = Protocol.TCP, Protocol.UDP
SYN4, ACK4 = ipv4(TCP, tcp()), ipv4(TCP, tcp(flags=ACK))
SYN6, ACK6 = ipv6(TCP, tcp()), ipv6(TCP, tcp(flags=ACK))


class TestFlows:
    @pytest.mark.parametrize(("syn", "ack"), [(SYN4, ACK4), (SYN6, ACK6)])
    def test_a_connection_survives_a_move(self, syn: bytes, ack: bytes) -> None:
        made = judge(ADOPT)
        assert not made.judge(ack, "eth0", 0.0)
        assert made.judge(syn, "eth0", 0.0)
        for now, states in enumerate((OWN, DRAIN, ADOPT, DRAIN)):
            made.apply(states)
            assert made.judge(ack, "eth0", float(now))
            assert made.judge(ack, "eth0", now + 0.1)
            assert made.judge(syn, "eth0", now + 0.2), "a SYN sent again"
        made.apply({})
        assert not made.judge(ack, "eth0", 5.0)

    def test_a_closed_port_used_again_is_a_new_flow(self) -> None:
        made = judge()
        for flags in (SYN, ACK, FIN | ACK, ACK):
            assert made.judge(ipv4(TCP, tcp(flags=flags)), "eth0", 0.0)
        made.apply(DRAIN)
        assert made.judge(ACK4, "eth0", 1.0), "its last packets"
        assert not made.judge(SYN4, "eth0", 1.0)

    def test_counts_by_bucket(self) -> None:
        made = judge()
        expected: Counter[int] = Counter()
        for port in range(1, 400):
            made.judge(ipv4(TCP, tcp(port)), "eth0", 0.0)
            expected[bucket_of(flow_key(Affinity.CLIENT_PORT, CLIENT4, port), 0x1234)] += 1
        made.judge(ipv4(TCP, tcp(port=25)), "eth0", 0.0)
        made.judge(ipv4(TCP, tcp(port=99)), "eth0", 0.0)
        made.judge(ipv4(UDP, udp()), "eth0", 0.0)
        assert made.flows({"web": ALL, "dns": ALL}) == {"web": dict(expected), "dns": {}}
        some = next(iter(expected))
        assert made.flows({"web": 1 << some}) == {"web": {some: expected[some]}}
        assert sum(made.flows({"mail": ALL})["mail"].values()) == 1

    def test_silence(self) -> None:
        made = judge(ADOPT)
        made.judge(SYN4, "eth0", 0.0)
        made.judge(ACK4, "eth0", 0.1)
        made.lease_end = 1e6
        made.expire(7000.0)
        assert made.judge(ACK4, "eth0", 7000.0)
        assert not made.judge(ACK4, "eth0", 7000.0 + 7442.0)
        assert made.flows({"web": ALL}) == {"web": {}}

    def test_expire(self) -> None:
        made = judge()
        made.judge(SYN4, "eth0", 0.0)
        made.judge(cut4(ipv4(UDP, udp(payload=bytes(40))), 16)[0], "eth0", 0.0)
        assert sum(made.flows({"web": ALL})["web"].values()) == 1
        made.expire(500.0)
        assert made.flows({"web": ALL}) == {"web": {}}

    @pytest.mark.parametrize("version", [4, 6])
    def test_the_host_says_that_one_ended(self, version: int) -> None:
        made = judge()
        syn, client, vip = (SYN4, CLIENT4, VIP4) if version == 4 else (SYN6, CLIENT6, VIP6)
        made.judge(syn, "eth0", 0.0)
        assert made.ended(client, 40000, vip, 80, 1.0)
        assert made.flows({"web": ALL}) == {"web": {}}
        assert not made.ended(client, 40001, vip, 80, 1.0)

    def test_an_rst_ends_it_for_the_count(self) -> None:
        made = judge()
        made.judge(SYN4, "eth0", 0.0)
        made.judge(ACK4, "eth0", 0.0)
        assert made.judge(ipv4(TCP, tcp(flags=RST)), "eth0", 0.1)
        assert made.flows({"web": ALL}) == {"web": {}}

    def test_udp_flows_end_by_silence(self) -> None:
        made = judge(udp_idle=5.0)
        data = ipv6(UDP, udp())
        for now in (0.0, 0.5, 3.0, 20.0):
            assert made.judge(data, "eth0", now)
        made.expire(20.0)
        assert len(made._flows) == 1
        made.expire(26.0)
        assert len(made._flows) == 0


class TestBounds:
    def test_everything_it_remembers_is_bounded(self, rng: random.Random) -> None:
        made = judge(max_flows=100, max_places=64)
        for number in range(MAX_FRAGMENTED + 10):
            source = IPv4Address(rng.getrandbits(32))
            first = ipv4(UDP, udp(payload=bytes(8)), source=source, fragment=MORE4, identification=number)
            assert made.judge(first, "eth0", 0.0)
            if number < 1000:
                made.judge(ipv4(TCP, tcp(rng.getrandbits(16)), source=source), "eth0", 0.0)
                made.judge(ipv4(UDP, udp(rng.getrandbits(16)), source=source), "eth0", 0.0)
        assert len(made._flows) == 200
        assert len(made._fragments) == MAX_FRAGMENTED
        for arrival in made._arrivals.values():
            assert max(len(arrival.tcp), len(arrival.udp)) <= 64
        counts = made.flows({"web": ALL})["web"]
        assert sum(counts.values()) == 100

    def test_a_place_that_was_forgotten_is_found_again(self) -> None:
        made = judge({"web": BucketStates(own=(1 << 128) - 1)}, max_places=1)
        packets = [ipv4(TCP, tcp(port)) for port in range(50)]
        first = [made.judge(packet, "eth0", 0.0) for packet in packets]
        assert first == [made.judge(packet, "eth0", 0.0) for packet in packets]
        assert set(first) == {True, False}


class Unprintable(Exception):  # noqa: N818 - what a vendor's function comes up with
    """Neither an error nor a result can be relied on to have a text."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def unprintable() -> int:
    raise Unprintable


class TestOwnBucketFunction:
    def test_it_is_asked_instead_of_the_hash(self) -> None:
        asked: list[tuple[PacketFacts, str, str]] = []

        def by_port(packet: PacketFacts, rule: Rule, group: Group) -> int:
            asked.append((packet, rule.name, group.name))
            return (packet.source_port or 0) % 256

        made = judge({"web": BucketStates(own=1 << 7)}, bucket=by_port)
        for port in (7, 263, 8):
            assert made.judge(ipv4(TCP, tcp(port)), "eth0", 0.0) is (port != 8)
        assert asked[0] == (facts(ipv4(TCP, tcp(7)), "eth0"), "web", "web")
        assert made.flows({"web": ALL}) == {"web": {7: 2}}
        assert made.decide(ipv4(TCP, tcp(263, flags=ACK)), "eth0", 0.0) == Decision(
            Verdict.ACCEPT, Reason.OWN, "web", 7
        )
        made.judge(ipv4(ICMP, icmp(8)), "eth0", 0.0)
        assert asked[-1][1:] == ("web", "web")
        asked.clear()
        for data in (ipv4(TCP, tcp(port=99)), ipv4(TCP, tcp(port=1)), ipv4(ICMP, icmp(3)), ipv4(TCP, b"")):
            made.judge(data, "eth0", 0.0)
        made.judge(SYN4, "eth1", 0.0)
        assert asked == [], "it is asked about nothing that is decided without a bucket"
        assert made.trouble == ""

    def test_what_it_is_told_is_the_same_on_all_nodes(self) -> None:
        seen = []

        def look(packet: PacketFacts, rule: Rule, group: Group) -> int:
            seen.append(packet.established_here)
            return 1

        made = judge(bucket=look)
        for data in (SYN4, ACK4, ACK4):
            assert made.judge(data, "eth0", 0.0)
        assert seen == [False] * 3

    @pytest.mark.parametrize(
        ("function", "told"),
        [
            (
                lambda packet, rule, group: 1 // 0,
                "raised ZeroDivisionError: integer",
            ),
            (
                lambda packet, rule, group: unprintable(),
                "raised Unprintable: an object of type",
            ),
            (lambda packet, rule, group: 256, "returned no int of 0..255: 256"),
            (lambda packet, rule, group: -1, "returned no int of 0..255: -1"),
            (lambda packet, rule, group: None, "returned no int of 0..255: None"),
            (lambda packet, rule, group: True, "returned no int of 0..255: True"),
            (lambda packet, rule, group: 3.0, "returned no int of 0..255: 3.0"),
            (lambda packet, rule, group: "9" * 999, f"returned no int of 0..255: {'9' * 200};"),
            (lambda packet, rule, group: 10**9999, "returned no int of 0..255: an object of type int"),
            (lambda packet, rule, group: Unprintable(), "an object of type Unprintable"),
        ],
    )
    def test_nonsense_drops_the_packet_and_is_told_once(
        self, function: Callable[..., int], told: str
    ) -> None:
        made = judge(bucket=function)
        assert not made.judge(SYN4, "eth0", 0.0)
        first = made.trouble
        assert "the bucket function, for rule web, " in first
        assert told in first
        assert made.decide(ipv4(TCP, tcp(port=25)), "eth0", 0.0) == Decision(Verdict.DROP, Reason.MALFORMED)
        assert made.counters().other == {"malformed": 2}
        assert made.trouble == first
        assert made.judge(ipv4(ICMP, icmp(3)), "eth0", 0.0), "what needs no bucket passes as before"


def test_packets_that_a_queue_has_cut() -> None:
    long = ipv4(TCP, tcp(flags=ACK, payload=bytes(1400)))
    assert not judge().judge(long[:128], "eth0", 0.0)
    assert judge(snap=128).judge(long[:128], "eth0", 0.0)
    assert not judge(snap=128).judge(long[:127], "eth0", 0.0)
    assert judge(snap=128).judge(ipv6(UDP, udp(payload=bytes(1000)))[:200], "eth0", 0.0)
    with pytest.raises(UsageError, match="cut to 59 bytes"):
        judge(snap=59)
