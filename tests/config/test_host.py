"""What a configuration expects of a host, on hosts that are described here."""

from __future__ import annotations

from ipaddress import IPv4Interface, ip_address
from pathlib import Path

import pytest
from tests.config_support import changed, write

from nlbfarm.config import load
from nlbfarm.config.host import Host, Interface, host_problems, host_warnings, identify, read_host
from nlbfarm.config.root import FarmConfig, as_draft
from nlbfarm.errors import HostError, UsageError

NOW = 1_800_000_000.0


def interface(*networks: str, up: bool = True) -> Interface:
    found = tuple(IPv4Interface(network) for network in networks)
    return Interface(up, found, tuple(one.ip for one in found))


def host(clock: float = NOW, **interfaces: Interface) -> Host:
    return Host({"lo": interface("127.0.0.1/8"), **interfaces}, clock)


WEB1 = host(eth0=interface("192.0.2.11/24"), eth1=interface("198.51.100.11/24"))


@pytest.fixture
def config(tmp_path: Path) -> FarmConfig:
    return load(write(tmp_path))


def found(config: FarmConfig, here: Host, node: int = 0) -> list[str]:
    draft = as_draft(config)
    return [str(problem) for problem in host_problems(draft, draft.nodes[node], here)]


def warned(config: FarmConfig, here: Host, node: int = 0) -> list[str]:
    draft = as_draft(config)
    return [str(problem) for problem in host_warnings(draft, draft.nodes[node], here)]


def test_a_host_that_fits(config: FarmConfig) -> None:
    assert found(config, WEB1) == []
    assert warned(config, WEB1) == []
    assert identify(config, None, WEB1) == 1


def test_the_vip_that_a_killed_process_left_is_no_problem(config: FarmConfig) -> None:
    here = host(eth0=interface("192.0.2.11/24", "192.0.2.100/32"), eth1=interface("198.51.100.11/24"))
    assert found(config, here) == []
    lost = host(eth0=interface("192.0.2.100/32"), eth1=interface("198.51.100.11/24", "192.0.2.11/24"))
    assert found(config, lost)[0].startswith(
        "vips[0].address: 192.0.2.100 is in none of the networks of eth0 (none)"
    )


def test_unknown_interface(config: FarmConfig) -> None:
    here = host(eth00=interface("192.0.2.11/24"), eth1=interface("198.51.100.11/24"))
    assert found(config, here) == [
        'vips[0].interface: this host has no interface "eth0"; did you mean "eth00"? (there: eth00, eth1, lo)'
    ]


def test_interface_that_is_down(config: FarmConfig) -> None:
    here = host(eth0=interface("192.0.2.11/24", up=False), eth1=interface("198.51.100.11/24"))
    assert found(config, here) == ['vips[0].interface: "eth0" is down; run: ip link set eth0 up']


def test_vip_off_the_networks_of_its_interface(config: FarmConfig) -> None:
    here = host(eth0=interface("198.51.100.11/24", "203.0.113.1/28"), eth1=interface("192.0.2.11/24"))
    assert found(config, here)[0].startswith(
        "vips[0].address: 192.0.2.100 is in none of the networks of eth0 (198.51.100.0/24, 203.0.113.0/28)"
    )


@pytest.mark.parametrize("network", ["192.0.2.11/25", "192.0.2.97/30"])
def test_vip_that_is_no_host_of_the_network(tmp_path: Path, network: str) -> None:
    vip = str(IPv4Interface(network).network.broadcast_address)
    text = changed(
        ('address = "192.0.2.100"', f'address = "{vip}"'), ('vip = "192.0.2.100"', f'vip = "{vip}"')
    )
    here = host(eth0=interface(network), eth1=interface("198.51.100.11/24", "192.0.2.11/32"))
    assert found(load(write(tmp_path, text)), here) == [
        f"vips[0].address: {vip} is the network's own or its broadcast address"
    ]


def test_addresses_of_another_node(config: FarmConfig) -> None:
    assert [line.partition(";")[0] for line in found(config, WEB1, node=1)] == [
        "nodes[1].addresses[0]: 192.0.2.12 is not on this host",
        "nodes[1].addresses[1]: 198.51.100.12 is not on this host",
    ]


def test_clock_that_was_never_set(config: FarmConfig) -> None:
    here = host(eth0=interface("192.0.2.11/24"), eth1=interface("198.51.100.11/24"), clock=1000.0)
    assert found(config, here)[0].startswith("the clock of this host was never set")


def test_vip_network_without_heartbeats_is_warned_of(tmp_path: Path) -> None:
    text = changed(('"192.0.2.11", ', ""), ('"192.0.2.12", ', ""))
    here = host(eth0=interface("192.0.2.11/24"), eth1=interface("198.51.100.11/24"))
    config = load(write(tmp_path, text))
    assert found(config, here) == []
    (warning,) = warned(config, here)
    assert warning.startswith("vips[0].address: no heartbeat network is 192.0.2.0/24")


def test_who_am_i(config: FarmConfig) -> None:
    assert identify(config, "web2", WEB1) == 2
    with pytest.raises(UsageError, match=r'no node is called "web3"; did you mean .* \(there: web1, web2\)'):
        identify(config, "web3", WEB1)
    with pytest.raises(
        HostError, match=r"its addresses are none, but web1 has 192.0.2.11, 198.51.100.11; web2"
    ):
        identify(config, None, host())
    both = host(eth0=interface("192.0.2.11/24", "192.0.2.12/24"))
    with pytest.raises(HostError, match=r"several nodes .*say which with --node NAME"):
        identify(config, None, both)


def test_this_host_can_be_read() -> None:
    here = read_host()
    assert ip_address("127.0.0.1") in here.addresses or "lo" not in here.interfaces
    assert here.clock > NOW / 2
