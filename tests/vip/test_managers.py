"""The VIP manager in memory, and what the one for Linux says before it touches anything."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from nlbfarm.core.group_mac import group_mac
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import VipSpec
from nlbfarm.testing.vip import check_vip_manager
from nlbfarm.vip import LinuxVIPManager, MemoryHost, MemoryVIPManager
from nlbfarm.vip.checks import check_specs

VIP = IPv4Address("192.0.2.100")
OTHER_VIP = IPv4Address("192.0.2.101")
CLIENT = IPv4Address("192.0.2.50")
SPECS = [VipSpec(vip, "eth0", "multicast", group_mac(vip)) for vip in (VIP, OTHER_VIP)]


async def test_memory_conformance() -> None:
    host = MemoryHost(neighbours={CLIENT})

    async def remove(address: IPAddress) -> None:
        del host.addresses[address]

    async def stranger(address: IPAddress) -> None:
        host.strangers[address] = "02:00:00:00:00:99"

    await check_vip_manager(
        lambda: MemoryVIPManager(SPECS, host),
        vips=[VIP, OTHER_VIP],
        snapshot=lambda: dict(host.addresses),
        remove=remove,
        neighbour=CLIENT,
        stranger=stranger,
    )
    assert host.journal == []


async def test_memory_host_that_refuses() -> None:
    host = MemoryHost(refuses="no right")
    manager = MemoryVIPManager(SPECS, host)
    await manager.open()
    with pytest.raises(HostError, match="no right"):
        await manager.up()
    assert manager.present() == {VIP: False, OTHER_VIP: False}
    host.refuses = ""
    await manager.up()
    assert manager.present() == {VIP: True, OTHER_VIP: True}
    assert host.announced == [VIP, OTHER_VIP]
    await manager.close()


async def test_memory_address_that_is_not_ours() -> None:
    host = MemoryHost(addresses={VIP: "eth0"})
    manager = MemoryVIPManager(SPECS, host)
    with pytest.raises(HostError, match="not by this farm"):
        await manager.open()
    await manager.close()
    assert host.addresses == {VIP: "eth0"}


async def test_the_check_finds_a_manager_that_leaves_something_behind() -> None:
    class Forgetful(MemoryVIPManager):
        async def down(self) -> None:
            self.host.addresses.pop(VIP, None)
            self.host.journal.clear()

    host = MemoryHost()
    with pytest.raises(AssertionError, match="VIP may be present after down"):
        await check_vip_manager(lambda: Forgetful(SPECS, host), vips=[VIP, OTHER_VIP])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            VipSpec(IPv6Address("2001:db8::1"), "eth0", "multicast", "01:00:5e:7f:02:64"),
            "does not support IPv6",
        ),
        (VipSpec(VIP, "eth0", "directed", "01:00:5e:7f:02:64"), "does not support delivery 'directed'"),
        (
            VipSpec(VIP, 'eth0" drop; #', "multicast", "01:00:5e:7f:02:64"),
            "cannot be the name of an interface",
        ),
        (
            VipSpec(VIP, "sixteen-long-xyz", "multicast", "01:00:5e:7f:02:64"),
            "cannot be the name of an interface",
        ),
        (VipSpec(VIP, "eth*", "multicast", "01:00:5e:7f:02:64"), "cannot be the name of an interface"),
        (VipSpec(VIP, "eth0", "multicast", "02:00:00:00:00:01"), "not a multicast MAC"),
        (VipSpec(VIP, "eth0", "multicast", "ff:ff:ff:ff:ff:ff"), "not a multicast MAC"),
        (VipSpec(VIP, "eth0", "multicast", "01:00:5e"), "not a MAC address"),
    ],
)
def test_specifications_that_cannot_be(wrong: VipSpec, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        LinuxVIPManager([wrong], tmp_path / "journal.json")


def test_the_same_vip_twice() -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.100 is given twice"):
        check_specs([SPECS[0], SPECS[0]])


@pytest.mark.skipif(sys.platform != "linux", reason="the manager is for Linux")
async def test_without_pyroute2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "pyroute2", None
    )  # what Python itself does for a module that is not there
    manager = LinuxVIPManager(SPECS, tmp_path / "journal.json")
    try:
        with pytest.raises(HostError, match=r"pip install nlbfarm\[linux\]"):
            await manager.open()
    finally:
        await manager.close()
    assert list(tmp_path.iterdir()) == []
