"""The requests that are made while the farm runs, straight to nf_tables over netlink.

libnftables reads whatever ruleset there is before it does anything: beside 10,000 rules and 50,000 elements
of somebody else's a change of ours took 24 ms and a reading of our counters seconds. Said in
netlink's own words they take a fraction of a millisecond, however large the host's ruleset is.

Source: ``linux/netfilter/nf_tables.h``, ``linux/netfilter/nfnetlink.h``, ``netlink(7)``.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nlbfarm.errors import HostError

__all__ = [
    "NETLINK_NETFILTER",
    "NFPROTO_INET",
    "SUBSYSTEM",
    "MapChange",
    "NetlinkError",
    "NetlinkTables",
    "ValueChange",
    "attribute",
    "attributes",
    "message",
    "messages",
]

NETLINK_NETFILTER = 12
"""The netlink protocol (``linux/netlink.h``); not in the socket module."""

SUBSYSTEM = 10
"""``NFNL_SUBSYS_NFTABLES``: the upper byte of every message's type."""

NFPROTO_INET = 1
"""Family of tables that see IPv4 and IPv6."""

_REQUEST, _ACK, _DUMP, _CREATE = 0x1, 0x4, 0x300, 0x400  # NLM_F_*
_DUMP_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
_ERROR, _DONE = 2, 3  # NLMSG_*
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # NFNL_MSG_*
_NEWTABLE, _NEWCHAIN, _NEWRULE = 0, 3, 6  # NFT_MSG_*
_NEWSETELEM, _DELSETELEM, _NEWOBJ, _GETOBJ = 12, 14, 18, 19  # NFT_MSG_*
_GOTO = 0xFFFFFFFC  # NFT_GOTO, -4
_COUNTER = 1  # NFT_OBJECT_COUNTER
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_SOL_NETLINK, _CAP_ACK, _SO_SNDBUFFORCE = 270, 10, 32
_SEND_BUFFER = 4 << 20
_TIMEOUT_S = 5.0
_INTERRUPTED_DUMPS = 20

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_GENERIC = struct.Struct("!BBH")  # struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr


