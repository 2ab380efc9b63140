"""What is refused before anything starts, and how it is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.config_support import write
from tests.nobody import as_nobody

from nlbfarm.cli import cli
from nlbfarm.config.host import Host, Interface, identify
from nlbfarm.config.loading import load
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError


@pytest.mark.skipif(sys.platform != "linux", reason="the demo is for Linux")
def test_results_that_cannot_be_written_are_told_before_the_demo(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("pyroute2")
    for file in (tmp_path / "none" / "results.json", Path("/proc/nlbfarm.json")):
        result = CliRunner().invoke(cli, ["demo", "--json", str(file)])
        assert (result.exit_code, result.stdout) == (4, "")
        assert f"the results cannot be written to {file}: No such file or directory" in result.stderr


def test_how_many_nodes_a_demo_may_have() -> None:
    result = CliRunner().invoke(cli, ["demo", "--nodes", "33"])
    assert result.exit_code == 2
    assert "2<=x<=32" in result.stderr


def test_a_configuration_that_may_not_be_read(tmp_path: Path) -> None:
    config = write(tmp_path)
    open_way = Path("/tmp") / f"nfx-{os.getpid()}"
    open_way.mkdir(mode=0o755)
    try:
        copied = Path(shutil.copy(config, open_way / "shop.toml"))
        shutil.copy(config.parent / "shop.key", open_way / "shop.key")
        (open_way / "shop.key").chmod(0o600)
        done = as_nobody("python", "-m", "nlbfarm.cli", "check", str(copied))
        assert done.returncode == 3
        assert "has no right to read it; it is root's, mode 0600: run as root" in done.stdout
        (open_way / "shop.toml").chmod(0o640)
        done = as_nobody("python", "-m", "nlbfarm.cli", "check", str(copied))
        assert "has no right to read it; it is root's, mode 0640: run as root" in done.stdout
        open_way.chmod(0o700)
        done = as_nobody("python", "-m", "nlbfarm.cli", "check", str(copied))
        assert "may not pass through the directories above it" in done.stdout
    finally:
        shutil.rmtree(open_way)


def test_link_local_addresses_are_not_listed(tmp_path: Path) -> None:
    from ipaddress import ip_address

    addresses: tuple[IPAddress, ...] = tuple(map(ip_address, ("203.0.113.9", "fe80::1", "127.0.0.1")))
    with pytest.raises(HostError, match=r"its addresses are 203\.0\.113\.9, but"):
        identify(load(write(tmp_path)), None, Host({"eth0": Interface(True, (), addresses)}, 0))


@pytest.mark.netns
def test_a_missing_right_is_told_once_and_by_us(tmp_path: Path) -> None:
    """libnftables prints by itself when it may not ask the kernel: it is not asked."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("no root, or lack of the program 'setpriv'")
    program = [sys.executable, "-m", "nlbfarm.cli", "backends"]
    for rights in ("-net_admin", "-net_admin,-net_raw"):
        drop = ["setpriv", "--bounding-set", rights, "--inh-caps", rights]
        done = subprocess.run([*drop, *program], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = [one for one in done.stdout.splitlines() if one.startswith("nftables")]
        assert line.count("nftables") == 1
        assert "CAP_NET_ADMIN" in line
