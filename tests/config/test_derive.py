"""From a configuration to the values of the core; digests."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from tests.config_support import KEYS, SHOP, changed, write

from nlbfarm.config import config_digest, load, secret_digest
from nlbfarm.config.derive import addresses, former_digest, policy, settings, vip_specs
from nlbfarm.config.root import FarmConfig
from nlbfarm.core.group_mac import group_mac
from nlbfarm.core.hashing import group_seed
from nlbfarm.core.policy import Affinity, Mode
from nlbfarm.core.settings import Partition


@pytest.fixture
def config(tmp_path: Path) -> FarmConfig:
    return load(
        write(
            tmp_path,
            changed(
                (
                    "[[checkers]]",
                    (
                        '[[rules]]\nname = "api"\nvip = "192.0.2.100"\nports = [9, 8]\n'
                        'mode = "failover"\n\n[[checkers]]'
                    ),
                ),
                ('name = "web2"', 'name = "web2"\npower = 3\npowers = {api = 5}'),
            ),
        )
    )


def test_policy(config: FarmConfig) -> None:
    found = policy(config, KEYS)
    assert [(group.name, group.mode) for group in found.groups] == [
        ("api", Mode.FAILOVER),
        ("web", Mode.BALANCED),
    ]
    assert found.groups[1].seed == group_seed(KEYS.hash_secret, "shop", "web")
    assert {rule.name: rule.ports for rule in found.rules} == {"web": (80, 443), "api": (8, 9)}
    assert found.rules[0].affinity is Affinity.CLIENT_PORT
    assert not found.vips[0].accept_uncovered


def test_settings(config: FarmConfig) -> None:
    found = settings(config, KEYS, 2)
    assert (found.node, found.nodes) == (2, {1: "web1", 2: "web2"})
    assert (found.groups, found.powers) == (("api", "web"), (5, 3))
    assert found.modes == (Mode.FAILOVER, Mode.BALANCED)
    assert (found.interval, found.lost_after, found.lease) == (0.1, 5, 0.3)
    assert (found.takeover_grace, found.restart_grace, found.drain_timeout) == (2.0, 15.0, 60.0)
    assert found.partition is Partition.SERVE
    assert found.config_digest == config_digest(config)
    assert found.secret_digest == secret_digest(KEYS)
    with pytest.raises(KeyError):
        settings(config, KEYS, 3)


def test_addresses(config: FarmConfig) -> None:
    assert addresses(config, 2) == (
        [ip_address("192.0.2.12"), ip_address("198.51.100.12")],
        {1: [ip_address("192.0.2.11"), ip_address("198.51.100.11")]},
    )


def test_default_mac_is_that_of_the_vip_manager(config: FarmConfig) -> None:
    (spec,) = vip_specs(config)
    assert spec.group_mac == group_mac(spec.address) == "01:00:5e:7f:02:64"
    assert (str(spec.address), spec.interface, spec.delivery) == ("192.0.2.100", "eth0", "multicast")


def digest(directory: Path, text: str) -> bytes:
    directory.mkdir()
    return config_digest(load(write(directory, text)))


@pytest.mark.parametrize(
    "text",
    [
        "# a comment\n" + SHOP.replace(" = ", "="),
        changed(('"100ms"', '"0.1s"'), ("[80, 443]", "[443, 80]")),
        changed(
            ('name = "web1"', 'name = "web1"\npower = 1'),
            ("[[checkers]]", '[log]\nlevel = "debug"\n\n[[checkers]]'),
        ),
        changed(
            ('interface = "eth0"', 'interface = "ens3"'),
            ("lost_after = 5", "lost_after = 5\nrealtime = false"),
        ),
        changed(
            ('delivery = "multicast"\n', 'mac = "01:00:5E:7F:02:64"\n'),
            ('affinity = "client-port"', 'group = "web"'),
        ),
        SHOP[: SHOP.index("[[nodes]]")]
        + SHOP[SHOP.index("[[vips]]") :]
        + SHOP[SHOP.index("[[nodes]]\nid = 2") : SHOP.index("[[vips]]")]
        + SHOP[SHOP.index("[[nodes]]") : SHOP.index("[[nodes]]\nid = 2")],
        changed(('name = "web2"', 'name = "web3"\npower = 7'), ('"192.0.2.12", "198', '"192.0.2.13", "198')),
        changed(
            ("[[vips]]", '[[nodes]]\nid = 3\nname = "w"\naddresses = ["192.0.2.1", "192.0.3.1"]\n\n[[vips]]')
        ),
        changed(("[[vips]]", '[handoff]\ndrain_timeout = "5m"\n\n[[vips]]')),
    ],
    ids=[
        "comments and spaces",
        "spelling",
        "defaults and log",
        "local names",
        "defaults written out",
        "order of nodes",
        "name, power and address of a node",
        "one more node",
        "patience",
    ],
)
def test_digest_does_not_depend_on_how_it_is_written_nor_on_what_changes_by_reload(
    tmp_path: Path, text: str
) -> None:
    assert digest(tmp_path / "a", text) == digest(tmp_path / "b", SHOP)


@pytest.mark.parametrize(
    "change",
    [
        ('"300ms"', '"310ms"'),
        ("lost_after = 5", "lost_after = 6"),
        ("[80, 443]", "[80]"),
        ('"client-port"', '"client"'),
        ('protocol = "tcp"', 'protocol = "tcp"\nmode = "failover"'),
        ('name = "shop"', 'name = "shop"\npartition = "majority"'),
        ('name = "shop"', 'name = "shop2"'),
    ],
)
def test_digest_depends_on_what_nodes_must_agree_on(tmp_path: Path, change: tuple[str, str]) -> None:
    assert digest(tmp_path / "a", changed(change)) != digest(tmp_path / "b", SHOP)


def test_digest_is_the_same_in_every_version_of_python_and_on_every_platform(tmp_path: Path) -> None:
    assert digest(tmp_path / "a", SHOP).hex() == "51c10a0072f88165"
    # What version 0.1 of the software said of the same file: nodes of both must agree in an upgrade.
    assert former_digest(load(write(tmp_path / "a", SHOP))).hex() == "5b5196d33289c7b8"
    assert secret_digest(KEYS).hex() == "4cdbaceb0f8e9bba"


def test_secret_digest_is_of_the_hash_secret_only() -> None:
    rotated = replace(KEYS, heartbeat={1: bytes(32), 2: bytes(range(32))}, active=2)
    assert secret_digest(rotated) == secret_digest(KEYS)
    assert secret_digest(replace(KEYS, hash_secret=bytes(32))) != secret_digest(KEYS)
