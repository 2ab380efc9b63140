"""Links and IPv4 addresses of this host: pyroute2 for questions and changes, plain netlink to keep watch.

Everything of ``Netlink`` blocks (others may hold the kernel's RTNL lock for long); ``Watch`` never does.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from types import TracebackType
from typing import Any, Self

import psutil

from nlbfarm.errors import HostError

__all__ = ["Address", "Link", "Netlink", "Watch"]

OURS = 78
"""Marks addresses as added by nlbfarm: IFA_PROTO (linux/if_addr.h, since Linux 5.18)."""

_SCOPE_HOST = 254  # linux/rtnetlink.h, RT_SCOPE_HOST
_LABEL = "nlb"
_LABEL_LENGTH = 15  # linux/if.h, IFNAMSIZ without the zero
# linux/if.h
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING, _IFF_NOARP, _IFF_MULTICAST = 0x1, 0x8, 0x40, 0x80, 0x1000
_IFF_LOWER_UP = 0x10000


def _carries(flags: int) -> bool:
    """Say whether frames pass: switched on, carrier, and neither dormant (802.1X) nor under test (RFC 2863).

    Interfaces that know nothing of a carrier (dummy, loopback) have all three flags while they are on.
    """
    needed = _IFF_UP | _IFF_RUNNING | _IFF_LOWER_UP
    return flags & needed == needed


@dataclass(frozen=True, slots=True)
class Link:
    """One interface."""

    name: str
    index: int
    mac: str
    flags: int

    @property
    def up(self) -> bool:
        """Whether an administrator has switched it on."""
        return bool(self.flags & _IFF_UP)

    @property
    def carries(self) -> bool:
        """Whether it is on and has a link."""
        return _carries(self.flags)

    @property
    def speaks_arp(self) -> bool:
        """Whether it is an Ethernet-like interface with ARP and multicast."""
        return self.flags & (_IFF_LOOPBACK | _IFF_NOARP | _IFF_MULTICAST) == _IFF_MULTICAST


@dataclass(frozen=True, slots=True)
class Address:
    """One IPv4 address on an interface; ``protocol`` is its ``IFA_PROTO``, if it has one."""

    index: int
    interface: IPv4Interface
    protocol: int | None
    label: str = ""

    @property
    def marked(self) -> bool:
        """Whether nlbfarm put it there, of this farm or another: by its mark, or by its label before 5.18."""
        return self.protocol == OURS or (
            self.protocol is None and self.label.partition(":")[2] == _LABEL and self.added_by_us
        )

    @property
    def added_by_us(self) -> bool:
        """Whether it looks as we leave it: a /32 with our mark, or with none (kernels before 5.18)."""
        return self.interface.network.prefixlen == 32 and self.protocol in (None, OURS)


class Netlink:
    """A short-lived netlink connection; use it as a context manager within one thread.

    Raises:
        HostError: pyroute2 is missing.
    """

    def __init__(self) -> None:
        try:
            pyroute2: Any = importlib.import_module("pyroute2")
        except ImportError as error:
            raise HostError(
                "virtual IPs on Linux need the package pyroute2; install it with: pip install nlbfarm[linux]"
            ) from error
        self._error: type[Exception] = pyroute2.NetlinkError
        self._interrupted: type[Exception] = pyroute2.NetlinkDumpInterrupted
        self._route: Any = pyroute2.IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._route.close()

    def links(self) -> dict[str, Link]:
        """Return every interface by its name."""
        links = {}
        for message in self._dump(self._route.get_links):
            name = message.get_attr("IFLA_IFNAME")
            mac = message.get_attr("IFLA_ADDRESS") or ""
            links[name] = Link(name, message["index"], mac, message["flags"])
        return links

    def addresses(self) -> list[Address]:
        """Return every IPv4 address of the host."""
        return [
            Address(
                message["index"],
                IPv4Interface(f"{message.get_attr('IFA_LOCAL')}/{message['prefixlen']}"),
                message.get_attr("IFA_PROTO"),
                message.get_attr("IFA_LABEL") or "",
            )
            for message in self._dump(lambda: self._route.get_addr(family=socket.AF_INET))
        ]

    def _dump(self, ask: Callable[[], Any]) -> list[Any]:
        for _ in range(10):  # a dump that others changed meanwhile may have holes
            with contextlib.suppress(self._interrupted):
                return list(ask())
        raise HostError("the network configuration of this host changes too fast to be read; try again")

    def add_address(self, link: Link, address: IPv4Address) -> None:
        """Add a VIP as /32 of scope host.

        Scope host: the kernel never picks the address by itself as the source of a connection or of an
        ARP request (``inet_select_addr`` in net/ipv4/devinet.c), and programs that ask for the
        host's own addresses (name registration, monitoring) leave it alone. With /32 there is no route
        to take along, and it stays when the node's own address is deleted. The label keeps it from
        being the answer to the old question for "the" address of an interface (``SIOCGIFADDR``), which
        takes the first with the interface's own name, and addresses of scope host come first.

        Raises:
            HostError: It was refused.
        """
        with self._explained(f"cannot add {address}/32 to {link.name}"):
            label = f"{link.name}:{_LABEL}"
            extra = {"label": label} if len(label) <= _LABEL_LENGTH else {}
            self._route.addr(
                "add",
                index=link.index,
                address=str(address),
                prefixlen=32,
                scope=_SCOPE_HOST,
                proto=OURS,
                **extra,
            )

    def delete_address(self, index: int, address: IPv4Address) -> None:
        """Delete a VIP; one that is gone already is no error.

        Raises:
            HostError: It was refused.
        """
        with self._explained(f"cannot remove {address}/32", errno.EADDRNOTAVAIL, errno.ENODEV):
            self._route.addr("del", index=index, address=str(address), prefixlen=32)

    @contextlib.contextmanager
    def _explained(self, what: str, *fine: int) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            code = getattr(error, "code", 0)
            if code in fine:
                return
            if code in (errno.EPERM, errno.EACCES):
                raise HostError(f"{what}: no right; run as root or with CAP_NET_ADMIN") from error
            if code == errno.EEXIST:
                raise HostError(f"{what}: somebody else has just added it") from error
            raise HostError(f"{what}: {error}") from error


_NLMSG = struct.Struct("=IHHII")  # linux/netlink.h: length, type, flags, sequence, port
_IFADDRMSG = struct.Struct("=BBBBI")  # linux/if_addr.h: family, prefix length, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")
_IFINFOMSG = struct.Struct("=BxHiII")  # linux/rtnetlink.h: family, type, index, flags, change
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR = 0x1, 0x10
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR = 16, 17, 20, 21
_SIOCGIFFLAGS = 0x8913  # linux/sockios.h; answered under RCU alone
_IFREQ = struct.Struct("=16sh22x")
_IFA_LOCAL = 2
_NETLINK_NETFILTER = 12
_NEWRULE, _GETRULE, _DONE, _ERROR = (10 << 8) | 6, (10 << 8) | 7, 3, 2  # subsystem nf_tables is 10
_REQUEST_DUMP, _DUMP_INTERRUPTED = 0x301, 0x10
_NFPROTO_ARP = 3
_NFTA_RULE_TABLE = 1


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and body of each netlink message."""
    while len(data) >= _NLMSG.size:
        length, kind, flags, _, _ = _NLMSG.unpack_from(data)
        if length < _NLMSG.size:
            return
        yield kind, flags, data[_NLMSG.size : length]
        data = data[(length + 3) & ~3 :]


