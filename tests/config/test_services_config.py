"""``[[services]]``: what may be written, and what is said to what may not."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from tests.config_support import SHOP, write
from tests.plugin_support import install, site_directory

from nlbfarm.config.loading import examine, load
from nlbfarm.config.services import Service
from nlbfarm.core.supervision import Action


def problems(directory: Path, services: str) -> list[str]:
    return [str(problem) for problem in examine(write(directory, f"{SHOP}\n{services}")).problems]


def one(directory: Path, service: str) -> Service:
    (found,) = load(write(directory, f'{SHOP}\n[[services]]\nname = "app"\n{service}')).services
    return found


def test_the_documented_ones(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "services.md").read_text(encoding="utf-8")
    with site_directory(tmp_path / "site") as site:
        install(site, "acme-farm", "[nlbfarm.services]\nacme = acme_farm:Acme\n", "")
        for block in re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
            assert problems(tmp_path, block) == []


def test_defaults(tmp_path: Path) -> None:
    found = one(tmp_path, 'systemd = "apache2"')
    assert (found.systemd, found.kind) == ("apache2.service", "systemd")
    assert (found.after, found.on_exit, found.max_restarts) == ((), Action.RESTART, 3)
    assert found.start_timeout == found.stop_timeout == timedelta(seconds=30)
    assert (found.hold, found.within) == (timedelta(seconds=3), timedelta(hours=24))
    assert (found.backoff, found.longest_backoff) == (timedelta(seconds=1), timedelta(minutes=1))
    assert (found.stop_signal, found.outlive, dict(found.environment)) == ("SIGTERM", False, {})


@pytest.mark.parametrize(
    ("written", "unit"),
    [
        ("apache2", "apache2.service"),
        ("apache2.service", "apache2.service"),
        ("php8.2-fpm", "php8.2-fpm.service"),
        ("postgresql@15-main", "postgresql@15-main.service"),
        ("shop.target", "shop.target"),
    ],
)
def test_a_unit_needs_no_suffix(tmp_path: Path, written: str, unit: str) -> None:
    assert one(tmp_path, f'systemd = "{written}"').systemd == unit


def test_every_kind(tmp_path: Path) -> None:
    assert one(tmp_path, 'windows = "W3SVC"').kind == "windows"
    command = one(
        tmp_path,
        'command = ["/usr/sbin/acme", "-f"]\ndirectory = "data"\nuser = "acme"\nstop_signal = "SIGQUIT"\n'
        'outlive = true\nenvironment = { LANG = "C.UTF-8" }\n',
    )
    assert (command.kind, command.command) == ("command", ("/usr/sbin/acme", "-f"))
    assert command.directory == tmp_path / "data"
    assert (command.user, command.stop_signal, command.outlive) == ("acme", "SIGQUIT", True)
    assert dict(command.environment) == {"LANG": "C.UTF-8"}
    scripts = one(
        tmp_path, '[services.scripts]\nstart = ["/opt/acme/start", "--now"]\nstop = ["/opt/acme/stop"]\n'
    )
    assert scripts.kind == "scripts"
    assert scripts.scripts is not None
    assert scripts.scripts.start == ("/opt/acme/start", "--now")
    assert scripts.scripts.status is None


def test_a_vendors_kind(tmp_path: Path) -> None:
    with site_directory(tmp_path / "site") as site:
        install(site, "acme-farm", "[nlbfarm.services]\nacme = acme_farm:Acme\n", "")
        found = one(tmp_path, 'type = "acme"\noptions = { port = 1 }')
    assert (found.kind, dict(found.options)) == ("acme", {"port": 1})


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ("", ": a service has exactly one of systemd, windows, command, scripts and type; this one has none"),
        ('systemd = "a"\nwindows = "b"', "this one has systemd and windows"),
        (
            'systemd = "a"\nuser = "root"',
            ": user is for a service with command, not for one with systemd; rem",
        ),
        (
            'windows = "a"\nstop_signal = "SIGTERM"\noutlive = false\noptions = {}',
            ": stop_signal, outlive, options are for a service with command and type, not for one with win",
        ),
        ('systemd = "a b"', '.systemd: "a b" is not the name of a unit; write "apache2.service"'),
        ("systemd = 5", ".systemd: 5 is not the name of a unit"),
        ('windows = "a/b"', '.windows: "a/b" is not the name of a Windows service; write "W3SVC"'),
        ('command = "acme -f"', ".command: "),
        ("command = []", ".command: "),
        ('command = ["bin/acme"]', "starts at a directory that depends on where the node was started"),
        ('scripts = { start = ["/a"] }', ".scripts.stop: missing; it is required"),
        ('scripts = { start = ["/a"], stop = ["/b"], halt = ["/c"] }', ".scripts.halt: "),
        ('type = "command"', '.type: "command" needs no type; write command = ["/usr/sbin/acme", "--fore'),
        ('type = "acme"', '.type: "acme" is not known, nor installed for nlbfarm.services'),
        (
            'command = ["a"]\nstop_signal = "SIGTREM"',
            '.stop_signal: "SIGTREM" is not a signal that asks a program to end; write one of SIGTERM,',
        ),
        ('command = ["a"]\nstop_signal = "SIGKILL"', ".stop_signal: "),
        ('command = ["a"]\nuser = "a b"', ".user: "),
        ('command = ["a"]\noutlive = "yes"', '.outlive: "yes" is not a yes or no'),
        (
            'command = ["a"]\nenvironment = { PORT = 80 }',
            ".environment: PORT = 80 is not a text; write it in quotes",
        ),
        (
            'command = ["a"]\nenvironment = { "A B" = "x" }',
            '.environment: "A B" is not the name of a variable',
        ),
        (
            'command = ["a"]\nenvironment = { NLBFARM_NODE = "x" }',
            ".environment: NLBFARM_NODE: names that begin with NLBFARM_ are nlbfarm's own",
        ),
        ('systemd = "a"\nstop_timeout = 30', '.stop_timeout: a time needs a unit, in quotes: write "30ms"'),
        ('systemd = "a"\nstop_timeout = "2h"', '.stop_timeout: "2h" is out of range'),
        ('systemd = "a"\nmax_restarts = -1', ".max_restarts: -1 is out of range"),
        ('systemd = "a"\non_exit = "restrat"', 'did you mean "restart"?'),
        (
            'systemd = "a"\nbackoff = "2m"',
            ': longest_backoff is "1m", less than backoff, "2m"; make it at least as long',
        ),
        ('systemd = "a"\nrestart = true', ".restart: unknown key"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, service: str, said: str) -> None:
    found = problems(tmp_path, f'[[services]]\nname = "app"\n{service}\n')
    assert any(line.startswith("services[0]") and said in line for line in found), found


def test_everything_is_said_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        '[[services]]\nname = "a"\nsystemd = "a b"\nhold = "5"\n\n[[services]]\nname = "b b"\ncommand = []\n',
    )
    assert {line.split(":")[0] for line in found} == {
        "services[0].systemd",
        "services[0].hold",
        "services[1].name",
        "services[1].command",
    }
