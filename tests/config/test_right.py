"""What a right configuration means."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.config_support import SHOP, changed, write

from nlbfarm.config import FarmConfig, dump, load
from nlbfarm.config.checkers import HttpChecker, TcpChecker
from nlbfarm.config.loading import examine


def test_values_are_typed(tmp_path: Path) -> None:
    config = load(write(tmp_path))
    assert config.farm.key_file == tmp_path / "shop.key"
    assert config.heartbeat.interval == timedelta(milliseconds=100)
    assert config.heartbeat.detection == timedelta(milliseconds=500)
    assert config.node(2).addresses == (IPv4Address("192.0.2.12"), IPv4Address("198.51.100.12"))
    assert config.vips[0].group_mac == "01:00:5e:7f:02:64"
    assert config.group_names() == ("web",)
    checker = config.checkers[0]
    assert isinstance(checker, HttpChecker)
    assert checker.status == tuple(range(200, 400))


def test_there_are_no_warnings_without_a_reason(tmp_path: Path) -> None:
    assert examine(write(tmp_path)).warnings == ()


def test_every_key_can_be_written(tmp_path: Path) -> None:
    text = """\
[farm]
name = "shop"
key_file = "shop.key"
partition = "majority"
[heartbeat]
interval = "50ms"
lost_after = 6
lease = "0.2s"
port = 5804
dscp = 0
realtime = false
[filter]
backend = "nftables"
[[nodes]]
id = 1
name = "a"
addresses = ["192.0.2.11", "198.51.100.11"]
power = 2
[[nodes]]
id = 7
name = "b"
addresses = ["192.0.2.12", "198.51.100.12"]
powers = { shop = 0, ssh = 65535 }
[[nodes]]
id = 255
name = "c"
addresses = ["192.0.2.13", "198.51.100.13"]
[[vips]]
address = "192.0.2.100"
interface = "eth0.100"
delivery = "multicast"
mac = "03-BF-C0-00-02-64"
uncovered = "accept"
[[rules]]
name = "http"
vip = "192.0.2.100"
protocol = "tcp"
ports = [80]
affinity = "client"
group = "shop"
mode = "balanced"
[[rules]]
name = "https"
vip = "192.0.2.100"
ports = [443]
affinity = "client"
group = "shop"
[[rules]]
name = "ssh"
vip = "192.0.2.100"
ports = [22]
mode = "failover"
[[checkers]]
name = "page"
type = "http"
url = "https://[::1]:8443/health?full=1"
status = [200, "301-303"]
interval = "2s"
timeout = "1s"
rise = 2
fall = 3
[[checkers]]
name = "port"
type = "tcp"
port = 22
[log]
level = "debug"
format = "json"
[control]
group = "adm"
"""
    config = load(write(tmp_path, text))
    assert config.vips[0].group_mac == "03:bf:c0:00:02:64"
    assert config.group_names() == ("shop", "ssh")
    assert [node.power_in("shop") for node in config.nodes] == [2, 0, 1]
    assert isinstance(config.checkers[1], TcpChecker)
    assert config.checkers[1].address == IPv4Address("127.0.0.1")
    assert isinstance(config.checkers[0], HttpChecker)
    assert config.checkers[0].status == (200, 301, 302, 303)
    assert FarmConfig.model_validate(dump(config)) == config


def test_a_program_that_embeds_nlbfarm_gets_the_same_checks(tmp_path: Path) -> None:
    data = dump(load(write(tmp_path)))
    data["nodes"][1]["id"] = 1
    with pytest.raises(ValidationError, match=r'nodes\[1\]\.id: 1 is already the id of nodes\[0\] "web1"'):
        FarmConfig.model_validate(data)


def test_it_cannot_be_changed(tmp_path: Path) -> None:
    config = load(write(tmp_path))
    with pytest.raises(ValidationError):
        config.heartbeat.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (
            (
                ('["192.0.2.11", "198.51.100.11"]', '["192.0.2.11"]'),
                ('["192.0.2.12", "198.51.100.12"]', '["192.0.2.12"]'),
            ),
            "nodes: one heartbeat network only",
        ),
        (
            (('key_file = "shop.key"', 'key_file = "shop.key"\npartition = "majority"'),),
            "farm.partition: with two nodes",
        ),
        (
            (
                ('name = "web1"', 'name = "web1"\npower = 0'),
                ('name = "web2"', 'name = "web2"\npowers = {web = 0}'),
            ),
            'nodes: every node has power 0 in group "web"',
        ),
    ],
)
def test_warnings(tmp_path: Path, change: tuple[tuple[str, str], ...], warning: str) -> None:
    examined = examine(write(tmp_path, changed(*change)))
    assert examined.problems == ()
    assert [str(found)[: len(warning)] for found in examined.warnings] == [warning]


def test_a_single_server_is_allowed_with_a_warning(tmp_path: Path) -> None:
    start, end = SHOP.index("[[nodes]]\nid = 2"), SHOP.index("[[vips]]")
    examined = examine(write(tmp_path, SHOP[:start] + SHOP[end:]))
    assert examined.config is not None
    assert str(examined.warnings[0]).startswith("nodes: only one server")
