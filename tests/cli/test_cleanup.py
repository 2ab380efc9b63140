"""``cleanup``, and what a killed node leaves; the host is a network namespace of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.config_support import changed, write
from tests.plugin_support import install, site_directory

from nlbfarm.backends.memory import MemoryBackend
from nlbfarm.backends.nftables import NftablesBackend
from nlbfarm.cli import cli
from nlbfarm.instance import claim
from nlbfarm.nft import NftError

NS = f"nfh6-{os.getpid()}"
CONFIG = changed(
    (', "198.51.100.11"', ""),
    (', "198.51.100.12"', ""),
    ("[heartbeat]", "[heartbeat]\nrealtime = false"),
    (
        '[[checkers]]\nname = "page"\ntype = "http"\nurl = "http://127.0.0.1/health"\non_failure = "wait"\n',
        "",
    ),
)


def test_nothing_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["cleanup", "--runtime-dir", str(tmp_path / "none")])
    assert (result.exit_code, result.stdout) == (0, "nothing to do\n")
    result = CliRunner().invoke(cli, ["cleanup", "--runtime-dir", str(tmp_path / "none"), "--json"])
    assert json.loads(result.stdout) == {"farm": None, "done": [], "notes": []}


@pytest.fixture
def filters(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the built-in backends' cleanup write down for which farm they were called, and change nothing."""
    asked: list[str] = []

    async def cleanup(farm: str) -> Sequence[str]:
        asked.append(farm)
        return []

    for backend in (NftablesBackend, MemoryBackend):
        monkeypatch.setattr(backend, "cleanup", cleanup)
    return asked


def test_a_damaged_journal_keeps_the_filter(tmp_path: Path, filters: list[str]) -> None:
    """Also the second time: the VIP that nobody knows of may still be there."""
    pytest.importorskip("pyroute2")
    farm = f"test-{os.getpid()}"
    journal = tmp_path / farm / "journal.json"
    journal.parent.mkdir()
    journal.write_text("{")
    for _ in range(2):
        result = CliRunner().invoke(cli, ["cleanup", "--runtime-dir", str(tmp_path)])
        assert result.exit_code == 4
        assert f"the journal {journal} is damaged" in result.stderr
        assert "as root" not in result.stderr
        assert filters == []
        assert journal.read_text() == "{"
    journal.unlink()
    assert CliRunner().invoke(cli, ["cleanup", "--runtime-dir", str(tmp_path)]).exit_code == 0
    assert set(filters) == {farm}
    assert not journal.parent.exists()


