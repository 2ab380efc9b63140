"""What was seen behind a filter is told apart by its bytes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.policy import IPAddress
from nlbfarm.testing.conformance import Packet, wire
from nlbfarm.testing.conformance.sightings import Sightings

ENDS: dict[int, tuple[IPAddress, IPAddress]] = {
    4: (IPv4Address("198.51.100.7"), IPv4Address("192.0.2.100")),
    6: (IPv6Address("2001:db8:c::7"), IPv6Address("2001:db8::64")),
}


def packet(version: int, number: int, index: int, length: int = 10) -> Packet:
    source, destination = ENDS[version]
    make = wire.ipv4 if version == 4 else wire.ipv6
    payload = wire.udp(source, destination, (1, 2), bytes(length))
    data = make(source, destination, 17, payload, number=number)
    return Packet(index, "udp", data, PacketFacts("eth0", source, destination, 17, 1, 2))


def sent(*packets: Packet) -> Sightings:
    sightings = Sightings()
    for one in packets:
        sightings.sent(one, one.data)
    return sightings


@pytest.mark.parametrize("version", [4, 6])
def test_as_it_was_sent(version: int) -> None:
    first, second = packet(version, 1, 10), packet(version, 2, 20)
    sightings = sent(first, second)
    sightings.see(second.data)
    assert (sightings.passed, sightings.changed, sightings.repeated) == ({20}, {}, set())


@pytest.mark.parametrize("version", [4, 6])
def test_padding_is_no_part_of_it(version: int) -> None:
    one = packet(version, 1, 10)
    sightings = Sightings()
    sightings.sent(one, one.data + bytes(6))
    sightings.see(one.data)
    assert (sightings.passed, sightings.changed) == ({10}, {})


@pytest.mark.parametrize("version", [4, 6])
def test_changed_on_its_way(version: int) -> None:
    one = packet(version, 1, 10)
    sightings = sent(one)
    other = one.data[:-1] + b"\xff"
    sightings.see(other)
    assert (sightings.passed, sightings.changed) == ({10}, {10: other})


@pytest.mark.parametrize("version", [4, 6])
def test_seen_more_than_once(version: int) -> None:
    one = packet(version, 1, 10)
    sightings = sent(one)
    for _ in range(2):
        sightings.see(one.data)
    assert (sightings.passed, sightings.repeated) == ({10}, {10})
    sightings = sent(one, packet(version, 1, 11))
    for _ in range(2):
        sightings.see(one.data)
    assert (sightings.passed, sightings.repeated) == ({10, 11}, set())


@pytest.mark.parametrize("version", [4, 6])
def test_in_one_piece(version: int) -> None:
    whole = packet(version, 1, 10, 2600)
    pieces = [
        Packet(index, "fragments", data, whole.facts, datagram=4)
        for index, data in enumerate(wire.cut(whole.data, [1280], number=9))
    ]
    sightings = sent(*reversed(pieces))
    sightings.see(whole.data)
    assert (sightings.whole, sightings.passed, sightings.changed) == ({4}, set(), {})
    sightings = sent(*pieces)
    for piece in pieces:
        sightings.see(piece.data)
    assert (sightings.whole, sightings.passed, sightings.changed) == (set(), {0, 1}, {})
    sightings = sent(*pieces)
    sightings.see(whole.data[:-1] + b"\xff")
    assert sightings.whole == {4}
    assert list(sightings.changed) == [0]


def test_nobodys_packets_are_passed_over() -> None:
    sightings = sent(packet(4, 1, 10))
    for data in (b"", b"\x45", packet(4, 2, 0).data, packet(6, 1, 0).data, bytes(60)):
        sightings.see(data)
    assert (sightings.passed, sightings.whole) == (set(), set())


@pytest.mark.parametrize("version", [4, 6])
def test_without_checksums(version: int) -> None:
    data = packet(version, 1, 10).data
    start = 20 if version == 4 else 40
    other = data[: start + 6] + b"\x12\x34" + data[start + 8 :]
    assert data != other
    assert wire.without_checksums(data) == wire.without_checksums(other)
    assert wire.without_checksums(data) != wire.without_checksums(data[:-1] + b"\xff")
