"""Raw packets as facts: what is read, what is malformed, and that nothing is raised on any bytes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.core.raw_packets import (
    AH,
    CLIENT4,
    CLIENT6,
    DESTINATION,
    DONT4,
    FRAGMENT,
    HOP_BY_HOP,
    ROUTING,
    VIP4,
    VIP6,
    authentication,
    fragment6,
    icmp,
    ipv4,
    ipv6,
    options,
    tcp,
    udp,
)

from nlbfarm.core.decision import ICMP, ICMPV6, IcmpKind, PacketFacts
from nlbfarm.core.fragments import FragmentTable
from nlbfarm.core.packets import ACK, MAX_EXTENSION_HEADERS, SYN, Packet, facts, read
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


class TestWhatIsRead:
    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (ipv4(TCP, tcp()), TCP4),
            (ipv6(TCP, tcp()), TCP6),
            (ipv4(UDP, udp()), UDP4),
            (ipv6(UDP, udp()), UDP6),
            (ipv4(TCP, tcp(flags=SYN | ACK)), replace(TCP4, ack=True)),
            (ipv4(TCP, tcp(flags=ACK, payload=b"GET /")), replace(TCP4, syn=False, ack=True)),
            (ipv4(TCP, tcp(flags=0)), replace(TCP4, syn=False)),
            (ipv4(TCP, tcp(), fragment=DONT4), TCP4),
            (ipv4(UDP, udp(0, 0)), replace(UDP4, source_port=0, destination_port=0)),
            (ipv4(UDP, udp(65535, 65535)), replace(UDP4, source_port=65535, destination_port=65535)),
            (ipv4(UDP, udp(payload=b"")), UDP4),
        ],
    )
    def test_ports_and_flags(self, data: bytes, expected: PacketFacts) -> None:
        assert facts(data, "eth0") == expected
        assert facts(memoryview(data), "eth0") == expected
        assert facts(memoryview(bytearray(data)), "eth0") == expected

    @pytest.mark.parametrize("kind", range(256))
    def test_icmp(self, kind: int) -> None:
        four, six = facts(ipv4(ICMP, icmp(kind)), "eth0"), facts(ipv6(ICMPV6, icmp(kind)), "eth0")
        assert four is not None
        assert six is not None
        kinds4 = {8: IcmpKind.ECHO_REQUEST, 3: IcmpKind.ERROR, 11: IcmpKind.ERROR, 12: IcmpKind.ERROR}
        assert four.icmp is kinds4.get(kind, IcmpKind.OTHER)
        assert (six.icmp is IcmpKind.NEIGHBOUR) == (133 <= kind <= 137)
        assert (six.icmp is IcmpKind.ERROR) == (1 <= kind <= 4)
        assert four.understood
        assert six.understood
        assert four.source_port is six.source_port is None

    @pytest.mark.parametrize("data", [ipv6(ICMP, icmp(8)), ipv4(ICMPV6, icmp(128))])
    def test_icmp_of_the_other_version_is_a_protocol_like_any_other(self, data: bytes) -> None:
        found = facts(data, "eth0")
        assert found is not None
        assert (found.icmp, found.understood) == (None, True)

    @pytest.mark.parametrize("protocol", [2, 41, 47, 50, 51, 59, 132, 135, 255])
    def test_other_protocols_need_nothing_but_their_number(self, protocol: int) -> None:
        assert facts(ipv4(protocol, b""), "eth0") == PacketFacts("eth0", CLIENT4, VIP4, protocol)
        assert facts(ipv6(protocol, b""), "eth0") == PacketFacts("eth0", CLIENT6, VIP6, protocol)

    def test_odd_addresses_are_taken_as_they_stand(self) -> None:
        mapped = IPv6Address("::ffff:192.0.2.100")
        found = facts(ipv6(TCP, tcp(), source=IPv6Address("ff02::1"), destination=mapped), "eth0")
        assert found is not None
        assert (found.source, found.destination) == (IPv6Address("ff02::1"), mapped)
        assert found.destination != VIP4
        found = facts(ipv4(TCP, tcp(), source=IPv4Address("255.255.255.255")), "eth0")
        assert found is not None
        assert found.source == IPv4Address("255.255.255.255")


class TestIPv4:
    @pytest.mark.parametrize("words", range(11))
    def test_options(self, words: int) -> None:
        # What the options look like does not matter: here like ports and flags.
        assert facts(ipv4(TCP, tcp(), options=b"\0\x50\0\x50" * words), "eth0") == TCP4

    @pytest.mark.parametrize("words", range(5))
    def test_a_header_shorter_than_a_header(self, words: int) -> None:
        assert malformed(ipv4(TCP, tcp(), words=words), TCP)

    def test_a_header_longer_than_the_packet(self) -> None:
        assert malformed(ipv4(TCP, tcp(), words=11))
        assert malformed(ipv4(47, b"", words=6))
        assert not malformed(ipv4(47, bytes(4), words=6))

    def test_padding_of_a_short_frame_is_not_the_packets(self) -> None:
        assert facts(ipv4(TCP, tcp()) + bytes(6), "eth0") == TCP4
        assert malformed(ipv4(TCP, tcp()[:19]) + bytes(27))
        assert malformed(ipv4(UDP, udp()[:7]) + bytes(27))

    @pytest.mark.parametrize("total", [0, 19, 20, 39, 41, 65535])
    def test_a_total_length_that_is_not_so(self, total: int) -> None:
        assert malformed(ipv4(TCP, tcp(), total=total))

    def test_ah_is_a_protocol_like_any_other(self) -> None:
        assert facts(ipv4(AH, bytes(24) + tcp()), "eth0") == PacketFacts("eth0", CLIENT4, VIP4, AH)


class TestIPv6:
    @pytest.mark.parametrize(
        "chain",
        [
            [options(HOP_BY_HOP)],
            [options(ROUTING, 2)],
            [options(DESTINATION, 31)],
            [options(DESTINATION, 255)],
            [fragment6(0, more=False)],
            [
                options(HOP_BY_HOP),
                options(DESTINATION),
                options(ROUTING),
                options(DESTINATION),
            ],
            [options(DESTINATION)] * MAX_EXTENSION_HEADERS,
            [options(DESTINATION), options(HOP_BY_HOP)],
        ],
        ids=lambda chain: "-".join(str(kind) for kind, _ in chain),
    )
    def test_extension_headers_are_passed_over(self, chain: list[tuple[int, bytes]]) -> None:
        assert facts(ipv6(TCP, tcp(), extensions=chain), "eth0") == TCP6
        assert facts(ipv6(UDP, udp(), extensions=chain), "eth0") == UDP6
        echo = facts(ipv6(ICMPV6, icmp(128), extensions=chain), "eth0")
        assert echo is not None
        assert echo.icmp is IcmpKind.ECHO_REQUEST
        assert facts(ipv6(59, b"", extensions=chain), "eth0") == PacketFacts("eth0", CLIENT6, VIP6, 59)

    @pytest.mark.parametrize("words", [0, 5])
    def test_ah_is_a_protocol_like_any_other(self, words: int) -> None:
        chain = [options(HOP_BY_HOP), authentication(words)]
        assert facts(ipv6(TCP, tcp(), extensions=chain), "eth0") == PacketFacts("eth0", CLIENT6, VIP6, AH)

    def test_more_of_them_than_anybody_sends(self) -> None:
        assert malformed(ipv6(TCP, tcp(), extensions=[options(DESTINATION)] * (MAX_EXTENSION_HEADERS + 1)))
        # The whole of the largest packet, in steps of 8 bytes: given up soon.
        assert malformed(ipv6(DESTINATION, b"", extensions=[options(DESTINATION)] * 8000))

    def test_cut_off_anywhere(self) -> None:
        chain = [options(HOP_BY_HOP), options(ROUTING, 2), fragment6(0, more=False)]
        whole = ipv6(TCP, tcp(), extensions=chain)
        for size in range(40, len(whole)):
            assert malformed(whole[:size])  # less than the payload length says
            length = size - 40
            assert malformed(whole[:4] + length.to_bytes(2, "big") + whole[6:size])

    def test_an_extension_header_longer_than_the_packet(self) -> None:
        kind, rest = options(DESTINATION)
        assert malformed(ipv6(TCP, tcp(), extensions=[(kind, b"\xff" + rest[1:])]))
        assert malformed(ipv6(59, b"", extensions=[(kind, b"\x01" + rest[1:])]))

    def test_a_jumbogram(self) -> None:
        jumbo = (HOP_BY_HOP, bytes((0, 0xC2, 4)) + (70_000).to_bytes(4, "big"))
        assert malformed(ipv6(TCP, tcp(payload=bytes(69_972)), extensions=[jumbo], length=0))

    def test_padding_is_not_the_packets(self) -> None:
        assert facts(ipv6(TCP, tcp()) + bytes(6), "eth0") == TCP6
        assert malformed(ipv6(TCP, tcp()[:12]) + bytes(60))

    def test_an_atomic_fragment_is_a_whole_packet(self) -> None:
        data = ipv6(TCP, tcp(), extensions=[fragment6(0, more=False)])
        found = read(data)
        assert found is not None
        assert found.datagram is None
        table: FragmentTable[Packet] = FragmentTable()
        assert facts(data, "eth0", fragments=table) == TCP6
        assert len(table) == 0
        # The six reserved bits say nothing (RFC 8200 section 4.5: two of them are beside the M flag).
        reserved = ipv6(TCP, tcp(), extensions=[(FRAGMENT, b"\xff\x00\x06" + bytes(4))])
        assert facts(reserved, "eth0") == TCP6

    def test_two_fragment_headers(self) -> None:
        assert malformed(ipv6(TCP, tcp(), extensions=[fragment6(0, more=False)] * 2))
        assert malformed(ipv6(TCP, tcp(), extensions=[fragment6(0, more=True), fragment6(0, more=True)]))


class TestTransport:
    @pytest.mark.parametrize("room", range(20))
    def test_tcp_cut_off(self, room: int) -> None:
        assert malformed(ipv4(TCP, tcp()[:room]), TCP)
        assert malformed(ipv6(TCP, tcp()[:room]), TCP)

    @pytest.mark.parametrize("words", range(16))
    def test_tcp_data_offset(self, words: int) -> None:
        for payload in (b"", bytes(12), bytes(40)):
            sound = 5 <= words <= 5 + len(payload) // 4
            assert malformed(ipv4(TCP, tcp(words=words, payload=payload))) is not sound
            assert malformed(ipv6(TCP, tcp(words=words, payload=payload))) is not sound

    @pytest.mark.parametrize("room", range(8))
    def test_udp_and_icmp_cut_off(self, room: int) -> None:
        assert malformed(ipv4(UDP, udp()[:room]), UDP)
        assert malformed(ipv6(UDP, udp()[:room]), UDP)
        for kind in (8, 3, 128, 135):
            assert malformed(ipv4(ICMP, icmp(kind)[:room]), ICMP)
            assert malformed(ipv6(ICMPV6, icmp(kind)[:room]), ICMPV6)


class TestCutOnItsWay:
    """A queue hands over the first bytes of a packet only."""

    LONG4 = ipv4(TCP, tcp(flags=ACK, options=bytes(20), payload=bytes(1400)))
    LONG6 = ipv6(TCP, tcp(flags=ACK, options=bytes(20), payload=bytes(1400)))

    def test_lengths_are_taken_as_stated(self) -> None:
        for data, whole in ((self.LONG4, TCP4), (self.LONG6, TCP6)):
            assert facts(data[:128], "eth0", snap=128) == replace(whole, syn=False, ack=True)
            assert malformed(data[:128])

    def test_a_shorter_packet_was_not_cut(self) -> None:
        for data in (self.LONG4, self.LONG6):
            found = facts(data[:127], "eth0", snap=128)
            assert found is not None
            assert found.malformed

    def test_a_header_that_was_cut_off(self) -> None:
        long = ipv6(TCP, tcp(payload=bytes(1400)), extensions=[options(DESTINATION, 15)])
        for data, snap in ((long, 128), (self.LONG4, 39), (self.LONG6, 59)):
            found = facts(data[:snap], "eth0", snap=snap)
            assert found is not None
            assert found.malformed

    def test_a_data_offset_behind_the_end(self) -> None:
        found = facts(ipv4(TCP, tcp(words=15), total=79)[:40], "eth0", snap=40)
        assert found is not None
        assert found.malformed


@pytest.mark.parametrize(
    "data", [b"", b"\x45", ipv4(TCP, b"")[:19], ipv6(TCP, b"")[:39], b"\x00" * 64, b"\x55" * 64, b"\xf6" * 64]
)
def test_without_a_destination_there_are_no_facts(data: bytes) -> None:
    assert facts(data, "eth0") is None


@given(st.binary(max_size=120), st.sampled_from([None, 0, 20, 64]))
@example(b"\x45" + bytes(19), None)
@example(b"\x60" + bytes(39), None)
@example(b"\x60" + bytes(5) + b"\x2c" + bytes(33), 0)
def test_any_bytes(data: bytes, snap: int | None) -> None:
    for first in (b"", b"\x45", b"\x4f", b"\x60"):
        found = facts(first + data, "eth0", snap=snap)
        assert found is None or found.understood or not found.syn
        assert found == facts(memoryview(first + data), "eth0", snap=snap)


@given(st.data())
def test_any_change_of_one_byte_and_any_cut(data: st.DataObject) -> None:
    packet = data.draw(
        st.sampled_from(
            [
                ipv4(TCP, tcp(options=bytes(8)), options=bytes(8)),
                ipv6(TCP, tcp(), extensions=[options(HOP_BY_HOP), fragment6(0, more=True), authentication()]),
                ipv6(ICMPV6, icmp(128), extensions=[options(ROUTING), options(DESTINATION)]),
            ]
        )
    )
    table: FragmentTable[Packet] = FragmentTable()
    place = data.draw(st.integers(0, len(packet) - 1))
    value = data.draw(st.integers(0, 255))
    size = data.draw(st.integers(0, len(packet)))
    changed = (packet[:place] + bytes((value,)) + packet[place + 1 :])[:size]
    found = facts(changed, "eth0", fragments=table)
    assert found is None or found.source.version == found.destination.version == changed[0] >> 4
