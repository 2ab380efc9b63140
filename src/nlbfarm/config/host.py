"""What a configuration expects of this host: interfaces, networks, addresses, a sane clock."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, ip_address

import psutil

from nlbfarm.config.draft import Draft, Entry
from nlbfarm.config.root import FarmConfig
from nlbfarm.config.types import nearest
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError, Problem, UsageError

__all__ = ["Host", "host_problems", "host_warnings", "identify", "read_host"]

_OLDEST_CLOCK = 1_704_067_200
"""2024-01-01: a clock before this was never set."""


@dataclass(frozen=True)
class Interface:
    """A network interface of this host.

    Args:
        up: Whether it is up.
        networks: Its IPv4 addresses with the length of their networks.
        addresses: All its IP addresses.
    """

    up: bool
    networks: tuple[IPv4Interface, ...]
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True)
class Host:
    """What was found on this host; reading it changes nothing.

    Args:
        interfaces: Network interfaces by name.
        clock: Seconds since 1970.
    """

    interfaces: Mapping[str, Interface]
    clock: float

    @property
    def addresses(self) -> frozenset[IPAddress]:
        """Every IP address of the host."""
        return frozenset(address for interface in self.interfaces.values() for address in interface.addresses)


def read_host() -> Host:
    """Look at the network interfaces and the clock."""
    states = psutil.net_if_stats()
    interfaces: dict[str, Interface] = {}
    for name, items in psutil.net_if_addrs().items():
        networks: list[IPv4Interface] = []
        addresses: list[IPAddress] = []
        for item in items:
            if item.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            addresses.append(ip_address(item.address.split("%")[0]))
            if item.family == socket.AF_INET and item.netmask:
                networks.append(IPv4Interface(f"{item.address}/{item.netmask}"))
        interfaces[name] = Interface(name in states and states[name].isup, tuple(networks), tuple(addresses))
    for name, state in states.items():
        interfaces.setdefault(name, Interface(state.isup, (), ()))
    return Host(interfaces, time.time())


def identify(config: FarmConfig, name: str | None, host: Host) -> int:
    """Return the id of the node that this host is.

    Args:
        config: The configuration.
        name: The node's name, if the user gave one.
        host: This host; without ``name`` the node is the one that has an address of it.

    Raises:
        UsageError: No node has this name.
        HostError: This host has the addresses of no node, or of several.
    """
    if name is not None:
        for node in config.nodes:
            if node.name == name:
                return node.id
        known = [node.name for node in config.nodes]
        raise UsageError(f'no node is called "{name}"{nearest(name, known)} (there: {", ".join(known)})')
    mine = [node for node in config.nodes if host.addresses & set(node.addresses)]
    if len(mine) == 1:
        return mine[0].id
    listed = "; ".join(
        f"{node.name} has {', '.join(map(str, node.addresses))}" for node in (mine or config.nodes)
    )
    if mine:
        raise HostError(f"this host has addresses of several nodes ({listed}); say which with --node NAME")
    told = [one for one in host.addresses if not (one.is_loopback or one.is_link_local)]
    here = ", ".join(map(str, sorted(told, key=lambda one: (one.version, one.packed)))) or "none"
    raise HostError(
        f"this host is none of the farm's nodes: its addresses are {here}, but {listed}; "
        "correct the addresses, or say which node it is with --node NAME"
    )


def host_problems(draft: Draft, node: Entry | None, host: Host) -> Iterator[Problem]:
    """Yield what this host lacks for the configuration.

    Args:
        draft: The configuration, as far as it can be read (``as_draft`` of a whole one).
        node: The node that this host is, if that is known.
        host: This host.
    """
    for index, address in enumerate((node.get("addresses") or ()) if node else ()):
        if node is not None and address not in host.addresses:
            yield Problem(
                node.at("addresses", index),
                f"{address} is not on this host; add it, or correct the configuration",
            )
    for vip in draft.vips:
        yield from _vip_problems(vip, host)
    if host.clock < _OLDEST_CLOCK:
        yield Problem(
            "", "the clock of this host was never set; set it: nodes tell a node's earlier lives by it"
        )


def _vip_problems(vip: Entry, host: Host) -> Iterator[Problem]:
    name, address = vip.get("interface"), vip.get("address")
    if name is None:
        return
    interface = host.interfaces.get(name)
    if interface is None:
        there = sorted(host.interfaces)
        yield Problem(
            vip.at("interface"),
            f'this host has no interface "{name}"{nearest(name, there)} (there: {", ".join(there)})',
        )
        return
    if not interface.up:
        yield Problem(vip.at("interface"), f'"{name}" is down; run: ip link set {name} up')
    if not isinstance(address, IPv4Address):
        return
    networks = _networks(interface, address)
    around = [one for one in networks if address in one.network]
    if not around:
        listed = ", ".join(str(one.network) for one in networks) or "none"
        yield Problem(
            vip.at("address"),
            f"{address} is in none of the networks of {name} ({listed}); a virtual IP must be an address of "
            "the network that its clients, or their router, are on",
        )
    elif any(
        one.network.prefixlen < 31 and address in (one.network.network_address, one.network.broadcast_address)
        for one in around
    ):
        yield Problem(vip.at("address"), f"{address} is the network's own or its broadcast address")


def _networks(interface: Interface, vip: IPv4Address) -> Sequence[IPv4Interface]:
    # A VIP that a killed process left behind is there as /32, and says nothing.
    return [one for one in interface.networks if one.network.prefixlen < 32 and one.ip != vip]


def host_warnings(draft: Draft, node: Entry | None, host: Host) -> Iterator[Problem]:
    """Yield what works on this host but is probably not meant; arguments as for ``host_problems``."""
    mine = set((node.get("addresses") or ()) if node else ())
    for vip in draft.vips:
        interface = host.interfaces.get(vip.get("interface") or "")
        address = vip.get("address")
        if not mine or interface is None or not isinstance(address, IPv4Address):
            continue
        around = [one for one in _networks(interface, address) if address in one.network]
        if around and not any(peer in one.network for one in around for peer in mine):
            yield Problem(
                vip.at("address"),
                f"no heartbeat network is {around[0].network}, where the clients' packets arrive: a node "
                "that loses only that one would keep its buckets; make it one of the heartbeat networks",
            )
