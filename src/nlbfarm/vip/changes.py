"""The changes that a VIP needs on the host, each with its way back.

Why each of them, for a VIP that several machines hold at once, and that clients must reach by its
group MAC only:

- **ARP rewriting**, a table of the ``arp`` family for each VIP, on all ARP that the kernel sends:
  answers for the VIP carry the group MAC (on other interfaces there are none: the filter guards
  only the VIP's own); gratuitous ARP by the kernel (sysctl ``arp_notify``) carries it too; any other
  request from the VIP loses its sender and becomes a probe in the sense of RFC 5227, which everybody
  answers and from which nobody learns the node's own MAC. The frame's source stays the node's own
  MAC, so that switches learn the right port.
- **arp_announce = 2** on the interface: the kernel then asks for neighbours in the name of the node's
  own address also on behalf of connections from the VIP, as an ordinary host does. The rewriting
  above stands behind it, for interfaces and programs that do otherwise.
- **the address** as /32 of scope host, see ``Netlink.add_address``.

What needs no change: ``arp_ignore`` (the table does it for the VIP alone, not for the host's other
addresses), ``rp_filter`` (a /32 on the same interface adds no route that it could compare),
``drop_unicast_in_l2_multicast`` and the packet type (the filter sets it to *host* before the kernel
looks at either).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from nlbfarm.errors import HostError
from nlbfarm.nft import Nft, NftError
from nlbfarm.vip.journal import Entry, Kind
from nlbfarm.vip.netlink import Link, Netlink

__all__ = ["ARP_ANNOUNCE", "ARP_RULES", "Host", "arp_announce", "arp_script", "table_name", "valid_interface"]

ARP_ANNOUNCE = 2
ARP_RULES = 4
"""How many rules ``arp_script`` puts in place."""

_CONF = Path("/proc/sys/net/ipv4/conf")
_INTERFACE = re.compile(r'[^\s/"\\*:]{1,15}')


def valid_interface(name: str) -> bool:
    """Say whether a name can be that of an interface, and be written in an nft script without surprise."""
    return _INTERFACE.fullmatch(name) is not None


def table_name(address: IPv4Address) -> str:
    """Return the name of the VIP's table in the ``arp`` family."""
    return f"nlbfarm_vip_{str(address).replace('.', '_')}"


def arp_script(address: IPv4Address, interface: str, mac: str) -> str:
    """Return the nft script that puts the VIP's ARP rewriting in place, whatever was there before."""
    table = f"table arp {table_name(address)}"
    return f"""
add {table}
delete {table}
{table} {{
  chain output {{
    type filter hook output priority 0; policy accept;
    oifname != "{interface}" arp operation reply arp saddr ip {address} drop
    arp operation reply arp saddr ip {address} arp saddr ether set {mac}
    arp operation request arp saddr ip {address} arp daddr ip {address} arp saddr ether set {mac}
    arp operation request arp saddr ip {address} arp daddr ip != {address} arp saddr ip set 0.0.0.0
  }}
}}
"""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error


def arp_announce(interface: str) -> tuple[str, bool]:
    """Return the interface's own value of the sysctl, and whether it is in effect as we need it.

    The kernel takes the greater of the interface's value and that of ``all``.

    Raises:
        HostError: It cannot be read.
    """
    own = _read(_CONF / interface / "arp_announce")
    return own, max(int(own), int(_read(_CONF / "all" / "arp_announce"))) >= ARP_ANNOUNCE


class Host:
    """Makes changes and takes them back. Its methods block; use it within one thread.

    Args:
        netlink: An open connection.
        nft: libnftables; ``None`` opens it when it is needed.
    """

    def __init__(self, netlink: Netlink, nft: Nft | None = None) -> None:
        self.netlink = netlink
        self._nft = nft

    def set_sysctl(self, interface: str, name: str, value: str) -> None:
        """Set ``net.ipv4.conf.<interface>.<name>``.

        Raises:
            HostError: It was refused.
        """
        path = _CONF / interface / name
        try:
            path.write_text(f"{value}\n", encoding="ascii")
        except OSError as error:
            raise HostError(
                f"cannot set the sysctl net.ipv4.conf.{interface}.{name} to {value}: {error.strerror}; "
                f"run as root or with CAP_NET_ADMIN. In a container with a read-only /proc/sys, set it where "
                f"the container is started"
            ) from error

    def run_nft(self, script: str) -> None:
        """Run an nft script.

        Raises:
            HostError: It was refused.
        """
        if self._nft is not None:
            self._nft.run(script)
            return
        nft = Nft()
        try:
            nft.run(script)
        finally:
            nft.close()

    def undo(self, entry: Entry) -> str | None:
        """Put back one change if it is still as we left it.

        Returns:
            A line for an administrator; ``None`` if it was not (somebody else has changed it since,
            or it was never made), and nothing was done.

        Raises:
            HostError: The host refused.
        """
        match entry.kind:
            case Kind.SYSCTL:
                return self._undo_sysctl(entry, self.netlink.links())
            case Kind.TABLE:
                return self._undo_table(entry)
            case Kind.ADDRESS:
                return self._undo_address(entry)

    def _undo_sysctl(self, entry: Entry, links: Mapping[str, Link]) -> str | None:
        # By index: the interface may have another name by now.
        name = next((link.name for link in links.values() if link.index == entry.index), None)
        if name is None or _read(_CONF / name / entry.name) != entry.new:
            return None
        self.set_sysctl(name, entry.name, entry.old)
        return f"set net.ipv4.conf.{name}.{entry.name} from {entry.new} back to {entry.old}"

    def _undo_table(self, entry: Entry) -> str | None:
        try:
            self.run_nft(f"delete table arp {entry.name}")
        except NftError as error:
            if "No such file" in str(error):
                return None
            raise
        return f"removed the nftables table arp {entry.name}"

    def _undo_address(self, entry: Entry) -> str | None:
        address = IPv4Interface(entry.name)
        for present in self.netlink.addresses():
            if (present.index, present.interface) == (entry.index, address) and present.added_by_us:
                self.netlink.delete_address(entry.index, address.ip)
                return f"removed {entry.name} from {entry.interface}"
        return None
