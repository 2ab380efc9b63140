"""ARP frames: the bytes on the wire, and whatever comes back."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from nlbfarm.vip import arp

NODE = bytes.fromhex("020000000011")
GROUP = bytes.fromhex("01005e7f0264")
VIP = IPv4Address("192.0.2.100")
OWN = IPv4Address("192.0.2.11")
PEER = IPv4Address("192.0.2.12")


def test_announcement_bytes() -> None:
    """RFC 5227 section 3: a request, sender and target are the address; the frame is the node's own."""
    expected = (
        "ffffffffffff 020000000011 0806"  # Ethernet: to all, from the node's MAC, not the group MAC
        "0001 0800 06 04 0001"  # Ethernet, IPv4, lengths, request
        "01005e7f0264 c0000264"  # sender: the VIP is at the group MAC
        "000000000000 c0000264"  # target: the VIP
    )
    frame = arp.announcement(NODE, GROUP, VIP)
    assert frame == bytes.fromhex(expected.replace(" ", "")) + bytes(18)
    assert len(frame) == 60


def test_probe_bytes() -> None:
    """RFC 5227 section 2.1.1: the sender's IP is zero, so that nobody's cache changes."""
    expected = (
        "ffffffffffff 020000000011 0806 0001 0800 06 04 0001 020000000011 00000000 000000000000 c0000264"
    )
    assert arp.probe(NODE, VIP) == bytes.fromhex(expected.replace(" ", "")) + bytes(18)


def test_request_bytes() -> None:
    expected = (
        "ffffffffffff 020000000011 0806 0001 0800 06 04 0001 020000000011 c000020b 000000000000 c000020c"
    )
    assert arp.request(NODE, OWN, PEER) == bytes.fromhex(expected.replace(" ", "")) + bytes(18)


def test_parse_reads_what_is_built() -> None:
    assert arp.parse(arp.request(NODE, OWN, PEER)) == arp.Arp(1, NODE, OWN, bytes(6), PEER, NODE)
    assert arp.parse(arp.announcement(NODE, GROUP, VIP)) == arp.Arp(1, GROUP, VIP, bytes(6), VIP, NODE)
    without_padding = arp.probe(NODE, VIP)[:42]
    assert arp.parse(without_padding) == arp.Arp(1, NODE, IPv4Address(0), bytes(6), VIP, NODE)


def test_parse_refuses_other_frames() -> None:
    frame = arp.request(NODE, OWN, PEER)
    assert arp.parse(frame[:41]) is None
    for position in (12, 14, 16, 18, 19):  # ethertype, hardware, protocol, both lengths
        other = bytearray(frame)
        other[position] ^= 0x10
        assert arp.parse(bytes(other)) is None


@given(st.binary(max_size=80))
def test_parse_takes_any_bytes(data: bytes) -> None:
    arp.parse(data)
    arp.parse(arp.request(NODE, OWN, PEER)[:22] + data)
