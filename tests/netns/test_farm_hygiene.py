"""A farm leaves its hosts as they were, and the network knows the VIP by the group MAC only."""

from __future__ import annotations

import sys
import time

import pytest

from nlbfarm.lab import Lab, Probing, topology

pytestmark = pytest.mark.netns

GROUP_MAC = "01:00:5e:7f:02:64"


def test_a_host_is_as_it_was_after_every_kind_of_end() -> None:
    with Lab(nodes=2, server="builtin") as lab:
        lab.start()
        lab.settle()
        present = " ".join(lab.changes("web1"))
        assert "192.0.2.100/32" in present
        assert GROUP_MAC in present
        assert "table inet nlbfarm_lab" in present

        # SIGTERM, which is also what a service manager's stop sends.
        assert lab.stop("web1") == 0
        assert lab.changes("web1") == []

        # kill -9, then cleanup.
        lab.start("web1")
        lab.settle()
        lab.kill("web1")
        assert "192.0.2.100/32" in " ".join(lab.changes("web1"))
        done = lab.cleanup("web1")
        assert done.code == 0, done.err
        assert "192.0.2.100" in done.out
        assert lab.changes("web1") == []
        assert lab.cleanup("web1").code == 0

        # kill -9, then another start, then SIGTERM: the first state of all comes back.
        lab.start("web1")
        lab.settle()
        lab.kill("web1")
        lab.start("web1")
        lab.settle()
        for node in lab.names:
            assert lab.stop(node) == 0
        assert lab.leftovers() == []


CONNECT = """
import socket, sys
with socket.socket() as s:
    s.settimeout(0.5)
    if sys.argv[1]: s.bind((sys.argv[1], 0))
    try: s.connect((sys.argv[2], int(sys.argv[3])))
    except OSError: pass
"""

DATAGRAM = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', (sys.argv[1], 9))"


def test_clients_keep_the_group_mac_through_expiry_and_connections_from_the_nodes() -> None:
    client, vip = str(topology.CLIENT_ADDRESSES[0]), str(topology.VIP)
    with Lab(nodes=3, server="builtin") as lab:
        for name, value in (
            ("base_reachable_time_ms", 500),
            ("gc_stale_time", 1),
            ("delay_first_probe_time", 1),
        ):
            path = f"/proc/sys/net/ipv4/neigh/eth0/{name}"
            lab.exec(topology.CLIENT, ["sh", "-c", f"echo {value} >{path}"])
        lab.start()
        lab.settle()
        states = [""]

        def look() -> None:
            words = lab.exec(topology.CLIENT, ["ip", "neighbour", "show", vip]).out.split()
            if "lladdr" in words:
                assert words[words.index("lladdr") + 1] == GROUP_MAC
            if words and states[-1] != words[-1]:
                states.append(words[-1])

        def asked_again() -> bool:
            # A datagram is never answered here, so that only ARP can confirm the entry once it has expired.
            lab.exec(topology.CLIENT, [sys.executable, "-c", DATAGRAM, vip])
            look()
            return states.count("REACHABLE") >= 4

        def connect_from_nodes() -> None:
            # The nodes forget the client and have to ask for it, from their own address and from the VIP.
            for node in lab.names:
                for source in ("", vip):
                    lab.exec(node, ["ip", "neighbour", "flush", "dev", "eth0"], check=False)
                    lab.exec(node, [sys.executable, "-c", CONNECT, source, client, "81"])
                    look()

        connect_from_nodes()
        lab.wait_for(asked_again, 60, "the client's entry to expire and come back three times")
        connect_from_nodes()
        assert lab.neighbour() == GROUP_MAC
        lab.exec(topology.CLIENT, ["ip", "neighbour", "flush", "dev", "eth0"])
        with Probing(lab, rate=500, held=0) as probing:
            probing.wait_until(time.monotonic() + 1)
            assert probing.failed(probing.seen - 1, probing.seen - 0.2) == 0
        assert lab.neighbour() == GROUP_MAC
