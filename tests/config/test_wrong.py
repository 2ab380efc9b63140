"""Wrong configurations: every problem at once, each with its path, and nothing touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.config_support import SHOP, changed, write

from nlbfarm.config import load
from nlbfarm.config.draft import LISTS, SINGLE
from nlbfarm.config.loading import examine
from nlbfarm.errors import ConfigError, Problem


def problems(directory: Path, text: str) -> list[str]:
    """Return the problems of a configuration; it must have some, and looking must change nothing."""
    path = write(directory, text)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.rglob("*")}
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.rglob("*")} == before
    assert caught.value.source == str(path)
    assert all(isinstance(problem, Problem) for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


CASES: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    "unknown key": (
        (("interval =", "intervall ="),),
        ('heartbeat.intervall: unknown key; did you mean "interval"? (known: interval, lost_after, lease',),
    ),
    "unknown table": (
        (("[heartbeat]", "[hartbeat]"),),
        ('hartbeat: unknown; did you mean "heartbeat"? (known: farm, heartbeat, handoff, filter,',),
    ),
    "table of a later version": (
        (("[[checkers]]", "[metrics]\nport = 9100\n\n[[checkers]]"),),
        ("metrics: not known by this version of nlbfarm; remove it (line 32)",),
    ),
    "duplicate id": (
        (("id = 2", "id = 1"),),
        ('nodes[1].id: 1 is already the id of nodes[0] "web1" (node "web2", line 16)',),
    ),
    "duplicate name": (
        (('"web2"', '"web1"'),),
        ('nodes[1].name: "web1" is already the name of nodes[0] (node "web1", line 17)',),
    ),
    "duplicate address": (
        (("198.51.100.12", "192.0.2.11"),),
        ('nodes[1].addresses[1]: "192.0.2.11" is already an address of node "web1" (nodes[0].addresses[0])',),
    ),
    "one address too few": (
        (('["192.0.2.12", "198.51.100.12"]', '["192.0.2.12"]'),),
        ("nodes[1].addresses: has 1 where other nodes have 2: give every node one address on each",),
    ),
    "two kinds of addresses on a network": (
        (("198.51.100.12", "2001:db8::12"),),
        ("nodes[1].addresses[1]: IPv6 where other nodes have IPv4",),
    ),
    "no address": (
        (('"192.0.2.12", "198.51.100.12"', '"192.0.2.300", "198.51.100.12/24"'),),
        (
            'nodes[1].addresses[0]: "192.0.2.300" is not an IP address, like "192.0.2.11" (node "web2"',
            'nodes[1].addresses[1]: "198.51.100.12/24": write the address alone, without "/24"',
        ),
    ),
    "VIP is a node": (
        (
            ('address = "192.0.2.100"', 'address = "192.0.2.12"'),
            ('vip = "192.0.2.100"', 'vip = "192.0.2.12"'),
        ),
        ('vips[0].address: "192.0.2.12" is node "web2"\'s own address; a virtual IP must be an',),
    ),
    "duplicate VIP": (
        (("[[rules]]", '[[vips]]\naddress = "192.0.2.100"\ninterface = "eth1"\n\n[[rules]]'),),
        ('vips[1].address: "192.0.2.100" is already the address of vips[0] (vip "192.0.2.100", line 26)',),
    ),
    "rule without a VIP": (
        (('vip = "192.0.2.100"', 'vip = "192.0.2.101"'),),
        ('rules[0].vip: "192.0.2.101" is not the address of any [[vips]] table (there: 192.0.2.100)',),
    ),
    "port 70000": (
        (("[80, 443]", "[80, 70000]"),),
        ('rules[0].ports[1]: 70000 is out of range; a port is from 1 to 65535 (rule "web", line 29)',),
    ),
    "ports without brackets, and no ports": (
        (
            ("[80, 443]", "80"),
            ("[[checkers]]", '[[rules]]\nname = "b"\nvip = "192.0.2.100"\nports = []\n\n[[checkers]]'),
        ),
        (
            "rules[0].ports: 80 is not a list; write it in brackets: [80]",
            "rules[1].ports: empty; at least one is needed",
        ),
    ),
    "port of two rules": (
        (
            (
                "[[checkers]]",
                '[[rules]]\nname = "b"\nvip = "192.0.2.100"\nports = [8080, 443, 8080]\n\n[[checkers]]',
            ),
        ),
        (
            'rules[1].ports[1]: tcp port 443 of 192.0.2.100 already belongs to rule "web"; a port',
            "rules[1].ports[2]: 8080 is there twice",
        ),
    ),
    "lease as long as the detection time": (
        (('"300ms"', '"500ms"'),),
        ('heartbeat.lease: "500ms" must be shorter than the detection time, 500ms (interval x lost_after)',),
    ),
    "lease below two intervals": (
        (('"300ms"', '"190ms"'),),
        ('heartbeat.lease: "190ms" must be at least two intervals, "200ms"',),
    ),
    "interval that no lease can span": (
        (('"100ms"', '"600ms"'), ('"300ms"', '"1s"')),
        ('heartbeat.interval: "600ms" is too long: the lease must last at least two intervals',),
    ),
    "bounds of the heartbeat": (
        (('"100ms"', '"5ms"'), ("lost_after = 5", "lost_after = 2"), ('"300ms"', '"2s"')),
        (
            'heartbeat.interval: "5ms" is out of range; write a time from "10ms" to "10s" (line 6)',
            "heartbeat.lost_after: 2 is out of range; a number of intervals is from 3 to 255 (line 7)",
            'heartbeat.lease: "2s" is out of range; write a time from "20ms" to "1s" (line 8)',
        ),
    ),
    "time without a unit": (
        (('"100ms"', "100"), ('"300ms"', '"300"')),
        (
            'heartbeat.interval: a time needs a unit, in quotes: write "100ms" or "100s"',
            'heartbeat.lease: "300" is not a time; write a number and a unit, like "100ms", "5s" or "24h"',
        ),
    ),
    "missing keys": (
        (("id = 2\n", ""), ('interface = "eth0"\n', "")),
        (
            'nodes[1].id: missing; it is required (node "web2", line 15)',
            'vips[0].interface: missing; it is required (vip "192.0.2.100", line 19)',
        ),
    ),
    "missing key file": (
        (('"shop.key"', '"other.key"'),),
        ("farm.key_file: ",),
    ),
    "power out of range, for a group that is not there": (
        (
            ('name = "web1"', 'name = "web1"\npower = 70000'),
            ('name = "web2"', 'name = "web2"\npowers = {wob = 1}'),
        ),
        (
            "nodes[0].power: 70000 is out of range; a power is from 0 to 65535",
            'nodes[1].powers.wob: no rule has this group; did you mean "web"? (there: web)',
        ),
    ),
    "not in this version": (
        (
            ('protocol = "tcp"', 'protocol = "udp"'),
            ('delivery = "multicast"', 'delivery = "tunnel"'),
            ('address = "192.0.2.100"', 'address = "2001:db8::100"'),
            ('on_failure = "wait"', 'on_failure = "restart"'),
            (
                'type = "http"\nurl = "http://127.0.0.1/health"',
                'type = "http"\nurl = "http://127.0.0.1/health"\n',
            ),
        ),
        (
            "vips[0].address: an IPv6 VIP (2001:db8::100) is not supported by this version of nlbfarm",
            'vips[0].delivery: "tunnel" is not supported by this version of nlbfarm',
            'rules[0].protocol: "udp" is not supported by this version of nlbfarm',
            'checkers[0].on_failure: "restart" of which service? write a [[services]] table for it (checker',
        ),
    ),
    "not a word": (
        (('"client-port"', '"client_port"'), ('delivery = "multicast"', 'delivery = "mutlicast"')),
        (
            'vips[0].delivery: "mutlicast" is not known; write "multicast"; did you mean "multicast"?',
            'rules[0].affinity: "client_port" is not known; write "client-port" or "client" or "network";',
        ),
    ),
    "checkers": (
        (
            (
                'type = "http"\nurl = "http://127.0.0.1/health"',
                (
                    'type = "htp"\n\n'
                    '[[checkers]]\nname = "page"\ntype = "http"\nurl = "127.0.0.1/health"\nstatus = 999\n\n'
                    '[[checkers]]\nname = "p"\ntype = "custom"\n\n[[checkers]]\nname = "q"\ntype = "tcp"'
                ),
            ),
        ),
        (
            'checkers[0].type: "htp" is not known, nor installed; write "tcp" or "http" or "ping" or "inter',
            'checkers[1].name: "page" is already the name of checkers[0]',
            'checkers[1].url: "127.0.0.1/health" is not a URL of HTTP; write "http://127.0.0.1/health"',
            "checkers[1].status: 999: HTTP statuses are from 100 to 599, the lower one first",
            'checkers[2].type: "custom" is called otherwise here; write "script"',
            'checkers[3].port: missing; it is required (checker "q"',
        ),
    ),
    "bad MAC": (
        (('delivery = "multicast"', 'mac = "00:00:5e:00:01:01"'),),
        ('vips[0].mac: "00:00:5e:00:01:01" is not a multicast MAC; the first byte must be odd',),
    ),
    "group that does not agree": (
        (
            (
                'affinity = "client-port"\n',
                (
                    'affinity = "client-port"\ngroup = "g"\n\n'
                    '[[rules]]\nname = "b"\nvip = "192.0.2.100"\nports = [81]\n'
                    'affinity = "client"\nmode = "failover"\ngroup = "g"\n'
                ),
            ),
        ),
        (
            (
                'rules[1].affinity: "client", but rule "web" of the same group "g" has "client-port": rules '
                "of a group need the same affinity, or a client would belong to two nodes at once"
            ),
            'rules[1].mode: "failover", but rule "web" of the same group "g" has "balanced"',
        ),
    ),
    "group of another rule": (
        (
            (
                "[[checkers]]",
                '[[rules]]\nname = "b"\nvip = "192.0.2.100"\nports = [81]\ngroup = "web"\n\n[[checkers]]',
            ),
        ),
        ('rules[1].group: "web" is the own group of rule "web"; if they shall share one',),
    ),
    "handoff": (
        (
            (
                "[[vips]]",
                '[handoff]\ntakeover_grace = "1h"\ndrain_timeout = 60\nrestart_grace = "-1s"\n\n[[vips]]',
            ),
        ),
        (
            'handoff.takeover_grace: "1h" is out of range; write a time from "0s" to "10m"',
            'handoff.drain_timeout: a time needs a unit, in quotes: write "60ms" or "60s"',
            'handoff.restart_grace: "-1s" is not a time',
        ),
    ),
    "one bracket": (
        (("[[vips]]", "[vips]"), ("[farm]", "[[farm]]")),
        (
            "farm: there is only one such table; write [farm], not [[farm]]",
            "vips: write [[vips]] with two brackets: there can be several",
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong(name: str, tmp_path: Path) -> None:
    changes, expected = CASES[name]
    found = problems(tmp_path, changed(*changes))
    assert len(found) == len(expected), "\n".join(found)
    for text, beginning in zip(found, expected, strict=True):
        assert text.startswith(beginning), text


def test_all_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Mistakes of every kind in one file: none hides another."""
    text = changed(
        ('name = "shop"', 'name = "my shop"'),
        ('"shop.key"', '"missing.key"'),
        ("lost_after = 5", "lost_afer = 5"),
        ("id = 2", "id = 1"),
        ('"198.51.100.12"', '"198.51.100.400"'),
        ('interface = "eth0"', 'interface = " eth0"'),
        ("[80, 443]", "[80, 70000, 80]"),
        ("[[checkers]]", '[[services]]\nname = "apache"\n\n[[checkers]]'),
    )
    text += '\n[[failover_rules]]\nname = "r"\nwhen = "page down and"\n[notify]\ntargets = "x"\n'
    assert [problem.partition(":")[0] for problem in problems(tmp_path, text)] == [
        "farm.name",
        "farm.key_file",
        "heartbeat.lost_afer",
        "nodes[1].id",
        "nodes[1].addresses[1]",
        "vips[0].interface",
        "rules[0].ports[1]",
        "services[0]",
        "failover_rules[0].when",
        "notify.targets",
    ]


