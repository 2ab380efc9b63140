"""``check``, ``keygen``, ``backends`` and the start of ``run``."""

from __future__ import annotations

import json
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.config_support import changed, write

from nlbfarm.cli import checking, cli, running, trying
from nlbfarm.cli.trying import Trial, Trials
from nlbfarm.config.host import Host, Interface
from nlbfarm.config.keys import load_keys

BROKEN = changed(("id = 2", "id = 1"), ("[80, 443]", "[80, 70000]"), ('"300ms"', '"500ms"'))


MEMORY = ("[[nodes]]\nid = 1", '[filter]\nbackend = "memory"\n\n[[nodes]]\nid = 1')
CLOSED = ("http://127.0.0.1/health", "http://127.0.0.1:1/health")
"""Nothing listens on port 1."""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def host(*addresses: str) -> Host:
    networks = tuple(IPv4Interface(address) for address in addresses)
    return Host({"eth0": Interface(True, networks, tuple(one.ip for one in networks))}, 1_800_000_000.0)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Play the host web1, whatever this one is."""
    found = host("192.0.2.11/24", "198.51.100.11/24")
    monkeypatch.setattr(checking, "read_host", lambda: found)
    monkeypatch.setattr(running, "read_host", lambda: found)
    return found


def test_right(tmp_path: Path) -> None:
    path = write(tmp_path)
    result = invoke("check", path)
    assert result.exit_code == 0
    assert result.stdout == f"{path}: farm shop is right: 2 nodes, 1 virtual IP, 1 rule\n"


def test_right_as_json(tmp_path: Path) -> None:
    result = invoke("check", write(tmp_path), "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (found["ok"], found["farm"], found["problems"], found["warnings"]) == (True, "shop", [], [])
    assert len(bytes.fromhex(found["digest"])) == 8


def test_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, BROKEN)
    result = invoke("check", path)
    assert result.exit_code == 3
    assert result.stdout.splitlines()[0] == f"{path}: 3 problems"
    assert [line.split(":")[0] for line in result.stdout.splitlines()[1:]] == [
        "  heartbeat.lease",
        "  nodes[1].id",
        "  rules[0].ports[1]",
    ]


def test_the_page_shows_what_is_really_printed(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    printed = invoke("check", write(tmp_path, BROKEN)).stdout
    assert printed.replace(str(tmp_path) + "/", "") in page


def test_the_page_shows_how_a_host_is_looked_at(
    tmp_path: Path, here: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this host has is played; how it is told is real."""
    text = changed(MEMORY) + '[[services]]\nname = "apache"\nsystemd = "apache2"\n'
    text += '[[checkers]]\nname = "gateway"\ntype = "ping"\naddress = "192.0.2.1"\n'
    text += '[[checkers]]\nname = "vip"\ntype = "ip"\n'
    missing = "this host has no unit apache2.service; see systemctl list-unit-files"
    tried = Trials(
        (Trial("services[0]", "apache", "systemd").fails(missing),),
        (
            Trial("checkers[0]", "page", "http", False, "connection refused by 127.0.0.1:80"),
            Trial("checkers[1]", "gateway", "ping", True, "answer from 192.0.2.1 within 0.4 ms"),
            Trial("checkers[2]", "vip", "ip", None, "not tried: the node brings the virtual IP up"),
        ),
    )

    async def play(*_: object) -> Trials:
        return tried

    monkeypatch.setattr(trying, "try_out", play)
    page = (Path(__file__).parent.parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    printed = invoke("check", write(tmp_path, text), "--host").stdout
    assert printed.replace(str(tmp_path) + "/", "") in page


def test_wrong_as_json(tmp_path: Path) -> None:
    result = invoke("check", write(tmp_path, BROKEN), "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"], found["digest"]) == (3, False, None)
    assert [(problem["kind"], problem["path"]) for problem in found["problems"]] == [
        ("configuration", "heartbeat.lease"),
        ("configuration", "nodes[1].id"),
        ("configuration", "rules[0].ports[1]"),
    ]


def test_warnings_are_shown(tmp_path: Path) -> None:
    text = changed(('name = "shop"', 'name = "shop"\npartition = "majority"'))
    result = invoke("check", write(tmp_path, text))
    assert result.exit_code == 0
    assert "  warning: farm.partition: with two nodes a majority is both of them" in result.stdout


