"""``check --host``: services and checkers are made and looked at once, and nothing is started."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.config_support import SHOP, write
from tests.plugin_support import install, site_directory

from nlbfarm.cli.trying import Trial, Trials, try_out
from nlbfarm.config import load

PLAIN = SHOP[: SHOP.index("[[checkers]]")] + '[filter]\nbackend = "memory"\n'

VENDOR = """
import asyncio
from nlbfarm.errors import HostError
from nlbfarm.interfaces import Checker, CheckResult, Service

closed = []

class Base(Checker):
    async def close(self):
        closed.append(type(self).__name__)

class Meet(Base):
    barrier = asyncio.Barrier(2)
    async def check(self):
        await self.barrier.wait()
        return CheckResult(True, "we have met")

class Hang(Base):
    async def check(self):
        await asyncio.Event().wait()

class Broken(Base):
    async def check(self):
        raise ZeroDivisionError("division by zero")

class Lacking(Base):
    async def check(self):
        raise HostError("this host has no crystal ball; buy one")

class Plain(Service):
    def __init__(self, context, *, runs=True):
        self._runs = runs
    async def start(self, reason):
        raise AssertionError("nobody asked for that")
    async def stop(self, reason):
        raise AssertionError("nobody asked for that")
    async def running(self):
        return CheckResult(self._runs, "as its maker knows")

class Refusing(Plain):
    async def running(self):
        raise HostError("its manager is not there")

class Faulty(Plain):
    async def running(self):
        return None.ok
