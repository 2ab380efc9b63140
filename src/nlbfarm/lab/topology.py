"""The lab's cables and addresses: a switch with two networks, nodes on both, a client on the first.

On demand there is a gateway, too: another host of the first network, which answers to ping.

====================== ============================== ==============================
who                    first network (the VIP's)      second network (heartbeats)
====================== ============================== ==============================
node *i* (from 1)      ``eth0`` 192.0.2.(10 + *i*)    ``eth1`` 198.51.100.(10 + *i*)
client                 ``eth0`` 192.0.2.201 to .204
gateway                ``eth0`` 192.0.2.1
the farm               VIP 192.0.2.100
====================== ============================== ==============================

The addresses are for documentation (RFC 5737): they belong to nobody. The network namespace of the lab's
supervisor is the switch: bridges ``br0`` and ``br1`` with a port a cable, ``web1-a`` and ``web1-b`` for
node ``web1``.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from nlbfarm.lab.world import World

__all__ = [
    "CLIENT",
    "CLIENT_ADDRESSES",
    "GATEWAY",
    "GATEWAY_ADDRESS",
    "MAX_NODES",
    "NETWORKS",
    "PROBER_ADDRESSES",
    "TALKER_ADDRESS",
    "VIP",
    "add_client",
    "add_gateway",
    "add_node",
    "add_switch",
    "mac",
    "node_addresses",
    "ports",
]

VIP = IPv4Address("192.0.2.100")
CLIENT = "client"
CLIENT_ADDRESSES = tuple(IPv4Address("192.0.2.201") + offset for offset in range(4))
TALKER_ADDRESS = CLIENT_ADDRESSES[0]
"""Where the talker's connections come from; nobody else uses its ports from 10,000 on."""

PROBER_ADDRESSES = CLIENT_ADDRESSES[1:]
"""Where the prober's connections come from; the last one holds connections."""

GATEWAY = "gateway"
GATEWAY_ADDRESS = IPv4Address("192.0.2.1")

NETWORKS = 2
MAX_NODES = 32

_BRIDGES = ("br0", "br1")
_GATEWAY_NUMBER = 0xFE


def node_addresses(number: int) -> tuple[IPv4Address, IPv4Address]:
    """Return the addresses of node ``number`` (from 1) on the two networks."""
    return IPv4Address("192.0.2.10") + number, IPv4Address("198.51.100.10") + number


def ports(node: str) -> list[str]:
    """Return the names of a host's ports on the switch."""
    return [f"{node}-a", f"{node}-b"]


def mac(number: int, network: int) -> str:
    """Return the MAC of node ``number`` (the client is 0) on a network: locally administered."""
    return f"02:00:00:00:{number:02x}:{network:02x}"


def add_switch(world: World) -> None:
    """Make the two bridges, without IGMP snooping: it would drop a unicast address in a group MAC."""
    lines = []
    for bridge in _BRIDGES:
        lines += [
            f"link add {bridge} type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
            f"link set {bridge} up",
        ]
    _batch(world, None, lines)


def add_node(world: World, node: str, number: int, *, any_port: bool) -> None:
    """Make a node's namespace and plug it in.

    Args:
        world: The lab.
        node: Its name, and its namespace's.
        number: From 1.
        any_port: Whether servers there may listen on port 80 without being root.
    """
    sysctls = ["net/ipv4/ip_unprivileged_port_start=0"] if any_port else []
    _add_host(world, node, sysctls)
    for network, (port, address) in enumerate(zip(ports(node), node_addresses(number), strict=True)):
        _plug(world, node, port, network, mac(number, network), [f"{address}/24"])


def add_client(world: World) -> None:
    """Make the client's namespace and plug it in, with all of its addresses."""
    _add_host(world, CLIENT, ["net/ipv4/ip_local_port_range=1024 9999"])
    _plug(world, CLIENT, "client-a", 0, mac(0, 0), [f"{address}/24" for address in CLIENT_ADDRESSES])


def add_gateway(world: World) -> None:
    """Make the gateway's namespace and plug it in; it forwards nothing."""
    _add_host(world, GATEWAY, [])
    _plug(world, GATEWAY, ports(GATEWAY)[0], 0, mac(_GATEWAY_NUMBER, 0), [f"{GATEWAY_ADDRESS}/24"])


def _add_host(world: World, ns: str, sysctls: list[str]) -> None:
    world.run(["ip", "netns", "add", ns])
    # What systemd's distributions set; a fresh namespace has the kernel's defaults instead.
    usual = ["net/ipv4/conf/default/rp_filter=2", "net/ipv4/conf/default/promote_secondaries=1"]
    for name, value in (entry.split("=") for entry in [*usual, *sysctls]):
        world.run(["sh", "-c", f"echo {value} >/proc/sys/{name}"], ns=ns)
    _batch(world, ns, ["link set lo up"])


def _plug(world: World, ns: str, port: str, network: int, address: str, inet: list[str]) -> None:
    inner = f"eth{network}"
    _batch(
        world,
        None,
        [
            f"link add {port} type veth peer name {inner} address {address} netns {ns}",
            f"link set {port} master {_BRIDGES[network]}",
            f"link set {port} up",
        ],
    )
    _batch(world, ns, [*(f"address add {entry} dev {inner}" for entry in inet), f"link set {inner} up"])


def _batch(world: World, ns: str | None, lines: list[str]) -> None:
    world.run(["ip", "-batch", "-"], ns=ns, stdin="\n".join(lines) + "\n")
