"""One node's process on a host of its own: what rights it needs, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.netns.support import Namespace

pytestmark = pytest.mark.netns

CONFIG = """
[farm]
name = "caps"
key_file = "caps.key"
[[nodes]]
id = 1
name = "web1"
addresses = ["192.0.2.11"]
[[vips]]
address = "192.0.2.100"
interface = "eth0"
delivery = "multicast"
[[rules]]
name = "web"
vip = "192.0.2.100"
protocol = "tcp"
ports = [80]
"""

CAPABILITIES = ("net_admin", "net_raw", "sys_nice", "ipc_lock")


def only(*capabilities: str) -> list[str]:
    """Return a command prefix that leaves a program these capabilities and no others."""
    kept = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    return ["setpriv", "--no-new-privs", f"--bounding-set={kept}", f"--inh-caps={kept}"]


@pytest.fixture
def farm(tmp_path: Path) -> Path:
    """Return the configuration of a farm of one."""
    (tmp_path / "farm.toml").write_text(CONFIG)
    cli(tmp_path, "keygen", str(tmp_path / "caps.key"), check=True)
    return tmp_path


def command(directory: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "nlbfarm.cli", *words]


def cli(directory: Path, *words: str, check: bool = False) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "NLBFARM_RUNTIME_DIR": str(directory / "run"),
        "NLBFARM_STATE_DIR": str(directory / "state"),
    }
    return subprocess.run(
        command(directory, *words), env=environment, text=True, capture_output=True, check=check, timeout=30
    )


def start(host: Namespace, farm: Path, prefix: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {
        "NLBFARM_RUNTIME_DIR": str(farm / "run"),
        "NLBFARM_STATE_DIR": str(farm / "state"),
    }
    with host.entered():
        return subprocess.Popen(
            [*prefix, *command(farm, "run", "--config", str(farm / "farm.toml"))],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture
def host() -> Namespace:
    """Return a host with an interface."""
    made = Namespace()
    made.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    made.run("ip", "address", "add", "192.0.2.11/24", "dev", "eth0")
    made.run("ip", "link", "set", "eth0", "up")
    made.run("ip", "link", "set", "other", "up")
    return made


def test_four_capabilities_are_enough(host: Namespace, farm: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("the program 'setpriv' (util-linux) is not here")
    process = start(host, farm, only(*CAPABILITIES))
    try:

        def serves() -> bool:
            asked = cli(farm, "status", "--json")
            return asked.returncode == 0 and json.loads(asked.stdout)["groups"][0]["own"] == 256

        until = time.monotonic() + 20
        while not serves():
            assert time.monotonic() < until, "it never served"
            assert process.poll() is None
        second = start(host, farm, [])
        out, _ = second.communicate(timeout=20)
        assert second.returncode == 6, out
        assert "already running" in out
    finally:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0, out
    with host.entered():
        left = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    assert left == ""


def test_without_net_admin_it_says_what_is_missing_and_changes_nothing(host: Namespace, farm: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("the program 'setpriv' (util-linux) is not here")
    process = start(host, farm, only("net_raw"))
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 4, out
    assert "CAP_NET_ADMIN" in out
    with host.entered():
        addresses = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    assert "192.0.2.100" not in addresses


def changes(host: Namespace) -> str:
    """Return what a node leaves on a host: tables, virtual IPs, sysctls."""
    with host.entered():
        return "".join(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for command in (
                ["nft", "list", "ruleset"],
                ["ip", "-o", "address", "show", "dev", "eth0", "to", "192.0.2.100"],
                ["sysctl", "net.ipv4.conf.eth0.arp_announce"],
            )
        )


@pytest.mark.parametrize("tenths", range(0, 24, 3))
def test_a_signal_while_it_starts_leaves_the_host_as_it_was(host: Namespace, farm: Path, tenths: int) -> None:
    before = changes(host)
    process = start(host, farm, [])
    try:
        # Wherever in its start that is: the test asks for the outcome, not for the moment.
        process.wait(timeout=0.05 + tenths / 10)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode in (0, -signal.SIGTERM), out
    assert changes(host) == before, out