def test_root_is_only_asked_for_when_a_right_is_missing(
    tmp_path: Path, filters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(farm: str) -> Sequence[str]:
        raise NftError("nftables: Operation not permitted", permission=True)

    monkeypatch.setattr(NftablesBackend, "cleanup", refused)
    arguments = ["cleanup", "--farm", f"test-{os.getpid()}", "--runtime-dir", str(tmp_path)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 4
    assert "not everything could be put back; try again as root:" in result.stderr


def test_a_plug_in_that_cannot_be_imported_is_a_note(tmp_path: Path, filters: list[str]) -> None:
    farm = f"test-{os.getpid()}"
    (tmp_path / "run" / farm).mkdir(parents=True)
    with site_directory(tmp_path / "site") as site:
        install(site, "acme", "[nlbfarm.backends]\nacme = acme_gone:Backend\n")
        result = CliRunner().invoke(cli, ["cleanup", "--runtime-dir", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.stderr
    (note,) = json.loads(result.stdout)["notes"]
    assert "acme_gone" in note
    assert "cannot be imported" in note
    assert "note: " in result.stderr
    assert not (tmp_path / "run" / farm).exists()


def test_refuses_while_a_node_is_running(tmp_path: Path) -> None:
    farm = f"test-{os.getpid()}"
    with claim(farm):
        result = CliRunner().invoke(cli, ["cleanup", "--farm", farm, "--runtime-dir", str(tmp_path)])
    assert result.exit_code == 6
    assert "already running on this host" in result.stderr


def inside(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", NS, *command], capture_output=True, text=True, timeout=60, check=False
    )


def node(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "nlbfarm.cli", *map(str, arguments)]


@pytest.fixture
def namespace() -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", NS], check=True, timeout=60)
    try:
        for command in (
            "ip link set lo up",
            "ip link add eth0 type veth peer name far0",
            "ip addr add 192.0.2.11/24 dev eth0",
            "ip link set far0 up",
            "ip link set eth0 up",
        ):
            assert inside(*command.split()).returncode == 0, command
        yield
    finally:
        subprocess.run(["ip", "netns", "del", NS], check=True, timeout=60)


def state() -> tuple[str, str, str]:
    """Return what a node changes on its host."""
    return (
        inside("nft", "list", "ruleset").stdout,
        inside("ip", "-o", "-4", "addr").stdout,
        inside("sysctl", "-a", "-r", r"^net\.ipv4\.conf\..*\.(arp_|rp_filter|promote)").stdout,
    )


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)


@pytest.mark.netns
def test_a_life_of_a_node(tmp_path: Path, namespace: None) -> None:
    """It runs once, answers, is killed, is cleaned up; runs again and leaves by SIGTERM."""
    config = write(tmp_path, CONFIG)
    runtime = tmp_path / "run"
    directories = ("--runtime-dir", runtime)
    before = state()

    def status() -> dict[str, object] | None:
        done = inside(*node("status", *directories, "--json"))
        return json.loads(done.stdout) if done.returncode == 0 else None

    def serves() -> bool:
        found = status()
        if found is None or found["state"] != "UP":
            return False
        group = found["groups"][0]  # type: ignore[index]
        return bool(group["own"] + group["adopt"] == 256)

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(
                [
                    "ip",
                    "netns",
                    "exec",
                    NS,
                    *node("run", "-c", config, *directories, "--state-dir", tmp_path / "state"),
                ],
                stderr=log,
            )

    def log() -> str:
        return (tmp_path / "log").read_text()

    process = start()
    try:
        wait_for(serves, f"the node to serve\n{log()}")
        assert state() != before
        assert inside(*node("cleanup", *directories)).returncode == 6
        assert inside(*node("run", "-c", config, *directories)).returncode == 6
        explained = inside(*node("explain", "192.0.2.7:4000", "192.0.2.100:80", *directories))
        assert (explained.returncode, "accepts new connections" in explained.stdout) == (0, True)
        assert "web1: 256 (100 %)" in inside(*node("buckets", *directories)).stdout

        process.kill()
        process.wait(10)
        gone = inside(*node("status", *directories))
        assert (gone.returncode, "which a killed process left behind" in gone.stderr) == (5, True)
        assert state() != before
        cleaned = inside(*node("cleanup", *directories, "--json"))
        assert cleaned.returncode == 0, cleaned.stderr
        assert any("192.0.2.100" in line for line in json.loads(cleaned.stdout)["done"])
        assert state() == before
        assert "nothing to do" in inside(*node("cleanup", *directories)).stdout

        process = start()
        wait_for(serves, f"the node to serve again\n{log()}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert state() == before
    finally:
        process.kill()
        process.wait(10)
    for line in log().splitlines():
        assert {"timestamp", "level", "event"} <= set(json.loads(line))


@pytest.mark.netns
def test_readiness_and_watchdog_reach_systemd(tmp_path: Path, namespace: None) -> None:
    config = write(tmp_path, CONFIG)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        directories = ("--runtime-dir", tmp_path / "run", "--state-dir", tmp_path / "state")
        process = subprocess.Popen(
            ["ip", "netns", "exec", NS, *node("run", "-c", config, *directories)],
            stderr=subprocess.DEVNULL,
            env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"},
        )
        try:
            seen: list[str] = []
            while not (any("READY=1" in one for one in seen) and seen.count("WATCHDOG=1") >= 3):
                seen.append(systemd.recv(1000).decode())
            process.terminate()
            while "STOPPING=1" not in seen[-1]:
                seen.append(systemd.recv(1000).decode())
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait(10)