"""
POINTS = "[nlbfarm.checkers]\n" + "".join(
    f"{name.lower()} = acme:{name}\n" for name in ("Meet", "Hang", "Broken", "Lacking")
)
POINTS += "[nlbfarm.services]\n" + "".join(
    f"acme-{name.lower()} = acme:{name}\n" for name in ("Plain", "Refusing", "Faulty")
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    with site_directory(tmp_path / "site") as directory:
        install(directory, "acme", POINTS, VENDOR)
        yield directory


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Answer HTTP on loopback."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def tried(directory: Path, text: str) -> Trials:
    return await try_out(load(write(directory, PLAIN + text)), 1, directory / "run")


async def checker(directory: Path, keys: str) -> Trial:
    (trial,) = (await tried(directory, f'[[checkers]]\nname = "c"\n{keys}\n')).checkers
    return trial


async def service(directory: Path, keys: str) -> Trial:
    (trial,) = (await tried(directory, f'[[services]]\nname = "s"\n{keys}\n')).services
    return trial


def program(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# -- checkers ------------------------------------------------------------------------------


async def test_good_and_bad(tmp_path: Path, port: int) -> None:
    found = await tried(
        tmp_path,
        f'[[checkers]]\nname = "page"\ntype = "http"\nurl = "http://127.0.0.1:{port}/"\nbody = "ok"\n'
        f'[[checkers]]\nname = "other"\ntype = "http"\nurl = "http://127.0.0.1:{port}/"\nbody = "well"\n',
    )
    page, other = found.checkers
    assert (page.ok, page.as_json()["type"]) == (True, "http")
    assert (other.ok, other.problems) == (False, ())
    assert list(found.problems()) == []
    (down,) = found.down()
    assert (down.path, down.message) == ("checkers[1]", f"is down: {other.detail}")


async def test_all_at_once_each_as_long_as_it_may(tmp_path: Path, site: Path) -> None:
    """The two that meet do so only if both are looked at together; the third never comes."""
    keys = 'type = "meet"\ntimeout = "1m"\n'
    found = await tried(
        tmp_path,
        f'[[checkers]]\nname = "a"\n{keys}[[checkers]]\nname = "b"\n{keys}'
        '[[checkers]]\nname = "c"\ntype = "hang"\ntimeout = "10ms"\n',
    )
    assert [trial.ok for trial in found.checkers] == [True, True, False]
    assert found.checkers[2].detail == "no answer within 0.01 s"
    assert sorted(sys.modules["acme"].closed) == ["Hang", "Meet", "Meet"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('type = "lacking"', "this host has no crystal ball; buy one"),
        ('type = "broken"', "the checker itself fails: ZeroDivisionError: division by zero"),
        (
            'type = "hang"\noptions = { x = 1 }',
            'checker "c": acme.Hang (plug-in "hang") cannot be made: TypeErr',
        ),
        ('type = "script"\ncommand = ["/nonexistent/check"]', "/nonexistent/check is not on this host"),
    ],
)
async def test_what_cannot_be_used_here(tmp_path: Path, site: Path, keys: str, message: str) -> None:
    trial = await checker(tmp_path, keys)
    assert trial.ok is False
    (problem,) = trial.problems
    assert problem.startswith(message)
    assert trial.detail == problem


@pytest.mark.posix("file modes, and users by name")
async def test_scripts(tmp_path: Path) -> None:
    path = program(tmp_path, "check", "echo all is well; exit 0")
    assert (await checker(tmp_path, f'type = "script"\ncommand = ["{path}"]')).ok
    nobody = await checker(tmp_path, f'type = "script"\ncommand = ["{path}"]\nuser = "no-such-user"')
    assert nobody.problems == ('this host has no user "no-such-user"',)
    path.chmod(0o644)
    refused = await checker(tmp_path, f'type = "script"\ncommand = ["{path}"]')
    assert refused.problems == (f"{path} may not be executed; run: chmod +x it",)


async def test_an_extra_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    trial = await checker(tmp_path, 'type = "certificate"\nfile = "a.pem"')
    (problem,) = trial.problems
    assert 'pip install "nlbfarm[certificate]"' in problem


async def test_the_virtual_ip_is_not_looked_for_before_the_node_brings_it_up(tmp_path: Path) -> None:
    trial = await checker(tmp_path, 'type = "ip"')
    assert (trial.ok, trial.detail) == (None, "not tried: the node brings the virtual IP up")
    assert trial.problems == ()


async def test_processes_of_a_service_that_does_not_run(tmp_path: Path) -> None:
    keys = '[[checkers]]\nname = "c"\ntype = "process"\nservice = "s"\n'
    start = f'[[services]]\nname = "s"\ncommand = ["{Path(sys.executable).as_posix()}"]\n'
    (trial,) = (await tried(tmp_path, start + keys)).checkers
    assert (trial.ok, trial.problems) == (None, ())
    assert trial.detail.startswith("not tried: no process of its service s is known here")
    found = await tried(tmp_path, '[[services]]\nname = "s"\ncommand = ["/nonexistent/db"]\n' + keys)
    assert found.checkers[0].detail == "not tried: its service s cannot be used here"
    assert len(list(found.problems())) == 1


# -- services ------------------------------------------------------------------------------


@pytest.mark.posix("scripts")
async def test_scripts_are_looked_for_and_only_status_is_run(tmp_path: Path) -> None:
    action = program(tmp_path, "shop", f'echo "$1" >> {tmp_path}/ran; [ "$1" = status ] && echo "is up"')
    scripts = f'start = ["{action}", "start"], stop = ["{action}", "stop"], status = ["{action}", "status"]'
    trial = await service(tmp_path, f"scripts = {{ {scripts} }}")
    assert (trial.type, trial.ok, trial.problems) == ("scripts", True, ())
    assert (tmp_path / "ran").read_text() == "status\n"
    assert not (tmp_path / "run").exists()

    missing = await service(tmp_path, 'scripts = { start = ["/nonexistent/a"], stop = ["/nonexistent/b"] }')
    assert missing.problems == (
        "start: /nonexistent/a is not there, or cannot be executed",
        "stop: /nonexistent/b is not there, or cannot be executed",
    )


@pytest.mark.posix("programs without a suffix, users by name")
async def test_a_command(tmp_path: Path) -> None:
    good = await service(tmp_path, f'command = ["{program(tmp_path, "db", "sleep 1")}"]')
    assert (good.ok, good.detail, good.problems) == (False, "was not started", ())
    bad = await service(tmp_path, 'command = ["/nonexistent/db"]\nuser = "no-such-user"')
    assert bad.problems == (
        "/nonexistent/db is not there, or cannot be executed",
        'this host has no user "no-such-user"',
    )


async def test_without_a_bus_there_are_no_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dbus_fast", reason="lack of dbus-fast")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    (problem,) = (await service(tmp_path, 'systemd = "apache2"')).problems
    assert problem.startswith("no connection to the system bus of D-Bus")


async def test_a_unit_that_this_host_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dbus_fast", reason="lack of dbus-fast")
    from tests.services.systemd_mock import Manager, missing, private_bus

    if missing():
        pytest.skip(f"lack of {missing()}")
    async with private_bus(tmp_path) as bus:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus)
        systemd = Manager()
        await systemd.serve(bus)
        there = await service(tmp_path, 'systemd = "acme"')
        absent = await service(tmp_path, 'systemd = "absent"')
        changed = [call for call in systemd.plan.calls if "Start" in call or "Stop" in call]
        await systemd.leave()
    assert (there.ok, there.problems, changed) == (False, (), [])
    assert "acme.service is inactive" in there.detail
    assert absent.problems == ("this host has no unit absent.service; see systemctl list-unit-files",)


async def test_services_of_a_vendor(tmp_path: Path, site: Path) -> None:
    kinds = ("plain", "refusing", "faulty", "plain")
    entries = "".join(
        f'[[services]]\nname = "s{index}"\ntype = "acme-{kind}"\n' for index, kind in enumerate(kinds)
    )
    plain, refusing, faulty, spoilt = (await tried(tmp_path, entries + "options = { run = 1 }\n")).services
    assert (plain.type, plain.ok, plain.detail) == ("acme-plain", True, "as its maker knows")
    assert refusing.problems == ("its manager is not there",)
    assert faulty.problems[0].startswith("what starts and stops it fails: AttributeError")
    assert 'service "s3"' in spoilt.problems[0]
    assert "unexpected keyword argument 'run'" in spoilt.problems[0]


async def test_what_brings_the_virtual_ip_up_is_missing(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "acme-vip", "[nlbfarm.vips]\nacme-vip = acme_vip:Gone\n")
    text = PLAIN.replace('"memory"', '"memory"\nvip_manager = "acme-vip"')
    text += '[[checkers]]\nname = "links"\ntype = "interface"\ninterfaces = ["lo"]\n'
    found = await try_out(load(write(tmp_path, text)), 1, tmp_path / "run")
    (problem,) = found.problems()
    assert problem.path == "filter.vip_manager"
    assert found.checkers[0].ok is not None
