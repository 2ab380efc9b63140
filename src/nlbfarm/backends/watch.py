"""Who touches our table: the kernel's notifications of nftables changes, as they happen.

Every committed transaction is announced to the netlink group ``NFNLGRP_NFTABLES``, message by
message, with the port id of the socket that asked for it. What the packet path writes itself (the lease)
is not announced. Source: ``linux/netfilter/nf_tables.h`` and ``nf_tables_commit`` in ``nf_tables_api.c``.
"""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from nlbfarm.backends.netlink import NETLINK_NETFILTER, NFPROTO_INET, SUBSYSTEM, attributes, messages
from nlbfarm.errors import HostError

__all__ = ["Change", "TableWatch"]

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NFNLGRP_NFTABLES = 7
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 4 << 20  # a foreign ruleset with some 10,000 elements, loaded at once
_DATAGRAMS_A_TURN = 64

_GENERIC_SIZE = 4  # struct nfgenmsg
_NAME_OF_TABLE = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, ... are all 1
_NEWTABLE, _DELTABLE = 0, 2
_KINDS = {
    _NEWTABLE: "table added or changed",
    _DELTABLE: "table removed",
    3: "chain added",
    5: "chain removed",
    6: "rule added",
    8: "rule removed",
    9: "set added",
    11: "set removed",
    12: "element added",
    14: "element removed",
    18: "object added",
    20: "object removed",
    22: "flowtable added",
    24: "flowtable removed",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the watched table.

    Args:
        port_id: Netlink port id of who asked for it.
        kind: What happened, in words.
        created: The table was made (or its flags changed).
        removed: The table is gone.
    """

    port_id: int
    kind: str
    created: bool
    removed: bool


class TableWatch:
    """A netlink socket that hears of every change of the farm's tables.

    Args:
        table: Their name.
        families: Their families (``NFPROTO_*``).

    Raises:
        HostError: The kernel does not let us listen.
    """

    def __init__(self, table: str, families: Collection[int] = (NFPROTO_INET,)) -> None:
        self._families = frozenset(families)
        self._name = table.encode() + b"\0"
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
                NETLINK_NETFILTER,
            )
        except OSError as error:
            raise HostError(f"this kernel has no netfilter netlink ({error})") from error
        try:
            self._socket.bind((0, 0))
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            except PermissionError:  # in a user namespace; an overrun then only costs a look at the table
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        except OSError as error:
            self._socket.close()
            raise HostError(
                f"changes of nftables cannot be watched ({error}): it needs CAP_NET_ADMIN"
            ) from error

    def fileno(self) -> int:
        """Return the file descriptor, for a selector."""
        return self._socket.fileno()

    def read(self, *, everything: bool = False) -> tuple[Sequence[Change], bool]:
        """Return the changes of the table that are queued, and whether some were lost; never blocks.

        Args:
            everything: Read until nothing is queued. Otherwise it reads a bounded number of datagrams, so
                that somebody's large ruleset does not hold up the event loop; the socket stays readable.
        """
        changes: list[Change] = []
        lost = False
        for turn in itertools.count():
            if turn == _DATAGRAMS_A_TURN and not everything:
                break
            try:
                data, (sender, _) = self._socket.recvfrom(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            if sender == 0:  # the kernel; a privileged process could send to the group, too
                changes.extend(_changes(data, self._name, self._families))
        return changes, lost

    def close(self) -> None:
        """Stop listening; may be called twice."""
        self._socket.close()


def _changes(data: bytes, name: bytes, families: Collection[int]) -> Iterator[Change]:
    for kind, _, _, port_id, payload in messages(data):
        verb = kind & 0xFF
        if kind >> 8 != SUBSYSTEM or verb not in _KINDS or not payload or payload[0] not in families:
            continue
        table = next(
            (value for key, value in attributes(payload[_GENERIC_SIZE:]) if key == _NAME_OF_TABLE), b""
        )
        if table == name:
            yield Change(port_id, _KINDS[verb], verb == _NEWTABLE, verb == _DELTABLE)
