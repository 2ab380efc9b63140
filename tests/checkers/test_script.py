"""The checker ``script`` with real programs: what they say, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.checkers.support import LONG, SHORT, look

from nlbfarm.checkers import HostView, ScriptChecker, build
from nlbfarm.config.checkers import ScriptChecker as Entry
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import CheckResult

pytestmark = pytest.mark.posix("programs with a shebang")


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Return what writes a shell script and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "check"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return write


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("text", "ok", "detail"),
    [
        ("exit 0", True, "ended with exit code 0"),
        ("echo all is well", True, "ended with exit code 0: all is well"),
        ("echo no database >&2; exit 3", False, "ended with exit code 3: no database"),
        ("seq 1 9; echo; exit 1", False, "ended with exit code 1: 7 / 8 / 9"),
        ("kill -SEGV $$", False, "was killed by SIGSEGV"),
        (r"printf 'a\033[31m\000\377b\n'; exit 1", False, "ended with exit code 1: a?[31m??b"),
        ("cat; exit $?", True, "ended with exit code 0"),
    ],
)
async def test_what_a_script_says(script: Callable[[str], str], text: str, ok: bool, detail: str) -> None:
    path = script(text)
    result = await look(ScriptChecker([path], timeout=LONG))
    detail = detail.replace("??b", "?\ufffdb")
    assert result == CheckResult(ok, f"{path} {detail}")


async def test_its_arguments_and_environment(
    script: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody")
    path = script('echo "$1|$NLBFARM_FARM|$NLBFARM_NODE|$NLBFARM_CHECKER|$NLBFARM_VIPS|$NOTIFY_SOCKET|$HOME"')
    entry = Entry.model_validate({"name": "shop", "type": "script", "command": [path, "a b; exit 1"]})
    result = await look(build(entry, HostView(farm="farm", node="web1")))
    assert result.detail.endswith(f": a b; exit 1|farm|web1|shop|||{os.environ['HOME']}")


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("/nowhere/check", "there is no such file"),
        ("no-such-program", "it is not on the PATH"),
    ],
)
async def test_what_cannot_be_started(command: str, why: str) -> None:
    assert await look(ScriptChecker([command])) == CheckResult(False, f"{command} cannot be started: {why}")


async def test_what_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\x00\x01")
    path.chmod(0o755)
    result = await look(ScriptChecker([str(path)]))
    assert result == CheckResult(False, f"{path} cannot be started: Exec format error")
    path.chmod(0o644)
    result = await look(ScriptChecker([str(path)]))
    assert result == CheckResult(False, f"{path} cannot be started: it may not be executed")
    with pytest.raises(UsageError, match="names no program"):
        ScriptChecker([])


async def test_one_that_hangs_is_killed_with_all_that_it_started(
    script: Callable[[str], str], tmp_path: Path
) -> None:
    word = f"1000.{os.getpid()}"  # an argument of sleep's that no other process has
    path = script(f"echo waiting; (sleep {word}; exit) & (trap '' TERM; sleep {word}; exit) & wait")
    result = await look(ScriptChecker([path], timeout=5 * SHORT))
    assert result == CheckResult(False, f"{path} has not ended within 1 s and was killed: waiting")
    await until(
        lambda: not [one for one in psutil.process_iter() if word in command(one) or path in command(one)]
    )


async def test_what_it_leaves_in_the_background_is_killed_too(
    script: Callable[[str], str], tmp_path: Path
) -> None:
    """Its output stays open, which must not make the look last."""
    path = script(f"sleep 1000 & echo $! >{tmp_path / 'pid'}; echo done")
    result = await look(ScriptChecker([path], timeout=LONG))
    assert result == CheckResult(True, f"{path} ended with exit code 0: done")
    pid = int((tmp_path / "pid").read_text())
    await until(lambda: not alive(pid))


async def test_a_daemon_that_it_starts_goes_on(script: Callable[[str], str], tmp_path: Path) -> None:
    """One that has left the group is on its own; it may even hold the output open."""
    path = script(
        f"setsid sh -c 'echo $$ >{tmp_path / 'pid'}; exec sleep 1000' & \n"
        f"while ! [ -s {tmp_path / 'pid'} ]; do sleep 0.01; done; echo started"
    )
    result = await look(ScriptChecker([path], timeout=LONG))
    pid = int((tmp_path / "pid").read_text())
    try:
        assert result == CheckResult(True, f"{path} ended with exit code 0: started")
        assert alive(pid)
    finally:
        psutil.Process(pid).kill()


async def test_a_look_that_is_cancelled_kills_it(script: Callable[[str], str], tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    checker = ScriptChecker([script(f"echo $$ >{pid_file}; exec sleep 1000")], timeout=LONG)
    looking = asyncio.create_task(checker.check())
    await until(lambda: pid_file.exists() and bool(pid_file.read_text().strip()))
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    await until(lambda: not alive(int(pid_file.read_text())))
    await checker.close()
    await until(lambda: not [one for one in threading.enumerate() if one.name.startswith("nlbfarm-script")])
    assert psutil.Process().children() == []


async def test_a_little_more_output_than_is_kept(script: Callable[[str], str]) -> None:
    path = script("seq 1 200000; echo last; exit 1")
    result = await look(ScriptChecker([path], timeout=LONG))
    assert result == CheckResult(False, f"{path} ended with exit code 1: 199999 / 200000 / last")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="lack of root")
async def test_another_user() -> None:
    import pwd

    user = pwd.getpwnam("nobody")
    command = ["/bin/sh", "-c", 'echo "$(id -u) $(id -g) $(id -G) $USER $LOGNAME $HOME"']
    result = await look(ScriptChecker(command, user="nobody", timeout=LONG))
    told = f"{user.pw_uid} {user.pw_gid} {user.pw_gid} nobody nobody {user.pw_dir}"
    assert result == CheckResult(True, f"/bin/sh ended with exit code 0: {told}")
    result = await look(ScriptChecker(command, user="no-such-user"))
    assert result == CheckResult(False, 'script: this host has no user "no-such-user"')


async def test_a_disk_that_is_dead_holds_up_only_its_checker(
    script: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr("shutil.which", lambda name: go.wait(LONG) and name)
    checker = ScriptChecker([script("exit 0")], timeout=SHORT)
    first, second = await checker.check(), await checker.check()
    assert first.detail.endswith("check: no answer within 0.2 s")
    assert "check: the look before has not come back for " in second.detail
    go.set()
    await checker.close()
