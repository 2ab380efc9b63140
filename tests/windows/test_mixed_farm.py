"""One farm of two kinds: two Linux nodes, and one under Windows CPython in Wine (``make test-windows``).

The Linux nodes are whole: their filters are in the kernel, the virtual IP is up, a web server is behind. The
Windows node has its filter in memory: it takes its share of the buckets and serves nobody. So what is shown
is that the systems agree, over UDP, on who is there, who has which bucket, and which bucket a client is in.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from nlbfarm.lab import Lab, LabError, topology
from nlbfarm.lab.supervisor import ROOT

WINDOWS_PYTHON = os.environ.get("NLBFARM_WINDOWS_PYTHON", "")
"""A program that runs its arguments with a Windows CPython that has nlbfarm (scripts/test_windows.sh)."""

pytestmark = [
    pytest.mark.netns,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not WINDOWS_PYTHON, reason="lack of Windows (make test-windows runs it in Wine)"),
]

LINUX = ("web1", "web2")
WINDOWS = "web3"
NODES = (*LINUX, WINDOWS)
AGREEING_S = 60.0
CLIENTS = tuple(f"{topology.TALKER_ADDRESS}:{port}" for port in range(20000, 20032))

# Wine shares two processors with whatever else the build does: nobody shall be lost for being slow.
HEARTBEAT = 'interval = "200ms"\nlost_after = 10\nlease = "600ms"'

# One request from each source port; what came back, or null.
ASK = """
import http.client, json, sys
vip, source, *ports = sys.argv[1:]
answers = {}
for port in ports:
    connection = http.client.HTTPConnection(vip, 80, timeout=5, source_address=(source, int(port)))
    try:
        connection.request("GET", "/")
        answers[f"{source}:{port}"] = connection.getresponse().read().decode().strip()
    except OSError as error:
        answers[f"{source}:{port}"] = str(error)
    finally:
        connection.close()
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Agreement:
    """What all nodes that were asked say alike.

    Args:
        epoch: Of the view.
        members: Ids of the nodes in it.
        placement: The owner of each bucket.
    """

    epoch: tuple[int, ...]
    members: frozenset[int]
    placement: tuple[int, ...]


