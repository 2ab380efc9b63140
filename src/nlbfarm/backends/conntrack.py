"""The established TCP flows of this farm, asked of the kernel's connection tracking over netlink.

A flow is ours if it carries our label (``marks.LABEL_BIT``), which the packet path gives to a connection when
it accepts the first packet. The label is part of the tracked connection, not of our table: it is still there
when the table was replaced, or removed and made again.

Source: ``linux/netfilter/nfnetlink_conntrack.h``, ``linux/netfilter/nf_conntrack_tcp.h`` and, for what a dump
can be narrowed to, ``ctnetlink_alloc_filter`` in ``net/netfilter/nf_conntrack_netlink.c`` (Linux 5.8 and
later; earlier kernels do not look at the filter and tell everything).
"""

from __future__ import annotations

import enum
import errno
import itertools
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from nlbfarm.backends.marks import LABEL_BIT
from nlbfarm.backends.netlink import NETLINK_NETFILTER, attribute, message, messages
from nlbfarm.core.hashing import bucket_of, flow_key
from nlbfarm.core.policy import Affinity, FilterPolicy, Mode, Protocol
from nlbfarm.errors import HostError

__all__ = ["Conntrack", "Flow", "Life", "Services", "obstacle"]

_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET = _SUBSYSTEM << 8 | 0, _SUBSYSTEM << 8 | 1  # IPCTNL_MSG_CT_*
_REQUEST, _DUMP = 0x1, 0x300  # NLM_F_*
_ERROR, _DONE = 2, 3  # NLMSG_*
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_GENERIC_SIZE = 4  # struct nfgenmsg
_TUPLE_ORIG, _PROTOINFO, _ZONE, _LABELS, _FILTER = 1, 4, 18, 22, 25  # CTA_*
_TUPLE_IP, _TUPLE_PROTO = 1, 2  # CTA_TUPLE_*
_SOURCE, _DESTINATION = (
    {4: 1, 6: 3},
    {4: 2, 6: 4},
)  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; CTA_IP_V4_DST, CTA_IP_V6_DST
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3  # CTA_PROTO_*
_FILTER_ORIG_FLAGS = 1  # CTA_FILTER_ORIG_FLAGS
_BY_DESTINATION, _BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 1, 1 << 3, 1 << 5  # CTA_FILTER_F_CTA_*
_PROTOINFO_TCP, _TCP_STATE = 1, 1  # CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
_HALF_OPEN = frozenset({1, 2, 9})  # TCP_CONNTRACK_SYN_SENT, _SYN_RECV, _SYN_SENT2
_OPEN = frozenset({3, 4, 5, 6})  # TCP_CONNTRACK_ESTABLISHED, _FIN_WAIT, _CLOSE_WAIT, _LAST_ACK
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_TIMEOUT_S = 5.0
_PART = 1 << 14  # the kernel cuts a dump into parts that fit: some 60 connections


class _RefusedError(HostError):
    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(
            {
                errno.EPERM: "connections may not be read: it needs root or the capability CAP_NET_ADMIN",
                # What nfnetlink answers where it has no such subsystem.
                errno.EINVAL: "this kernel cannot tell its connections: it lacks CONFIG_NF_CT_NETLINK",
            }.get(number, f"connection tracking: {os.strerror(number)}")
        )


class Life(enum.Enum):
    """How far a connection is."""

    HALF_OPEN = "half open"
    """It has begun; the client has not yet answered."""
    OPEN = "open"
    OVER = "over"
    """It is closed, and at most remembered; or it is none of ours."""


class Flow(NamedTuple):
    """A flow of ours, not over, as it was seen in the kernel.

    Args:
        group: Name of its group.
        bucket: Its bucket.
        question: What to look it up by again: the address family, and the attributes of the request. Bytes,
            because the garbage collector does not walk through 50,000 of them with the event loop waiting.
        half_open: It has begun and is not established yet.
    """

    group: str
    bucket: int
    question: bytes
    half_open: bool


