"""``[[checkers]]``: what is right, what is wrong, and that docs/checkers.md says all of it."""

from __future__ import annotations

import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.config_support import SHOP, write

from nlbfarm.checkers import HostView, build
from nlbfarm.config import FarmConfig, dump, load
from nlbfarm.config.checkers import (
    CHECKER_TYPES,
    CheckerEntry,
    HttpChecker,
    OnFailure,
    PingChecker,
    ProcessChecker,
    ResourcesChecker,
)
from nlbfarm.config.draft import field_reader
from nlbfarm.config.loading import examine
from nlbfarm.plugins import BUILT_IN, Kind

PAGE = (Path(__file__).parent.parent.parent / "docs" / "checkers.md").read_text(encoding="utf-8")
BARE = SHOP[: SHOP.index("[[checkers]]")]


def checkers(directory: Path, *entries: str) -> tuple[CheckerEntry, ...]:
    """Load a configuration with these checkers."""
    text = "".join(f'[[checkers]]\nname = "c{index}"\n{entry}\n' for index, entry in enumerate(entries))
    return load(write(directory, BARE + text)).checkers


def problem(directory: Path, entry: str) -> str:
    """Return the one problem of a checker, without its place in the file."""
    (found,) = examine(write(directory, f'{BARE}[[checkers]]\nname = "c"\n{entry}\n')).problems
    return str(found).removeprefix("checkers[0]").rpartition(" (checker ")[0]


# --- right ------------------------------------------------------------------------------------


def test_there_is_a_model_and_a_class_of_each_type() -> None:
    assert set(CHECKER_TYPES) == set(BUILT_IN[Kind.CHECKER])
    for name, model in CHECKER_TYPES.items():
        assert model.model_fields["type"].default == name


def test_all_that_can_be_written_survives_a_dump(tmp_path: Path) -> None:
    entries = checkers(
        tmp_path,
        'type = "tcp"\nport = 1\ninitial_delay = "30s"\nconfirm = "5s"\non_failure = "drain"',
        'type = "http"\nurl = "https://a/"\nbody = "a+"\naddress = "::1"\nhost = "b:1"\nca_file = "ca.pem"',
        'type = "http"\nurl = "https://a/"\nverify = false',
        'type = "ping"\naddress = "2001:db8::1"\ninterface = "eth0"\ncount = 1',
        'type = "interface"\ninterfaces = ["eth0", "eth1"]',
        'type = "ip"\naddress = "192.0.2.100"',
        'type = "process"\nprocess = "a b"\nexecutable = "/bin/a"\narguments = "x"\npid_file = "a.pid"',
        'type = "process"\nprocess = "a"\nat_least = 0\nat_most = 0',
        'type = "resources"\ncpu_percent = 90\nmemory_percent = 80.5\nmemory = "1.5GB"\nopen_files = 100',
        'type = "resources"\ndisk_path = "/srv"\ndisk_free_percent = 0\ndisk_free = "64MiB"',
        'type = "certificate"\nfile = "a.pem"\nexpires_within = "0s"',
        'type = "certificate"\naddress = "192.0.2.1"\nport = 8443\nserver_name = "a.example"',
        'type = "script"\ncommand = ["check", "", "a b"]\nuser = "www-data"',
        'type = "module"\nfarm = "back"\nstates = ["UP", "DRAINING"]',
    )
    first = entries[0]
    assert first.on_failure is OnFailure.DRAIN
    assert first.initial_delay == timedelta(seconds=30)
    config = load(tmp_path / "shop.toml")
    assert FarmConfig.model_validate(dump(config)) == config


def test_defaults_and_files(tmp_path: Path) -> None:
    http, process, resources = checkers(
        tmp_path,
        'type = "http"\nurl = "https://127.0.0.1/"\nca_file = "ca.pem"',
        'type = "process"\npid_file = "/run/a.pid"',
        'type = "resources"\nmemory = "1KiB"',
    )
    assert isinstance(http, HttpChecker)
    assert http.ca_file == tmp_path / "ca.pem"
    assert (http.verify, http.body, http.address, http.host) == (True, None, None, None)
    assert isinstance(process, ProcessChecker)
    assert process.selects
    assert (process.at_least, process.at_most, process.port) == (1, None, None)
    assert isinstance(resources, ResourcesChecker)
    assert resources.memory == 1024
    assert not resources.selects


def test_one_name_or_a_list(tmp_path: Path) -> None:
    one, several = checkers(
        tmp_path,
        'type = "interface"\ninterfaces = "eth0"',
        'type = "module"\nfarm = "back"\nstates = "WAIT"',
    )
    assert dump(load(tmp_path / "shop.toml"))["checkers"][0]["interfaces"] == ["eth0"]
    assert (one.type, several.type) == ("interface", "module")  # type: ignore[attr-defined]