def test_a_wrong_table_still_takes_part_in_the_checks_between_tables(tmp_path: Path) -> None:
    found = problems(tmp_path, changed(("id = 2", 'id = "2"'), ('"web2"', '"web1"'), ('"300ms"', '"500ms"')))
    assert [problem.partition(":")[0] for problem in found] == [
        "heartbeat.lease",
        "nodes[1].id",
        "nodes[1].name",
    ]


def test_nothing_at_all(tmp_path: Path) -> None:
    assert problems(tmp_path, "") == [
        "farm.name: missing; it is required",
        "farm.key_file: missing; it is required",
        "nodes: missing; write a [[nodes]] table for each server",
        "vips: missing; write a [[vips]] table for each virtual address",
        "rules: missing; write a [[rules]] table for each service",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[farm\nname = 1\n", "line 1, column 6: is not valid TOML: "),
        (
            '[farm]\nname = "shop"\nname = "shop"\n',
            "line 3, column 14: is not valid TOML: cannot overwrite a value",
        ),
        ('[farm]\nname = "shop', "is not valid TOML: "),
    ],
)
def test_syntax_errors_say_where(tmp_path: Path, text: str, expected: str) -> None:
    (found,) = problems(tmp_path, text)
    assert expected in found


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(b'[farm]\nname = "caf\xe9"\n')
    with pytest.raises(ConfigError, match="line 2: is not UTF-8 text"):
        load(path)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.posix("POSIX file modes")
