"""The control socket: a real socket, a real client in a thread, real peers of other users."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nlbfarm.api import control
from nlbfarm.api.control import ControlServer, NodeNotRunningError, call
from nlbfarm.errors import HostError, NlbfarmError, UsageError


async def echo(args: Mapping[str, Any]) -> Any:
    return dict(args)


async def wrong(args: Mapping[str, Any]) -> Any:
    raise UsageError("this cannot be meant")


async def host(args: Mapping[str, Any]) -> Any:
    raise HostError("no such thing here")


async def fault(args: Mapping[str, Any]) -> Any:
    return 1 // 0


async def hang(args: Mapping[str, Any]) -> Any:
    await asyncio.Event().wait()


VERBS = {"echo": echo, "wrong": wrong, "host": host, "fault": fault, "hang": hang}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "shop" / "control.sock"


@pytest.fixture
async def server(path: Path) -> AsyncIterator[ControlServer]:
    found = ControlServer(path, VERBS)
    await found.open()
    yield found
    await found.close()


async def ask(path: Path, verb: str, args: Mapping[str, Any] | None = None, timeout: float = 5.0) -> Any:
    return await asyncio.to_thread(call, path, verb, args, timeout=timeout)


async def raw(path: Path, data: bytes) -> list[dict[str, Any]]:
    """Send bytes, close that direction, and return every answer."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    return [json.loads(line) for line in answer.splitlines()]


async def test_ask_and_answer(server: ControlServer, path: Path) -> None:
    assert await ask(path, "echo", {"a": [1, "ü"]}) == {"a": [1, "ü"]}
    assert await ask(path, "echo") == {}


async def test_many_at_once_and_several_on_one_connection(server: ControlServer, path: Path) -> None:
    assert await asyncio.gather(*(ask(path, "echo", {"n": n}) for n in range(10))) == [
        {"n": n} for n in range(10)
    ]
    lines = b"".join(json.dumps({"verb": "echo", "args": {"n": n}}).encode() + b"\n" for n in range(3))
    assert [answer["result"] for answer in await raw(path, lines)] == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_errors_arrive_as_what_they_are(server: ControlServer, path: Path) -> None:
    with pytest.raises(UsageError, match="this cannot be meant"):
        await ask(path, "wrong")
    with pytest.raises(UsageError, match='this node does not know the verb "nonsense"'):
        await ask(path, "nonsense")
    with pytest.raises(NlbfarmError, match="no such thing here"):
        await ask(path, "host")
    with pytest.raises(NlbfarmError, match="fault failed inside the node: ZeroDivisionError"):
        await ask(path, "fault")
    assert await ask(path, "echo") == {}


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"nonsense\n",
        b'{"verb": 1}\n',
        b'{"verb": "echo", "args": []}\n',
        b"\xff\n",
        b"[" * 5000 + b"\n",
    ],
)
async def test_bytes_that_are_no_request(server: ControlServer, path: Path, data: bytes) -> None:
    (answer,) = await raw(path, data)
    assert (answer["ok"], answer["kind"]) == (False, "usage")
    assert await ask(path, "echo") == {}


async def test_a_request_that_is_too_long(server: ControlServer, path: Path) -> None:
    (answer,) = await raw(path, b'{"verb": "' + b"x" * control.MAX_REQUEST + b'"}\n')
    assert answer["error"] == "a request has at most 65536 bytes"


async def test_a_request_without_an_end(server: ControlServer, path: Path) -> None:
    assert await raw(path, b'{"verb": "echo"}') == []


