"""The binding to libnftables that the VIP manager uses."""

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
    with pytest.raises(NftError, match="nftables refused a change") as caught:
        nft.run(f"{SCRIPT}; add rule arp t nowhere accept")
    assert "nowhere" in caught.value.detail
    assert node.run("nft", "list", "ruleset") == ""
    nft.run(SCRIPT, dry_run=True)
    assert node.run("nft", "list", "ruleset") == ""
    nft.run(SCRIPT)
    assert "table arp t" in node.run("nft", "list", "ruleset")
    assert "table arp t" in nft.run("list ruleset")
    assert '"name": "t"' in nft.run("list ruleset", json=True)
    nft.run("delete table arp t")
    assert nft.run("list ruleset") == ""


def test_counters_are_left_out_on_request(nft: Nft) -> None:
    nft.run(f"{SCRIPT}; add rule arp t c counter")
    assert "counter packets 0 bytes 0" in nft.run("list ruleset")
    assert "packets" not in nft.run("list ruleset", stateless=True)
    nft.run("delete table arp t")


def test_closed(nft: Nft) -> None:
    nft.close()
    with pytest.raises(HostError, match="closed"):
        nft.run("list ruleset")
