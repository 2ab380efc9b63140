"""The checker ``process`` with real processes: counted, zombies told, and the port that they listen on."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.checkers.support import LONG, SHORT, look

from nlbfarm.checkers import HostView, ProcessChecker, Selection, build
from nlbfarm.config.checkers import ProcessChecker as Entry
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import CheckResult

LISTEN = """
import socket, sys
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
sock = socket.socket(socket.AF_INET, kind)
sock.bind(("127.0.0.1", 0))
if sys.argv[1] == "tcp":
    sock.listen()
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


class Started:
    """Processes that wait for the end of their input."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[str]] = []

    def __call__(self, *words: str, program: str = "", **options: Any) -> subprocess.Popen[str]:
        """Start a Python that waits, with these words in its command line."""
        command = [
            program or sys.executable,
            "-I",
            "-S",
            "-c",
            "import sys; print(flush=True); sys.stdin.read()",
        ]
        return self.run([*command, *words], **options)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )
        self.all.append(process)
        return process

    def port(self, protocol: str, *words: str) -> int:
        """Start a process that listens; return its port."""
        process = self.run([sys.executable, "-I", "-S", "-c", LISTEN, protocol, *words])
        assert process.stdout is not None
        return int(process.stdout.readline())


@pytest.fixture
def start() -> Iterator[Started]:
    started = Started()
    yield started
    for process in started.all:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def waited(process: subprocess.Popen[str]) -> int:
    """Return the number of a process that runs its own program by now."""
    assert process.stdout is not None
    process.stdout.readline()
    return process.pid


@pytest.fixture
def word(tmp_path: Path) -> str:
    """Return a word that no other process has in its command line."""
    return f"word-{os.getpid()}-{tmp_path.name}"


def checker(selection: Selection, **options: Any) -> ProcessChecker:
    return ProcessChecker(selection, **{"timeout": LONG, **options})


async def test_by_arguments(start: Started, word: str) -> None:
    selection = Selection(arguments=word)
    told = f'process{{}} with "{word}" in the command line'
    none = await look(checker(selection))
    assert none == CheckResult(False, f"0 {told.format('es')}, at least 1 wanted")
    for _ in range(2):
        waited(start(word))
    assert await look(checker(selection)) == CheckResult(True, f"2 {told.format('es')}")
    few = await look(checker(selection, at_least=3))
    assert few == CheckResult(False, f"2 {told.format('es')}, at least 3 wanted")
    many = await look(checker(selection, at_most=1))
    assert many == CheckResult(False, f"2 {told.format('es')}, at most 1 wanted")
    assert (await look(checker(Selection(arguments=rf"-c .* {word}$"), at_least=2))).ok


@pytest.mark.posix("a Python whose file can be copied")
async def test_by_name_and_executable(start: Started, tmp_path: Path, word: str) -> None:
    name = "shopd-long-name-of-a-program"  # the kernel keeps 15 bytes of it
    program = tmp_path / name
    shutil.copy("/bin/cat", program)
    start.run([str(program)])
    assert await look(checker(Selection(name=name))) == CheckResult(True, f'1 process "{name}"')
    assert not (await look(checker(Selection(name="shopd")))).ok
    by_file = await look(checker(Selection(executable=str(program))))
    assert by_file == CheckResult(True, f"1 process {program}")
    link = tmp_path / "link"
    link.symlink_to(program)
    assert (await look(checker(Selection(executable=str(link), name=name)))).ok
    assert not (await look(checker(Selection(executable="/bin/sh", name=name)))).ok


async def test_by_pid_file(start: Started, tmp_path: Path, word: str) -> None:
    pid_file = tmp_path / "shop.pid"
    selection = Selection(pid_file=pid_file)
    missing = await look(checker(selection))
    told = f"0 processes of {pid_file}, at least 1 wanted"
    assert missing == CheckResult(
        False, f"{told} (there is no process number in {pid_file}, or no such file)"
    )
    pid_file.write_text("shop\n")
    assert await look(checker(selection)) == missing
    process = start(word)
    pid_file.write_text(f"{waited(process)}\n")
    assert await look(checker(selection)) == CheckResult(True, f"1 process of {pid_file}")
    both = Selection(pid_file=pid_file, arguments="something else")
    assert not (await look(checker(both))).ok
    process.kill()
    process.wait()
    ended = await look(checker(selection))
    gone = f"process {process.pid} is gone, or is another program"
    assert ended == CheckResult(False, f"{told} ({gone})")


async def test_a_pid_file_that_cannot_be_read(tmp_path: Path) -> None:
    result = await look(checker(Selection(pid_file=tmp_path)))
    assert not result.ok
    assert result.detail.startswith(f"pid file {tmp_path} cannot be read: ")


@pytest.mark.posix("zombies")
async def test_zombies_do_not_count(start: Started, tmp_path: Path) -> None:
    program = tmp_path / "zombied"
    shutil.copy("/bin/cat", program)
    process = start.run([str(program)])
    assert (await look(checker(Selection(name="zombied")))).ok
    assert process.stdin is not None
    process.stdin.close()
    end = time.monotonic() + LONG
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
    result = await look(checker(Selection(name="zombied")))
    told = f'0 processes "zombied", at least 1 wanted (1 is a zombie: pid {process.pid})'
    assert result == CheckResult(False, told)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.posix("a look at other processes' sockets that Wine does not have")
async def test_one_of_them_listens(start: Started, word: str, protocol: str, free_port: int) -> None:
    selection = Selection(arguments=word)
    waited(start(word))
    port = start.port(protocol, word)
    told = f'2 processes with "{word}" in the command line'
    good = await look(checker(selection, port=port, protocol=protocol))
    pid = start.all[-1].pid
    assert good == CheckResult(True, f"{told}, {protocol} port {port} open by pid {pid}")
    bad = await look(checker(selection, port=free_port, protocol=protocol))
    assert bad == CheckResult(False, f"{told}, none listens on {protocol} port {free_port}")
    other = "udp" if protocol == "tcp" else "tcp"
    assert not (await look(checker(selection, port=port, protocol=other))).ok


@pytest.mark.posix("a look at other processes' sockets that Wine does not have")
async def test_a_connection_from_a_port_is_no_listener(start: Started, word: str) -> None:
    connect = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); "
    connect += "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = start.run([sys.executable, "-I", "-S", "-c", connect, str(port), word])
        assert process.stdout is not None
        own = int(process.stdout.readline())
        assert not (await look(checker(Selection(arguments=word), port=own))).ok


async def test_the_processes_of_a_service(start: Started, word: str) -> None:
    pids = [waited(start(word)), waited(start(word))]
    asked: list[str] = []

    async def of(service: str) -> Sequence[int]:
        asked.append(service)
        return pids

    entry = Entry.model_validate({"name": "p", "type": "process", "service": "shop", "at_least": 2})
    view = HostView(pids_of_service=of)
    assert await look(build(entry, view)) == CheckResult(True, "2 processes of the service")
    pids.pop()
    told = "1 process of the service, at least 2 wanted"
    assert await look(build(entry, view)) == CheckResult(False, told)
    assert asked == ["shop", "shop"]
    with pytest.raises(UsageError, match='which processes the service "shop" has; name them'):
        build(entry)


async def test_a_service_that_cannot_be_asked() -> None:
    async def refuses() -> Sequence[int]:
        raise HostError("systemd does not answer")

    async def hangs() -> Sequence[int]:
        import asyncio

        await asyncio.Event().wait()
        return ()

    result = await look(checker(Selection(), service=refuses))
    assert result == CheckResult(False, "systemd does not answer")
    result = await look(checker(Selection(), service=hangs, timeout=SHORT))
    assert result == CheckResult(False, "which processes the service has is not known within 0.2 s")
    with pytest.raises(UsageError, match="says not which processes"):
        ProcessChecker(Selection())


async def test_a_user_who_may_not_look(start: Started, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited(start(word))

    def denied(self: psutil.Process) -> Any:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "exe", denied)
    result = await look(checker(Selection(executable=sys.executable)))
    assert not result.ok
    assert "(this user may not look into " in result.detail


async def test_a_list_of_processes_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    go = threading.Event()
    monkeypatch.setattr(psutil, "pids", lambda: go.wait(LONG) and [])
    one = checker(Selection(name="shopd"), timeout=SHORT)
    first, second = await one.check(), await one.check()
    assert first == CheckResult(False, "the list of processes: no answer within 0.2 s")
    assert second.detail.startswith("the list of processes: the look before has not come back for ")
    go.set()
    await one.close()