def test_when_a_failure_counts(tmp_path: Path) -> None:
    """Automatically at once, but for what is mostly everybody's: every node gets to look once more."""
    tcp, ping, module, given, none = checkers(
        tmp_path,
        'type = "tcp"\nport = 1',
        'type = "ping"\naddress = "192.0.2.1"',
        'type = "module"\nfarm = "back"\ninterval = "1s"\ntimeout = "500ms"',
        'type = "tcp"\nport = 1\nconfirm = "1500ms"',
        'type = "ping"\naddress = "192.0.2.1"\nconfirm = "0s"',
    )
    assert [one.confirm_s for one in (tcp, ping, module, given, none)] == [0.0, 15.0, 1.5, 1.5, 0.0]


# --- wrong ------------------------------------------------------------------------------------

WRONG = [
    (
        'type = "https"\nurl = "https://a/"',
        '.type: "https" is called otherwise here; write "http", and a url that',
    ),
    ('type = "intf"', '.type: "intf" is called otherwise here; write "interface"'),
    ('type = "custom"', '.type: "custom" is called otherwise here; write "script"'),
    ('type = "pign"', '.type: "pign" is not known, nor installed; write "tcp" or "http" or "ping" or '),
    ('type = ["tcp"]', ".type: ['tcp'] is not known, nor installed; write "),
    (
        'type = "tcp"\nport = 1\non_failure = "stopstart"',
        '.on_failure: "stopstart" is called otherwise here; use "restart"',
    ),
    (
        'type = "tcp"\nport = 1\non_failure = "noaction"',
        '.on_failure: "noaction" is called otherwise here; use "none"',
    ),
    (
        'type = "tcp"\nport = 1\non_failure = "restrat"',
        '.on_failure: "restrat" is not known; write "none" or "wait" or "restart"',
    ),
    ('type = "tcp"\nport = 1\nconfirm = 5', '.confirm: a time needs a unit, in quotes: write "5ms" or "5s"'),
    (
        'type = "tcp"\nport = 1\ninitial_delay = "2d"',
        '.initial_delay: "2d" is out of range; write a time from "0s" to "1d"',
    ),
    ('type = "tcp"\nport = 1\nservice = ""', '.service: "" is not a name;'),
    (
        'type = "http"\nurl = "http://a/"\nbody = "(a"',
        '.body: "(a" is not a regular expression: missing ), unterminated',
    ),
    ('type = "http"\nurl = "http://a/"\nbody = ""', '.body: "" is not a regular expression, like'),
    (
        'type = "http"\nurl = "http://a/"\nhost = "a b"',
        '.host: "a b" is not the name of a host, like "shop.example"',
    ),
    ('type = "http"\nurl = "http://a/"\naddress = "shop"', '.address: "shop" is not an IP address'),
    ('type = "http"\nurl = "http://a/"\nca_file = "a"', ": ca_file is for a url that begins with https;"),
    (
        'type = "http"\nurl = "https://a/"\nca_file = "a"\nverify = false',
        ": with verify = false no certificate is checked",
    ),
    ('type = "http"\nurl = "http://a/"\nverify = "no"', '.verify: "no" is not a yes or no'),
    ('type = "ping"', ".address: missing; it is required"),
    ('type = "ping"\naddress = "gateway"', '.address: "gateway" is not an IP address'),
    (
        'type = "ping"\naddress = "192.0.2.1"\ncount = 0',
        ".count: 0 is out of range; a number of requests is from 1 to 100",
    ),
    (
        'type = "interface"\ninterfaces = [""]',
        '.interfaces[0]: "" is not the name of a network interface',
    ),
    ('type = "process"', ': says not which processes are meant; write process = "httpd"'),
    (
        'type = "process"\nprocess = "/bin/a"',
        '.process: "/bin/a" is the path of a program; write executable = "/bin/a"',
    ),
    ('type = "process"\nprocess = "a"\nat_least = 3\nat_most = 2', ": at_most (2) is less than at_least (3)"),
    ('type = "process"\nprocess = "a"\nat_least = 0', ": at_least = 0 alone can never fail"),
    (
        'type = "process"\nprocess = "a"\nat_least = 0\nat_most = 1\nport = 1',
        ": a port needs a process that listens",
    ),
    (
        'type = "process"\nprocess = "a"\nprotocol = "udpp"',
        '.protocol: "udpp" is not known; write "tcp" or "udp"; did',
    ),
    ('type = "process"\nname_ = "a"\nprocess = "a"', ".name_: unknown key"),
    ('type = "resources"', ": names no limit; write at least one of cpu_percent"),
    (
        'type = "resources"\ncpu_percent = 101',
        ".cpu_percent: 101 is out of range; a percentage is from 0 to 100",
    ),
    ('type = "resources"\ncpu_percent = "90%"', '.cpu_percent: "90%" is not a percentage'),
    ('type = "resources"\nmemory = 100', '.memory: a size needs a unit, in quotes: write "100KB" or "100MB"'),
    ('type = "resources"\ndisk_free = "1GB"', ": disk_path is missing: say which disk is meant"),
    ('type = "resources"\ndisk_path = "/"', ": a limit for disk_path is missing"),
    ('type = "certificate"', ": neither file nor address is there; write one of them"),
    (
        'type = "certificate"\nfile = "a"\naddress = "192.0.2.1"',
        ": both file and address are there; write one of them",
    ),
    (
        'type = "certificate"\nfile = "a"\nserver_name = "a:443"',
        '.server_name: "a:443" is not the name of a host',
    ),
    (
        'type = "script"\ncommand = "check --quick"',
        '.command: "check --quick" is one text, and no shell takes it apart; write a list',
    ),
    ('type = "script"\ncommand = []', ".command: [] is not a command"),
    ('type = "script"\ncommand = [5]', ".command: [5] is not a command"),
    (
        'type = "script"\ncommand = ["bin/check"]',
        '.command: "bin/check" starts at a directory that depends on',
    ),
    ('type = "script"\ncommand = ["/c"]\nuser = "a b"', '.user: "a b" is not the name of a user'),
    ('type = "module"', ".farm: missing; it is required"),
    (
        'type = "module"\nfarm = "back"\nstates = ["up"]',
        '.states[0]: "up" is not known; write "STOP" or "STARTING" or',
    ),
    ('type = "module"\nfarm = "back"\nstates = []', ".states: empty; at least one is needed"),
]


