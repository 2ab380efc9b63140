"""A command on Windows, in a job object, and the service control manager of a real system (or Wine's)."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.services.support import context, log_of, until

from nlbfarm.errors import HostError
from nlbfarm.services import CommandService, WindowsService
from nlbfarm.services.scm import ScmError, State, windows_scm
from nlbfarm.testing.service import check_service

pytestmark = pytest.mark.windows
if sys.platform == "win32":
    pytest.importorskip("win32job", reason="lack of pywin32 (the extra windows)")

SLEEPS = "import time; time.sleep(1000)"
HAS_CHILDREN = (
    "import subprocess, sys, time; "
    f"child = [sys.executable, '-c', '{SLEEPS}', *sys.argv[1:]]; "
    "subprocess.Popen(child); subprocess.Popen(child, creationflags=subprocess.DETACHED_PROCESS); "
)


class Mark:
    """A word in the command line of every process of one application."""

    def __init__(self) -> None:
        self.word = f"mark{secrets.token_hex(8)}"

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if self.word in process.cmdline():
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def pids(self) -> list[int]:
        return sorted(process.pid for process in self.processes())

    def alive(self) -> bool:
        return bool(self.processes())

    def kill(self) -> None:
        for process in self.processes():
            process.kill()


@pytest.fixture
def mark() -> Mark:
    return Mark()


def service(directory: Path, script: str, mark: Mark, **options: object) -> CommandService:
    command = [sys.executable, "-u", "-c", script, mark.word]
    return CommandService(context(directory), command=command, directory=directory, **options)  # type: ignore[arg-type]


async def test_conformance(tmp_path: Path, mark: Mark) -> None:
    async def kill() -> None:
        mark.kill()

    await check_service(
        lambda: service(tmp_path, SLEEPS, mark, stop_timeout=1.0),
        alive=mark.alive,
        which=mark.pids,
        kill=kill,
        broken=lambda: CommandService(
            context(tmp_path), command=["acme-is-not-here.exe"], directory=tmp_path
        ),
    )


async def test_a_stop_ends_children(tmp_path: Path, mark: Mark) -> None:
    app = service(tmp_path, HAS_CHILDREN + "time.sleep(1000)", mark, stop_timeout=0.5)
    await app.start("x")
    await until(lambda: len(mark.pids()) == 3, "all are there")
    assert set(mark.pids()) <= set(await app.pids())
    await app.stop("x")
    assert not mark.alive()


async def test_what_its_main_process_leaves_is_ended(tmp_path: Path, mark: Mark) -> None:
    app = service(tmp_path, HAS_CHILDREN + "print('no licence'); sys.exit(3)", mark)
    await app.start("x")
    why = await app.ended()
    assert "has ended: exit code 3; it said: no licence" in why
    await until(lambda: not mark.alive(), "what it left has ended")
    assert not (await app.running()).ok
    await app.close()


async def test_a_killed_node_takes_everything_along(tmp_path: Path, mark: Mark) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from nlbfarm.interfaces import ServiceContext\n"
        "from nlbfarm.services import CommandService\n"
        "async def main():\n"
        "    place = Path(sys.argv[1])\n"
        "    context = ServiceContext('shop', 'web1', (), 'app', place, place)\n"
        "    await CommandService(context, command=sys.argv[2:], directory=place).start('x')\n"
        "    print('started', flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", HAS_CHILDREN + "time.sleep(1000)", mark.word]
    node = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), *command], stdout=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    assert node.stdout.readline().strip() == "started"
    # The node has the mark in its own command line.
    await until(lambda: len(mark.pids()) == 4, "all are there")
    node.kill()
    node.communicate()
    await until(lambda: not mark.alive(), "everything has ended with the node")


async def test_what_it_is_told_and_prints(tmp_path: Path, mark: Mark) -> None:
    script = "import os; print(os.environ['NLBFARM_VIPS'], os.environ['ACME'], os.getcwd())"
    app = service(tmp_path, script, mark, environment={"ACME": "x y"})
    await app.start("x")
    await app.ended()
    assert f"192.0.2.100 192.0.2.101 x y {tmp_path}" in log_of(tmp_path).read_text()
    await app.stop("x")


async def test_output_without_end_is_bounded(
    tmp_path: Path, mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlbfarm.services.job.LIMIT", 10_000)
    app = service(tmp_path, "while True: print('nlbfarm' * 100)", mark, stop_timeout=0.1)
    await app.start("x")
    before = log_of(tmp_path).with_name("app.log.1")
    await until(before.exists, "the file was full")
    await app.stop("x")


async def test_another_user_is_refused(tmp_path: Path, mark: Mark) -> None:
    app = service(tmp_path, SLEEPS, mark, user="acme")
    with pytest.raises(HostError, match="user is not supported on Windows"):
        await app.start("x")
    assert "it cannot be run as another user on Windows" in await app.notes()


async def test_the_service_control_manager(tmp_path: Path) -> None:
    scm = windows_scm()
    with pytest.raises(ScmError) as raised:
        scm.status("AcmeIsNotHere")
    assert raised.value.code == 1060
    with pytest.raises(HostError, match="this host has no such service"):
        await WindowsService(context(tmp_path), name="AcmeIsNotHere").start("x")
    assert scm.status("RpcSs").state in State
    assert isinstance(scm.own_ways("RpcSs"), list)


async def test_a_real_service_is_started_and_stopped(tmp_path: Path) -> None:
    """The print spooler: on Windows and in Wine, and nobody prints on a build host."""
    spooler = WindowsService(context(tmp_path), name="Spooler", stop_timeout=5.0)
    before = (await spooler.running()).ok
    await spooler.start("x")
    assert (await spooler.running()).detail == "Spooler is running"
    ended = asyncio.ensure_future(spooler.ended())
    await asyncio.sleep(0.1)
    assert not ended.done()
    await spooler.stop("x")
    assert "Spooler is stopped" in await ended
    if before:
        await spooler.start("as it was")
