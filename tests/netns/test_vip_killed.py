"""``kill -9`` at every step on the way up and down: the next process puts the host back exactly."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.netns.vip_support import VIP, Network, inside, network, spec
from tests.vip import killable

from nlbfarm.errors import HostError
from nlbfarm.vip import LinuxVIPManager
from nlbfarm.vip.journal import Entry, Journal, Kind

pytestmark = pytest.mark.netns


@pytest.fixture
def farm() -> Iterator[Network]:
    with network() as built:
        yield built


def test_killed_at_every_step(farm: Network, tmp_path: Path) -> None:
    node = farm.nodes[0]
    journal = tmp_path / "run" / "journal.json"
    before = node.snapshot()
    changed = 0

    async def heir(through_open: bool) -> None:
        manager = LinuxVIPManager(killable.specs(), journal)
        if through_open:
            await manager.open()
            await manager.close()
        else:
            await manager.cleanup()

    command = ["ip", "netns", "exec", node.namespace, sys.executable, killable.__file__, str(journal)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for point in range(1000):
            print(point, file=process.stdin, flush=True)
            how = process.stdout.readline().strip()
            if how == "finished":
                break
            assert how == "killed"
            changed += node.snapshot() != before
            with inside(node.namespace):
                asyncio.run(heir(through_open=point % 2 == 0))
            assert node.snapshot() == before, f"the host is not as it was, after a kill at point {point}"
            assert list(journal.parent.glob("*")) == [], f"something is left of the journal, point {point}"
        process.stdin.close()
    # Five changes up (a sysctl, two tables, two addresses), five down, each with a journal write of its own.
    assert point >= 30
    assert changed >= 20
    assert node.snapshot() == before


async def test_journal_of_a_namespace_that_still_exists(farm: Network, tmp_path: Path) -> None:
    """It is not forgotten: what it lists can only be put back over there."""
    node, other = farm.nodes
    path = tmp_path / "journal.json"
    with inside(other.namespace):
        journal = Journal(path)
        journal.load()
        journal.add(Entry(Kind.TABLE, "eth0", 2, "nlbfarm_vip_192_0_2_100"))
    kept = path.read_bytes()
    manager = LinuxVIPManager([spec()], path)
    with inside(node.namespace):
        with pytest.raises(HostError, match=f"another network namespace .*{other.namespace}"):
            await manager.open()
        await manager.close()
    assert path.read_bytes() == kept


@pytest.mark.parametrize("capability", ["net_admin", "net_raw"])
def test_without_a_right(farm: Network, tmp_path: Path, capability: str) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("lack of the program 'setpriv'")
    node = farm.nodes[0]
    before = node.snapshot()
    script = (
        "import asyncio, pathlib, sys\n"
        "from nlbfarm.errors import HostError\n"
        "from nlbfarm.vip import LinuxVIPManager\n"
        "from tests.vip.killable import specs\n"
        "manager = LinuxVIPManager(specs(), pathlib.Path(sys.argv[1]))\n"
        "try:\n    asyncio.run(manager.open())\n"
        "except HostError as error:\n    print(error)\n"
    )
    journal = tmp_path / "journal.json"
    drop = ["setpriv", "--bounding-set", f"-{capability}", "--inh-caps", f"-{capability}"]
    command = ["ip", "netns", "exec", node.namespace, *drop, sys.executable, "-c", script, str(journal)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=root, check=True)
    assert f"CAP_{capability.upper()}" in done.stdout
    assert node.snapshot() == before
    assert not journal.exists()
    assert str(VIP) not in node.ip("address")
