"""``[[vips]]``: the virtual addresses, and how their packets reach the nodes."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv6Address
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from nlbfarm.config.types import GroupMac, InterfaceName, Section, choice, unsupported, written
from nlbfarm.config.types import unicast as parse_unicast
from nlbfarm.core.group_mac import group_mac
from nlbfarm.core.policy import IPAddress

__all__ = ["Delivery", "Uncovered", "Vip"]


class Delivery(StrEnum):
    """How packets for the VIP reach the nodes."""

    MULTICAST = "multicast"


class Uncovered(StrEnum):
    """What happens to packets to the VIP that no rule covers."""

    DROP = "drop"
    ACCEPT = "accept"


def _vip(value: object) -> IPAddress:
    address = parse_unicast(value)
    if isinstance(address, IPv6Address):
        raise unsupported(f"an IPv6 VIP ({address})")
    if address.is_loopback:
        raise ValueError(f'"{address}" is a loopback address; clients cannot reach it')
    return address


class Vip(Section):
    """One ``[[vips]]`` entry.

    Attributes:
        address: The virtual address.
        interface: Interface that its packets arrive on; its name may differ from host to host.
        delivery: How packets reach the nodes.
        mac: The multicast MAC that clients send to; by default made from the address.
        uncovered: What happens to packets that no rule covers.
    """

    address: Annotated[
        IPAddress, BeforeValidator(_vip), PlainSerializer(str, return_type=str), written(format="ipv4")
    ]
    interface: InterfaceName
    delivery: Annotated[Delivery, choice(Delivery, later=("directed", "tunnel", "vmac", "external"))] = (
        Delivery.MULTICAST
    )
    mac: GroupMac | None = None
    uncovered: Annotated[Uncovered, choice(Uncovered)] = Uncovered.DROP

    @property
    def group_mac(self) -> str:
        """The multicast MAC that clients send to, given or made from the address."""
        return self.mac or group_mac(self.address)
