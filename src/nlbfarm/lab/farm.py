"""``Lab``: a whole farm on one machine, real processes and real packets."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from nlbfarm.errors import UsageError
from nlbfarm.lab import hoststate, servers, topology
from nlbfarm.lab.supervisor import ROOT
from nlbfarm.lab.world import Done, LabError, World

__all__ = ["FARM", "Lab", "farm_toml"]

FARM = "lab"
"""Name of the farm in the lab."""

GROUP = "web"

_T = TypeVar("_T")
_POLL = 0.05


def farm_toml(names: Sequence[str], *, backend: str = "auto", checker: bool = True, extra: str = "") -> str:
    """Return the configuration of a lab's farm.

    Args:
        names: Names of the nodes; ids count from 1.
        backend: ``filter.backend``.
        checker: Whether each node looks at its web server.
        extra: More TOML, put at the end.
    """
    lines = [
        f'[farm]\nname = "{FARM}"\nkey_file = "{FARM}.key"',
        f'[filter]\nbackend = "{backend}"',
        '[log]\nformat = "json"',
    ]
    for number, name in enumerate(names, 1):
        addresses = ", ".join(f'"{address}"' for address in topology.node_addresses(number))
        lines.append(f'[[nodes]]\nid = {number}\nname = "{name}"\naddresses = [{addresses}]')
    lines.append(f'[[vips]]\naddress = "{topology.VIP}"\ninterface = "eth0"\ndelivery = "multicast"')
    lines.append(f'[[rules]]\nname = "{GROUP}"\nvip = "{topology.VIP}"\nprotocol = "tcp"\nports = [80]')
    if checker:
        lines.append(
            '[[checkers]]\nname = "page"\ntype = "http"\nurl = "http://127.0.0.1/health"\n'
            'interval = "1s"\ntimeout = "1s"\nfall = 2\non_failure = "wait"'
        )
    return "\n\n".join([*lines, extra]).strip() + "\n"


class Lab:
    """A farm of ``nodes`` nodes, a client and a switch, each in a network namespace of its own.

    A context manager: entering it plugs everything together and starts the web servers; ``start`` starts
    the farm's processes. Leaving it, or the end of this process by any signal, ends and removes
    everything. Methods that name a node raise ``LabError`` when something inside the lab fails.

    Args:
        nodes: How many, 1..32; they are called ``web1``, ``web2`` and so on.
        server: ``"apache"``, ``"nginx"``, ``"builtin"`` or ``"auto"``.
        backend: Filter backend, ``"auto"`` or a name.
        checker: Whether each node looks at its web server.
        extra: TOML that is added to the farm's configuration.

    Raises:
        HostError: This host cannot make namespaces, or lacks the server.
        UsageError: There cannot be so many nodes.
    """

    def __init__(
        self,
        nodes: int = 3,
        server: str = "auto",
        backend: str = "auto",
        *,
        checker: bool = True,
        extra: str = "",
    ) -> None:
        if not 1 <= nodes <= topology.MAX_NODES:
            raise UsageError(f"a lab has 1 to {topology.MAX_NODES} nodes, not {nodes}")
        self.server = servers.choose(server)
        self.names = tuple(f"web{number}" for number in range(1, nodes + 1))
        self.before: dict[str, hoststate.HostState] = {}
        """What each node's host looked like when it had booted, before the farm's process started."""
        self._config = farm_toml(self.names, backend=backend, checker=checker, extra=extra)
        self._world: World | None = None
        self._running: set[str] = set()
        self._booted: set[str] = set()

    def __enter__(self) -> Lab:
        self._world = World()
        try:
            self.world.call("write", path="farm.toml", text=self._config)
            self.world.call("keygen", path=f"{FARM}.key")
            topology.add_switch(self.world)
            topology.add_client(self.world)
            for name in self.names:
                self.boot(name)
        except BaseException:
            self._world.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def world(self) -> World:
        """The namespaces themselves, for what this class has no method for."""
        if self._world is None:
            raise UsageError("this lab has not been entered: use it in a with statement")
        return self._world

    @property
    def running(self) -> tuple[str, ...]:
        """The nodes whose farm process was started and neither stopped nor killed."""
        return tuple(name for name in self.names if name in self._running)

    def close(self) -> list[str]:
        """End and remove everything; returns a line for each thing that is left of it on this host."""
        return self._world.close() if self._world else []

    def id_of(self, node: str) -> int:
        """Return a node's id in the configuration."""
        return self.names.index(node) + 1

    # Machines

    def boot(self, node: str) -> None:
        """Plug a machine in and start its web server; the farm's process is started by ``start``."""
        topology.add_node(self.world, node, self.id_of(node), any_port=os.geteuid() != 0)
        self._booted.add(node)
        self.start_server(node)
        self.before[node] = self.snapshot(node)

    def crash(self, node: str) -> float:
        """Cut a machine's power: its links go down, everything on it is gone; ``boot`` brings a fresh one.

        Returns:
            When, seconds on the monotonic clock.
        """
        at = float(self.world.call("crash", ns=node, links=topology.ports(node)))
        self._running.discard(node)
        self._booted.discard(node)
        # A reboot empties /run and keeps /var/lib.
        self.world.run(
            ["sh", "-c", f'ip link delete {node}-a; ip link delete {node}-b; rm -rf "{ROOT / node / "run"}"'],
            check=False,
        )
        return at

    def links(self, node: str, *, up: bool, networks: Iterable[int] = (0, 1)) -> float:
        """Set a machine's cables up or down at the switch; returns when, seconds on the monotonic clock."""
        names = topology.ports(node)
        return float(self.world.call("link", names=[names[network] for network in networks], up=up))

    def start_server(self, node: str) -> None:
        """Start a node's web server and wait until it listens."""
        directory = ROOT / node / "server"
        for path, text in self.server.files(directory, node).items():
            self.world.call("write", path=f"{node}/server/{path}", text=text)
        name = f"{node}/server"
        self.world.spawn(name, self.server.argv(directory), ns=node, log=f"{directory}.log")

        def listens() -> bool:
            code = self.world.call("wait", name=name, timeout=0)
            if code is not None:
                log = self.world.call("read", path=f"{node}/server.log") + self.world.call(
                    "read", path=f"{node}/server/error.log"
                )
                raise LabError(f"the server of {node} ended with {code}: {log.strip()}")
            return ":0050 00000000:0000 0A" in self.world.run(["cat", "/proc/net/tcp"], ns=node).out

        self.wait_for(listens, 20, f"the server of {node} to listen")

    def stop_server(self, node: str) -> None:
        """Kill a node's web server with all of its workers, as a crash of the application."""
        self.world.call("end", name=f"{node}/server")

    # The farm's process

    def start(self, *nodes: str) -> None:
        """Start ``nlbfarm-node run`` on these nodes, or on all; does not wait for anything."""
        for node in nodes or self.names:
            argv = [*self._command("run"), "--node", node, *self._directories(node)]
            self.world.spawn(f"{node}/node", argv, ns=node, log=str(ROOT / node / "node.log"))
            self._running.add(node)

    def stop(self, node: str, timeout: float = 20) -> int:
        """Stop a node's farm process with SIGTERM; returns its exit code."""
        self.world.call("signal", name=f"{node}/node", number=signal.SIGTERM)
        code = self.world.call("wait", name=f"{node}/node", timeout=timeout)
        if code is None:
            raise LabError(f"{node} did not stop within {timeout:g} s of SIGTERM: {self.log(node)[-2000:]}")
        self._running.discard(node)
        return int(code)

    def kill(self, node: str) -> float:
        """Kill only the farm's process of a node (SIGKILL); returns when, seconds on the monotonic clock."""
        at = float(self.world.call("signal", name=f"{node}/node", number=signal.SIGKILL))
        self.world.call("wait", name=f"{node}/node", timeout=10)
        self._running.discard(node)
        return at

    def freeze(self, node: str) -> float:
        """Stop the farm's process of a node in its tracks (SIGSTOP); returns when."""
        return float(self.world.call("signal", name=f"{node}/node", number=signal.SIGSTOP))

    def thaw(self, node: str) -> float:
        """Let a frozen process go on; returns when."""
        return float(self.world.call("signal", name=f"{node}/node", number=signal.SIGCONT))

    def cleanup(self, node: str) -> Done:
        """Run ``nlbfarm-node cleanup`` on a node."""
        return self.exec(
            node, [*self._command("cleanup"), "--runtime-dir", str(ROOT / node / "run")], check=False
        )

    def status(self, node: str) -> dict[str, Any]:
        """Return a node's status, from its control socket."""
        answer = self.world.call("control", path=f"{node}/run/{FARM}/control.sock", verb="status", args={})
        if not answer.get("ok"):
            raise LabError(f"{node} answered: {answer.get('error')}")
        result: dict[str, Any] = answer["result"]
        return result

    def placement(self, *nodes: str) -> tuple[int, ...] | None:
        """Return each bucket's owner (an id) if these nodes (default: all running) agree and do it."""
        expected: tuple[int, ...] | None = None
        for node in nodes or self.running:
            try:
                status = self.status(node)
            except LabError:
                return None
            group = status["groups"][0]
            placement = tuple(group["placement"])
            accepting = [state in "OA" for state in group["states"]]
            if accepting != [owner == self.id_of(node) for owner in placement] or expected not in (
                None,
                placement,
            ):
                return None
            expected = placement
        return expected

    def settle(self, *nodes: str, timeout: float = 20) -> tuple[int, ...]:
        """Wait until these nodes (default: all running), and only these, share all 256 buckets.

        Returns:
            The owner's id of each bucket.
        """
        ids = {self.id_of(node) for node in nodes or self.running}

        def shared() -> tuple[int, ...] | None:
            for node in nodes or self.running:
                code = self.world.call("wait", name=f"{node}/node", timeout=0)
                if code is not None:
                    raise LabError(f"nlbfarm-node of {node} ended with {code}: {self.log(node)[-2000:]}")
            placement = self.placement(*nodes)
            return placement if placement and set(placement) == ids else None

        return self.wait_for(shared, timeout, f"{', '.join(nodes or self.running)} to share all buckets")

    def log(self, node: str) -> str:
        """Return the log of a node's farm process."""
        return str(self.world.call("read", path=f"{node}/node.log"))

    # Looking around

    def exec(self, host: str, argv: Sequence[str], *, check: bool = True, timeout: float = 30) -> Done:
        """Run a command on a node or on the client to its end."""
        return self.world.run(argv, ns=host, check=check, timeout=timeout)

    def snapshot(self, node: str) -> hoststate.HostState:
        """Read what a node's host looks like now."""
        return hoststate.read(self.world, node)

    def changes(self, node: str) -> list[str]:
        """Return a line for everything on a node's host that is not as it was after booting."""
        return hoststate.difference(self.before[node], self.snapshot(node))

    def neighbour(self) -> str:
        """Return the MAC that the client has for the VIP, ``""`` if none."""
        words = self.exec(topology.CLIENT, ["ip", "neighbour", "show", str(topology.VIP)]).out.split()
        return words[words.index("lladdr") + 1] if "lladdr" in words else ""

    def leftovers(self) -> list[str]:
        """End the web servers; return a line for everything that stopped farm processes left on their hosts.

        That is: state of the host, processes, files in their runtime directory.
        """
        lines = []
        for node in self.names:
            if node not in self._booted:
                continue
            lines += [f"{node}: {line}" for line in self.changes(node)]
            self.stop_server(node)
            lines += [f"{node}: process {line}" for line in self.world.call("processes", ns=node)]
            files = self.world.run(
                ["find", str(ROOT / node / "run"), "!", "-type", "d"], check=False
            ).out.split()
            lines += [f"{node}: file {path}" for path in files]
        return lines

    def look_around(self) -> list[str]:
        """Return commands for a person on this host that look into the running lab."""
        user = "" if os.geteuid() == 0 else "--user --preserve-credentials "
        enter = f"nsenter --target {self.world.pid} {user}--net --mount --pid"
        node = self.names[0]
        status = f"{sys.executable} -m nlbfarm.cli status --config {ROOT}/farm.toml"
        return [
            f"{enter} ip netns exec {node} nft list ruleset",
            f"{enter} ip netns exec {node} {status} --runtime-dir {ROOT}/{node}/run",
            f"{enter} ip netns exec {topology.CLIENT} curl http://{topology.VIP}/",
            f"{enter} bridge fdb show br br0",
            f"{enter} tail -f {ROOT}/{node}/node.log",
        ]

    def wait_for(self, condition: Callable[[], _T | None], timeout: float, what: str) -> _T:
        """Wait until ``condition`` returns something true, and return that.

        Args:
            condition: Asked every 50 ms.
            timeout: Seconds.
            what: What is waited for, for the message.

        Raises:
            LabError: It did not come true; the message has the ends of the running nodes' logs.
        """
        deadline = time.monotonic() + timeout
        while True:
            if result := condition():
                return result
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {node}\n{self.log(node)[-1500:]}" for node in self.running)
                raise LabError(f"waited {timeout:g} s in vain for {what}\n{logs}")
            time.sleep(_POLL)

    def _command(self, verb: str) -> list[str]:
        return [sys.executable, "-m", "nlbfarm.cli", verb, "--config", str(ROOT / "farm.toml")]

    def _directories(self, node: str) -> list[str]:
        base: Path = ROOT / node
        return ["--runtime-dir", str(base / "run"), "--state-dir", str(base / "state")]
