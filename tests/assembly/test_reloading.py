"""A node on loopback, with its filter in memory, whose configuration is loaded again while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog
from tests.config_support import KEYS

from nlbfarm import logs
from nlbfarm.assembly import Reloader, build
from nlbfarm.assembly.verbs import verbs
from nlbfarm.config import FarmConfig, load
from nlbfarm.config.keys import generate, load_keys
from nlbfarm.errors import ConfigError, NlbfarmError, UsageError
from nlbfarm.runtime import Runtime

TEXT = """
[farm]
name = "again"
key_file = "again.key"
[heartbeat]
interval = "20ms"
lease = "60ms"
port = 4815
realtime = false
[filter]
backend = "memory"
[[nodes]]
id = 1
name = "web1"
addresses = ["127.0.0.41"]
[[vips]]
address = "192.0.2.100"
interface = "lo"
[[rules]]
name = "web"
vip = "192.0.2.100"
ports = [80]
"""
SECOND = '[[nodes]]\nid = 2\nname = "web2"\naddresses = ["127.0.0.42"]\n'


class Bench:
    """A node, its file, and what reloads it."""

    def __init__(self, runtime: Runtime, reloader: Reloader, file: Path) -> None:
        self.runtime = runtime
        self.reloader = reloader
        self.file = file

    def write(self, text: str) -> None:
        self.file.write_text(text)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    file = tmp_path / "again.toml"
    file.write_text(TEXT)
    generate(tmp_path / "again.key")
    config, keys = load(file), load_keys(tmp_path / "again.key")
    runtime = await build(config, keys, 1, runtime_dir=tmp_path / "run", state_dir=tmp_path / "state")
    await runtime.open()
    yield Bench(runtime, Reloader(runtime, config, keys, 1, file, tmp_path / "run"), file)
    await runtime.close()


async def test_nothing_has_changed(bench: Bench) -> None:
    bench.write("# a comment\n" + TEXT)
    answer = await bench.reloader.reload()
    assert (answer["changed"], answer["refused"], answer["applied"]) == ([], [], True)


async def test_a_dry_run_changes_nothing(bench: Bench) -> None:
    bench.write(TEXT + SECOND)
    answer = await bench.reloader.reload(dry_run=True)
    assert (answer["changed"], answer["applied"]) == (['nodes "web2" (id 2) is new'], False)
    assert set(bench.runtime.running().settings.nodes) == {1}
    assert (await bench.reloader.reload())["applied"]
    assert bench.runtime.running().settings.nodes == {1: "web1", 2: "web2"}
    bench.runtime.parts.heartbeat.send(b"", [2])


async def test_what_is_refused_is_refused_as_a_whole(bench: Bench) -> None:
    bench.write(TEXT.replace("[80]", "[80, 443]") + SECOND)
    answer = await bench.reloader.reload()
    assert answer["refused"] == ['rules "web".ports: [80] -> [80, 443]']
    assert not answer["applied"]
    assert set(bench.runtime.running().settings.nodes) == {1}


async def test_a_wrong_file_is_told_and_changes_nothing(bench: Bench) -> None:
    bench.write(TEXT + SECOND.replace("id = 2", "id = 1"))
    answer = await bench.reloader.reload()
    assert not answer["applied"]
    assert any("1 is already the id of" in problem for problem in answer["problems"])
    with pytest.raises(ConfigError):
        bench.reloader.check()
    bench.file.unlink()
    assert "no such file" in (await bench.reloader.reload())["problems"][0]


async def test_a_plug_in_that_cannot_be_made_leaves_everything_as_it_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NlbfarmError("it cannot be made")

    monkeypatch.setattr("nlbfarm.assembly.supervised.CheckMaker.make", refuse)
    bench.write(TEXT + SECOND + '[[checkers]]\nname = "port"\ntype = "tcp"\nport = 80\n')
    with pytest.raises(NlbfarmError, match="cannot be made"):
        await bench.reloader.reload()
    assert set(bench.runtime.running().settings.nodes) == {1}


async def test_a_node_that_was_removed_stops_and_comes_back_when_it_is_named_again(bench: Bench) -> None:
    node = bench.runtime.running()
    await until(lambda: node.holding[0].bit_count() == 256)
    bench.write(TEXT.replace("id = 1", "id = 7").replace("web1", "web7"))
    answer = await bench.reloader.reload()
    assert any("which is this one" in change for change in answer["changed"])
    await until(lambda: node.state.name == "STOP")
    with pytest.raises(UsageError, match="no longer names this node"):
        bench.reloader.check()
    bench.write(TEXT + SECOND)
    assert (await bench.reloader.reload())["applied"]
    await until(lambda: node.holding[0].bit_count() == 256)


async def test_powers_and_patience(bench: Bench) -> None:
    node = bench.runtime.running()
    carry_out = verbs(bench.runtime, frozenset(), bench.reloader.reload)["power"]
    await carry_out({"power": 9})
    bench.write(TEXT.replace('name = "web1"', 'name = "w"\npower = 4') + '[handoff]\ndrain_timeout = "3s"\n')
    await bench.reloader.reload()
    assert (node.powers, node.settings.drain_timeout) == ((9,), 3.0)
    await carry_out({"node": "w", "power": None})
    assert node.powers == (4,)
    with pytest.raises(UsageError, match=r"there is no node 'web1' \(there: w\)"):
        await carry_out({"node": "web1", "power": None})


async def test_keys_and_secret(bench: Bench) -> None:
    keys = bench.file.with_name("again.key")
    text = keys.read_text()
    second = f'[[heartbeat_keys]]\nid = 2\nkey = "{"ab" * 32}"\n'
    keys.write_text(text.replace("active = 1", "active = 2") + second)
    answer = await bench.reloader.reload()
    assert answer["changed"] == [
        "heartbeat key 2 in the key file is new",
        "heartbeats are signed with key 2, no longer with key 1",
    ]
    keys.write_text(text.replace("hash_secret = ", f'hash_secret = "{KEYS.hash_secret.hex()}" # '))
    assert "hash secret" in (await bench.reloader.reload())["refused"][0]


async def test_the_log_level(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[str] = []
    monkeypatch.setattr(logs, "set_level", levels.append)
    bench.write(TEXT + '[log]\nlevel = "debug"\n')
    await bench.reloader.reload()
    await bench.reloader.reload()
    assert levels == ["debug"]


async def test_by_a_signal_what_went_wrong_is_logged(bench: Bench) -> None:
    bench.write("[farm")
    with structlog.testing.capture_logs() as told:
        await bench.reloader.reload_by_signal()
        await Reloader(bench.runtime, load_config(bench), KEYS, 1, None, Path("/run")).reload_by_signal()
    assert [entry["event"] for entry in told] == ["node.reload_refused", "node.reload_failed"]


def load_config(bench: Bench) -> FarmConfig:
    bench.write(TEXT)
    return load(bench.file)


async def test_without_a_file_there_is_nothing_to_reload(bench: Bench) -> None:
    reloader = Reloader(bench.runtime, load(bench.file), KEYS, 1, None, Path("/run"))
    with pytest.raises(UsageError, match="not started from a configuration file"):
        await reloader.reload()
    with pytest.raises(UsageError, match="not started from a configuration file"):
        reloader.check()


async def test_the_verbs_of_the_control_socket(bench: Bench) -> None:
    handlers = verbs(bench.runtime, frozenset(), bench.reloader.reload)
    node = bench.runtime.running()
    await until(lambda: node.holding[0].bit_count() == 256)
    answer = await handlers["drain"]({"node": 1, "now": True})
    assert answer["node"] == {"id": 1, "name": "web1"}
    assert answer["order"] is None
    assert (await handlers["status"]({}))["admin"] == "drain"
    await handlers["start"]({})
    assert (await handlers["status"]({}))["admin"] == "run"
    for verb, args, why in (
        ("drain", {"node": "web9"}, "there is no node 'web9'"),
        ("drain", {"node": True}, "there is no node True"),
        ("stop", {"later": True}, 'not "later"'),
        ("reload", {"dry_run": "yes"}, "true or false"),
        ("order", {"number": "x"}, "the number of an order"),
        ("order", {"number": 5}, "no order 5"),
        ("restart", {"process": True}, "part of another program"),
        ("explain", {}, '"client" and "service"'),
    ):
        with pytest.raises(UsageError, match=why):
            await handlers[verb](args)
