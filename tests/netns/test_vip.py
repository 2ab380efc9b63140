"""Virtual IPs on real Linux network stacks: what clients learn, and what is left on the host."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from tests.netns.vip_support import (
    VIP,
    Network,
    accept_multicast_frames,
    echo_server,
    fetch,
    flood,
    inside,
    ip,
    journal_of,
    network,
    spec,
    until,
    vip_up,
)

from nlbfarm.core.group_mac import group_mac
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError, UsageError
from nlbfarm.testing.vip import check_vip_manager
from nlbfarm.vip import LinuxVIPManager

pytestmark = pytest.mark.netns
GROUP = group_mac(VIP)
OTHER_VIP = IPv4Address("192.0.2.101")


@pytest.fixture
def farm() -> Iterator[Network]:
    with network() as built:
        yield built


async def test_conformance(farm: Network, tmp_path: Path) -> None:
    node, other = farm.nodes

    async def remove(address: IPAddress) -> None:
        node.ip("address", "del", f"{address}/32", "dev", "eth0")

    async def stranger(address: IPAddress) -> None:
        other.ip("address", "add", f"{address}/32", "dev", "eth0")

    with inside(node.namespace):
        await check_vip_manager(
            lambda: LinuxVIPManager([spec(VIP), spec(OTHER_VIP)], journal_of(tmp_path, node)),
            vips=[VIP, OTHER_VIP],
            snapshot=node.snapshot,
            remove=remove,
            neighbour=farm.client.address,
            stranger=stranger,
        )
    assert not journal_of(tmp_path, node).exists()


async def test_what_is_on_the_host_while_up(farm: Network, tmp_path: Path) -> None:
    node = farm.nodes[0]
    async with vip_up(tmp_path, node) as manager:
        assert "inet 192.0.2.100/32 scope host eth0:nlb" in node.ip("-oneline", "address", "show", "eth0")
        with inside(node.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = fcntl.ioctl(sock, 0x8915, struct.pack("256s", b"eth0"))  # SIOCGIFADDR
            assert IPv4Address(answer[20:24]) == node.address
        assert GROUP in node.ip("maddr", "show", "dev", "eth0")
        assert "239.127.2.100" in node.ip("maddr", "show", "dev", "eth0")  # joined with IGMP
        assert "table arp nlbfarm_vip_192_0_2_100" in node.run("nft", "list", "tables")
        with inside(node.namespace):
            assert Path("/proc/sys/net/ipv4/conf/eth0/arp_announce").read_text() == "2\n"
        assert journal_of(tmp_path, node).stat().st_mode & 0o777 == 0o600
        assert manager.present() == {VIP: True}


async def test_clients_know_the_group_mac_only(farm: Network, tmp_path: Path) -> None:
    """Whatever the nodes do, and however often entries expire, the client's entry is the group MAC.

    Twenty lives of an entry are ten minutes at Linux's default of 30 s a life.
    """
    node1, node2 = farm.nodes
    client = farm.client
    for machine in (client, node1, node2):
        for name, value in (
            ("base_reachable_time_ms", 50),
            ("delay_first_probe_time", 0),
            ("gc_stale_time", 1),
        ):
            machine.sysctl(f"ipv4/neigh/eth0/{name}", value)

    def state() -> str:
        entry = client.neighbour(VIP)
        assert entry.get("lladdr", GROUP) == GROUP, f"the client's entry for the VIP is {entry}"
        return str(entry["state"][0]) if entry else "none"

    accept_multicast_frames(node1)  # node2 has no filter: its TCP ignores what comes in multicast frames
    async with contextlib.AsyncExitStack() as stack:
        for node in farm.nodes:
            await stack.enter_async_context(vip_up(tmp_path, node))
        await stack.enter_async_context(echo_server(node1, VIP, 80))
        await stack.enter_async_context(echo_server(client, client.address, 8080))

        client.ip("neigh", "flush", "all")
        for life in range(20):
            assert await fetch(client, VIP, 80) == node1.namespace
            for machine in farm.nodes:
                machine.ip("neigh", "flush", "all")
                await fetch(machine, client.address, 8080)
            node1.ip("neigh", "flush", "all")
            assert await fetch(node1, client.address, 8080, source=VIP) == client.namespace
            await until(lambda: state() != "REACHABLE", f"life {life}: the entry grows old")
            if life % 5 == 4:
                client.ip("neigh", "flush", "all")
        assert await fetch(client, VIP, 80) == node1.namespace
        assert client.neighbour(VIP)["lladdr"] == GROUP


async def test_announcement_corrects_a_wrong_entry(farm: Network, tmp_path: Path) -> None:
    """A client that still has the MAC of a former owner of the address learns the group MAC at once."""
    node, client = farm.nodes[0], farm.client
    client.ip("neigh", "replace", str(VIP), "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "stale")
    async with vip_up(tmp_path, node):
        await until(lambda: client.neighbour(VIP).get("lladdr") == GROUP, "the client has the group MAC")


async def test_requests_from_the_vip_teach_nobody(farm: Network, tmp_path: Path) -> None:
    """Also where arp_announce does not help: set back by somebody, or on another interface."""
    node, client = farm.nodes[0], farm.client
    async with vip_up(tmp_path, node), echo_server(client, client.address, 8080):
        node.sysctl("ipv4/conf/eth0/arp_announce", 0)
        client.ip("neigh", "replace", str(VIP), "lladdr", GROUP, "dev", "eth0", "nud", "stale")
        node.ip("neigh", "flush", "all")
        with inside(node.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((str(VIP), 0))
            sock.sendto(b"?", (str(client.address), 8080))
        # The answer to the request reached the node: it knows the client, and the client learnt nothing.
        await until(
            lambda: node.neighbour(client.address).get("lladdr") == client.mac, "the node knows the client"
        )
        assert client.neighbour(VIP)["lladdr"] == GROUP


async def test_no_answer_for_the_vip_on_other_interfaces(farm: Network, tmp_path: Path) -> None:
    """The weak host model would answer there, past the filter; the node's other addresses still do."""
    node, other = farm.nodes
    node.ip("link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", other.namespace)
    for machine, address in ((node, "198.51.100.11/24"), (other, "198.51.100.12/24")):
        machine.ip("address", "add", address, "dev", "eth1")
        machine.ip("link", "set", "eth1", "up")
    async with vip_up(tmp_path, node):
        prober = LinuxVIPManager([spec(VIP, "eth1")], tmp_path / "none.json")
        with inside(other.namespace):
            other.ip(
                "address", "add", "192.0.2.112/24", "dev", "eth1"
            )  # so that the VIP is asked for on eth1
            try:
                asked = [VIP, IPv4Address("192.0.2.11"), IPv4Address("198.51.100.11")]
                found = await prober.reachable(asked[:2])
                assert found == {IPv4Address("192.0.2.11")}
            finally:
                await prober.close()