def test_key_file_that_others_may_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "shop.key").chmod(0o640)
    (problem,) = examine(path).problems
    assert problem.path == "farm.key_file"
    assert "mode 0640 lets others read the keys; run: chmod 600" in problem.message


def test_too_many_nodes_and_groups(tmp_path: Path) -> None:
    def nodes(count: int) -> str:
        return "".join(
            f'[[nodes]]\nid = {number}\nname = "n{number}"\n'
            f'addresses = ["192.0.2.{number}", "198.51.100.{number}"]\n'
            for number in range(1, count + 1)
        )

    def rules(count: int) -> str:
        return "".join(
            f'[[rules]]\nname = "r{number}"\nvip = "192.0.2.100"\nports = [{number}]\n'
            for number in range(1, count + 1)
        )

    head = SHOP[: SHOP.index("[[nodes]]")] + '[[vips]]\naddress = "192.0.2.100"\ninterface = "eth0"\n'
    (found,) = problems(tmp_path, head + nodes(33) + rules(1))
    assert found.startswith("nodes: 33 servers are too many; a farm has at most 32")
    (found,) = problems(tmp_path, head + nodes(3) + rules(40))
    assert found.startswith(
        "rules: 40 groups are too many for 3 servers: a heartbeat would not fit into one packet"
    )
    assert load(write(tmp_path, head + nodes(32) + rules(1))).nodes[31].id == 32


def test_lines_are_left_out_where_they_could_be_wrong(tmp_path: Path) -> None:
    text = changed(('name = "shop"', 'name = """\nname = 1\n"""'))
    assert not any("line" in problem for problem in problems(tmp_path, text))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_KEYS = [
    "id",
    "name",
    "addresses",
    "power",
    "powers",
    "address",
    "interface",
    "vip",
    "ports",
    "type",
    "url",
    "status",
    "when",
    "action",
    "service",
    "after",
    "command",
    "scripts",
    "environment",
    "options",
]
_TABLES = [*SINGLE, *LISTS, "metrics"]


@given(
    st.dictionaries(
        st.sampled_from(_TABLES),
        _json
        | st.lists(st.dictionaries(st.sampled_from(_KEYS), _json, max_size=4), max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "interval", "lease", "backend", "targets", "files"]), _json
        ),
    )
)
def test_whatever_is_in_it_there_are_problems_and_no_crash(data: dict[str, object]) -> None:
    from nlbfarm.config.crosscheck import crosscheck, warnings
    from nlbfarm.config.draft import read

    draft = read(data, None)
    found = [*draft.problems, *crosscheck(draft)]
    assert found
    assert all(problem.message for problem in (*found, *warnings(draft)))
