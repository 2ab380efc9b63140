"""The lab itself. A filter written by hand stands in for the farm's process: the right answers are known."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.lab.hand import GROUP_MAC, RULE, SEED, first, serve_by_hand

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.errors import HostError
from nlbfarm.lab import Application, Lab, LabError, Probing, topology
from nlbfarm.lab.servers import SERVERS, choose
from nlbfarm.lab.supervisor import ROOT
from nlbfarm.lab.world import inhabitants

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def by_hand() -> Iterator[Lab]:
    with Lab(nodes=2, server="builtin") as lab:
        serve_by_hand(lab, "web1", "0-127")
        serve_by_hand(lab, "web2", "128-255")
        yield lab


def test_every_bucket_is_asked_and_its_node_answers(by_hand: Lab) -> None:
    with Probing(by_hand, rate=800, held=16, seed=SEED) as probing:
        since = probing.seen
        probing.wait_until(since + 1.5)
    served = probing.served(since)
    assert [set(counter) for counter in served] == [{"web1"}] * 128 + [{"web2"}] * 128
    assert probing.failed(since, probing.seen - 1.1) == 0
    assert not probing.doubles()
    assert len(probing.requests(since, since + 1, held=True)) >= 100
    assert by_hand.neighbour() == GROUP_MAC


def test_a_crash_is_seen_bucket_by_bucket_and_a_boot_ends_it(by_hand: Lab) -> None:
    with Probing(by_hand, rate=500, held=8, seed=SEED) as probing:
        at = by_hand.crash("web2")
        probing.wait_until(at + 1)
        assert sorted(
            b for b, outage in probing.outages(range(BUCKETS), at).items() if outage == float("inf")
        ) == list(range(128, 256))
        errors = {request.error for request in probing.requests(at + 0.1) if request.answered is None}
        assert errors <= {"no SYN-ACK", "no answer"}
        by_hand.boot("web2")
        assert by_hand.changes("web2") == []
        serve_by_hand(by_hand, "web2", "128-255")
        back = time.monotonic()
        probing.wait_until(back + 1)
        assert max(probing.outages(range(BUCKETS), back).values()) < 1


def test_two_answers_to_one_syn_are_counted(by_hand: Lab) -> None:
    first(by_hand, "web1", f"{RULE} 200 meta pkttype set host accept")
    with Probing(by_hand, rate=800, held=0, seed=SEED) as probing:
        probing.wait_until(probing.seen + 1)
    doubles = probing.doubles()
    assert {double.bucket for double in doubles} == {200}
    assert {mac for double in doubles for mac in (double.first, double.second)} == {
        topology.mac(1, 0),
        topology.mac(2, 0),
    }


def test_the_difference_of_a_host_names_what_changed() -> None:
    with Lab(nodes=1, server="builtin") as lab:
        assert lab.changes("web1") == []
        serve_by_hand(lab, "web1", "0-255")
        changed = lab.changes("web1")
        for part in (
            "addresses: eth0 192.0.2.100/32",
            f"multicast: eth0 {GROUP_MAC}",
            "table inet hand",
            "table arp hand",
            "eth0/arp_announce:1 -> 2",
        ):
            assert any(part in line for line in changed) or (
                part.endswith("-> 2") and any("arp_announce" in line for line in changed)
            ), (part, changed)
        lab.exec("web1", ["nft", "flush", "ruleset"])
        lab.exec("web1", ["ip", "address", "delete", "192.0.2.100/32", "dev", "eth0"])
        lab.exec("web1", ["ip", "maddress", "delete", GROUP_MAC, "dev", "eth0"])
        lab.exec("web1", ["sysctl", "-qw", "net.ipv4.conf.eth0.arp_announce=0"])
        assert lab.changes("web1") == []


FETCH = """
import http.client
connection = http.client.HTTPConnection("192.0.2.11", timeout=5)
connection.request("GET", "/")
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""


@pytest.mark.parametrize("name", SERVERS)
def test_each_server_serves_its_name_and_its_health(name: str) -> None:
    try:
        choose(name)
    except HostError as error:
        pytest.skip(f"lack of {name}: {error}")
    ask = "import urllib.request as u; print(u.urlopen('http://192.0.2.11/').read(), u.urlopen('http://192.0.2.11/health').read())"
    with Lab(nodes=1, server=name) as lab:
        answer = lab.exec(topology.CLIENT, [sys.executable, "-c", ask]).out
        assert answer == "b'web1\\n' b'ok\\n'\n"
        lab.stop_server("web1")
        assert lab.world.call("processes", ns="web1") == []
        lab.start_server("web1")
        assert lab.exec(topology.CLIENT, [sys.executable, "-c", ask]).out == answer

        application = Application(lab)
        application.sicken("web1")
        fetch = [sys.executable, "-c", FETCH]
        assert lab.exec(topology.CLIENT, fetch).out.split() == ["503", "web1"]
        application.heal("web1")
        assert lab.exec(topology.CLIENT, fetch).out.split() == ["200", "web1"]
        application.spoil("web1")
        lab.stop_server("web1")
        argv = lab.server.argv(ROOT / "web1" / "server")
        assert lab.exec("web1", argv, check=False).code != 0
        application.repair("web1")
        lab.start_server("web1")


def test_a_lab_closes_without_a_trace() -> None:
    with Lab(nodes=2, server="builtin") as lab:
        pids = [
            lab.world.pid,
            *(child.pid for child in psutil.Process(lab.world.pid).children(recursive=True)),
        ]
        assert len(pids) >= 3
        assert lab.close() == []
    assert not any(psutil.pid_exists(pid) for pid in pids)


OWNER = """
import sys, time
from nlbfarm.lab import Lab
with Lab(nodes=2, server="builtin") as lab:
    print(lab.world.pid, *lab.world.namespaces(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_lab_whose_owner_is_killed_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
    )
    assert owner.stdout is not None
    with owner.stdout:
        supervisor, *inodes = map(int, owner.stdout.readline().split())
    inside = [psutil.Process(supervisor), *psutil.Process(supervisor).children(recursive=True)]
    assert len(inside) >= 3
    born_before = time.time()
    owner.send_signal(number)
    owner.wait(20)
    _gone, alive = psutil.wait_procs(inside, timeout=10)
    assert not alive
    deadline = time.monotonic() + 10
    while inhabitants(inodes, born_before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not inhabitants(inodes, born_before)
    assert not list(tmp_path.iterdir())


def test_what_fails_inside_is_an_error_that_says_what(by_hand: Lab) -> None:
    with pytest.raises(LabError, match="ended with 1"):
        by_hand.exec("web1", ["false"])
    with pytest.raises(LabError, match="no-such-program"):
        by_hand.world.call("run", argv=["no-such-program"])
    with pytest.raises(LabError, match="s in vain for pigs to fly"):
        by_hand.wait_for(lambda: None, 0.1, "pigs to fly")
