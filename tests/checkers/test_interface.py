"""The checker ``interface`` with real interfaces: there, switched on, with a link."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from tests.checkers.support import LONG, SHORT, look, wired

from nlbfarm.checkers import HostView, InterfaceChecker, build
from nlbfarm.config.checkers import InterfaceChecker as Entry
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import CheckResult


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="lack of Linux")
async def test_there_and_not_there() -> None:
    assert await look(InterfaceChecker(["lo"])) == CheckResult(True, "lo has a link")
    result = await look(InterfaceChecker(["lo", "nowhere0"]))
    assert result == CheckResult(False, "this host has no interface nowhere0")


async def test_by_default_those_of_the_node() -> None:
    entry = {"name": "link", "type": "interface"}
    by_default = build(Entry.model_validate(entry), HostView(interfaces=("nowhere0", "nowhere1", "nowhere0")))
    result = await look(by_default)
    told = "this host has no interface nowhere0; this host has no interface nowhere1"
    assert result == CheckResult(False, told)
    named = build(
        Entry.model_validate(entry | {"interfaces": "nowhere2"}), HostView(interfaces=("nowhere0",))
    )
    assert await look(named) == CheckResult(False, "this host has no interface nowhere2")
    with pytest.raises(UsageError, match="names no interface"):
        build(Entry.model_validate(entry))


async def test_a_driver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(psutil, "net_if_stats", lambda: go.wait(LONG) and {})
    checker = InterfaceChecker(["eth0", "eth1"], timeout=SHORT)
    first, second = await checker.check(), await checker.check()
    assert first == CheckResult(False, "the state of eth0 and eth1: no answer within 0.2 s")
    assert second.detail.startswith("the state of eth0 and eth1: the look before has not come back for ")
    go.set()
    await checker.close()


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """Two namespaces; what is eth0 in the first is the other end of eth0 in the second."""
    with wired("nfcl") as names:
        yield names


@pytest.mark.netns
async def test_switched_off_unplugged_and_well(cable: tuple[str, str]) -> None:
    from tests.netns.vip_support import inside, ip

    async def becomes(expected: CheckResult) -> None:
        """Wait for it: the kernel tells of a link a moment later (net/core/link_watch.c)."""
        seen, end = None, time.monotonic() + LONG
        while seen != expected:
            assert time.monotonic() < end, seen
            with inside(cable[0]):
                seen = await look(InterfaceChecker(["eth0"]))

    await becomes(CheckResult(False, "eth0 is switched off (ip link set eth0 up)"))
    ip("-netns", cable[0], "link", "set", "eth0", "up")
    await becomes(CheckResult(False, "eth0 has no link: is the cable in, is the switch on?"))
    ip("-netns", cable[1], "link", "set", "eth0", "up")
    await becomes(CheckResult(True, "eth0 has a link"))
