"""What a running node can take over of another configuration, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.config_support import KEYS, SHOP, changed, write

from nlbfarm.config import FarmConfig, FarmKeys, load
from nlbfarm.config.changes import Changes, compare

THIRD = '[[nodes]]\nid = 3\nname = "web3"\naddresses = ["192.0.2.13", "198.51.100.13"]\n\n[[vips]]'
FOURTH = '[[nodes]]\nid = 4\nname = "web4"\naddresses = ["192.0.2.14", "198.51.100.14"]\n\n'
MAJORITY = ('name = "shop"', 'name = "shop"\npartition = "majority"')


def config(directory: Path, text: str) -> FarmConfig:
    directory.mkdir(exist_ok=True)
    return load(write(directory, text))


def found(directory: Path, before: str, after: str, keys: FarmKeys = KEYS) -> Changes:
    old, new = config(directory / "before", before), config(directory / "after", after)
    return compare(old, new, KEYS, keys, 1, old.node(1).addresses)


TAKEN = {
    "a node is new": ([("[[vips]]", THIRD)], ['nodes "web3" (id 3) is new']),
    "another name": ([('name = "web2"', 'name = "w"')], ['nodes "web2" (id 2) is called "w"']),
    "a peer moves": (
        [('"192.0.2.12", ', '"192.0.2.22", ')],
        ['nodes "web2".addresses: ["192.0.2.12", "198.51.100.12"] -> ["192.0.2.22", "198.51.100.12"]'],
    ),
    "power": (
        [
            ('name = "web1"', 'name = "web1"\npower = 0'),
            ('name = "web2"', 'name = "web2"\npowers = {web = 4}'),
        ],
        ['nodes "web1": power in group web 1 -> 0', 'nodes "web2": power in group web 1 -> 4'],
    ),
    "patience": (
        [("[[vips]]", '[handoff]\ndrain_timeout = "5m"\n[[vips]]')],
        ['handoff.drain_timeout: "1m" -> "5m"'],
    ),
    "log level": ([("[[vips]]", '[log]\nlevel = "debug"\n[[vips]]')], ['log.level: "info" -> "debug"']),
    "checker": (
        [('name = "page"', 'name = "page"\nfall = 3')],
        ['checkers "page".fall: 2 -> 3'],
    ),
    "another checker": (
        [('name = "page"', 'name = "other"')],
        ['checkers "other" is new', 'checkers "page" is removed'],
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken_over(name: str, tmp_path: Path) -> None:
    changes, expected = TAKEN[name]
    result = found(tmp_path, SHOP, changed(*changes))
    assert list(result.taken) == expected
    assert result.refused == ()


REFUSED = {
    "timing": ([('"300ms"', '"250ms"')], ['heartbeat.lease: "300ms" -> "250ms"']),
    "ports": ([("[80, 443]", "[80]")], ['rules "web".ports: [80, 443] -> [80]']),
    "a rule": (
        [("[[checkers]]", '[[rules]]\nname = "api"\nvip = "192.0.2.100"\nports = [81]\n[[checkers]]')],
        ['rules "api" is new'],
    ),
    "a virtual IP": (
        [("[[rules]]", '[[vips]]\naddress = "192.0.2.101"\ninterface = "eth0"\n[[rules]]')],
        ['vips "192.0.2.101" is new'],
    ),
    "an interface": ([('"eth0"', '"ens3"')], ['vips "192.0.2.100".interface: "eth0" -> "ens3"']),
    "own address": (
        [('"192.0.2.11", ', '"192.0.2.21", ')],
        [
            (
                'nodes "web1".addresses: ["192.0.2.11", "198.51.100.11"] -> '
                '["192.0.2.21", "198.51.100.11"], and they are those of this node'
            )
        ],
    ),
    "the farm's name": ([('name = "shop"', 'name = "shop2"')], ['farm.name: "shop" -> "shop2"']),
    "partition": ([MAJORITY], ['farm.partition: "serve" -> "majority"']),
    "log format": ([("[[vips]]", '[log]\nformat = "json"\n[[vips]]')], ['log.format: "auto" -> "json"']),
    "filter": (
        [("[[vips]]", '[filter]\nbackend = "memory"\n[[vips]]')],
        ['filter.backend: "auto" -> "memory"'],
    ),
    "a bucket function": (
        [("[[vips]]", '[filter]\nbucket_function = "acme.farm:bucket"\n[[vips]]')],
        ['filter.bucket_function: "" -> "acme.farm:bucket"'],
    ),
    "control": ([("[[vips]]", '[control]\ngroup = "ops"\n[[vips]]')], ['control.group: "" -> "ops"']),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    changes, expected = REFUSED[name]
    result = found(tmp_path, SHOP, changed(*changes))
    assert list(result.refused) == expected
    assert result.taken == ()


def test_the_order_of_tables_and_the_spelling_change_nothing(tmp_path: Path) -> None:
    at, second = SHOP.index("[[nodes]]"), SHOP.index("[[nodes]]\nid = 2")
    turned = (
        SHOP[:at] + SHOP[second : SHOP.index("[[vips]]")] + SHOP[at:second] + SHOP[SHOP.index("[[vips]]") :]
    )
    assert found(
        tmp_path, SHOP, turned.replace('"100ms"', '"0.1s"').replace("[80, 443]", "[443, 80]")
    ) == Changes((), ())


def test_a_node_is_removed(tmp_path: Path) -> None:
    three = changed(("[[vips]]", THIRD))
    assert found(tmp_path, three, SHOP).taken == ('nodes "web3" (id 3) is removed',)
    without = three[: three.index("[[nodes]]")] + three[three.index("[[nodes]]\nid = 2") :]
    (said,) = found(tmp_path, three, without).taken
    assert said == 'nodes "web1" (id 1) is removed, which is this one: it drains and stops'


def test_with_a_majority_one_node_at_a_time(tmp_path: Path) -> None:
    whole = changed(MAJORITY)
    assert found(tmp_path, whole, changed(("[[vips]]", THIRD), text=whole)).refused == ()
    result = found(tmp_path, whole, changed(("[[vips]]", FOURTH + THIRD), text=whole))
    assert len(result.refused) == 1
    assert "2 are added or removed" in result.refused[0]
    assert found(tmp_path, SHOP, changed(("[[vips]]", FOURTH + THIRD))).refused == ()


def test_heartbeat_keys_are_rotated_and_the_hash_secret_stays(tmp_path: Path) -> None:
    both = replace(KEYS, heartbeat={**KEYS.heartbeat, 2: bytes(32)})
    assert found(tmp_path, SHOP, SHOP, both).taken == ("heartbeat key 2 in the key file is new",)
    turned = replace(both, active=2)
    assert (
        "heartbeats are signed with key 2, no longer with key 1" in found(tmp_path, SHOP, SHOP, turned).taken
    )
    other = found(tmp_path, SHOP, SHOP, replace(KEYS, heartbeat={1: bytes(32)}))
    assert other.taken == ("heartbeat key 1 in the key file is another one",)
    assert "hash secret" in found(tmp_path, SHOP, SHOP, replace(KEYS, hash_secret=bytes(32))).refused[0]
