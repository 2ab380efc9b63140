"""When an interface counts as one that has a link, by the flags that Linux gives it."""

from __future__ import annotations

import socket
import sys

import pytest

from nlbfarm.vip.netlink import Link, Netlink, Watch

UP, BROADCAST, LOOPBACK, RUNNING, NOARP, MULTICAST, LOWER_UP, DORMANT = (
    0x1,
    0x2,
    0x8,
    0x40,
    0x80,
    0x1000,
    0x10000,
    0x20000,
)


@pytest.mark.parametrize(
    ("flags", "carries"),
    [
        (UP | BROADCAST | RUNNING | MULTICAST | LOWER_UP, True),
        (UP | BROADCAST | RUNNING | NOARP | LOWER_UP, True),  # dummy: its operstate is UNKNOWN
        (UP | LOOPBACK | RUNNING | LOWER_UP, True),
        (BROADCAST | MULTICAST, False),  # switched off
        (UP | BROADCAST | MULTICAST, False),  # no carrier
        (UP | BROADCAST | MULTICAST | RUNNING, False),  # lost just now: RUNNING follows after a moment
        (UP | BROADCAST | MULTICAST | LOWER_UP | DORMANT, False),  # 802.1X has not let it in
    ],
)
def test_flags(flags: int, carries: bool) -> None:
    assert Link("eth0", 2, "", flags).carries is carries


@pytest.mark.skipif(sys.platform != "linux", reason="netlink is for Linux")
def test_the_loopback_has_a_link() -> None:
    """Its operstate is UNKNOWN, as that of a dummy; here it is up in any machine that runs tests."""
    pytest.importorskip("pyroute2")
    watch = Watch()
    try:
        with Netlink() as netlink:
            lo = netlink.links()["lo"]
            if not lo.up:
                pytest.skip("the loopback is down")
            watch.seed([lo], [])
        assert lo.carries
        assert watch.has_link(socket.if_nametoindex("lo"))
        watch._reload()
        assert watch.has_link(lo.index)
    finally:
        watch.close()