async def test_reachable_asks_all_at_once_and_only_neighbours(farm: Network, tmp_path: Path) -> None:
    node, client = farm.nodes[0], farm.client
    absent = [IPv4Address(f"192.0.2.{number}") for number in range(150, 200)]
    elsewhere = IPv4Address("198.51.100.1")
    async with vip_up(tmp_path, node) as manager:
        with inside(node.namespace):
            node.ip("neigh", "flush", "all")
            found = await manager.reachable(
                [client.address, farm.nodes[1].address, elsewhere, node.address, *absent]
            )
    assert found == {client.address, farm.nodes[1].address}
    assert client.neighbour(VIP) == {}, "a question of a node taught the client something about the VIP"


async def test_peers_are_no_strangers(farm: Network, tmp_path: Path) -> None:
    """A VIP that another node of the farm serves may be joined; a machine outside the farm is named."""
    node, other = farm.nodes
    manager = LinuxVIPManager([spec()], journal_of(tmp_path, node))
    with inside(node.namespace):
        await manager.open()
    try:
        async with vip_up(tmp_path, other):
            with inside(node.namespace):
                assert await manager.claimed() == {}
        farm.client.ip("address", "add", f"{VIP}/32", "dev", "eth0")
        with inside(node.namespace):
            assert await manager.claimed() == {VIP: farm.client.mac}
    finally:
        with inside(node.namespace):
            await manager.close()


async def test_flushed_arp_rules_are_seen_and_come_back(farm: Network, tmp_path: Path) -> None:
    node, client = farm.nodes[0], farm.client
    async with vip_up(tmp_path, node) as manager:
        for command in ("flush ruleset", "flush table arp nlbfarm_vip_192_0_2_100"):
            node.run("nft", *command.split())
            assert manager.present() == {VIP: False}
            with inside(node.namespace):
                await manager.down()
                await manager.up()
            assert manager.present() == {VIP: True}
        client.ip("neigh", "flush", "all")
        with inside(client.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"?", (str(VIP), 9))
        await until(lambda: client.neighbour(VIP).get("lladdr") == GROUP, "the client has the group MAC")


def add_with_a_mark_of_its_own() -> None:
    """Add the VIP as another program would that uses IFA_PROTO (iproute2 does not know it everywhere)."""
    with IPRoute() as netlink:
        index = socket.if_nametoindex("eth0")
        netlink.addr("add", index=index, address=str(VIP), prefixlen=32, proto=99)


