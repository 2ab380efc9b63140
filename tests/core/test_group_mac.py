"""The group MAC of a VIP."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from nlbfarm.core.group_mac import group_mac, igmp_group, mac_bytes, mac_text
from nlbfarm.errors import UsageError


def test_like_nlb_in_igmp_mode() -> None:
    assert group_mac(IPv4Address("192.0.2.100")) == "01:00:5e:7f:02:64"
    assert group_mac(IPv4Address("198.51.100.255")) == "01:00:5e:7f:64:ff"
    with pytest.raises(UsageError, match="IPv4"):
        group_mac(IPv6Address("2001:db8::1"))


def test_the_ip_group_that_travels_to_it() -> None:
    """RFC 1112 section 6.4: the low 23 bits of the group are in the MAC."""
    assert igmp_group("01:00:5e:7f:02:64") == IPv4Address("239.127.2.100")
    assert igmp_group("01:00:5e:80:02:64") is None  # the 24th bit is not IPv4 multicast's
    assert igmp_group("03:bf:c0:00:02:64") is None


@pytest.mark.parametrize(
    "wrong", ["", "01:00:5e:7f:02", "01-00-5e-7f-02-64", "01:00:5e:7f:02:6g", "01:00:5e:7f:02:64\n"]
)
def test_what_is_no_mac(wrong: str) -> None:
    with pytest.raises(UsageError, match="not a MAC address"):
        mac_bytes(wrong)


def test_text_and_bytes() -> None:
    assert mac_text(mac_bytes("01:00:5E:7F:02:64")) == "01:00:5e:7f:02:64"