class MixedFarm:
    """The lab, with a node under Wine in the third machine."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._lives = 0
        for node in NODES:
            lab.configure(node, self._configuration("memory" if node == WINDOWS else "nftables"))

    def start(self, node: str) -> None:
        """Start a node's process."""
        if node != WINDOWS:
            self.lab.start(node)
            return
        self._lives += 1
        home = str(ROOT / node).replace("/", "\\")
        program = os.path.join(os.path.dirname(__file__), "node.py")
        argv = [WINDOWS_PYTHON, program, f"Z:{home}\\farm.toml", node, f"Z:{home}", *CLIENTS]
        # CPython does not start in Wine with a file as its output.
        piped = ["sh", "-c", 'exec "$0" "$@" 2>&1 | cat', *argv]
        self.lab.world.spawn(f"{node}/windows", piped, ns=node, log=f"{ROOT}/{self._log}")

    def lose(self, node: str) -> None:
        """Cut a node's power, and boot its machine; the node's process is not started again."""
        self.lab.crash(node)
        self.lab.boot(node)

    def said(self) -> dict[str, Any]:
        """Return what the Windows node said last in this life; empty if it has not said anything yet."""
        lines = self.lab.world.call("read", path=self._log).splitlines(keepends=True)
        whole = [line for line in lines if line.startswith('{"platform"') and line.endswith("\n")]
        said: dict[str, Any] = json.loads(whole[-1]) if whole else {}
        return said

    def agreement(self, *nodes: str) -> Agreement | None:
        """Return what these nodes agree on, if each accepts what is its own by it, and nothing else."""
        found: set[Agreement] = set()
        for node in nodes:
            try:
                status = self.said().get("status") if node == WINDOWS else self.lab.status(node)
            except LabError:
                return None
            if not status or status["epoch"] is None:
                return None
            (group,) = status["groups"]
            if [state in "OA" for state in group["states"]] != [
                owner == self.lab.id_of(node) for owner in group["placement"]
            ]:
                return None
            members = frozenset(row["id"] for row in status["nodes"] if row["in_view"])
            found.add(Agreement(tuple(status["epoch"]), members, tuple(group["placement"])))
        return found.pop() if len(found) == 1 else None

    def settle(self, *nodes: str) -> Agreement:
        """Wait until these nodes, and no others, are the farm and share all of its buckets."""
        ids = frozenset(map(self.lab.id_of, nodes))

        def shared() -> Agreement | None:
            agreed = self.agreement(*nodes)
            return agreed if agreed and agreed.members == ids == set(agreed.placement) else None

        try:
            return self.lab.wait_for(shared, 60, f"{', '.join(nodes)} to share all buckets")
        except LabError as error:
            raise AssertionError(f"{error}\n--- {WINDOWS}\n{self._tail()}") from error

    def explained(self, node: str) -> dict[str, Any]:
        """Return the key, bucket and owner of each client, as this node says."""
        if node == WINDOWS:
            explained: dict[str, Any] = self.said()["explained"]
            return explained
        service = f"{topology.VIP}:80"
        answers = {
            client: self.lab.control(node, "explain", {"client": client, "service": service})
            for client in CLIENTS
        }
        return {client: [said["key"], said["bucket"], said["owner"]] for client, said in answers.items()}

    @property
    def _log(self) -> str:
        return f"{WINDOWS}/windows-{self._lives}.log"

    def _tail(self) -> str:
        lines = self.lab.world.call("read", path=self._log).splitlines()
        return "\n".join(line for line in lines[1:] if not line.startswith("{"))[-3000:]

    def _configuration(self, backend: str) -> str:
        text = self.lab.configuration().replace('backend = "nftables"', f'backend = "{backend}"')
        # One heartbeat network: Wine binds a UDP port once, whatever the address.
        for number in range(1, len(NODES) + 1):
            text = text.replace(f', "{topology.node_addresses(number)[1]}"', "")
        return text


@pytest.fixture
def farm() -> Iterator[MixedFarm]:
    with Lab(len(NODES), server="builtin", backend="nftables", checker=False, heartbeat=HEARTBEAT) as lab:
        yield MixedFarm(lab)


def test_windows_and_linux_are_one_farm(farm: MixedFarm) -> None:
    for node in NODES:
        farm.start(node)
    agreed = farm.settle(*NODES)
    assert farm.said()["platform"] == "win32"

    # For a minute: the same view, the same placement, and a Windows node that lives.
    alive = farm.said()["status"]["uptime_s"]
    until = time.monotonic() + AGREEING_S
    while time.monotonic() < until:
        time.sleep(2)
        assert farm.agreement(*NODES) == agreed
        assert farm.said()["status"]["uptime_s"] > alive
        alive = farm.said()["status"]["uptime_s"]

    # The same hash: every node names the same owner of each client, and that one answers.
    explained = farm.explained(WINDOWS)
    assert [farm.explained(node) for node in LINUX] == [explained, explained]
    owners = {client: owner["name"] for client, (_, _, owner) in explained.items()}
    assert set(owners.values()) == set(NODES)
    served = {client: owner for client, owner in owners.items() if owner in LINUX}
    ports = [client.rpartition(":")[2] for client in served]
    argv = [sys.executable, "-c", ASK, str(topology.VIP), str(topology.TALKER_ADDRESS), *ports]
    assert json.loads(farm.lab.exec(topology.CLIENT, argv, timeout=120).out) == served

    # The loss of each: the two that are left share its buckets; then it comes back.
    for lost in NODES:
        farm.lose(lost)
        rest = farm.settle(*(node for node in NODES if node != lost))
        assert rest.epoch > agreed.epoch
        farm.start(lost)
        agreed = farm.settle(*NODES)
        assert agreed.epoch > rest.epoch
