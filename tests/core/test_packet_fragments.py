"""Fragments as packet facts: all have those of the first, and none slips others under a decision."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from tests.core.raw_packets import (
    CLIENT4,
    CLIENT6,
    DESTINATION,
    MORE4,
    VIP4,
    VIP6,
    cut4,
    cut6,
    fragment6,
    ipv4,
    ipv6,
    options,
    tcp,
    udp,
)

from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.fragments import FragmentTable
from nlbfarm.core.packets import Packet, facts
from nlbfarm.core.policy import Protocol

TCP, UDP = Protocol.TCP, Protocol.UDP

TCP4 = PacketFacts("eth0", CLIENT4, VIP4, TCP, 40000, 80, syn=True)
TCP6 = PacketFacts("eth0", CLIENT6, VIP6, TCP, 40000, 80, syn=True)
UDP4 = PacketFacts("eth0", CLIENT4, VIP4, UDP, 40000, 53)
UDP6 = PacketFacts("eth0", CLIENT6, VIP6, UDP, 40000, 53)


def malformed(data: bytes, protocol: int | None = None) -> bool:
    """Whether the packet is for the VIP and malformed, with nothing else to go by."""
    found = facts(data, "eth0")
    assert found is not None
    assert found.destination in (VIP4, VIP6)
    assert not found.malformed or (found.source_port, found.destination_port, found.icmp) == (
        None,
        None,
        None,
    )
    assert protocol is None or found.protocol == protocol
    return found.malformed and not found.understood


class TestFragments:
    @pytest.mark.parametrize(
        ("pieces", "expected"),
        [
            (cut4(ipv4(TCP, tcp(payload=bytes(80))), 24), TCP4),
            (cut4(ipv4(UDP, udp(payload=bytes(80))), 8), UDP4),
            (cut6(ipv6(TCP, tcp(payload=bytes(80))), 32), TCP6),
            (cut6(ipv6(UDP, udp(payload=bytes(80))), 8), UDP6),
            (cut6(ipv6(UDP, udp(payload=bytes(80)), extensions=[options(DESTINATION)]), 16), UDP6),
        ],
    )
    def test_all_have_the_facts_of_the_first(self, pieces: list[bytes], expected: PacketFacts) -> None:
        assert len(pieces) > 3
        table: FragmentTable[Packet] = FragmentTable()
        for piece in (*pieces, *reversed(pieces[1:]), *pieces):
            assert facts(piece, "eth0", fragments=table) == expected
        # It is the packet's own interface.
        assert facts(pieces[1], "eth1", fragments=table) == replace(expected, interface="eth1")

    @pytest.mark.parametrize(
        "pieces", [cut4(ipv4(UDP, udp(payload=bytes(80))), 8), cut6(ipv6(UDP, udp(payload=bytes(80))), 8)]
    )
    def test_without_a_first_one(self, pieces: list[bytes]) -> None:
        table: FragmentTable[Packet] = FragmentTable()
        for later in pieces[1:]:
            assert malformed(later)
            found = facts(later, "eth0", fragments=table)
            assert found is not None
            assert found.malformed
        facts(pieces[0], "eth0", fragments=table)
        found = facts(pieces[1], "eth0", fragments=table)
        assert found is not None
        assert not found.malformed

    def test_a_first_one_too_short_for_its_headers(self) -> None:
        """RFC 1858 section 3: the flags would be what the next fragment says."""
        for pieces in (
            cut4(ipv4(TCP, tcp(payload=bytes(80))), 8),
            cut4(ipv4(TCP, tcp(payload=bytes(80))), 16),
            cut4(ipv4(TCP, tcp(options=bytes(20), payload=bytes(80))), 32),
            cut6(ipv6(TCP, tcp(payload=bytes(80))), 16),
            cut6(ipv6(TCP, tcp(payload=bytes(80)), extensions=[options(DESTINATION)]), 24),
            cut6(ipv6(UDP, udp(), extensions=[options(DESTINATION, 1)]), 8),
        ):
            table: FragmentTable[Packet] = FragmentTable()
            for piece in pieces:
                found = facts(piece, "eth0", fragments=table)
                assert found is not None
                assert found.malformed
            assert len(table) == 0

    def test_a_first_one_that_is_too_short_ends_what_an_earlier_one_began(self) -> None:
        good = cut4(ipv4(TCP, tcp(payload=bytes(80))), 24)
        tiny = cut4(ipv4(TCP, tcp(payload=bytes(80))), 8)
        table: FragmentTable[Packet] = FragmentTable()
        for piece in (good[0], tiny[0], good[1]):
            found = facts(piece, "eth0", fragments=table)
        assert found is not None
        assert found.malformed

    def test_an_overlap_with_the_first(self) -> None:
        """RFC 1858 section 4: a fragment at 8 would write over the flags."""
        table: FragmentTable[Packet] = FragmentTable()
        first = ipv4(TCP, tcp(payload=bytes(12)), fragment=MORE4)
        assert facts(first, "eth0", fragments=table) == TCP4
        for offset, sound in ((1, False), (2, False), (3, False), (4, True), (5, True)):
            found = facts(ipv4(TCP, bytes(24), fragment=offset), "eth0", fragments=table)
            assert found is not None
            assert found.malformed is not sound

    def test_another_first_one_takes_its_place(self) -> None:
        table: FragmentTable[Packet] = FragmentTable()
        for port in (80, 22):
            first = ipv4(TCP, tcp(port=port, payload=bytes(12)), fragment=MORE4)
            facts(first, "eth0", fragments=table)
            later = facts(ipv4(TCP, bytes(24), fragment=4), "eth0", fragments=table)
            assert later is not None
            assert later.destination_port == port

    def test_datagrams_are_told_apart(self) -> None:
        table: FragmentTable[Packet] = FragmentTable()
        other = IPv4Address("198.51.100.8")
        facts(ipv4(UDP, udp(payload=bytes(8)), fragment=MORE4, identification=5), "eth0", fragments=table)
        strangers = [
            ipv4(UDP, bytes(8), fragment=2, identification=6),
            ipv4(TCP, bytes(8), fragment=2, identification=5),
            ipv4(UDP, bytes(8), fragment=2, identification=5, source=other),
            ipv4(UDP, bytes(8), fragment=2, identification=5, destination=other),
            ipv6(UDP, bytes(8), extensions=[fragment6(16, more=False, identification=5)]),
        ]
        for stranger in strangers:
            found = facts(stranger, "eth0", fragments=table)
            assert found is not None
            assert found.malformed
        found = facts(ipv4(UDP, bytes(8), fragment=2, identification=5), "eth0", fragments=table)
        assert found is not None
        assert not found.malformed

    def test_time_passes(self) -> None:
        first, second, *_ = cut4(ipv4(UDP, udp(payload=bytes(80))), 8)
        table: FragmentTable[Packet] = FragmentTable(lifetime=30)
        facts(first, "eth0", fragments=table, now=100)
        for now, known in ((129.9, True), (130.0, False)):
            found = facts(second, "eth0", fragments=table, now=now)
            assert found is not None
            assert found.malformed is not known

    @pytest.mark.parametrize(
        "data",
        [
            ipv4(UDP, udp(payload=bytes(3)), fragment=MORE4),  # not the last, and no multiple of 8
            ipv4(UDP, bytes(3), fragment=MORE4 | 2),
            ipv4(UDP, b"", fragment=MORE4),  # empty
            ipv4(UDP, b"", fragment=2),
            ipv4(UDP, bytes(64), fragment=0x1FFF),  # behind the largest packet
            ipv6(UDP, udp(payload=bytes(3)), extensions=[fragment6(0, more=True)]),
            ipv6(UDP, bytes(3), extensions=[fragment6(16, more=True)]),
            ipv6(UDP, b"", extensions=[fragment6(16, more=False)]),
            ipv6(UDP, bytes(64), extensions=[fragment6(65_528, more=False)]),
        ],
    )
    def test_impossible_ones(self, data: bytes) -> None:
        table: FragmentTable[Packet] = FragmentTable()
        facts(ipv4(UDP, udp(payload=b""), fragment=MORE4), "eth0", fragments=table)
        facts(ipv6(UDP, udp(payload=b""), extensions=[fragment6(0, more=True)]), "eth0", fragments=table)
        found = facts(data, "eth0", fragments=table)
        assert found is not None
        assert found.malformed

    def test_the_last_fragment_of_the_largest_packet(self) -> None:
        table: FragmentTable[Packet] = FragmentTable()
        facts(ipv4(UDP, udp(payload=b""), fragment=MORE4), "eth0", fragments=table)
        found = facts(ipv4(UDP, bytes(65_515 - 65_000), fragment=65_000 // 8), "eth0", fragments=table)
        assert found is not None
        assert not found.malformed