class NetlinkError(HostError):
    """The kernel refused a request; nothing of it was done.

    Args:
        number: The ``errno``.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"nftables: {os.strerror(number)}")


@dataclass(frozen=True, slots=True)
class MapChange:
    """What changes in one verdict map whose keys are packet marks.

    Args:
        name: The map.
        gone: Keys to remove.
        come: Keys to add, each with the chain to go to. A key may be in both: it gets another chain.
    """

    name: str
    gone: Sequence[int] = ()
    come: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ValueChange:
    """A new value for a key that is in a map of marks.

    Args:
        name: The map.
        key: The key, as it stands in a register.
        mark: Its new value.
    """

    name: str
    key: bytes
    mark: int


class NetlinkTables:
    """A socket to nf_tables. Its calls block for as long as the kernel takes: for a worker thread.

    Raises:
        HostError: The kernel has no netfilter netlink.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
            )
        except OSError as error:
            raise HostError(
                f"this kernel has no netfilter netlink ({error}): "
                "nftables needs CONFIG_NETFILTER_NETLINK and CONFIG_NF_TABLES"
            ) from error
        self._socket.bind((0, 0))
        # A batch is sent whole: sixteen groups that change in every bucket are some 300 kB.
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        except PermissionError:  # in a user namespace: as much as there is, at least 400 kB by default
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # no copy of the request in the answer
        self._socket.settimeout(_TIMEOUT_S)
        self._sequence = itertools.count(1)
        self.port_id: int = self._socket.getsockname()[0]
        """By which notifications name who changed something."""

    def change(self, table: str, changes: Sequence[MapChange], values: Sequence[ValueChange] = ()) -> None:
        """Change maps of ``table`` (family ``inet``) in one transaction.

        Raises:
            NetlinkError: It was refused; nothing was changed.
            HostError: The kernel did not answer.
        """
        requests = []
        for change in changes:
            if change.gone:
                keys = [_key(key) for key in change.gone]
                requests.append((_DELSETELEM, 0, _elements(table, change.name, keys)))
            if change.come:
                pairs = [_key(key) + _goto(chain) for key, chain in change.come.items()]
                requests.append((_NEWSETELEM, _CREATE, _elements(table, change.name, pairs)))
        for value in values:
            key = attribute(1 | _NESTED, attribute(1, value.key))
            pair = key + attribute(2 | _NESTED, attribute(1, struct.pack("=I", value.mark)))
            requests.append((_DELSETELEM, 0, _elements(table, value.name, [key])))
            requests.append((_NEWSETELEM, _CREATE, _elements(table, value.name, [pair])))
        if requests:
            self._transaction(NFPROTO_INET, requests)

    def insert_rule(self, family: int, rule: bytes) -> None:
        """Put a rule in front of its chain.

        Args:
            family: Of its table, ``NFPROTO_*``.
            rule: The attributes of ``NFT_MSG_NEWRULE``.

        Raises:
            NetlinkError: It was refused; nothing was changed.
            HostError: The kernel did not answer.
        """
        self._transaction(family, [(_NEWRULE, _CREATE, rule)])

    def check_rule(self, family: int, table: str, chain: str, rule: bytes) -> None:
        """Let the kernel look a rule over, in a table and chain that are not there; changes nothing.

        Raises:
            NetlinkError: It would be refused.
            HostError: The kernel did not answer.
        """
        place = _string(1, table)  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE; NFTA_CHAIN_NAME is 3
        requests = [
            (_NEWTABLE, _CREATE, place),
            (_NEWCHAIN, _CREATE, place + _string(3, chain)),
            (_NEWRULE, _CREATE, rule),
        ]
        self._transaction(family, requests, commit=False)

    def _transaction(
        self, family: int, requests: Sequence[tuple[int, int, bytes]], *, commit: bool = True
    ) -> None:
        batch = [message(_BATCH_BEGIN, _REQUEST, next(self._sequence), 0, SUBSYSTEM)]
        waiting = set()
        for verb, flags, payload in requests:
            sequence = next(self._sequence)
            waiting.add(sequence)
            kind = SUBSYSTEM << 8 | verb
            batch.append(message(kind, _REQUEST | _ACK | flags, sequence, family, 0, payload))
        end = message(_BATCH_END, _REQUEST, next(self._sequence), 0, SUBSYSTEM)
        if commit:  # without an end the kernel takes it all back
            batch.append(end)
        # What refuses the batch as a whole (a missing right) is said of its first message.
        first, last = min(waiting) - 1, max(waiting) + 1
        self._send(b"".join(batch))
        while waiting:
            for kind, _, sequence, payload in self._receive():
                if kind == _ERROR and first <= sequence <= last:
                    _raise_if_refused(payload)
                    waiting.discard(sequence)

    def counters(self, table: str) -> dict[str, int]:
        """Return the packets of every counter object of ``table``; none if there is no such table.

        Raises:
            NetlinkError: It was refused.
            HostError: The kernel did not answer, or the ruleset changed all the time.
        """
        question = _string(1, table) + attribute(3, struct.pack("!I", _COUNTER))  # NFTA_OBJ_TABLE, _TYPE
        for _ in range(_INTERRUPTED_DUMPS):
            mine = next(self._sequence)
            kind = SUBSYSTEM << 8 | _GETOBJ
            self._send(message(kind, _REQUEST | _DUMP, mine, NFPROTO_INET, 0, question))
            found: dict[str, int] = {}
            done = interrupted = False
            while not done:
                for kind, flags, sequence, payload in self._receive():
                    if sequence != mine:
                        continue
                    interrupted |= bool(flags & _DUMP_INTERRUPTED)
                    if kind == _ERROR:
                        _raise_if_refused(payload)
                    elif kind == _DONE:
                        done = True
                    elif kind == SUBSYSTEM << 8 | _NEWOBJ:
                        name, packets = _counter(payload)
                        found[name] = packets
            if not interrupted:
                return found
        raise HostError("the nftables counters cannot be read: the ruleset changes all the time")

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._socket.close()

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise NetlinkError(error.errno or 0) from error

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError as error:
            raise HostError(f"the kernel did not answer an nftables request within {_TIMEOUT_S} s") from error
        except OSError as error:
            raise NetlinkError(error.errno or 0) from error
        for kind, flags, sequence, _, payload in messages(data):
            yield kind, flags, sequence, payload


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yield ``(type, flags, sequence, port id, payload)`` of every netlink message in a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, port_id = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, port_id, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield ``(type, value)`` of every attribute, flags of the type removed."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def message(kind: int, flags: int, sequence: int, family: int, resource: int, payload: bytes = b"") -> bytes:
    """Return a netfilter message: ``nlmsghdr``, ``nfgenmsg`` of ``family`` and ``resource``, attributes."""
    body = _GENERIC.pack(family, 0, resource) + payload
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded; ``kind`` with its flags."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _string(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _elements(table: str, name: str, items: Sequence[bytes]) -> bytes:
    # NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS; each element is an NFTA_LIST_ELEM
    listed = b"".join(attribute(1 | _NESTED, item) for item in items)
    return _string(1, table) + _string(2, name) + attribute(3 | _NESTED, listed)


def _key(mark: int) -> bytes:
    # NFTA_SET_ELEM_KEY of NFTA_DATA_VALUE; a mark stands in its register in the host's byte order
    return attribute(1 | _NESTED, attribute(1, struct.pack("=I", mark)))


def _goto(chain: str) -> bytes:
    # NFTA_SET_ELEM_DATA of NFTA_DATA_VERDICT of NFTA_VERDICT_CODE and _CHAIN
    verdict = attribute(1, struct.pack("!I", _GOTO)) + _string(2, chain)
    return attribute(2 | _NESTED, attribute(2 | _NESTED, verdict))


def _raise_if_refused(payload: bytes) -> None:
    (number,) = struct.unpack_from("=i", payload)  # struct nlmsgerr
    if number:
        raise NetlinkError(-number)


def _counter(payload: bytes) -> tuple[str, int]:
    parts = dict(attributes(payload[_GENERIC.size :]))
    data = dict(attributes(parts[4]))  # NFTA_OBJ_DATA; NFTA_COUNTER_PACKETS is 2
    return parts[2].rstrip(b"\0").decode(), struct.unpack("!Q", data[2])[0]
