"""Virtual IPs on an interface that loses its link, is switched off, or vanishes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.netns.vip_support import VIP, Network, flood, inside, ip, network, until, vip_up

from nlbfarm.core.group_mac import group_mac
from nlbfarm.errors import HostError
from nlbfarm.vip import LinuxVIPManager

pytestmark = pytest.mark.netns
GROUP = group_mac(VIP)


@pytest.fixture
def farm() -> Iterator[Network]:
    with network() as built:
        yield built


async def up_soon(manager: LinuxVIPManager) -> None:
    """Bring the VIPs up on an interface that has just been given its link: the kernel takes a moment."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await manager.up()
            except HostError as error:
                if "has no link" not in str(error):
                    raise
                await asyncio.sleep(0.02)


async def test_link_that_is_lost(farm: Network, tmp_path: Path) -> None:
    """The cable is pulled, or the interface switched off: nobody's clients get here, until it is back."""
    node = farm.nodes[0]
    switch = node.namespace.removesuffix("node1") + "switch"
    async with vip_up(tmp_path, node) as manager:
        assert manager.present() == {VIP: True}
        for lost, back, message in (
            (
                ("-netns", switch, "link", "set", "node1", "down"),
                ("-netns", switch, "link", "set", "node1", "up"),
                r"^eth0, where clients of 192\.0\.2\.100 arrive, has no link: .*\(ip link show eth0\)$",
            ),
            (
                ("-netns", node.namespace, "link", "set", "eth0", "down"),
                ("-netns", node.namespace, "link", "set", "eth0", "up"),
                "eth0 of the virtual IP 192.0.2.100 is down; switch it on: ip link set eth0 up",
            ),
        ):
            ip(*lost)
            with inside(node.namespace):
                await until(lambda: not manager.present()[VIP], "the loss is seen")
                for _ in range(2):
                    with pytest.raises(HostError, match=message):
                        await manager.up()
                assert manager.present() == {VIP: False}
                ip(*back)
                await up_soon(manager)
                await until(lambda: manager.present()[VIP], "the VIP is present again")
        assert GROUP in node.ip("maddr", "show", "dev", "eth0")
        await until(lambda: farm.client.neighbour(VIP) == {}, "nobody has learnt anything")


async def test_link_lost_among_more_changes_than_the_queue_holds(farm: Network, tmp_path: Path) -> None:
    node = farm.nodes[0]
    async with vip_up(tmp_path, node) as manager:
        batch = flood(tmp_path)
        node.ip("-batch", str(batch))
        node.ip("link", "set", "eth0", "down")
        with inside(node.namespace):
            assert manager.present() == {VIP: False}


async def test_interface_that_vanishes(farm: Network, tmp_path: Path) -> None:
    node = farm.nodes[0]
    async with vip_up(tmp_path, node) as manager:
        node.ip("link", "delete", "eth0")
        assert manager.present() == {VIP: False}
        with inside(node.namespace):
            assert await manager.reachable([farm.client.address]) == frozenset()
            await manager.announce()
            with pytest.raises(HostError, match=r"interface eth0 of the virtual IP .* does not exist"):
                await manager.up()
            # Another one with the same name comes: the VIP goes there.
            node.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth9")
            node.ip("link", "set", "eth9", "up")
            node.ip("address", "add", f"{node.address}/24", "dev", "eth0")
            node.ip("link", "set", "eth0", "up")
            await up_soon(manager)
            await until(lambda: manager.present()[VIP], "the VIP is present")
        assert GROUP in node.ip("maddr", "show", "dev", "eth0")
    assert str(VIP) not in node.ip("address")
    assert "nlbfarm" not in node.run("nft", "list", "tables")
