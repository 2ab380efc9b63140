"""Parts of the keeper by themselves: what the whole does not easily come to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.services.support import Mark, cgroup_is_possible, until

from nlbfarm.services.keeper import cgroup as cgroups
from nlbfarm.services.keeper import talk
from nlbfarm.services.keeper.family import TOKEN, alive, marked, processes, sweep
from nlbfarm.services.keeper.link import sweep_record
from nlbfarm.services.keeper.output import Output, lines_of, tail_of

pytestmark = pytest.mark.posix("the keeper, a Linux process")


@pytest.fixture
def cgroup() -> Path:
    path, why = cgroups.make("nlbfarm-test-" + Mark().number)
    if path is None:
        pytest.skip(f"lack of cgroups ({why})")
    return path


def put(argv: list[str], cgroup: Path) -> subprocess.Popen[bytes]:
    """Start a program in a cgroup."""
    script = f"echo 0 >{cgroup}/cgroup.procs; exec {' '.join(argv)}"
    return subprocess.Popen(["sh", "-c", script])


async def test_a_cgroup_is_ended_and_removed_with_those_below(cgroup: Path) -> None:
    mark, below = Mark(), cgroup / "a" / "b"
    below.mkdir(parents=True)
    children = [put(mark.sleep.split(), place) for place in (cgroup, below)]
    await until(lambda: cgroups.members(cgroup) == {child.pid for child in children}, "both are in there")
    assert not cgroups.remove(cgroup)
    assert cgroups.kill(cgroup)
    for child in children:
        assert child.wait() == -signal.SIGKILL
    await until(lambda: cgroups.remove(cgroup), "it can be removed")
    assert cgroups.members(cgroup) == set()
    assert not cgroups.kill(cgroup)
    assert cgroups.remove(cgroup)


async def test_a_kernel_that_cannot_end_a_cgroup_at_once(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 5.14: every process is killed by itself."""
    monkeypatch.setattr(cgroups, "kill", lambda path: False)
    child = put(Mark().sleep.split(), cgroup)
    await until(lambda: cgroups.members(cgroup) == {child.pid}, "it is in there")
    assert sweep(cgroup, "no such token") == set()
    assert child.wait() == -signal.SIGKILL
    assert not cgroup.exists()


def test_without_cgroups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroups, "places", list)
    assert cgroups.make("x") == (None, "this host has no cgroups of version 2")
    monkeypatch.setattr(cgroups, "places", lambda: [tmp_path / "nothing"])
    assert cgroups.make("x") == (None, f"{tmp_path}/nothing: No such file or directory")


def test_the_process_table() -> None:
    table = processes()
    ours = table[os.getpid()]
    assert (ours.parent, ours.session, ours.alive) == (os.getppid(), os.getsid(0), True)
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not processes()[child.pid].alive  # a zombie
    assert not alive(child.pid)
    child.wait()
    assert not alive(child.pid)


async def test_what_a_killed_keeper_has_written_down_is_swept(tmp_path: Path) -> None:
    mark, record = Mark(), tmp_path / "app.json"
    assert sweep_record(record) == frozenset()
    record.write_text("{")
    assert sweep_record(record) == frozenset()
    assert not record.exists()
    child = subprocess.Popen(
        mark.sleep.split(), env={**os.environ, TOKEN: mark.number}, start_new_session=True
    )
    await until(lambda: marked(mark.number) == {child.pid}, "it has its token")
    record.write_text(json.dumps({"cgroup": "", "token": mark.number, "pid": 1, "keeper": 1}))
    assert sweep_record(record) == frozenset()
    assert child.wait() == -signal.SIGKILL
    assert not record.exists()


def test_output_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    output = Output(path, limit=100)
    for number in range(10):
        output.write(b"%09d\n" % number * 3)
    output.note("two\nlines")
    assert path.stat().st_size <= 100
    assert path.with_name("app.log.1").stat().st_size <= 100
    assert output.tail() == " | ".join(["000000008"] * 2 + ["000000009"] * 3)
    assert path.read_text().endswith(" nlbfarm] two lines\n")
    assert tail_of(path).startswith("00000000")
    assert tail_of(tmp_path / "nothing") == ""


def test_lines_are_fit_for_a_terminal() -> None:
    assert lines_of(b"\x1b[31mred\x1b[0m\x07\r\n\n  \nbad \xff\x00 byte\nlast") == "red | bad � byte | last"
    assert lines_of(b"x" * 400) == "x" * 299 + "…"
    assert lines_of(b"[2026-11-30T07:48:43+0000 nlbfarm] started\n[other] x") == "[other] x"


def test_a_full_disk_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.symlink_to("/dev/full")
    assert Output(path).trouble.endswith("Too many levels of symbolic links")  # a file of somebody else's
    path.unlink()
    output = Output(path)
    os.dup2(os.open("/dev/full", os.O_WRONLY), output._descriptor)
    output.write(b"x")
    assert output.trouble == f"{path}: No space left on device"
    assert output.tail() == "x"


def test_messages() -> None:
    assert talk.unpack(talk.pack("stop", signal=15)) == {"kind": "stop", "signal": 15}
    for wrong in (b"", b"{", b"[]", b'{"kind": 1}', b"\xff"):
        with pytest.raises(ValueError):  # noqa: PT011 - of json or ours
            talk.unpack(wrong)


def test_a_keeper_that_is_told_nothing_ends_and_has_imported_little() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    boot = Path(talk.__file__).with_name("boot.py")
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-X", "importtime", str(boot), "farm/service"],
        stdin=theirs.fileno(),
        stderr=subprocess.PIPE,
        text=True,
    )
    theirs.close()
    ours.close()
    said = child.communicate(timeout=20)[1]
    assert child.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in said.splitlines()}
    assert "nlbfarm.services.keeper.process" in loaded
    ours_too = {name for name in loaded if name.startswith("nlbfarm")}
    assert not {name for name in ours_too if not name.startswith("nlbfarm.services.keeper")}
    assert not loaded & {"asyncio", "dataclasses", "psutil", "nlbfarm.services.keeper.link"}


def test_this_host() -> None:
    """Says in the report whether cgroups were tested."""
    if why := cgroup_is_possible():
        pytest.skip(f"lack of cgroups ({why})")