def _local_address(attributes: bytes) -> IPv4Address | None:
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _IFA_LOCAL and length == 8:
            return IPv4Address(attributes[4:8])
        attributes = attributes[max(4, (length + 3) & ~3) :]
    return None


class Watch:
    """Knows, without asking anybody who might be busy: links, addresses, and whether ARP rules are there.

    Links and addresses are followed by the kernel's notifications: a dump would wait for the RTNL lock on
    older kernels, and the event loop with it. Rules are dumped, because the kernel answers that under RCU
    alone (``nf_tables_dump_rules``), in microseconds.

    The kernel tells a lost carrier within a second (``linkwatch_schedule_work`` in net/core/link_watch.c).
    """

    def __init__(self) -> None:
        self._present: set[tuple[int, IPv4Address]] = set()
        self._carrying: set[int] = set()  # indexes of the interfaces with a link
        self._addresses = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._rules: socket.socket | None = None
        try:
            self._addresses.setblocking(False)
            self._addresses.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR))
            self._rules = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
            self._rules.setblocking(False)
            self._rules.bind((0, 0))
        except OSError:
            self.close()
            raise

    def seed(self, links: Iterable[Link], addresses: Iterable[Address]) -> None:
        """Take in dumps made after construction; what changed since is applied on top."""
        self._carrying |= {link.index for link in links if link.carries}
        self._present |= {(address.index, address.interface.ip) for address in addresses}

    def has_link(self, index: int) -> bool:
        """Say whether the interface is on and has a link, as far as the kernel has told."""
        self._catch_up()
        return index in self._carrying

    def has_address(self, index: int, address: IPv4Address) -> bool:
        """Say whether ``address`` is on the interface now."""
        self._catch_up()
        return (index, address) in self._present

    def _catch_up(self) -> None:
        """Take in what the kernel has told since the last time."""
        while True:
            try:
                data = self._addresses.recv(65536)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: more changes than the queue holds; look for ourselves, once
                self._reload()
                continue
            for kind, _, body in _messages(data):
                if kind in (_NEWADDR, _DELADDR) and len(body) >= _IFADDRMSG.size:
                    local = _local_address(body[_IFADDRMSG.size :])
                    if local is not None:
                        change = self._present.add if kind == _NEWADDR else self._present.discard
                        change((_IFADDRMSG.unpack_from(body)[4], local))
                elif kind in (_NEWLINK, _DELLINK) and len(body) >= _IFINFOMSG.size:
                    family, _, index, flags, _ = _IFINFOMSG.unpack_from(body)
                    # Bridges speak of their ports in the same group: a port that leaves one is not gone.
                    if family == socket.AF_UNSPEC:
                        carries = kind == _NEWLINK and _carries(flags)
                        (self._carrying.add if carries else self._carrying.discard)(index)

    def _reload(self) -> None:
        import fcntl  # not on Windows, where this module is imported with its package

        present, carrying = set(), set()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for label, addresses in psutil.net_if_addrs().items():
                name = label.partition(":")[0]  # an address with a label has it as name
                with contextlib.suppress(OSError):
                    index = socket.if_nametoindex(name)
                    present |= {
                        (index, IPv4Address(a.address)) for a in addresses if a.family == socket.AF_INET
                    }
                    answer = fcntl.ioctl(asking, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
                    # The old call cannot tell IFF_LOWER_UP; RUNNING follows it after a moment.
                    if _carries(_IFREQ.unpack(answer)[1] | _IFF_LOWER_UP):
                        carrying.add(index)
        self._present, self._carrying = present, carrying

    def rules(self, table: str) -> int | None:
        """Count the rules of a table of the ``arp`` family; ``None`` if the kernel gave no whole answer."""
        assert self._rules is not None
        name = table.encode() + b"\0"
        body = struct.pack("!BBH", _NFPROTO_ARP, 0, 0)
        body += _ATTRIBUTE.pack(4 + len(name), _NFTA_RULE_TABLE) + name + bytes(-len(name) % 4)
        count = 0
        try:
            self._rules.send(_NLMSG.pack(_NLMSG.size + len(body), _GETRULE, _REQUEST_DUMP, 0, 0) + body)
            while True:
                for kind, flags, _ in _messages(self._rules.recv(65536)):
                    if kind == _DONE:
                        return count
                    if kind == _ERROR:
                        return 0
                    if flags & _DUMP_INTERRUPTED:
                        self._drain()
                        return None
                    count += kind == _NEWRULE
        except OSError:
            self._drain()
            return None

    def _drain(self) -> None:
        assert self._rules is not None
        with contextlib.suppress(OSError):
            while True:
                self._rules.recv(65536)

    def close(self) -> None:
        """Close the sockets. May be called twice."""
        self._addresses.close()
        if self._rules is not None:
            self._rules.close()
