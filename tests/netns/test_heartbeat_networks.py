"""A heartbeat network whose address or interface goes away and comes back, in a namespace of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

# Both nodes are in one namespace; network 0 is on an interface that comes and goes, network 1 on lo.
SCRIPT = """
import asyncio, subprocess, sys, time
from ipaddress import ip_address
from nlbfarm.errors import HostError
from nlbfarm.heartbeat.udp import UdpHeartbeat
from nlbfarm.interfaces import Clock

MINE, ITS, LOST, BACK = sys.argv[1:5]
ONE, TWO = ([ip_address(MINE), ip_address("127.0.0.11")], [ip_address(ITS), ip_address("127.0.0.12")])

def ip(commands):
    for command in filter(None, commands.split(";")):
        subprocess.run(["ip", *command.split()], check=True)

class Real(Clock):
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

async def main():
    got = {0: 0, 1: 0}
    def deliver(received):
        got[received.network] += 1
    one, two = UdpHeartbeat(ONE, {2: TWO}, clock=Real()), UdpHeartbeat(TWO, {1: ONE}, clock=Real())
    await two.open(deliver, lambda node: None)
    await one.open(lambda received: None, lambda node: None)

    async def until(what, *networks):
        end = time.monotonic() + 10
        start = dict(got)
        while not all(got[network] >= start[network] + 3 for network in networks):
            assert time.monotonic() < end, (what, got, one.stats(), two.stats())
            one.send(b"x", [2])
            await asyncio.sleep(0.02)

    await until("before", 0, 1)
    assert one.stats().networks[0].send_errors == 0
    ip(LOST)
    errors = one.stats().networks[0].send_errors
    for _ in range(3):
        one.send(b"x", [2])
    gone = one.stats().networks[0]
    assert gone.send_errors == errors + 3, gone
    assert gone.last_error
    await until("the other network, meanwhile", 1)
    await asyncio.sleep(1.2)  # long enough for attempts to bind again, which must fail and not disturb
    await until("the other network, later", 1)
    assert one.stats().networks[1].send_errors == 0, one.stats()
    ip(BACK)
    await until("after", 0, 1)
    await one.close()
    await two.close()

asyncio.run(main())
"""

ADD4 = "addr add 192.0.2.1/24 dev left"
ADD6 = "addr add 2001:db8::1/64 dev left nodad"
LINK = "link add left type veth peer name right;link set left up;link set right up"


@pytest.mark.parametrize(
    ("mine", "its", "lost", "back"),
    [
        ("192.0.2.1", "192.0.2.2", "addr del 192.0.2.1/24 dev left", ADD4),
        ("192.0.2.1", "192.0.2.2", "link del left", f"{LINK};{ADD4};addr add 192.0.2.2/32 dev right"),
        # (Linux goes on sending from an IPv6 address that was removed, so only the interface is taken.)
        (
            "2001:db8::1",
            "2001:db8::2",
            "link del left",
            f"{LINK};{ADD6};addr add 2001:db8::2/128 dev right nodad",
        ),
    ],
    ids=["address", "interface", "ipv6-interface"],
)
def test_a_network_that_goes_away_stops_no_other_and_comes_back(
    tmp_path: Path, mine: str, its: str, lost: str, back: str
) -> None:
    script = tmp_path / "nodes.py"
    script.write_text(SCRIPT)
    prepare = [
        *f"link set lo up;{LINK};{ADD4};{ADD6};addr add 192.0.2.2/32 dev right".split(";"),
        "addr add 2001:db8::2/128 dev right nodad",
    ]
    shell = " && ".join([*(f"ip {command}" for command in prepare), 'exec "$@"'])
    run = subprocess.run(
        [
            "unshare",
            "--net",
            "sh",
            "-c",
            shell,
            "sh",
            sys.executable,
            "-W",
            "error",
            script,
            mine,
            its,
            lost,
            back,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