def test_host_that_fits(tmp_path: Path, here: Host) -> None:
    """An application that does not run yet is no mistake."""
    path = write(tmp_path, changed(MEMORY, CLOSED))
    result = invoke("check", path, "--host")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{path}: farm shop is right: 2 nodes, 1 virtual IP, 1 rule; this host is web1",
        "checkers, each tried once",
        "  NAME  TYPE  RESULT  DETAIL",
        "  page  http  BAD     connection refused by 127.0.0.1:1",
    ]
    found = json.loads(invoke("check", path, "--host", "--json").stdout)
    assert (found["ok"], found["node"], found["services"]) == (True, {"id": 1, "name": "web1"}, [])
    detail = "connection refused by 127.0.0.1:1"
    assert found["checkers"] == [{"name": "page", "type": "http", "ok": False, "detail": detail}]
    (warning,) = found["warnings"]
    assert warning["path"] == "checkers[0]"
    assert warning["message"].startswith(f'is down: {detail} (checker "page", line ')


def test_what_cannot_be_used_on_this_host(tmp_path: Path, here: Host) -> None:
    text = changed(MEMORY, CLOSED)
    text += '[[services]]\nname = "db"\ncommand = ["/nonexistent/db"]\n'
    text += '[[checkers]]\nname = "vip"\ntype = "ip"\n'
    text += '[[checkers]]\nname = "own"\ntype = "script"\ncommand = ["/nonexistent/check"]\n'
    path = write(tmp_path, text)
    before = files(tmp_path)
    result = invoke("check", path, "--host", "--runtime-dir", tmp_path / "run")
    assert (result.exit_code, files(tmp_path)) == (4, before)
    lines = result.stdout.splitlines()
    assert lines[0] == f"{path}: 2 problems"
    assert lines[1].startswith("  services[0]: /nonexistent/db is not there, or cannot be executed (service")
    assert lines[2].startswith("  checkers[2]: /nonexistent/check is not on this host (checker")
    assert [line.split() for line in lines[3:]] == [
        ["services", "on", "this", "host"],
        ["NAME", "TYPE", "RESULT", "DETAIL"],
        ["db", "command", "UNUSABLE", "see", "above"],
        ["checkers,", "each", "tried", "once"],
        ["NAME", "TYPE", "RESULT", "DETAIL"],
        ["page", "http", "BAD", "connection", "refused", "by", "127.0.0.1:1"],
        ["vip", "ip", "-", "not", "tried:", "the", "node", "brings", "the", "virtual", "IP", "up"],
        ["own", "script", "UNUSABLE", "see", "above"],
    ]
    found = json.loads(invoke("check", path, "--host", "--json").stdout)
    assert [(one["kind"], one["path"]) for one in found["problems"]] == [
        ("host", "services[0]"),
        ("host", "checkers[2]"),
    ]
    assert [one["ok"] for one in found["checkers"]] == [False, None, False]


def test_without_a_right_configuration_nothing_is_tried(tmp_path: Path, here: Host) -> None:
    path = write(tmp_path, changed(MEMORY, CLOSED, ("[80, 443]", "[70000]")))
    result = invoke("check", path, "--host", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["checkers"] == []


def test_schema(tmp_path: Path) -> None:
    result = invoke("check", "--schema")
    assert result.exit_code == 0
    published = Path(__file__).parent.parent.parent / "docs" / "nlbfarm.schema.json"
    assert result.stdout == published.read_text(encoding="utf-8")
    for arguments in (("check", "--schema", write(tmp_path)), ("check", "--schema", "--host"), ("check",)):
        assert invoke(*arguments).exit_code == 2


def test_host_that_does_not_fit(tmp_path: Path, here: Host) -> None:
    text = changed(
        CLOSED,
        ('interface = "eth0"', 'interface = "eth7"'),
        ("[[nodes]]\nid = 1", '[filter]\nbackend = "nftable"\n\n[[nodes]]\nid = 1'),
    )
    result = invoke("check", write(tmp_path, text), "--host", "--node", "web2")
    assert result.exit_code == 4
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[1:5]] == [
        "  filter.backend",
        "  nodes[1].addresses[0]",
        "  nodes[1].addresses[1]",
        "  vips[0].interface",
    ]
    assert '"nftable" is not installed here; did you mean "nftables"?' in lines[1]


def test_errors_of_both_kinds_at_once(tmp_path: Path, here: Host) -> None:
    """A wrong port does not hide a wrong interface; the configuration's exit code wins."""
    text = changed(
        ("[80, 443]", "[70000]"),
        ("192.0.2.100", "203.0.113.1"),
        text=changed(('vip = "192.0.2.100"', 'vip = "203.0.113.1"')),
    )
    result = invoke("check", write(tmp_path, text), "--host", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 3
    assert [(problem["kind"], problem["path"]) for problem in found["problems"]] == [
        ("configuration", "rules[0].ports[0]"),
        ("host", "vips[0].address"),
    ]
    assert "203.0.113.1 is in none of the networks of eth0 (192.0.2.0/24, 198.51.100.0/24)" in result.stdout


def test_host_that_is_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "read_host", lambda: host("192.0.2.50/24"))
    result = invoke("check", write(tmp_path), "--host")
    assert result.exit_code == 4
    assert "this host is none of the farm's nodes" in result.stdout


