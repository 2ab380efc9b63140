"""``Lab``: a whole farm on one machine, real processes and real packets."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from nlbfarm.errors import UsageError
from nlbfarm.lab import configuration, hoststate, nodelog, servers, topology
from nlbfarm.lab.configuration import FARM
from nlbfarm.lab.faults import Faults
from nlbfarm.lab.supervisor import ROOT
from nlbfarm.lab.world import Done, LabError, World

__all__ = ["Lab"]

_T = TypeVar("_T")
_POLL = 0.05
_CONTROL = 12.0  # seconds; a node answers within 10


class Lab:
    """A farm of ``nodes`` nodes, a client and a switch, each in a network namespace of its own.

    A context manager: entering it plugs everything together and starts the web servers; ``start`` starts
    the farm's processes. Leaving it, or the end of this process by any signal, ends and removes
    everything. Methods that name a node raise ``LabError`` when something inside the lab fails.

    With ``service`` the lab only installs the web servers: each node runs its own, and looks after it.

    Args:
        nodes: How many, 1..32; they are called ``web1``, ``web2`` and so on.
        server: ``"apache"``, ``"nginx"``, ``"builtin"`` or ``"auto"``.
        backend: Filter backend, ``"auto"`` or a name.
        checker: Whether each node looks at its web server.
        farm: Lines of the configuration's section ``[farm]``.
        heartbeat: Lines of the section ``[heartbeat]``.
        rule: More lines of the rule.
        powers: The powers of the first nodes, where they are not 1.
        service: Lines of a ``[[services]]`` entry, such as ``stop_timeout = "2s"``: the nodes run their web
            servers themselves, in this way. ``None``: the lab does.
        gateway: Whether there is a gateway.
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
        farm: str = "",
        heartbeat: str = "",
        rule: str = "",
        powers: Sequence[int] = (),
        service: str | None = None,
        gateway: bool = False,
        extra: str = "",
    ) -> None:
        if not 1 <= nodes <= topology.MAX_NODES:
            raise UsageError(f"a lab has 1 to {topology.MAX_NODES} nodes, not {nodes}")
        self.server = servers.choose(server)
        self.names = tuple(f"web{number}" for number in range(1, nodes + 1))
        self.supervised = service is not None
        """Whether the nodes run their web servers themselves."""
        self.before: dict[str, hoststate.HostState] = {}
        """What each node's host looked like when it had booted, before the farm's process started."""
        self._configuration = partial(
            configuration.farm_toml,
            backend=backend,
            checker=checker,
            farm=farm,
            heartbeat=heartbeat,
            rule=rule,
            powers=powers,
            service="" if service is None else f"{configuration.command(self.server)}\n{service}",
            extra=extra,
        )
        self._gateway = gateway
        self._world: World | None = None
        self._faults: Faults | None = None
        self._running: set[str] = set()
        self._booted: set[str] = set()

    def __enter__(self) -> Lab:
        self._world = World()
        try:
            self._faults = Faults(self._world, lambda: self.names)
            self.world.call("write", path="farm.toml", text=self.configuration())
            self.world.call("keygen", path=f"{FARM}.key")
            topology.add_switch(self.world)
            topology.add_client(self.world)
            if self._gateway:
                topology.add_gateway(self.world)
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
    def faults(self) -> Faults:
        """What is wrong with the network."""
        if self._faults is None:
            raise UsageError("this lab has not been entered: use it in a with statement")
        return self._faults

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

    def configuration(self, names: Sequence[str] = ()) -> str:
        """Return the configuration of the farm, as TOML; with ``names``, of a farm of these nodes."""
        return self._configuration(names or self.names)

    def configure(self, node: str, text: str) -> None:
        """Replace a node's configuration file; its process reads it at its start, and at ``reload``."""
        self.world.call("write", path=f"{node}/farm.toml", text=text)

    def add_node(self) -> str:
        """Plug one more machine in, and write the configuration of the greater farm, for this machine only.

        Returns:
            Its name.
        """
        node = f"web{len(self.names) + 1}"
        self.names = (*self.names, node)
        self.world.call("write", path="farm.toml", text=self.configuration())
        self.boot(node)
        return node

    def remove_node(self, node: str) -> None:
        """Unplug a machine for good; the configurations of the others are not changed."""
        self.crash(node)
        self.names = tuple(name for name in self.names if name != node)
        self.world.run(["rm", "-rf", str(ROOT / node)])
        self.world.call("write", path="farm.toml", text=self.configuration())

    def boot(self, node: str) -> None:
        """Plug a machine in and start its web server, if the lab runs it; the farm's process: ``start``.

        A machine that boots for the first time gets a copy of the configuration and of the key.
        """
        copy = f'mkdir -p "$0" && cp -n "$1/farm.toml" "$1/{FARM}.key" "$0"'
        self.world.run(["sh", "-c", copy, str(ROOT / node), str(ROOT)])
        topology.add_node(self.world, node, self.id_of(node), any_port=os.geteuid() != 0)
        self._booted.add(node)
        self.install_server(node)
        if not self.supervised:
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

    def install_server(self, node: str) -> None:
        """Write the files of a node's web server, as they should be."""
        for path, text in self.server.files(ROOT / node / "server", node).items():
            self.world.call("write", path=f"{node}/server/{path}", text=text)

    def start_server(self, node: str) -> None:
        """Start a node's web server and wait until it listens."""
        self.install_server(node)
        directory, name = ROOT / node / "server", f"{node}/server"
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
            argv = [*self._command("run", node), "--node", node, *self._directories(node)]
            self.world.spawn(f"{node}/node", argv, ns=node, log=str(ROOT / node / "node.log"))
            self._running.add(node)

    def stop(self, node: str, timeout: float = 20, *, patience: float | None = None) -> int:
        """Stop a node's farm process with SIGTERM; returns its exit code.

        Args:
            node: Which.
            timeout: Seconds until it must have ended.
            patience: Seconds after which SIGTERM is sent again: connections are not waited for any longer.
        """
        self.terminate(node)
        if patience is not None and self.world.call("wait", name=f"{node}/node", timeout=patience) is None:
            self.terminate(node)
        return self.wait_ended(node, timeout)

    def terminate(self, node: str) -> None:
        """Send SIGTERM to a node's farm process; it counts as stopped from now on."""
        self.world.call("signal", name=f"{node}/node", number=signal.SIGTERM)
        self._running.discard(node)

    def wait_ended(self, node: str, timeout: float = 20) -> int:
        """Wait until a node's farm process, which was told to, has ended; returns its exit code."""
        code = self.world.call("wait", name=f"{node}/node", timeout=timeout)
        if code is None:
            raise LabError(f"{node} did not stop within {timeout:g} s of SIGTERM: {self.log(node)[-2000:]}")
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
            node, [*self._command("cleanup", node), "--runtime-dir", str(ROOT / node / "run")], check=False
        )

    def control(self, node: str, verb: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask a node something through its control socket, or tell it to do something.

        Raises:
            LabError: It does not answer, or refuses.
        """
        path = f"{node}/run/{FARM}/control.sock"
        answer = self.world.call("control", path=path, verb=verb, args=dict(args or {}), timeout=_CONTROL)
        if not answer.get("ok"):
            raise LabError(f"{node} answered to {verb}: {answer.get('error')}")
        result: dict[str, Any] = answer["result"]
        return result

    def status(self, node: str) -> dict[str, Any]:
        """Return a node's status, from its control socket."""
        return self.control(node, "status")

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

        With the mode ``failover``: until one of them has all buckets, and the others could have them.

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
            if placement is None or not set(placement) <= ids:
                return None
            return placement if set(placement) == ids or self._stands_by(ids) else None

        return self.wait_for(shared, timeout, f"{', '.join(nodes or self.running)} to share all buckets")

    def _stands_by(self, ids: Collection[int]) -> bool:
        """Whether these nodes serve a group that one node has at a time, and all of them are ready."""
        status = self.status(self.names[min(ids) - 1])
        ready = {row["id"] for row in status["nodes"] if row["state"] == "UP" and row["in_view"]}
        return status["groups"][0]["mode"] == "failover" and ready == set(ids)

    def log(self, node: str) -> str:
        """Return the log of a node's farm process."""
        return str(self.world.call("read", path=f"{node}/node.log"))

    def events(self, node: str, since: float = 0.0) -> list[nodelog.LogEvent]:
        """Return what a node's log says happened from ``since`` (monotonic, seconds) on."""
        text = self.world.call("read", path=f"{node}/node.log", last=3_000_000)
        return [event for event in nodelog.parse(text) if event.at >= since]

    def journal(self, node: str, since: float = 0.0) -> list[nodelog.LogEvent]:
        """Return what a node's journal of events says happened from ``since`` (monotonic, seconds) on."""
        text = self.world.call("read", path=f"{node}/state/{FARM}/events.jsonl", last=3_000_000)
        return [event for event in nodelog.parse_journal(text) if event.at >= since]

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
        """End the web servers that the lab runs; return a line for everything that stopped nodes left behind.

        That is: state of the host, processes, files in their runtime directory.
        """
        lines = []
        for node in self.names:
            if node not in self._booted:
                continue
            lines += [f"{node}: {line}" for line in self.changes(node)]
            if not self.supervised:
                self.stop_server(node)
            lines += [f"{node}: process {line}" for line in self.world.call("processes", ns=node)]
            files = self.world.run(
                ["find", str(ROOT / node / "run"), "!", "-type", "d"], check=False
            ).out.split()
            lines += [f"{node}: file {path}" for path in files]
        return lines

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

    def _command(self, verb: str, node: str) -> list[str]:
        return [sys.executable, "-m", "nlbfarm.cli", verb, "--config", str(ROOT / node / "farm.toml")]

    def _directories(self, node: str) -> list[str]:
        base: Path = ROOT / node
        return ["--runtime-dir", str(base / "run"), "--state-dir", str(base / "state")]
