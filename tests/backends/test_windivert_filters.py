"""The filter strings of the windivert backend, judged by WinDivert's own compiler and evaluator."""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest

from nlbfarm.backends.windivert.filters import (
    MAX_TESTS,
    Target,
    divert_filter,
    drop_filters,
    flow_filter,
)
from nlbfarm.core.policy import IPAddress

FIRST, SECOND = IPv4Address("192.0.2.100"), IPv4Address("192.0.2.102")
SIXTH = IPv6Address("2001:db8::100")
NEIGHBOUR_SOLICITATION, ECHO_REQUEST = 135, 128


def packet(destination: IPAddress, *, protocol: int = 6, first: int = 0) -> bytes:
    """A packet for ``destination``; ``first`` is the first byte after the IP header."""
    body = bytes((first,)) + bytes(39)
    if destination.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0)
        return head + IPv4Address("198.51.100.7").packed + destination.packed + body
    head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
    return head + IPv6Address("2001:db8:c::7").packed + destination.packed + body


Matches = Callable[..., bool]


@pytest.fixture(scope="module")
def compiles() -> Callable[[str], tuple[bool, int, str]]:
    pydivert = pytest.importorskip(
        "pydivert", reason="pydivert is not installed (pip install nlbfarm[windivert])"
    )

    def check(expression: str, layer: int = 0) -> tuple[bool, int, str]:
        answer: tuple[bool, int, str] = pydivert.Divert.check_filter(expression, pydivert.Layer(layer))
        return answer

    return check


@pytest.fixture(scope="module")
def matches() -> Matches:
    """Whether a filter matches a packet, by the evaluator of WinDivert in pydivert's Linux library."""
    pytest.importorskip("pydivert", reason="pydivert is not installed (pip install nlbfarm[windivert])")
    bpf = pytest.importorskip("pydivert.bpf", reason="only pydivert for Linux has the evaluator in a library")
    library: Any = bpf.libebpfdivert
    if library is None:
        pytest.skip("pydivert's library for Linux cannot be loaded here")

    def evaluate(
        expression: str,
        data: bytes,
        *,
        interface: int = 3,
        inbound: bool = True,
        loopback: bool = False,
    ) -> bool:
        address = bpf.WinDivertAddress()
        address.Outbound, address.Loopback = not inbound, loopback
        address.IPv6 = data[0] >> 4 == 6
        address.u.Network.IfIdx = interface
        buffer = ctypes.create_string_buffer(data, len(data))
        answer = library.ebpfdivert_helper_eval_filter(
            expression.encode(), buffer, len(data), ctypes.byref(address)
        )
        assert answer >= 0, f"error {answer} of the evaluator for {expression}"
        return bool(answer)

    return evaluate


def test_what_it_looks_like() -> None:
    assert divert_filter([Target(FIRST)]) == "inbound and !loopback and (ip.DstAddr == 192.0.2.100)"
    assert divert_filter([Target(FIRST, 3), Target(SECOND, 4)]) == (
        "inbound and !loopback and ((ifIdx == 3 and (ip.DstAddr == 192.0.2.100)) or "
        "(ifIdx == 4 and (ip.DstAddr == 192.0.2.102)))"
    )
    assert divert_filter([]) == "false"
    assert drop_filters([]) == ()
    assert drop_filters([Target(FIRST)]) == (divert_filter([Target(FIRST)]),)
    assert flow_filter([Target(FIRST)]) == "event == DELETED and protocol == 6 and (localAddr == 192.0.2.100)"


def test_order_and_repetition_do_not_matter() -> None:
    some = [Target(FIRST), Target(SIXTH), Target(SECOND)]
    assert divert_filter(some) == divert_filter([*reversed(some), *some])


def test_neighbours_become_a_range() -> None:
    three = [Target(FIRST + offset) for offset in range(3)]
    assert "ip.DstAddr >= 192.0.2.100 and ip.DstAddr <= 192.0.2.102" in divert_filter(three)
    assert ">=" not in divert_filter(three[:2])