def test_node_without_host_cannot_be_meant(tmp_path: Path) -> None:
    assert invoke("check", write(tmp_path), "--node", "web1").exit_code == 2
    assert invoke("check", write(tmp_path), "--host", "--node", "web9").exit_code == 2


def test_keygen(tmp_path: Path) -> None:
    path = tmp_path / "shop.key"
    result = invoke("keygen", path)
    assert result.exit_code == 0
    keys = load_keys(path)
    assert keys.hash_secret.hex() not in result.output
    assert invoke("keygen", path).exit_code == 2
    assert load_keys(path) == keys
    assert invoke("keygen", path, "--force").exit_code == 0
    assert load_keys(path) != keys
    assert invoke("keygen", tmp_path / "none" / "shop.key").exit_code == 4


def test_backends() -> None:
    result = invoke("backends")
    assert result.exit_code == 0
    assert {line.split()[0] for line in result.stdout.splitlines()} >= {"memory", "nftables"}
    found = json.loads(invoke("backends", "--json").stdout)
    assert {"name", "usable", "detail", "added_ns"} == set(found[0])
    assert next(one["usable"] for one in found if one["name"] == "memory") is True


def test_backends_with_what_was_measured(tmp_path: Path) -> None:
    def row(name: str, packets: str, owned: int, rules: int, **added: float) -> dict[str, object]:
        return {"filter": name, "packets": packets, "owned": owned, "rules": rules, "added_ns": added}

    rows = [
        row("nftables", "rejected", 50, 1, median=140, min=130, max=150),
        row("nftables", "rejected", 50, 500, median=141),
        row("nftables", "accepted, new", 50, 1, median=1234.5),
        row("nftables", "accepted, established", 100, 1, median=9),
        row("nfqueue, kernel's hash", "rejected", 50, 1, median=170),
        row("nfqueue, Python's hash", "rejected", 50, 1, median=180),
        row("windivert", "rejected", 50, 1),
        row("xt_cluster", "rejected", 50, 1, median=300),
    ]
    file = tmp_path / "filter-benchmark.json"
    file.write_text(json.dumps({"benchmark": "filter", "cost": rows}))
    lines = invoke("backends", "--state-dir", tmp_path).stdout.splitlines()
    (told,) = [line for line in lines if "1,234 ns" in line]
    assert "rejected: 140 ns; accepted, new: 1,234 ns" in told
    assert lines[lines.index(told) - 1].startswith("nftables")
    assert sum("rejected:" in line for line in lines) == 2
    found = {one["name"]: one for one in json.loads(invoke("backends", "--benchmark", file, "--json").stdout)}
    assert found["nfqueue"]["added_ns"] == {"rejected": 170}
    assert found["windivert"]["added_ns"] == found["memory"]["added_ns"] == {}


@pytest.mark.parametrize("text", ["", "[]", '{"benchmark": "idle"}', '{"benchmark": "filter", "cost": [1]}'])
def test_backends_with_another_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    result = invoke("backends", "--benchmark", file)
    assert result.exit_code == 2
    assert "python -m benchmarks filter" in result.stderr
    assert invoke("backends", "--benchmark", tmp_path / "none").exit_code == 2


def files(directory: Path) -> set[Path]:
    return set(directory.rglob("*"))


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (BROKEN, 3, "3 problem(s)"),
        (changed(('"eth0"', '"eth7"')), 4, 'vips[0].interface: this host has no interface "eth7"'),
        (
            changed(("192.0.2.11", "192.0.2.21"), ("198.51.100.11", "198.51.100.21")),
            4,
            "this host is none of the farm's",
        ),
        (
            changed(('"198.51.100.11"', '"198.51.100.21"')),
            4,
            "nodes[0].addresses[1]: 198.51.100.21 is not on this host",
        ),
    ],
)
def test_run_refuses_before_it_touches_anything(
    tmp_path: Path, here: Host, text: str, code: int, message: str
) -> None:
    path = write(tmp_path, text)
    before = files(tmp_path)
    result = invoke(
        "run", "--config", path, "--runtime-dir", tmp_path / "run", "--state-dir", tmp_path / "state"
    )
    assert (result.exit_code, files(tmp_path)) == (code, before)
    assert message in result.stderr


def test_run_refuses_a_name_that_is_not_there(tmp_path: Path, here: Host) -> None:
    result = invoke("run", "--config", write(tmp_path), "--node", "web", "--runtime-dir", tmp_path / "run")
    assert result.exit_code == 2
    assert 'no node is called "web"; did you mean "web' in result.stderr
