"""The binding to libnftables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.netns.vip_support import Machine, Network, inside, network

from nlbfarm.errors import HostError
from nlbfarm.nft import Nft, NftError

pytestmark = pytest.mark.netns
SCRIPT = "add table arp t; add chain arp t c { type filter hook output priority 0; }"


@pytest.fixture(scope="module")
def farm() -> Iterator[Network]:
    with network() as built:
        yield built


@pytest.fixture
def node(farm: Network) -> Machine:
    return farm.nodes[0]


@pytest.fixture
def nft(node: Machine) -> Iterator[Nft]:
    with inside(node.namespace):
        opened = Nft()
    yield opened
    opened.close()
    opened.close()


def test_a_script_is_one_transaction(nft: Nft, node: Machine) -> None:
    with pytest.raises(NftError, match="nowhere"):
        nft.run(f"{SCRIPT}; add rule arp t nowhere accept")
    assert node.run("nft", "list", "ruleset") == ""
    nft.check(SCRIPT)
    assert node.run("nft", "list", "ruleset") == ""
    nft.run(SCRIPT)
    assert "table arp t" in node.run("nft", "list", "ruleset")
    assert {"family": "arp", "name": "t"} in [
        {key: item["table"][key] for key in ("family", "name")}
        for item in nft.read("list ruleset")
        if "table" in item
    ]
    nft.run("delete table arp t")
    assert node.run("nft", "list", "ruleset") == ""


def test_closed(nft: Nft) -> None:
    nft.close()
    with pytest.raises(HostError, match="closed"):
        nft.run("list ruleset")
