"""Faults of the network hit what they are meant to hit, and are gone when they are taken back."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from nlbfarm.config.heartbeat import Heartbeat
from nlbfarm.lab import Lab, topology

pytestmark = pytest.mark.netns

PORT = Heartbeat().port
# A node's process stands in: it listens on the heartbeat port of each network and counts what it gets.
LISTEN = """
import select, socket, sys
socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in sys.argv[2:]]
for sock, address in zip(socks, sys.argv[2:]):
    sock.bind((address, int(sys.argv[1])))
while True:
    for sock in select.select(socks, [], [])[0]:
        data, _ = sock.recvfrom(100)
        print(data.decode(), socks.index(sock), flush=True)
"""
SEND = """
import socket, sys
sock = socket.socket(type=socket.SOCK_DGRAM)
for address in sys.argv[4:]:
    for _ in range(int(sys.argv[3])):
        sock.sendto(sys.argv[1].encode(), (address, int(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=3, server="builtin", checker=False, gateway=True) as lab:
        for node in lab.names:
            addresses = [str(address) for address in topology.node_addresses(lab.id_of(node))]
            argv = [sys.executable, "-c", LISTEN, str(PORT), *addresses]
            lab.world.spawn(f"{node}/listener", argv, ns=node, log=f"/run/nlbfarm-lab/{node}/listener.log")

            def listens(node: str = node) -> bool:
                return lab.exec(node, ["cat", "/proc/net/udp"]).out.count(f":{PORT:04X}") == topology.NETWORKS

            lab.wait_for(listens, 10, f"the listener of {node}")
        yield lab


def sent(lab: Lab, source: str, target: str, word: str, count: int = 1) -> list[int]:
    """Send datagrams on each network; return how many of them arrived, by network."""
    addresses = [str(address) for address in topology.node_addresses(lab.id_of(target))]
    lab.exec(source, [sys.executable, "-c", SEND, word, str(PORT), str(count), *addresses])
    # What was sent by the node to itself comes last: everything before it has been read then.
    lab.exec(target, [sys.executable, "-c", SEND, f"end-{word}", str(PORT), "1", *addresses])

    def lines() -> list[str]:
        log: str = lab.world.call("read", path=f"{target}/listener.log")
        return log.splitlines()

    lab.wait_for(lambda: sum(line.startswith(f"end-{word} ") for line in lines()) == 2, 10, "the datagrams")
    return [lines().count(f"{word} {network}") for network in range(topology.NETWORKS)]


def test_loss_has_a_direction_and_a_network(lab: Lab) -> None:
    before = [lab.snapshot(node) for node in lab.names]
    assert sent(lab, "web1", "web2", "a") == [1, 1]
    lab.faults.mute("web1")
    assert sent(lab, "web1", "web2", "b") == [0, 0]
    assert sent(lab, "web2", "web1", "c") == [1, 1]
    lab.faults.heal()
    lab.faults.deafen("web1")
    assert sent(lab, "web1", "web2", "d") == [1, 1]
    assert sent(lab, "web2", "web1", "e") == [0, 0]
    assert sent(lab, "web2", "web3", "f") == [1, 1]
    lab.faults.heal()
    lab.faults.lose(["web1"], ["web2"], networks=[1])
    assert sent(lab, "web1", "web2", "g") == [1, 0]
    assert sent(lab, "web1", "web3", "h") == [1, 1]
    lab.faults.heal()
    assert sent(lab, "web1", "web2", "i") == [1, 1]
    assert [lab.snapshot(node) for node in lab.names] == before


def test_a_share_is_lost_by_chance(lab: Lab) -> None:
    lab.faults.lose(["web1"], ["web2"], percent=20, networks=[0])
    try:
        first, second = sent(lab, "web1", "web2", "chance", 200)
    finally:
        lab.faults.heal()
    assert second == 200
    assert 120 < first < 195  # 160 to be expected; six standard deviations on each side


def test_a_gateway_is_out_of_reach_for_those_who_are_named(lab: Lab) -> None:
    def reaches(node: str) -> bool:
        ping = ["ping", "-c1", "-W1", "-q", str(topology.GATEWAY_ADDRESS)]
        return lab.exec(node, ping, check=False).code == 0

    assert [reaches(node) for node in lab.names] == [True, True, True]
    lab.faults.cut_off(["web2"], topology.GATEWAY)
    try:
        assert [reaches(node) for node in lab.names] == [True, False, True]
        assert sent(lab, "web1", "web2", "n") == [1, 1]
    finally:
        lab.faults.heal()
    assert reaches("web2")


def test_a_partition_cuts_everything_and_parts_the_clients(lab: Lab) -> None:
    here, there = topology.CLIENT_ADDRESSES[:2]
    ping = ["ping", "-c1", "-W1", "-q"]

    def reaches(client: object, node: str) -> bool:
        address = str(topology.node_addresses(lab.id_of(node))[0])
        return lab.exec(topology.CLIENT, [*ping, "-I", str(client), address], check=False).code == 0

    assert reaches(here, "web1")
    assert reaches(here, "web3")
    lab.faults.partition([["web1"], ["web2", "web3"]], [[here], [there]])
    try:
        assert sent(lab, "web1", "web2", "j") == [0, 0]
        assert sent(lab, "web3", "web1", "k") == [0, 0]
        assert sent(lab, "web2", "web3", "l") == [1, 1]
        assert [reaches(here, node) for node in lab.names] == [True, False, False]
        assert [reaches(there, node) for node in lab.names] == [False, True, True]
    finally:
        lab.faults.heal()
    assert sent(lab, "web1", "web2", "m") == [1, 1]
    assert "faults" not in lab.world.run(["nft", "list", "ruleset"]).out
