"""The checker ``ping``: real echo requests, on loopback and between network namespaces."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from tests.checkers.support import LONG, SHORT, look, wired

from nlbfarm.checkers import PingChecker, build
from nlbfarm.checkers.ping import _checksum
from nlbfarm.config.checkers import PingChecker as Entry
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError
from nlbfarm.interfaces import CheckResult

LOOPBACK, LOOPBACK6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="lack of Linux")
raw = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="lack of root")


def answered(result: CheckResult, address: object, more: str = "") -> None:
    assert result.ok
    assert re.fullmatch(rf"answer from {address}{more} within [0-9]+\.[0-9] ms", result.detail), result.detail


def only(monkeypatch: pytest.MonkeyPatch, *kinds: int) -> list[int]:
    """Let this user have only these kinds of sockets for ICMP; return a list of those that are made."""
    real, made = socket.socket, []

    def make(family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0, **more: Any) -> socket.socket:
        if protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6):
            if kind not in kinds:
                raise PermissionError(1, "Operation not permitted")
            made.append(kind)
        return real(family, kind, protocol, **more)

    monkeypatch.setattr("nlbfarm.checkers.ping.socket.socket", make)
    return made


@linux
@raw
@pytest.mark.parametrize("address", [LOOPBACK, LOOPBACK6])
async def test_with_a_raw_socket(address: IPAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    made = only(monkeypatch, socket.SOCK_RAW)
    for _ in range(3):
        answered(await look(PingChecker(address, timeout=LONG)), address)
    assert set(made) == {socket.SOCK_RAW}


@linux
@raw
async def test_many_at_once_do_not_take_each_others_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A raw socket hears the answers to everybody."""
    only(monkeypatch, socket.SOCK_RAW)
    addresses = [IPv4Address(f"127.0.0.{number}") for number in range(1, 21)]
    results = await asyncio.gather(*(look(PingChecker(address, timeout=LONG)) for address in addresses))
    for address, result in zip(addresses, results, strict=True):
        answered(result, address)


@linux
async def test_a_host_that_allows_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    with pytest.raises(
        HostError, match=r"CAP_NET_RAW, or let its group in with sysctl net\.ipv4\.ping_group"
    ):
        await look(PingChecker(LOOPBACK))


@pytest.mark.windows
async def test_windows_is_told_plainly() -> None:
    with pytest.raises(HostError, match='"ping" works on Linux only'):
        await look(PingChecker(LOOPBACK))


@linux
@raw
async def test_an_interface_that_is_not_there() -> None:
    result = await look(PingChecker(LOOPBACK, interface="nowhere0"))
    told = "cannot ask 127.0.0.1 through nowhere0: this host has no interface nowhere0"
    assert result == CheckResult(False, told)
    answered(await look(PingChecker(LOOPBACK, interface="lo", timeout=LONG)), "127.0.0.1 through lo")


def test_checksum() -> None:
    """RFC 1071 section 3: the sum of the example is ddf2."""
    assert _checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF ^ 0xDDF2
    assert struct.pack("!H", _checksum(bytes(8))) == b"\xff\xff"


def test_from_a_configuration() -> None:
    entry = Entry.model_validate(
        {"name": "gateway", "type": "ping", "address": "192.0.2.1", "interface": "eth0", "count": 2}
    )
    assert isinstance(build(entry), PingChecker)


# --- in namespaces ----------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[str, str]]:
    """Two namespaces with an interface to each other, 192.0.2.1 and 192.0.2.2, 2001:db8::1 and ::2."""
    from tests.netns.vip_support import ip

    with wired("nfck") as names:
        for number, name in enumerate(names, 1):
            ip("-netns", name, "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
            ip("-netns", name, "address", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
            ip("-netns", name, "link", "set", "eth0", "up")
        yield names


@pytest.mark.netns
async def test_with_the_kernels_own_kind_of_socket(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.netns.vip_support import inside

    made = only(monkeypatch, socket.SOCK_DGRAM, socket.SOCK_RAW)
    with inside(pair[0]):
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0\n")
        for address in (IPv4Address("192.0.2.2"), IPv6Address("2001:db8::2")):
            for _ in range(2):
                answered(await look(PingChecker(address, timeout=LONG)), address)
        answered(
            await look(PingChecker(IPv4Address("192.0.2.2"), interface="eth0", timeout=LONG)),
            "192.0.2.2 through eth0",
        )
    assert set(made) == {socket.SOCK_DGRAM}


@pytest.mark.netns
async def test_nobody_answers(pair: tuple[str, str]) -> None:
    from tests.netns.vip_support import inside

    with inside(pair[0]):
        nobody = await look(PingChecker(IPv4Address("192.0.2.9"), timeout=2 * SHORT))
        nowhere = await look(PingChecker(IPv4Address("198.51.100.1"), timeout=SHORT, count=1))
        looking = asyncio.create_task(look(PingChecker(IPv4Address("192.0.2.9"), timeout=LONG)))
        await asyncio.sleep(0.01)
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
    assert nobody == CheckResult(False, "no answer from 192.0.2.9 (3 echo requests, 0.4 s)")
    assert nowhere == CheckResult(False, "cannot ask 198.51.100.1: Network is unreachable")


@pytest.mark.netns
async def test_one_answer_of_several_is_enough(pair: tuple[str, str]) -> None:
    """The other side drops the first two."""
    from tests.netns.vip_support import ip

    ip(
        "netns", "exec", pair[1], "nft",
        "add table inet t; add chain inet t c { type filter hook input priority 0; }; "
        "add quota inet t q { over 0 bytes }; "
        "add rule inet t c icmp type echo-request limit rate over 1/day burst 2 packets accept; "
        "add rule inet t c icmp type echo-request drop",
    )  # fmt: skip
    from tests.netns.vip_support import inside

    with inside(pair[0]):
        result = await look(PingChecker(IPv4Address("192.0.2.2"), timeout=5 * SHORT))
    answered(result, "192.0.2.2", " to request 3 of 3")


@pytest.mark.netns
async def test_a_firewall_of_this_host(pair: tuple[str, str]) -> None:
    from tests.netns.vip_support import inside, ip

    ip(
        "netns", "exec", pair[0], "nft",
        "add table inet t; add chain inet t c { type filter hook output priority 0; }; "
        "add rule inet t c icmp type echo-request drop",
    )  # fmt: skip
    with inside(pair[0]):
        result = await look(PingChecker(IPv4Address("192.0.2.2"), timeout=SHORT))
    told = "the host refuses it (a firewall, or the right to choose the interface)"
    assert result == CheckResult(False, f"no answer from 192.0.2.2 (3 echo requests, 0.2 s): {told}")
