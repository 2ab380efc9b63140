"""The node's process ends, one way or another: what becomes of its command."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.services.support import Mark, Supervisor, cgroup_is_possible, cgroups_of, context, log_of, until

from nlbfarm.services import CommandService
from nlbfarm.services.keeper.family import alive

pytestmark = pytest.mark.posix("the keeper, a Linux process")


@pytest.fixture
def mark() -> Iterator[Mark]:
    found = Mark()
    yield found
    found.kill()


Nodes = Callable[..., Supervisor]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made: list[Supervisor] = []

    def make(directory: Path, argv: Sequence[str], **options: object) -> Supervisor:
        made.append(Supervisor(directory, argv, **options))
        return made[-1]

    yield make
    for node in made:
        node.kill()


@pytest.fixture(params=[True, False], ids=["cgroup", "no cgroup"])
def cgroup(request: pytest.FixtureRequest) -> bool:
    if request.param and (why := cgroup_is_possible()):
        pytest.skip(f"lack of cgroups ({why})")
    return bool(request.param)


def wild(mark: Mark) -> list[str]:
    """Return a command that ignores SIGTERM, has children, and daemons in sessions of their own."""
    script = (
        f"trap '' TERM HUP; {mark.sleep} & (setsid sh -c '({mark.sleep} &) ; {mark.sleep}' &) ; {mark.sleep}"
    )
    return ["sh", "-c", script]


def record_of(directory: Path) -> dict[str, object]:
    found = json.loads((directory / "run" / "services" / "app.json").read_text())
    assert isinstance(found, dict)
    return found


async def everything_is_gone(directory: Path, mark: Mark) -> None:
    await until(lambda: not mark.alive(), "everything of the application has ended")
    services = directory / "run" / "services"
    await until(lambda: not list(services.iterdir()), "the keeper has cleared up")
    assert cgroups_of(directory) == []


async def test_a_killed_node_takes_everything_along(
    tmp_path: Path, mark: Mark, nodes: Nodes, cgroup: bool
) -> None:
    node = nodes(tmp_path, wild(mark), cgroup=cgroup)
    assert node.ask("start").startswith("runs as process ")
    await until(lambda: len(mark.pids()) == 4, "all are there")
    node.kill()
    await everything_is_gone(tmp_path, mark)
    assert "the node is gone: everything is killed" in log_of(tmp_path).read_text()


async def test_a_node_that_is_killed_as_it_stops_its_application(
    tmp_path: Path, mark: Mark, nodes: Nodes
) -> None:
    node = nodes(tmp_path, wild(mark), stop_timeout=1000.0)
    node.ask("start")
    await until(lambda: len(mark.pids()) == 4, "all are there")
    node.begin("stop")
    await until(lambda: "is stopped" in log_of(tmp_path).read_text(), "it is being stopped")
    node.kill()
    await everything_is_gone(tmp_path, mark)


async def test_a_copy_of_the_nodes_connection_hides_nothing(tmp_path: Path, mark: Mark, nodes: Nodes) -> None:
    """A child that the node forked has all that the node had open; it lives on when that is killed."""
    node = nodes(tmp_path, wild(mark))
    node.ask("start")
    await until(lambda: len(mark.pids()) == 4, "all are there")
    node.ask("fork")
    children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children")
    forked = [int(pid) for pid in children.read_text().split() if int(pid) != record_of(tmp_path)["keeper"]]
    try:
        node.kill()
        await everything_is_gone(tmp_path, mark)
    finally:
        for pid in forked:
            os.kill(pid, signal.SIGKILL)
    assert "the node's process has ended: everything is killed" in log_of(tmp_path).read_text()


async def test_a_node_that_ends_without_a_word(tmp_path: Path, mark: Mark, nodes: Nodes) -> None:
    node = nodes(tmp_path, wild(mark))
    node.ask("start")
    await until(lambda: len(mark.pids()) == 4, "all are there")
    node.end()  # its service is neither stopped nor closed
    await everything_is_gone(tmp_path, mark)


async def test_the_next_process_takes_over(tmp_path: Path, mark: Mark, nodes: Nodes) -> None:
    node = nodes(tmp_path, wild(mark))
    before = node.ask("start")
    await until(lambda: len(mark.pids()) == 4, "all are there")
    pids = mark.pids()
    node.ask("close")
    node.kill()
    node = nodes(tmp_path, wild(mark))
    assert node.ask("status") == before
    assert node.ask("start") == before
    assert mark.pids() == pids
    node.kill()  # and it is the node now
    await everything_is_gone(tmp_path, mark)


async def test_a_process_that_executes_itself_anew(tmp_path: Path, mark: Mark, nodes: Nodes) -> None:
    """As ``restart --process`` does: the process id stays, the keeper stays its child."""
    node = nodes(tmp_path, wild(mark), stop_timeout=0.2)
    before = node.ask("start")
    await until(lambda: len(mark.pids()) == 4, "all are there")
    keeper = record_of(tmp_path)["keeper"]
    for _ in range(2):
        assert node.ask("exec") == "ready"
        assert node.ask("start") == before
    assert record_of(tmp_path)["keeper"] == keeper
    node.ask("stop")
    assert not mark.alive()
    assert not Path(f"/proc/{keeper}").exists()  # not even as a zombie
    node.end()


async def test_one_that_may_outlive_its_node(tmp_path: Path, mark: Mark, nodes: Nodes) -> None:
    node = nodes(tmp_path, wild(mark), outlive=True)
    before = node.ask("start")
    await until(lambda: len(mark.pids()) == 4, "all are there")
    pids = mark.pids()
    node.kill()
    await until(
        lambda: "the application goes on, as configured" in log_of(tmp_path).read_text(), "it is noticed"
    )
    assert mark.pids() == pids
    node = nodes(tmp_path, wild(mark), outlive=False)
    assert node.ask("start") == before
    assert mark.pids() == pids
    node.kill()  # it may no longer
    await everything_is_gone(tmp_path, mark)


async def test_node_and_keeper_are_killed_together(
    tmp_path: Path, mark: Mark, nodes: Nodes, cgroup: bool
) -> None:
    """The main process goes with its keeper; the next start ends the rest before it starts anything."""
    node = nodes(tmp_path, wild(mark), cgroup=cgroup)
    node.ask("start")
    await until(lambda: len(mark.pids()) == 4, "all are there")
    before = set(mark.pids())
    main, keeper = record_of(tmp_path)["pid"], record_of(tmp_path)["keeper"]
    assert isinstance(main, int)
    assert isinstance(keeper, int)
    os.kill(node.process.pid, signal.SIGSTOP)  # so that it cannot clear up
    os.kill(keeper, signal.SIGKILL)
    node.kill()
    await until(lambda: not alive(main), "the main process has gone with its keeper")
    app = CommandService(context(tmp_path), command=wild(mark), stop_timeout=0.2, cgroup=cgroup)
    await app.start("x")
    assert not before & set(mark.pids())
    await app.stop("x")
    await everything_is_gone(tmp_path, mark)


async def test_a_quick_successor_does_not_fight_with_what_is_being_killed(
    tmp_path: Path, mark: Mark, nodes: Nodes
) -> None:
    for _ in range(2):
        node = nodes(tmp_path, wild(mark))
        node.ask("start")
        await until(lambda: len(mark.pids()) == 4, "all are there")
        before = set(mark.pids())
        node.process.kill()  # not even waited for
        app = CommandService(context(tmp_path), command=wild(mark), stop_timeout=0.2)
        await app.start("x")
        await until(lambda: len(mark.pids()) == 4, "the new ones are there")
        assert not before & set(mark.pids())
        await app.stop("x")
        node.end()
    await everything_is_gone(tmp_path, mark)