@dataclass(frozen=True, slots=True)
class _Service:
    group: str
    affinity: Affinity
    seed: int


class Services:
    """Which group and bucket a connection belongs to, by what connection tracking knows of it.

    Args:
        policy: What the filter enforces.
    """

    def __init__(self, policy: FilterPolicy) -> None:
        self._services: dict[int, dict[tuple[bytes, bytes], _Service]] = {}
        for rule in policy.rules:
            group = policy.group(rule.group)
            if rule.protocol is not Protocol.TCP or group.mode is Mode.BLOCKED:
                continue
            of_version = self._services.setdefault(rule.vip.version, {})
            for port in rule.ports:
                service = _Service(group.name, rule.affinity, group.seed)
                of_version[rule.vip.packed, port.to_bytes(2, "big")] = service

    def filters(self) -> Iterator[tuple[int, bytes]]:
        """Yield, for each IP version in use, a dump's filter: what all connections to the services share.

        One dump a version, whatever the number of services: each dump walks the host's whole table. The
        address of IPv6 is left out: the kernel (seen in 6.18) has its comparison the wrong way round.
        """
        for version, services in self._services.items():
            addresses, ports = (set(keys) for keys in zip(*services, strict=True))
            flags = _BY_PROTOCOL
            protocol = attribute(_NUMBER, bytes([Protocol.TCP]))
            place = b""
            if version == 4 and len(addresses) == 1:
                flags |= _BY_DESTINATION
                place = attribute(_TUPLE_IP | _NESTED, attribute(_DESTINATION[version], addresses.pop()))
            if len(ports) == 1:
                flags |= _BY_DESTINATION_PORT
                protocol += attribute(_DESTINATION_PORT, ports.pop())
            common = place + attribute(_TUPLE_PROTO | _NESTED, protocol)
            chosen = attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", flags))
            yield version, attribute(_TUPLE_ORIG | _NESTED, common) + attribute(_FILTER | _NESTED, chosen)

    def flow(self, version: int, entry: Mapping[int, bytes]) -> Flow | None:
        """Return the flow that these attributes of a tracked connection describe, if it is not over."""
        life = _life(entry)
        if life is Life.OVER:
            return None
        origin = _table(entry[_TUPLE_ORIG])
        place, protocol = _table(origin[_TUPLE_IP]), _table(origin[_TUPLE_PROTO])
        if protocol.get(_NUMBER) != b"\x06":
            return None
        source, destination = place.get(_SOURCE[version]), place.get(_DESTINATION[version])
        if source is None or destination is None:
            return None
        service = self._services[version].get((destination, protocol.get(_DESTINATION_PORT, b"")))
        if service is None:
            return None
        port = int.from_bytes(protocol[_SOURCE_PORT], "big")
        bucket = bucket_of(flow_key(service.affinity, ip_address(source), port), service.seed)
        question = bytes([_FAMILIES[version]]) + attribute(_TUPLE_ORIG | _NESTED, entry[_TUPLE_ORIG])
        if _ZONE in entry:
            question += attribute(_ZONE, entry[_ZONE])
        return Flow(service.group, bucket, question, life is Life.HALF_OPEN)