async def test_limits_on_time(server: ControlServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(control, "HANDLER_SECONDS", 0.05)
    with pytest.raises(NlbfarmError, match=r"hang took longer than 0.05 s"):
        await ask(path, "hang")
    reader, writer = await asyncio.open_unix_connection(path)
    assert await asyncio.wait_for(reader.read(), 10) == b""  # who says nothing is shown out
    writer.close()
    await writer.wait_closed()


async def test_limit_on_connections(server: ControlServer, path: Path) -> None:
    idle = [await asyncio.open_unix_connection(path) for _ in range(control.MAX_CONNECTIONS)]
    with pytest.raises(NlbfarmError, match="more than 16 clients at once"):
        await ask(path, "echo")
    for _, writer in idle:
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_waits_in_vain(server: ControlServer, path: Path) -> None:
    with pytest.raises(NlbfarmError, match=r"did not answer within 0.1 s; it hangs"):
        await ask(path, "hang", timeout=0.1)


async def test_mode(server: ControlServer, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["control.sock"]


async def test_group(path: Path) -> None:
    import grp

    name = grp.getgrgid(os.getegid()).gr_name
    server = ControlServer(path, VERBS, group=name)
    await server.open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert path.stat().st_gid == os.getegid()
    await server.close()
    with pytest.raises(HostError, match=r'control\.group: this host has no group "no such group"'):
        await ControlServer(path, VERBS, group="no such group").open()


_AS_USER = """
import os, socket, sys
os.setgroups([int(group) for group in sys.argv[3].split(",") if group]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'{"verb": "echo"}\\n')
print(s.makefile().readline(), end="")
"""


async def as_nobody(path: Path, groups: str) -> str:
    """Ask as another user; the socket file's own mode is opened first, so that the credentials decide."""
    path.chmod(0o666)
    for directory in path.parents:
        if directory.owner() == "root" and not directory.stat().st_mode & 0o001:
            directory.chmod(0o711)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", _AS_USER, str(path), "", groups, stdout=subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    return output.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="lack of root (another user has to be played)")
async def test_other_users_are_refused_whatever_the_file_mode(path: Path, tmp_path: Path) -> None:
    server = ControlServer(path, VERBS, group="")
    await server.open()
    answer = json.loads(await as_nobody(path, ""))
    assert (answer["kind"], answer["error"]) == (
        "denied",
        "user 65534 may not control this node; be root, or join control.group",
    )
    await server.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="lack of root (another user has to be played)")
async def test_members_of_the_group_may_ask_also_by_a_supplementary_group(path: Path) -> None:
    import grp

    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, 65534))
    server = ControlServer(path, VERBS, group=group.gr_name)
    await server.open()
    assert json.loads(await as_nobody(path, f"{group.gr_gid}")) == {"ok": True, "result": {}}
    assert json.loads(await as_nobody(path, ""))["kind"] == "denied"
    await server.close()


async def test_the_file_of_a_killed_process_is_replaced(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(NodeNotRunningError, match=r"nobody answers on .*which a killed process left behind"):
        await ask(path, "echo")
    server = ControlServer(path, VERBS)
    await server.open()
    assert await ask(path, "echo") == {}
    await server.close()
    assert not path.exists()


async def test_a_living_server_is_not_replaced(server: ControlServer, path: Path) -> None:
    with pytest.raises(HostError, match="another process answers on"):
        await ControlServer(path, VERBS).open()
    assert await ask(path, "echo") == {}


async def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(HostError, match="is there and is not a socket"):
        await ControlServer(path, VERBS).open()
    assert path.read_text() == "precious"


async def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="too long a name for a socket; choose a shorter --runtime-dir"):
        await ControlServer(tmp_path / ("x" * 120), VERBS).open()


async def test_close_leaves_the_file_of_a_successor(server: ControlServer, path: Path) -> None:
    path.unlink()
    path.write_text("a successor's")
    await server.close()
    await server.close()
    assert path.exists()


async def test_close_ends_what_is_under_way(path: Path) -> None:
    server = ControlServer(path, VERBS)
    await server.open()
    waiting = asyncio.create_task(ask(path, "hang"))
    while not server._tasks:
        await asyncio.sleep(0)
    await server.close()
    with pytest.raises(NodeNotRunningError, match="ended before it answered"):
        await waiting


def test_no_socket(path: Path) -> None:
    with pytest.raises(NodeNotRunningError, match="no node is running here: there is no"):
        call(path, "status")
