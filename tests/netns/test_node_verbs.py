"""An administrator's commands, given to real processes: what they do, and that it lasts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.netns.support import Namespace, cable

from nlbfarm.api.control import call
from nlbfarm.errors import NlbfarmError

pytestmark = pytest.mark.netns

VIP = "192.0.2.100"
BOUND_S = 30.0
ANSWER_S = 15.0
NODES = (1, 2, 3)

HEAD = f"""
[farm]
name = "verbs"
key_file = "verbs.key"
[handoff]
drain_timeout = "20s"
[[vips]]
address = "{VIP}"
interface = "eth0"
[[rules]]
name = "web"
vip = "{VIP}"
ports = [8080]
"""


def entry(number: int, extra: str = "") -> str:
    return f'[[nodes]]\nid = {number}\nname = "web{number}"\naddresses = ["192.0.2.1{number}"]\n{extra}\n'


class Farm:
    """Hosts on one switch, each with a node's process of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.switch = Namespace()
        self.switch.run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self.switch.run("ip", "link", "set", "br0", "up")
        self.hosts = {number: self._host(f"n{number}", f"192.0.2.1{number}") for number in NODES}
        self.client = self._host("client", "192.0.2.9")
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.cli(1, "keygen", str(directory / "verbs.key"))

    def _host(self, port: str, address: str) -> Namespace:
        made = Namespace()
        cable(made, "eth0", self.switch, port)
        self.switch.run("ip", "link", "set", port, "master", "br0")
        made.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        return made

    def configure(self, *numbers: int, extra: str = "", powers: str = "") -> None:
        text = HEAD + extra + "".join(entry(number, powers) for number in numbers)
        for number in NODES:
            (self.directory / f"{number}.toml").write_text(text)

    def environment(self, number: int) -> dict[str, str]:
        return os.environ | {
            "NLBFARM_RUNTIME_DIR": str(self.directory / f"run{number}"),
            "NLBFARM_STATE_DIR": str(self.directory / f"state{number}"),
        }

    def start(self, *numbers: int) -> None:
        for number in numbers:
            command = [sys.executable, "-m", "nlbfarm.cli", "run", "--config", f"{number}.toml"]
            with self.hosts[number].entered(), (self.directory / f"{number}.log").open("ab") as log:
                self.processes[number] = subprocess.Popen(
                    command, env=self.environment(number), cwd=self.directory, stdout=log, stderr=log
                )

    def kill(self, number: int, how: signal.Signals = signal.SIGKILL) -> int:
        self.processes[number].send_signal(how)
        return self.processes[number].wait(BOUND_S)

    def cli(self, number: int, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nlbfarm.cli", *words]
        with self.hosts[number].entered():
            return subprocess.run(
                command, env=self.environment(number), text=True, capture_output=True, timeout=60, check=False
            )

    def told(self, number: int, *words: str) -> str:
        done = self.cli(number, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def status(self, number: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = call(self.directory / f"run{number}" / "verbs" / "control.sock", "status")
        except NlbfarmError:
            return {}
        return found

    def shares(self, number: int) -> dict[str, int]:
        """Return how many buckets each node has, as one of them says; empty without a view or an answer."""
        found = self.status(number)
        return found["groups"][0]["buckets"] if found and found["inside"] else {}

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + BOUND_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {BOUND_S:g} s: {what}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        files = sorted(self.directory.glob("*.log"))
        return "\n".join(f"--- {file.name}\n" + file.read_text()[-3000:] for file in files)

    def close(self) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.kill()
            process.wait(BOUND_S)


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    """Return a farm of three hosts; nothing runs yet."""
    made = Farm(tmp_path)
    yield made
    made.close()


def serving(farm: Farm, *numbers: int) -> None:
    """Wait until exactly these nodes share the buckets, and each holds what it owns."""
    share = 256 // len(numbers)

    def shared() -> bool:
        for number in numbers:
            found = farm.status(number)
            if not found or not found["inside"]:
                return False
            group = found["groups"][0]
            if set(group["buckets"]) != set(map(str, numbers)) or min(group["buckets"].values()) < share:
                return False
            if group["own"] + group["adopt"] != group["buckets"][str(number)]:
                return False
        return True

    farm.until(shared, f"{numbers} share the buckets")


class Echo:
    """A server on a host, and connections of the client to the VIP."""

    def __init__(self, farm: Farm) -> None:
        self.farm = farm
        self.listeners = []
        self.held: list[socket.socket] = []
        for host in farm.hosts.values():
            with host.entered():
                listener = socket.create_server(("0.0.0.0", 8080), backlog=128)
            self.listeners.append(listener)
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(100):
                connection.sendall(data)

    def connect(self, count: int) -> list[socket.socket]:
        with self.farm.client.entered():
            made = [socket.create_connection((VIP, 8080), timeout=10) for _ in range(count)]
        self.held += made
        return made

    def close(self) -> None:
        for connection in self.held:
            connection.close()
        for listener in self.listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


@pytest.fixture
def echo(farm: Farm) -> Iterator[Echo]:
    """Return an echo service on every host of the farm."""
    made = Echo(farm)
    yield made
    made.close()


def alive(connections: list[socket.socket]) -> int:
    """Return how many connections still answer, all of them within a common bound."""
    asked = []
    for connection in connections:
        with suppress(OSError):
            connection.sendall(b"ping")
            asked.append(connection)
    count, deadline = 0, time.monotonic() + ANSWER_S
    for connection in asked:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        with suppress(OSError):
            count += connection.recv(100) != b""  # empty: it was ended
    return count


def test_a_stopped_node_stays_stopped_until_it_is_started(farm: Farm) -> None:
    farm.configure(1, 2)
    farm.start(1, 2)
    serving(farm, 1, 2)
    out = farm.told(1, "stop", "web2", "--wait")  # through the other node
    assert "web2: stopped" in out
    assert farm.shares(1) == {"1": 256}
    assert VIP not in farm.hosts[2].run("ip", "address", "show", "dev", "eth0")
    farm.kill(2)
    farm.start(2)
    farm.until(lambda: farm.status(2).get("admin") == "stop", "it runs again")
    found = farm.status(2)
    assert (found["state"], found["inside"]) == ("STOP", False)
    assert farm.kill(2, signal.SIGTERM) == 0
    farm.start(2)
    farm.until(lambda: farm.status(2).get("state") == "STOP", "and again")
    assert farm.shares(1) == {"1": 256}
    assert VIP not in farm.hosts[2].run("ip", "address", "show", "dev", "eth0")
    assert "web2: serves" in farm.told(1, "start", "web2", "--wait")
    serving(farm, 1, 2)
    assert VIP in farm.hosts[2].run("ip", "address", "show", "dev", "eth0")


def test_a_maintenance_leaves_what_fails_alone_until_it_is_over_and_outlives_the_process(farm: Farm) -> None:
    gone = farm.directory / "gone"
    look = f'[[checkers]]\nname = "file"\ntype = "script"\ncommand = ["test", "!", "-e", "{gone}"]\n'
    farm.configure(1, 2, extra=look + 'interval = "200ms"\nfall = 1\n')
    farm.start(1, 2)
    serving(farm, 1, 2)
    assert "maintenance" in farm.told(1, "pause", "web2")  # through the other node
    gone.touch()
    farm.until(lambda: farm.status(2)["checkers"][0]["ok"] is False, "it is seen that the file is there")
    farm.until(lambda: farm.shares(1) == {"2": 256}, "the node that is not in maintenance gives way")
    assert farm.status(2)["paused"] is True
    assert farm.status(2)["state"] == "UP"
    gone.unlink()
    serving(farm, 1, 2)
    farm.kill(2)
    farm.start(2)
    farm.until(lambda: farm.status(2).get("paused") is True, "it is in maintenance again")
    serving(farm, 1, 2)
    assert "the maintenance is over" in farm.told(2, "start")
    gone.touch()
    farm.until(lambda: farm.status(2)["reason"].startswith("degraded: file: "), "now it counts")
    farm.until(lambda: sum(farm.shares(1).values()) == 256, "and nobody is better")


def test_a_drain_waits_for_connections_and_breaks_none(farm: Farm, echo: Echo) -> None:
    farm.configure(1, 2)
    farm.start(1, 2)
    serving(farm, 1, 2)
    held = echo.connect(40)
    asked = farm.cli(1, "drain", "web2", "--wait", "--timeout", "2")
    assert asked.returncode == 1, asked.stdout + asked.stderr
    assert "connections left in" in asked.stderr
    assert "What was begun goes on" in asked.stderr
    assert alive(held) == 40
    more = echo.connect(20)
    assert alive(held + more) == 60
    assert farm.status(2)["connections_left"] > 0
    for connection in held:
        connection.close()
    assert "web2: drained" in farm.told(2, "drain", "--wait")
    assert alive(more) == 20
    assert farm.status(1)["nodes"][1]["state"] == "DRAINING"
    farm.told(2, "start", "--wait")
    serving(farm, 1, 2)
    assert alive(more) == 20


def test_a_new_process_takes_over_and_breaks_no_connection(farm: Farm, echo: Echo) -> None:
    farm.configure(1, 2)
    farm.start(1, 2)
    serving(farm, 1, 2)
    held = echo.connect(40)
    before = farm.status(2)
    assert "web2: serves again" in farm.told(1, "restart", "web2", "--process", "--wait")
    after = farm.status(2)
    assert after["incarnation"] > before["incarnation"]
    assert after["pid"] == before["pid"] == farm.processes[2].pid
    assert alive(held) == 40
    serving(farm, 1, 2)
    assert alive(held) == 40
    out = farm.told(1, "restart", "--all", "--process")
    assert [line for line in out.splitlines() if "again" in line] == [
        "web2: serves again",
        "web1: serves again",
    ]
    serving(farm, 1, 2)
    assert alive(held) == 40


def test_a_stopped_node_whose_process_is_replaced_stays_stopped(farm: Farm) -> None:
    farm.configure(1, 2)
    farm.start(1, 2)
    serving(farm, 1, 2)
    farm.told(1, "stop", "web2", "--wait")
    before = farm.status(2)
    farm.told(2, "restart", "--process")
    farm.until(lambda: farm.status(2).get("incarnation", 0) > before["incarnation"], "a new process")
    farm.until(lambda: farm.status(2)["state"] == "STOP", "it is stopped")
    assert farm.shares(1) == {"1": 256}
    farm.configure(1, 2, extra="nonsense = 1\n")
    refused = farm.cli(1, "restart", "--process")
    assert refused.returncode == 1
    assert "nonsense" in refused.stderr
    serving(farm, 1)


def test_a_rolling_restart_goes_from_node_to_node(farm: Farm) -> None:
    farm.configure(*NODES)
    farm.start(*NODES)
    serving(farm, *NODES)
    out = farm.told(2, "restart", "--all")
    lines = [line for line in out.splitlines() if line.endswith("serves again")]
    assert lines == ["web1: serves again", "web3: serves again", "web2: serves again"]
    serving(farm, *NODES)


def test_power_lasts_and_goes_back_to_the_configuration(farm: Farm) -> None:
    farm.configure(1, 2)
    farm.start(1, 2)
    serving(farm, 1, 2)
    assert "power now: web 3" in farm.told(1, "power", "web2", "3")
    farm.until(lambda: farm.shares(1) == {"1": 64, "2": 192}, "the shares follow")
    farm.kill(2)
    farm.until(lambda: farm.shares(1) == {"1": 256}, "the other serves alone")
    farm.start(2)
    farm.until(lambda: farm.shares(1) == {"1": 64, "2": 192}, "it is kept")
    rows = farm.status(1)["nodes"]
    assert (rows[1]["power"], rows[1]["configured_power"]) == ({"web": 3}, {"web": 1})
    farm.told(1, "power", "web2", "default", "--group", "web")
    farm.until(lambda: farm.shares(1) == {"1": 128, "2": 128}, "and undone")
    assert farm.cli(1, "power", "web2", "3", "--group", "nosuch").returncode == 2


def test_nodes_come_and_go_by_reload(farm: Farm, echo: Echo) -> None:
    farm.configure(1, 2)
    farm.start(1, 2)
    serving(farm, 1, 2)
    held = echo.connect(30)
    farm.configure(*NODES)
    farm.start(3)
    assert 'nodes "web3" (id 3) is new' in farm.told(1, "reload", "--dry-run")
    assert len(farm.status(1)["nodes"]) == 2
    for number in (2, 1):
        assert 'nodes "web3" (id 3) is new' in farm.told(number, "reload")
    serving(farm, *NODES)
    assert alive(held) == 30
    farm.configure(1, 2, powers="power = 2")
    assert "this one: it drains and stops" in farm.told(3, "reload")
    for number in (1, 2):
        farm.processes[number].send_signal(signal.SIGHUP)
    serving(farm, 1, 2)
    farm.until(lambda: farm.status(3)["state"] == "STOP", "web3 has handed over all that it served")
    farm.kill(3)
    farm.until(lambda: len(farm.status(1)["nodes"]) == 2, "web3 is forgotten when it is gone")
    assert alive(held) == 30
    farm.configure(1, 2, extra='[heartbeat]\ninterval = "50ms"\nlease = "150ms"\n')
    refused = farm.cli(1, "reload")
    assert refused.returncode == 1
    assert 'heartbeat.interval: "100ms" -> "50ms"' in refused.stderr
    serving(farm, 1, 2)


def test_a_process_that_keeps_dying_waits(farm: Farm) -> None:
    farm.configure(1, 2)
    farm.start(1, 2)
    serving(farm, 1, 2)
    for _ in range(3):
        farm.kill(2)
        farm.start(2)
        farm.until(lambda: farm.status(2), "it answers")
    farm.until(lambda: farm.status(2).get("state") == "WAIT", "it waits")
    found = farm.status(2)
    assert "failed 3 times in a row" in found["reason"]
    assert 0 < found["damping"]["remaining_s"] <= 5
    farm.told(2, "start", "--wait")
    serving(farm, 1, 2)
    assert farm.kill(2, signal.SIGTERM) == 0
    farm.start(2)
    serving(farm, 1, 2)


def test_the_end_of_a_process_waits_for_connections_and_a_second_signal_does_not(
    farm: Farm, echo: Echo
) -> None:
    farm.configure(1, 2)
    farm.start(1, 2)
    serving(farm, 1, 2)
    held = echo.connect(40)
    farm.processes[2].send_signal(signal.SIGTERM)
    farm.until(lambda: farm.shares(1) == {"1": 256}, "its buckets are taken over")
    farm.until(lambda: farm.status(2).get("connections_left"), "it drains")
    assert alive(held) == 40
    assert farm.processes[2].poll() is None
    farm.processes[2].send_signal(signal.SIGTERM)
    assert farm.processes[2].wait(BOUND_S) == 0
    assert 0 < alive(held) < 40
    assert VIP not in farm.hosts[2].run("ip", "address", "show", "dev", "eth0")
    for connection in held:
        connection.close()
    assert farm.kill(1, signal.SIGTERM) == 0


def test_another_key_another_secret_and_another_configuration_are_named(farm: Farm) -> None:
    farm.configure(*NODES)
    farm.start(1, 2)
    serving(farm, 1, 2)
    file, key = farm.directory / "3.toml", farm.directory / "verbs.key"
    text, whole = file.read_text(), key.read_text()
    farm.told(1, "keygen", str(farm.directory / "other.key"))
    other = (farm.directory / "other.key").read_text()
    secret = next(line for line in other.splitlines() if "hash" in line)
    another = [secret if "hash" in line else line for line in whole.splitlines()]
    (farm.directory / "secret.key").write_text("\n".join(another))
    (farm.directory / "secret.key").chmod(0o600)
    cases = (
        (text.replace("verbs.key", "other.key"), "web3 (192.0.2.13) sends datagrams signed with another key"),
        (text.replace("verbs.key", "secret.key"), "web3 has another hash secret"),
        (text.replace("[8080]", "[8080, 81]"), "web3 is configured otherwise"),
    )
    for changed, warning in cases:
        file.write_text(changed)
        farm.start(3)
        for number in (1, 2):
            farm.until(
                lambda: any(warning in told for told in farm.status(number).get("warnings", ())),  # noqa: B023
                f"web{number} says: {warning}",
            )
            assert farm.shares(number) == {"1": 128, "2": 128}
        farm.kill(3, signal.SIGTERM)
    for number in (1, 2):
        log = (farm.directory / f"{number}.log").read_text()
        assert '"event": "heartbeat.rejected", "kind": "forged"' in log
        assert log.count('"event": "peer.configured_otherwise", "peer": 3') == 2