async def test_only_what_is_still_ours_is_put_back(farm: Network, tmp_path: Path) -> None:
    node = farm.nodes[0]
    async with vip_up(tmp_path, node):
        node.sysctl("ipv4/conf/eth0/arp_announce", 1)  # an administrator decides otherwise
        node.ip("address", "del", f"{VIP}/32", "dev", "eth0")
        with inside(node.namespace):
            adding = threading.Thread(target=add_with_a_mark_of_its_own)
            adding.start()
            adding.join(10)
    with inside(node.namespace):
        assert Path("/proc/sys/net/ipv4/conf/eth0/arp_announce").read_text() == "1\n"
    assert str(VIP) in node.ip("address", "show", "eth0")


async def test_multicast_mac_joined_by_others_stays(farm: Network, tmp_path: Path) -> None:
    node = farm.nodes[0]
    node.ip("maddr", "add", GROUP, "dev", "eth0")
    before = node.snapshot()
    async with vip_up(tmp_path, node):
        pass
    assert node.snapshot() == before
    assert GROUP in node.ip("maddr", "show", "dev", "eth0")


async def test_a_vip_of_another_farm_is_not_advised_to_be_deleted(farm: Network, tmp_path: Path) -> None:
    node = farm.nodes[0]
    async with vip_up(tmp_path, node):
        other = LinuxVIPManager([spec()], tmp_path / "other.json")
        with inside(node.namespace):
            with pytest.raises(HostError, match="by another nlbfarm farm, or left by a killed") as caught:
                await other.open()
            await other.close()
        assert "nlbfarm-node cleanup" in str(caught.value)
        assert "ip address del" not in str(caught.value)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            "link set eth0 down",
            "eth0 of the virtual IP 192.0.2.100 is down; switch it on: ip link set eth0 up",
        ),
        (
            "address flush dev eth0",
            "eth0 is not on the network of the virtual IP 192.0.2.100: it has no address",
        ),
        (
            "link set eth0 name lan0",
            "eth0 of the virtual IP 192.0.2.100 does not exist; this host has: lan0, lo",
        ),
        (
            "address add 192.0.2.100/24 dev eth0",
            "already on this host.*192.0.2.100/24 on eth0.*not by this farm",
        ),
        ("address add 192.0.2.100/32 dev lo", "already on this host.*192.0.2.100/32 on lo.*ip address del"),
    ],
)
async def test_a_host_that_cannot(farm: Network, tmp_path: Path, prepare: str, message: str) -> None:
    node = farm.nodes[0]
    if "name" in prepare:
        node.ip("link", "set", "eth0", "down")
    node.ip(*prepare.split())
    before = node.snapshot()
    manager = LinuxVIPManager([spec()], journal_of(tmp_path, node))
    with inside(node.namespace):
        with pytest.raises(HostError, match=message):
            await manager.open()
        with pytest.raises(UsageError):
            await manager.up()
        await manager.close()
    assert node.snapshot() == before
    assert not journal_of(tmp_path, node).exists()


async def test_failure_on_the_way_up_takes_everything_back(farm: Network, tmp_path: Path) -> None:
    """The second VIP's address cannot be added: the first one's is gone again, too."""
    node = farm.nodes[0]
    manager = LinuxVIPManager([spec(VIP), spec(OTHER_VIP)], journal_of(tmp_path, node))
    with inside(node.namespace):
        await manager.open()
        before = node.snapshot()
        node.ip("address", "add", f"{OTHER_VIP}/32", "dev", "eth0")
        taken = node.snapshot()
        try:
            with pytest.raises(HostError, match="already on this host"):
                await manager.up()
            assert node.snapshot() == taken
            node.ip("address", "del", f"{OTHER_VIP}/32", "dev", "eth0")
            limit = Path("/proc/sys/net/ipv4/igmp_max_memberships")
            old = limit.read_text()
            limit.write_text("0\n")  # the last step, joining the group, fails
            with pytest.raises(HostError, match="cannot join the group MAC"):
                await manager.up()
            limit.write_text(old)
            assert node.snapshot() == before
            assert manager.present() == {VIP: False, OTHER_VIP: False}
            assert not journal_of(tmp_path, node).exists()
        finally:
            await manager.close()


async def test_present_after_more_changes_than_the_queue_holds(farm: Network, tmp_path: Path) -> None:
    node = farm.nodes[0]
    async with vip_up(tmp_path, node) as manager:
        batch = flood(tmp_path)
        node.ip("-batch", str(batch))
        with inside(node.namespace):
            assert manager.present() == {VIP: True}
        node.ip("-batch", str(batch))
        node.ip("address", "del", f"{VIP}/32", "dev", "eth0")
        with inside(node.namespace):
            assert manager.present() == {VIP: False}


def test_namespaces_are_gone() -> None:
    with network() as built:
        name = built.client.namespace
    assert name not in ip("netns", "list")