def test_it_matches_what_arrives_for_a_vip_and_nothing_else(matches: Matches) -> None:
    expression = divert_filter([Target(FIRST, 3), Target(SECOND, 4), Target(SIXTH, 3)])
    assert matches(expression, packet(FIRST))
    assert matches(expression, packet(SECOND), interface=4)
    assert matches(expression, packet(SIXTH))
    for protocol in (1, 6, 17, 47, 253):
        assert matches(expression, packet(FIRST, protocol=protocol)), "what no rule covers is judged as well"
    assert not matches(expression, packet(FIRST), interface=4)
    assert not matches(expression, packet(FIRST), inbound=False)
    assert not matches(expression, packet(FIRST), loopback=True)
    assert not matches(expression, packet(FIRST + 1))
    assert not matches(expression, packet(SIXTH + 1))


def test_neighbour_discovery_is_left_alone(matches: Matches) -> None:
    for expression in (divert_filter([Target(SIXTH)]), *drop_filters([Target(SIXTH)])):
        for kind in range(256):
            discovery = 133 <= kind <= 137
            assert matches(expression, packet(SIXTH, protocol=58, first=kind)) is not discovery, kind
        assert matches(expression, packet(SIXTH, protocol=17, first=NEIGHBOUR_SOLICITATION))


@pytest.mark.parametrize("versions", [(4,), (6,), (4, 6)])
@pytest.mark.parametrize("interfaces", [(None,), (3, 4, 5)])
def test_many_vips(
    versions: tuple[int, ...],
    interfaces: tuple[int | None, ...],
    rng: random.Random,
    compiles: Callable[[str], tuple[bool, int, str]],
    matches: Matches,
) -> None:
    base = {4: ip_address("203.0.113.0"), 6: ip_address("2001:db8:5::")}
    vips = {
        base[version] + rng.randrange(2_000): rng.choice(interfaces)
        for version in rng.choices(versions, k=700)
    }
    targets = [Target(address, interface) for address, interface in vips.items()]
    diverting, dropping = divert_filter(targets), drop_filters(targets)
    assert len(dropping) > 1
    for expression in (diverting, *dropping):
        assert compiles(expression) == (True, 0, "")
    for address, interface in rng.sample(sorted(vips.items(), key=str), 60):
        assert matches(diverting, packet(address), interface=interface or 3)
        assert sum(matches(one, packet(address), interface=interface or 3) for one in dropping) == 1
    for version in versions:
        stranger = base[version] + rng.randrange(2_000)
        if stranger not in vips:
            assert not any(matches(one, packet(stranger)) for one in dropping)


@pytest.mark.parametrize("count", [1, 60, 253, 254, 255, 600])
def test_the_limit_is_used_and_kept(count: int, compiles: Callable[[str], tuple[bool, int, str]]) -> None:
    # Two apart: no ranges without taking in what is between.
    targets = [Target(FIRST + 2 * index) for index in range(count)]
    expression = divert_filter(targets)
    assert compiles(expression)[0], expression
    assert (">=" not in expression) == (count + 2 <= MAX_TESTS)


def test_what_is_taken_in_between_is_as_little_as_can_be() -> None:
    near, far = [FIRST, FIRST + 2], FIRST + 1_000
    expression = divert_filter([Target(near[0]), Target(near[1]), Target(far), Target(far + 7)], limit=5)
    assert "ip.DstAddr >= 192.0.2.100 and ip.DstAddr <= 192.0.2.102" not in expression
    assert expression.count("==") + 2 * expression.count(">=") <= 3
    four = divert_filter([Target(near[0]), Target(near[1]), Target(far), Target(far + 7)], limit=6)
    assert ">=" not in four


def test_too_many_interfaces() -> None:
    with pytest.raises(ValueError, match="too many interfaces"):
        divert_filter([Target(FIRST, index) for index in range(1, 200)])


def test_the_flow_filter(compiles: Callable[..., tuple[bool, int, str]]) -> None:
    for count in (0, 1, 254, 255, 1_000):
        expression = flow_filter([*(Target(FIRST + index) for index in range(count)), Target(SIXTH)])
        assert compiles(expression, 2)[0], expression
