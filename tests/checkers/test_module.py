"""The checker ``module``: another farm's control socket, real and false."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.checkers.support import LONG, SHORT, look

from nlbfarm.api.control import ControlServer
from nlbfarm.checkers import HostView, ModuleChecker, build
from nlbfarm.config.checker_types_network import State
from nlbfarm.config.checkers import ModuleChecker as Entry
from nlbfarm.core.messages import NodeState
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import CheckResult

pytestmark = pytest.mark.posix("Unix sockets")


def entry(**keys: Any) -> Entry:
    return Entry.model_validate({"name": "db", "type": "module", "farm": "db", **keys})


def view(directory: Path) -> HostView:
    return HostView(farm="shop", runtime_dir=directory)


@contextlib.asynccontextmanager
async def node(directory: Path, answer: Callable[[Any], Awaitable[Any]]) -> AsyncIterator[None]:
    """Run a control socket of farm db whose ``status`` is answered by ``answer``."""
    server = ControlServer(directory / "db" / "control.sock", {"status": answer})
    await server.open()
    try:
        yield
    finally:
        await server.close()


def in_state(state: str, reason: str = "") -> Callable[[Any], Awaitable[Any]]:
    async def answer(_: Any) -> Any:
        return {"state": state, "reason": reason, "groups": [{"placement": list(range(256))}] * 20}

    return answer


async def test_up(tmp_path: Path) -> None:
    async with node(tmp_path, in_state("UP")):
        result = await look(build(entry(), view(tmp_path)))
    assert result == CheckResult(True, "farm db is UP on this host")


async def test_other_states(tmp_path: Path) -> None:
    reason = "checker page: HTTP 503 from http://127.0.0.1/\n"
    async with node(tmp_path, in_state("WAIT", reason)):
        wait = await look(build(entry(), view(tmp_path)))
        either = await look(build(entry(states=["UP", "WAIT"]), view(tmp_path)))
    told = "farm db is WAIT on this host: checker page: HTTP 503 from http://127.0.0.1/"
    assert wait == CheckResult(False, f"{told}; UP is wanted")
    assert either == CheckResult(True, told)


async def test_no_node(tmp_path: Path) -> None:
    path = tmp_path / "db" / "control.sock"
    checker = build(entry(), view(tmp_path))
    assert await look(checker) == CheckResult(False, f"farm db: not running here: there is no {path}")
    async with node(tmp_path, in_state("UP")):
        assert (await look(checker)).ok
        path.rename(path.with_name("left"))
    path.with_name("left").rename(path)
    assert await look(checker) == CheckResult(False, f"farm db: not running here: nobody answers on {path}")


async def test_a_node_that_refuses(tmp_path: Path) -> None:
    async def answer(_: Any) -> Any:
        raise UsageError("the node is still starting")

    async with node(tmp_path, answer):
        result = await look(build(entry(), view(tmp_path)))
    assert result == CheckResult(False, "farm db: the node is still starting")


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (b"what?\n", "no valid answer on {}: it is no JSON"),
        (b"[]\n", "no valid answer on {}: it is no JSON object"),
        (b'{"ok": true, "result": {}}\n', "no state in what {} answers"),
        (b'{"ok": true}\n', "no state in what {} answers"),
        (b'{"ok": true, "result": {"st', "not running here: nobody answers on {}"),
        (b"", "not running here: nobody answers on {}"),
    ],
)
async def test_answers_that_are_none(tmp_path: Path, answer: bytes, detail: str) -> None:
    path = tmp_path / "control.sock"
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(serve, path):
        result = await look(ModuleChecker("db", path, timeout=LONG))
    assert result == CheckResult(False, f"farm db: {detail.format(path)}")
    assert [json.loads(one) for one in asked] == [{"verb": "status"}]


async def test_a_node_that_hangs(tmp_path: Path) -> None:
    async def hang(_: Any) -> Any:
        await asyncio.Event().wait()

    async with node(tmp_path, hang):
        result = await look(ModuleChecker("db", tmp_path / "db" / "control.sock", timeout=SHORT))
    path = tmp_path / "db" / "control.sock"
    assert result == CheckResult(False, f"farm db: no answer on {path} within 0.2 s")


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='"shop" is this farm itself'):
        build(entry(farm="shop"), view(tmp_path))
    with pytest.raises(UsageError, match="names no state"):
        ModuleChecker("db", tmp_path, states=())


def test_the_states_are_those_of_a_node() -> None:
    assert [state.value for state in State] == [state.name for state in NodeState]