class Conntrack:
    """A socket to connection tracking; use it as a context. Its calls block: for a worker thread.

    Args:
        services: What belongs to the farm.

    Raises:
        HostError: The kernel has no netfilter netlink.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._sequence = itertools.count(1)
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
            )
        except OSError as error:
            raise HostError(f"this kernel has no netfilter netlink ({error})") from error
        self._socket.settimeout(_TIMEOUT_S)

    def __enter__(self) -> Conntrack:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def scan(self) -> Iterator[list[Flow]]:
        """Yield the flows of the farm that are not over, in parts; one may come twice, none is left out.

        Raises:
            HostError: The kernel refused, or did not answer.
        """
        for version, narrowed in self._services.filters():
            try:
                yield from self._dump(version, narrowed)
            except _RefusedError as error:
                if error.number not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                yield from self._dump(version, b"")

    def _dump(self, version: int, narrowed: bytes) -> Iterator[list[Flow]]:
        sequence = self._ask(_DUMP, _FAMILIES[version], narrowed)
        done = False
        while not done:
            found = []
            for kind, payload in self._answers(sequence):
                if kind == _DONE:
                    done = True
                elif kind == _NEW:
                    flow = self._services.flow(version, _table(payload, _GENERIC_SIZE))
                    if flow is not None:
                        found.append(flow)
            yield found

    def look_up(self, question: bytes) -> Life:
        """Say how far the flow of that question is now.

        Raises:
            HostError: The kernel refused, or did not answer.
        """
        sequence = self._ask(0, question[0], question[1:])
        while True:
            for kind, payload in self._answers(sequence, missing=True):
                return _life(_table(payload, _GENERIC_SIZE)) if kind == _NEW else Life.OVER

    def _ask(self, flags: int, family: int, question: bytes) -> int:
        sequence = next(self._sequence)
        try:
            self._socket.send(message(_GET, _REQUEST | flags, sequence, family, 0, question))
        except OSError as error:
            raise _RefusedError(error.errno or 0) from error
        return sequence

    def _answers(self, asked: int, *, missing: bool = False) -> Iterator[tuple[int, bytes]]:
        """Receive once, and yield type and payload of what answers the question number ``asked``."""
        try:
            data = self._socket.recv(_PART)
        except TimeoutError as error:
            raise HostError(f"connection tracking did not answer within {_TIMEOUT_S} s") from error
        except OSError as error:
            raise _RefusedError(error.errno or 0) from error
        for kind, _, sequence, _, payload in messages(data):
            if sequence != asked:
                continue
            if kind in (_ERROR, _DONE):
                (number,) = struct.unpack_from("=i", payload)  # struct nlmsgerr; of a dump, how it ended
                if number and not (missing and number == -errno.ENOENT):
                    raise _RefusedError(-number)
            yield kind, payload


def obstacle() -> str:
    """Return what keeps connections from being told here, as a sentence, or nothing; changes nothing."""
    nobody = FilterPolicy("", (), (), ())
    source, destination = (attribute(kind, bytes(4)) for kind in (_SOURCE[4], _DESTINATION[4]))
    protocol = attribute(_NUMBER, bytes([Protocol.TCP]))
    ports = b"".join(attribute(kind, bytes(2)) for kind in (_SOURCE_PORT, _DESTINATION_PORT))
    place = attribute(_TUPLE_IP | _NESTED, source + destination)
    origin = place + attribute(_TUPLE_PROTO | _NESTED, protocol + ports)
    try:
        with Conntrack(Services(nobody)) as conntrack:
            conntrack.look_up(bytes([_FAMILIES[4]]) + attribute(_TUPLE_ORIG | _NESTED, origin))
    except HostError as error:
        return str(error)
    return ""


def _life(entry: Mapping[int, bytes]) -> Life:
    labels = entry.get(_LABELS)
    if labels is None or not int.from_bytes(labels, sys.byteorder) >> LABEL_BIT & 1:
        return Life.OVER
    protocol = _table(entry.get(_PROTOINFO, b"")).get(_PROTOINFO_TCP)
    if protocol is None:
        return Life.OVER
    state = _table(protocol)[_TCP_STATE][0]
    if state in _OPEN:
        return Life.OPEN
    return Life.HALF_OPEN if state in _HALF_OPEN else Life.OVER


def _table(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return attributes by type; 50,000 connections have a million of them, so without a call for each."""
    found = {}
    end = len(data) - _ATTRIBUTE.size
    unpack = _ATTRIBUTE.unpack_from
    while offset <= end:
        length, kind = unpack(data, offset)
        if length < 4:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found
