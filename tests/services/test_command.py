"""Commands on Linux: real processes that fork, hide, do not listen and do not stop talking."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.services.support import (
    Mark,
    Supervisor,
    cgroup_is_possible,
    cgroups_of,
    context,
    farm_of,
    log_of,
    until,
    zombies,
)

from nlbfarm.errors import HostError, UsageError
from nlbfarm.services import CommandService
from nlbfarm.services.command import Command
from nlbfarm.services.keeper import link
from nlbfarm.services.keeper.family import alive
from nlbfarm.services.kept import KeptCommand


def _is_root() -> bool:
    """Say whether this is root of the host: root of a user namespace has no other users."""
    uids = Path("/proc/self/uid_map")
    if sys.platform == "win32" or not uids.exists():
        return False
    return os.geteuid() == 0 and uids.read_text().split() == ["0", "0", "4294967295"]


as_root = pytest.mark.skipif(not _is_root(), reason="lack of root")
pytestmark = pytest.mark.posix("the keeper, a Linux process")


@pytest.fixture
def mark() -> Mark:
    return Mark()


@pytest.fixture(params=[True, False], ids=["cgroup", "no cgroup"])
def cgroup(request: pytest.FixtureRequest) -> bool:
    if request.param and (why := cgroup_is_possible()):
        pytest.skip(f"lack of cgroups ({why})")
    return bool(request.param)


@pytest.fixture(autouse=True)
async def _nothing_left(mark: Mark, tmp_path: Path) -> AsyncIterator[None]:
    """See that a test leaves no process, no zombie, no socket and no cgroup behind."""
    before = zombies()  # another test's
    yield
    await until(lambda: not mark.alive(), "everything of the application has ended")
    await until(lambda: not zombies() - before, "no child of ours is a zombie")
    services = tmp_path / "run" / "services"
    assert cgroups_of(tmp_path) == []
    assert not services.exists() or [path.name for path in services.iterdir()] == []


def service(directory: Path, script: str, **options: object) -> CommandService:
    return CommandService(context(directory), command=["sh", "-c", script], **options)  # type: ignore[arg-type]


async def test_what_it_is_told(tmp_path: Path, mark: Mark) -> None:
    app = CommandService(
        context(tmp_path), command=["sh", "-c", "env; pwd"], environment={"ACME": "x y"}, directory=tmp_path
    )
    await app.start("the node starts\nnow")
    assert "has ended: exit code 0" in await app.ended()
    await app.stop("it has ended")
    said = log_of(tmp_path).read_text()
    for line in (
        f"NLBFARM_FARM={farm_of(tmp_path)}",
        "NLBFARM_NODE=web1",
        "NLBFARM_SERVICE=app",
        "NLBFARM_VIPS=192.0.2.100 192.0.2.101",
        "NLBFARM_REASON=the node starts",
        "ACME=x y",
        str(tmp_path),
    ):
        assert f"\n{line}\n" in said


@as_root
async def test_it_has_nothing_of_the_nodes_own(tmp_path: Path, mark: Mark) -> None:
    look = "ls -l /proc/self/fd; cat /proc/self/status; nice; echo notify=$NOTIFY_SOCKET"
    node = Supervisor(tmp_path, ["sh", "-c", look])
    try:
        node.ask("rights")
        node.ask("start")
        await until(lambda: "all of it has ended" in log_of(tmp_path).read_text(), "it has looked")
    finally:
        node.end()
    said = log_of(tmp_path).read_text()
    assert re.search(r"^CapAmb:\s0+$", said, re.MULTILINE)
    for word in ("SigIgn", "SigBlk"):
        (bits,) = re.findall(rf"^{word}:\s(\w+)$", said, re.MULTILINE)
        # glibc's posix_spawn ignores two signals of its own, 32 and 33 (sysdeps/unix/sysv/linux/spawni.c).
        assert int(bits, 16) & ~(0b11 << 31) == 0
    assert "\n0\nnotify=\n" in said
    # ls has its own directory open beside 0, 1 and 2.
    assert re.findall(r" (\d+) -> ", said) == ["0", "1", "2", "3"]


@as_root
async def test_as_another_user(tmp_path: Path, mark: Mark) -> None:
    app = service(tmp_path, "id -un; id -G; echo $HOME $USER", user="nobody")
    await app.start("x")
    await app.ended()
    await app.stop("x")
    assert re.search(r"nobody\n65534\n\S+ nobody\n", log_of(tmp_path).read_text())


@pytest.mark.parametrize(
    ("command", "options", "why"),
    [
        (["/nonexistent/acme"], {}, "/nonexistent/acme: No such file or directory"),
        (["acme-is-not-here"], {}, "acme-is-not-here: No such file or directory"),
        (["true"], {"directory": "/nonexistent"}, "/nonexistent: No such file or directory"),
        (["true"], {"user": "acme-nobody"}, 'user "acme-nobody": this host has no such user'),
        (["x" * 300_000], {}, "its keeper cannot be told what to start: Message too long"),
    ],
)
async def test_what_cannot_be_started(
    tmp_path: Path, mark: Mark, command: list[str], options: dict[str, str], why: str
) -> None:
    app = CommandService(context(tmp_path), command=command, **options)  # type: ignore[arg-type]
    with pytest.raises(HostError, match=f'service "app" cannot be started: {re.escape(why)}'):
        await app.start("x")
    assert not (await app.running()).ok
    await app.stop("x")
    await app.close()


async def test_a_directory_that_cannot_be_made(tmp_path: Path, mark: Mark) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(HostError, match=r"run/services/app\.sock: Not a directory$"):
        await service(tmp_path, "true").start("x")
    (tmp_path / "run").unlink()


async def test_wrong_arguments(tmp_path: Path, mark: Mark) -> None:
    with pytest.raises(UsageError, match="is no command"):
        CommandService(context(tmp_path), command="acme --now")
    with pytest.raises(UsageError, match='"SIGTREM" is no signal'):
        CommandService(context(tmp_path), command=["true"], stop_signal="SIGTREM")


async def test_its_end_is_told_with_its_last_words(tmp_path: Path, mark: Mark) -> None:
    app = service(tmp_path, "echo first; printf '\\033[31mno \\rlicence\\033[0m\\n' >&2; exit 3")
    await app.start("x")
    why = await app.ended()
    assert re.fullmatch(r"its process \(\d+\) has ended: exit code 3; it said: first \| no \| licence", why)
    result = await app.running()
    assert (result.ok, result.detail) == (False, why)
    assert app.output_tail() == "first | no | licence"
    await app.stop("x")


async def test_a_signal_is_told_by_its_name(tmp_path: Path, mark: Mark) -> None:
    app = service(tmp_path, "kill -SEGV $$")
    await app.start("x")
    assert "has ended: killed by SIGSEGV" in await app.ended()
    await app.close()


async def test_what_its_main_process_leaves_is_ended(tmp_path: Path, mark: Mark, cgroup: bool) -> None:
    app = service(tmp_path, f"{mark.sleep} & (setsid {mark.sleep} &) ; sleep 0.1; exit 0", cgroup=cgroup)
    await app.start("x")
    assert "and left 2 in the background, which were ended, too: a command has to stay" in await app.ended()
    await app.start("again")  # waits for the end of what is being ended
    assert len(mark.pids()) <= 2
    await app.stop("x")


async def test_a_stop_ends_children_and_daemons(tmp_path: Path, mark: Mark, cgroup: bool) -> None:
    hidden = f"(setsid sh -c '({mark.sleep} &) ; {mark.sleep}' &)"
    app = service(tmp_path, f"{mark.sleep} & {hidden}; {hidden}; {mark.sleep}", cgroup=cgroup)
    await app.start("x")
    await until(lambda: len(mark.pids()) == 6, "all are there")
    assert set(mark.pids()) < set(await app.pids())
    await app.stop("enough")
    assert not mark.alive()
    assert "all of it has ended" in log_of(tmp_path).read_text()
    assert "killed" not in log_of(tmp_path).read_text().replace("killed by SIGTERM", "")


async def test_what_does_not_listen_is_killed(tmp_path: Path, mark: Mark, cgroup: bool) -> None:
    script = f"trap '' TERM; {mark.sleep} & (setsid {mark.sleep} &) ; while :; do {mark.sleep}; done"
    app = service(tmp_path, script, stop_timeout=0.3, cgroup=cgroup)
    await app.start("x")
    await until(lambda: len(mark.pids()) == 3, "all are there")
    await app.stop("enough")
    assert not mark.alive()
    assert "it did not end in time and is killed" in log_of(tmp_path).read_text()


async def test_what_stands_still_is_asked_to_go_on(tmp_path: Path, mark: Mark) -> None:
    app = service(tmp_path, f"trap 'echo going; exit 0' TERM; {mark.sleep} & kill -STOP $$; wait")
    await app.start("x")
    await until(mark.alive, "it runs")
    await app.stop("enough")
    assert "\ngoing\n" in log_of(tmp_path).read_text()


async def test_another_signal(tmp_path: Path, mark: Mark) -> None:
    app = service(tmp_path, f"trap 'echo quits; exit 0' QUIT; {mark.sleep} & wait", stop_signal="SIGQUIT")
    await app.start("x")
    await until(mark.alive, "it runs")
    await app.stop("enough")
    assert "\nquits\n" in log_of(tmp_path).read_text()


async def test_output_without_end_is_bounded(tmp_path: Path, mark: Mark) -> None:
    app = service(tmp_path, f"yes nlbfarm | head -c 100000000; echo done; exec {mark.sleep}")
    await app.start("x")
    await until(mark.alive, "it has printed 100 MB")
    await until(lambda: app.output_tail().endswith("| done"), "all of it is read")
    sizes = [path.stat().st_size for path in log_of(tmp_path).parent.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 1 << 20
    await app.stop("enough")


async def test_output_that_cannot_be_kept_is_no_reason_not_to_run(tmp_path: Path, mark: Mark) -> None:
    log_of(tmp_path).mkdir(parents=True)
    app = service(tmp_path, f"echo hello; exec {mark.sleep}")
    await app.start("x")
    await until(mark.alive, "it runs")
    assert any("without its output being kept" in note for note in await app.notes())
    mark.kill()
    assert "it said: hello" in await app.ended()
    await app.stop("x")


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path, mark: Mark) -> None:
    app = service(tmp_path, mark.sleep)
    for turns in (1, 2, 3, 5, 10, 20, 40, 80):
        starting = asyncio.ensure_future(app.start("x"))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await app.stop("it took too long")
        assert not mark.alive()
        assert not (await app.running()).ok


async def test_a_keeper_that_is_killed(tmp_path: Path, mark: Mark, cgroup: bool) -> None:
    app = service(tmp_path, f"{mark.sleep} & (setsid {mark.sleep} &) ; {mark.sleep}", cgroup=cgroup)
    await app.start("x")
    await until(lambda: len(mark.pids()) == 3, "all are there")
    keeper = keeper_of(tmp_path)
    os.kill(keeper, signal.SIGKILL)
    assert await app.ended() == f"the process that kept it ({keeper}) is gone"
    await until(lambda: not mark.alive(), "what it kept has ended")
    await app.start("again")
    await until(lambda: len(mark.pids()) == 3, "all are there again")
    await app.stop("x")


async def test_a_keeper_that_hangs(tmp_path: Path, mark: Mark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlbfarm.services.kept._SLACK_S", 0.2)
    monkeypatch.setattr(link, "_END_S", 0.2)
    app = service(tmp_path, mark.sleep, stop_timeout=0.1)
    await app.start("x")
    await until(mark.alive, "it runs")
    os.kill(keeper_of(tmp_path), signal.SIGSTOP)
    await app.stop("x")
    assert not mark.alive()
    sweep_files(tmp_path)


async def test_a_keeper_that_hangs_is_not_taken_over(
    tmp_path: Path, mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_ANSWER_S", 0.2)
    app = service(tmp_path, mark.sleep)
    await app.start("x")
    await until(mark.alive, "it runs")
    (before,) = mark.pids()
    await app.close()
    os.kill(keeper_of(tmp_path), signal.SIGSTOP)
    app = service(tmp_path, mark.sleep)
    assert "does not answer" in (await app.running()).detail
    assert mark.pids() == [before]  # to ask changes nothing
    await app.start("x")
    await until(lambda: mark.alive() and before not in mark.pids(), "a new one runs")
    await app.stop("x")


async def test_nobody_takes_over(tmp_path: Path, mark: Mark) -> None:
    app = KeptCommand(context(tmp_path), Command(["sh", "-c", mark.sleep]), grace=0.2)
    await app.start("x")
    await until(mark.alive, "it runs")
    keeper = keeper_of(tmp_path)
    await app.close()
    await until(lambda: not mark.alive(), "it is ended when its time is over")
    await until(lambda: not alive(keeper), "the keeper ends, too")
    assert not (await app.running()).ok  # takes note of a keeper that this process itself has started
    said = log_of(tmp_path).read_text()
    assert "no process of the node came within 0.2 s to take over: everything is killed" in said


async def test_one_that_another_process_has_is_left_to_it(
    tmp_path: Path, mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_BUSY_S", 0.1)
    app, other = service(tmp_path, mark.sleep), service(tmp_path, mark.sleep)
    await app.start("x")
    assert (await other.running()).ok
    with pytest.raises(HostError, match=f"process {os.getpid()} of another node has it under its care"):
        await other.start("x")
    assert (await app.running()).ok
    await other.close()
    await app.stop("x")


async def test_a_changed_command_is_told_of(tmp_path: Path, mark: Mark) -> None:
    app = service(tmp_path, mark.sleep)
    await app.start("x")
    await app.close()
    app = service(tmp_path, f"exec {mark.sleep}")
    await app.start("x")
    assert any("the command of before" in note for note in await app.notes())
    await app.stop("x")


async def test_notes_before_a_start(tmp_path: Path, mark: Mark) -> None:
    app = CommandService(
        context(tmp_path), command=["acme-not-here"], directory="/nonexistent", user="acme-nobody"
    )
    notes = "\n".join(await app.notes())
    assert "acme-not-here is not there" in notes
    assert "/nonexistent is no directory" in notes
    assert 'no user "acme-nobody"' in notes


async def test_a_long_path(tmp_path: Path, mark: Mark) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    app = service(deep, mark.sleep)
    await app.start("x")
    await app.close()
    app = service(deep, mark.sleep)
    assert (await app.running()).ok
    await app.start("x")
    await app.stop("x")
    assert not mark.alive()


def keeper_of(directory: Path) -> int:
    return int(json.loads((directory / "run" / "services" / "app.json").read_text())["keeper"])


def sweep_files(directory: Path) -> None:
    """Remove what a killed keeper left for the next start to clear away."""
    for path in (directory / "run" / "services").iterdir():
        path.unlink()