@pytest.mark.parametrize(("entry", "message"), WRONG)
def test_wrong(tmp_path: Path, entry: str, message: str) -> None:
    assert problem(tmp_path, entry).startswith(message), problem(tmp_path, entry)


def test_a_program_that_embeds_nlbfarm_gets_the_same_errors() -> None:
    with pytest.raises(ValidationError, match="names no limit"):
        ResourcesChecker.model_validate({"name": "r", "type": "resources"})
    with pytest.raises(ValidationError, match='use "restart"'):
        PingChecker.model_validate({"name": "r", "address": "192.0.2.1", "on_failure": "stopstart"})


# --- the page ---------------------------------------------------------------------------------


def section(title: str) -> str:
    (found,) = [part for part in PAGE.split("\n## ")[1:] if part.startswith(f"{title}\n")]
    return found


def rows(text: str) -> dict[str, str]:
    """Return the keys of a section's tables, with their defaults as text."""
    return {
        key: default.strip().strip("`")
        for keys, default in re.findall(r"^\| (`[a-z][^|]*`) \|([^|]*)\|", text, re.MULTILINE)
        for key in re.findall(r"`([^`]+)`", keys)
    }


@pytest.mark.parametrize("kind", [*CHECKER_TYPES, ""])
def test_the_page_has_every_key_with_its_default(kind: str) -> None:
    model = CHECKER_TYPES[kind] if kind else CheckerEntry
    listed = rows(section(f"`{kind}`" if kind else "Keys of every checker"))
    own = set(model.model_fields) - ({*CheckerEntry.model_fields, "type"} if kind else set())
    assert set(listed) == own | (set() if kind else {"type"})
    for key in own:
        info = model.model_fields[key]
        if info.is_required() or info.default is None:
            assert listed[key] == ""
            continue
        written: Any = tomllib.loads(f"x = {listed[key]}")["x"]
        assert field_reader(model, key).validate_python(written) == info.default


def test_the_page_names_every_action() -> None:
    listed = re.findall(r'^\| `"([a-z-]+)"` \|', section("Keys of every checker"), re.MULTILINE)
    assert listed == [action.value for action in OnFailure]


def examples() -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_examples_of_the_page_can_be_built(tmp_path: Path) -> None:
    config = load(write(tmp_path, BARE + "\n".join(examples())))
    assert {entry.type for entry in config.checkers} == set(CHECKER_TYPES)
    view = HostView("shop", "web1", vips=tuple(vip.address for vip in config.vips), interfaces=("eth0",))
    for entry in config.checkers:
        if entry.type != "certificate":  # needs an extra
            build(entry, view)
