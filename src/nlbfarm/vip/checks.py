"""What has to hold before a VIP is brought up: of its specification, and of the interface."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv4Address

from nlbfarm.core.group_mac import mac_bytes
from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import VipSpec
from nlbfarm.vip.changes import valid_interface
from nlbfarm.vip.netlink import Address, Link

__all__ = ["check_interface", "check_link", "check_specs", "own_address", "refuse_foreign"]


def check_specs(specs: Sequence[VipSpec]) -> dict[IPv4Address, VipSpec]:
    """Return the VIPs by address.

    Raises:
        UsageError: One is not IPv4, is there twice, or has a delivery, interface or MAC that cannot be.
    """
    checked: dict[IPv4Address, VipSpec] = {}
    for spec in specs:
        address = spec.address
        if not isinstance(address, IPv4Address):
            raise UsageError(f"virtual IP {address}: this version does not support IPv6")
        if address in checked:
            raise UsageError(f"virtual IP {address} is given twice")
        if spec.delivery != "multicast":
            raise UsageError(
                f"virtual IP {address}: this version does not support delivery {spec.delivery!r}"
            )
        if not valid_interface(spec.interface):
            raise UsageError(f"virtual IP {address}: {spec.interface!r} cannot be the name of an interface")
        mac = mac_bytes(spec.group_mac)
        if not mac[0] & 1 or mac == b"\xff" * 6:
            raise UsageError(f"virtual IP {address}: {spec.group_mac} is not a multicast MAC")
        checked[address] = spec
    return checked


def check_interface(spec: VipSpec, links: Mapping[str, Link], addresses: Sequence[Address]) -> None:
    """Make sure that a VIP can be brought up on its interface.

    Raises:
        HostError: The interface is missing, down, not Ethernet, or not on the VIP's network.
    """
    link = links.get(spec.interface)
    if link is None:
        raise HostError(
            f"interface {spec.interface} of the virtual IP {spec.address} does not exist; "
            f"this host has: {', '.join(sorted(links))}"
        )
    if not link.speaks_arp:
        raise HostError(
            f"interface {spec.interface} of the virtual IP {spec.address} does not do ARP and multicast "
            f"as Ethernet does; choose the interface that leads to the clients' network"
        )
    if not link.up:
        raise HostError(
            f"interface {spec.interface} of the virtual IP {spec.address} is down; "
            f"switch it on: ip link set {spec.interface} up"
        )
    if own_address(link, addresses, spec.address) is None:
        has = ", ".join(str(a.interface) for a in addresses if a.index == link.index) or "no address"
        raise HostError(
            f"interface {spec.interface} is not on the network of the virtual IP {spec.address}: it has "
            f"{has}; give this node an address of its own there first"
        )


def check_link(spec: VipSpec, link: Link) -> None:
    """Make sure that frames can pass a VIP's interface.

    Raises:
        HostError: It has no link.
    """
    if not link.carries:
        raise HostError(
            f"{link.name}, where clients of {spec.address} arrive, has no link: is the cable in? "
            f"(ip link show {link.name})"
        )


def own_address(link: Link | None, addresses: Sequence[Address], target: IPAddress) -> IPv4Address | None:
    """Return the host's own address on the network of ``target`` at an interface, if it has one."""
    if link is None:
        return None
    for address in addresses:
        network = address.interface.network
        # A /32 is a VIP or the like: nobody else is on its network.
        if address.index == link.index and network.prefixlen < 32 and target in network:
            return address.interface.ip
    return None


def refuse_foreign(
    vips: Collection[IPv4Address],
    ours: Collection[tuple[int, str]],
    links: Mapping[str, Link],
    addresses: Sequence[Address],
) -> None:
    """Make sure that no VIP is on this host but by us.

    Args:
        vips: The VIPs.
        ours: Index of the interface and address with prefix length, of those that the journal lists.
        links: The host's interfaces.
        addresses: The host's addresses.

    Raises:
        HostError: One is; it is not ours to remove.
    """
    for address in addresses:
        if address.interface.ip not in vips:
            continue
        if not address.added_by_us or (address.index, str(address.interface)) not in ours:
            name = next((link.name for link in links.values() if link.index == address.index), "?")
            if address.marked:
                raise HostError(
                    f"the virtual IP {address.interface.ip} is already on this host ({address.interface} on "
                    f"{name}): put there by another nlbfarm farm, or left by a killed one; see "
                    f"'nlbfarm-node status' and 'nlbfarm-node cleanup'"
                )
            raise HostError(
                f"the virtual IP {address.interface.ip} is already on this host ({address.interface} on "
                f"{name}), and not by this farm; take it out of the host's network configuration and remove "
                f"it now: ip address del {address.interface} dev {name}"
            )
