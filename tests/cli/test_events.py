"""``nlbfarm-node events``: of a running node through a real socket; of one that does not run, from disk."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.config_support import write

from nlbfarm.api.control import ControlServer
from nlbfarm.cli import cli
from nlbfarm.cli.events import events_path
from nlbfarm.events import EventLog, EventStream, Journal, answer_events
from nlbfarm.testing.clock import FakeClock

pytestmark = pytest.mark.posix("Unix sockets")

WALL = 1_700_000_000.0


class Node:
    """A node of which nothing runs but its events: a socket, a journal, and a loop in a thread."""

    def __init__(self, directory: Path) -> None:
        self.runtime_dir, self.state_dir = directory / "run", directory / "state"
        self.clock = FakeClock(wall=WALL)
        self.log = EventLog(EventStream(), clock=self.clock)
        self.journal = Journal(events_path(self.state_dir, "shop"), self.log, max_bytes=1_000_000, files=5)
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        verbs = {"events": answer_events(self.log.stream, self.journal)}
        server = ControlServer(self.runtime_dir / "shop" / "control.sock", verbs)
        await server.open()
        self._ready.set()
        await self._stop.wait()
        await server.close()

    def start(self) -> None:
        self.journal.open()
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        if self._thread.is_alive():
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)
        self.journal.close(timeout=10)

    def arguments(self, *more: str) -> list[str]:
        return ["events", "--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir), *more]

    def run(self, *more: str) -> Result:
        return CliRunner().invoke(cli, self.arguments(*more))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    found = Node(tmp_path)
    yield found
    found.stop()


@pytest.fixture
def running(node: Node) -> Node:
    for number in range(30):
        node.log.info("peer.heard", name=f"web{number}")
        node.clock.advance(1)
    node.start()
    return node


def told(result: Result) -> list[str]:
    return re.findall(r"^\S+ \S+  \w+ +(.*)  \([a-z._]+\)$", result.stdout, re.MULTILINE)


def test_text(running: Node) -> None:
    running.log.warning("checker.changed", checker="page", ok=False, detail="HTTP 503")
    result = running.run("--last", "2")
    times = [datetime.fromtimestamp(WALL + seconds).astimezone() for seconds in (29, 30)]
    assert result.stdout.splitlines() == [
        f"{times[0]:%Y-%m-%d %H:%M:%S}  info     Node web29 is heard  (peer.heard)",
        f"{times[1]:%Y-%m-%d %H:%M:%S}  warning  Checker page is down: HTTP 503  (checker.changed)",
    ]
    assert (result.exit_code, result.stderr) == (0, "")


def test_how_many(running: Node) -> None:
    assert told(running.run()) == [f"Node web{number} is heard" for number in range(10, 30)]
    assert told(running.run("-n", "0")) == []
    assert len(told(running.run("-n", "999"))) == 30


@pytest.mark.parametrize(
    ("spelled", "seconds"),
    [("%Y-%m-%d %H:%M:%S", 25), ("%Y-%m-%dT%H:%M:%S", 25), ("%Y-%m-%d", 0), ("%s+00:00", None)],
)
def test_since_a_time(running: Node, spelled: str, seconds: int | None) -> None:
    text = datetime.fromtimestamp(WALL + 25).astimezone().strftime(spelled)
    if seconds is None:  # with its own distance from UTC
        text, seconds = "2023-11-14T22:13:45+00:00", 25
    assert len(told(running.run("--since", text))) == 30 - seconds
    assert told(running.run("--since", text, "--last", "1")) == ["Node web29 is heard"]


def test_since_so_long_ago(running: Node) -> None:
    running.clock.advance(time.time() - running.clock.wall())
    running.log.info("drain.ended")
    assert len(told(running.run("--since", "1h"))) == 1
    assert len(told(running.run("--since", "00:00"))) == 1


def test_a_time_that_is_none(running: Node) -> None:
    result = running.run("--since", "yesterday")
    assert result.exit_code == 2
    assert 'nlbfarm-node: --since "yesterday" is no time; write "90s", "2h"' in result.stderr


def test_json_is_an_object_a_line(running: Node) -> None:
    lines = running.run("--last", "2", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [event.as_json() for event in running.log.stream.recent(2)]


def test_the_journal_is_read_when_no_node_runs(running: Node) -> None:
    running.stop()
    result = running.run("--last", "1")
    assert told(result) == ["Node web29 is heard"]
    path = events_path(running.state_dir, "shop")
    assert f"; this is its journal, {path}" in result.stderr
    assert "no node is running here" in result.stderr
    assert result.exit_code == 0
    (running.runtime_dir / "shop").rmdir()  # it has left no trace there
    assert told(running.run("--last", "1")) == ["Node web29 is heard"]


def test_which_farm(running: Node, tmp_path: Path) -> None:
    assert told(running.run("--farm", "shop", "--last", "1")) == ["Node web29 is heard"]
    assert told(running.run("--config", str(write(tmp_path)), "--last", "1")) == ["Node web29 is heard"]
    result = running.run("--farm", "other")
    assert (result.exit_code, result.stdout) == (5, "")
    running.stop()
    (running.runtime_dir / "shop").rmdir()
    (running.state_dir / "blog").mkdir()
    (running.state_dir / "blog" / "events.jsonl").touch()
    result = running.run()
    assert result.exit_code == 2
    assert "several farms here; say which with --farm: blog, shop" in result.stderr


def test_no_node_and_no_journal(node: Node) -> None:
    for more in ([], ["--farm", "shop"], ["--farm", "shop", "--follow"]):
        result = node.run(*more)
        assert (result.exit_code, result.stdout) == (5, "")
        assert "no node is running here" in result.stderr


def test_there_is_nothing_to_follow(running: Node) -> None:
    running.stop()
    result = running.run("--follow")
    assert (result.exit_code, result.stdout) == (5, "")


class Follower:
    """``events --follow`` in a process of its own."""

    def __init__(self, node: Node, *more: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nlbfarm.cli", *node.arguments("--follow", *more)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def ends(self, how: Callable[[], None]) -> tuple[int, str]:
        how()
        _, errors = self._process.communicate(timeout=20)
        return self._process.returncode, errors

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)


def test_follow_until_ctrl_c(running: Node) -> None:
    follower = Follower(running, "--last", "1")
    assert "Node web29 is heard" in follower.line()
    running.log.warning("peer.lost", name="web2")
    assert "Node web2 is lost" in follower.line()  # at once, though it goes into a pipe
    assert follower.ends(follower.interrupt) == (130, "")


def test_follow_until_the_node_ends(running: Node) -> None:
    follower = Follower(running, "--last", "1", "--json")
    assert json.loads(follower.line())["name"] == "peer.heard"
    code, errors = follower.ends(running.stop)
    assert code == 5
    assert "has ended" in errors
