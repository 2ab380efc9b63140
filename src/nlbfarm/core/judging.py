"""The judge: ``nlbfarm.core.decision.decide`` for raw packets, at the speed of a packet path.

Verdicts are the oracle's, bit for bit. An ordinary packet (TCP or UDP, no IP options, no extension headers,
no fragment) is judged from its bytes by a few look-ups: its addresses and ports lead to its place (a bucket
of a group: ``nlbfarm.core.places``), the place to its state. Places found once are kept in a bounded cache,
so that the hash is computed once a flow, not once a packet. Every other packet takes the longer way through
``nlbfarm.core.packets``.

UDP and ICMP echo requests switch at once when a bucket moves: ``ADOPT`` is ``OWN``, ``DRAIN`` is
``FOREIGN``. That a UDP flow is established here (until it has been silent for ``udp_idle``) is remembered
and counts nowhere in a verdict.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping

from nlbfarm.core.buckets import BUCKETS, Bitmap, BucketState, BucketStates, bits
from nlbfarm.core.counters import FilterCounters
from nlbfarm.core.decision import Decision, IcmpKind, PacketFacts, Reason, Verdict
from nlbfarm.core.flowtable import Flow, FlowTable
from nlbfarm.core.fragments import FragmentTable
from nlbfarm.core.packets import ACK, FIN, RST, SYN, Packet, as_facts, follow, read
from nlbfarm.core.places import Arrival, Service, arrivals
from nlbfarm.core.policy import FilterPolicy, Group, IPAddress, Mode, Protocol, Rule
from nlbfarm.errors import UsageError

__all__ = ["MAX_PLACES", "BucketFunction", "Judge"]

BucketFunction = Callable[[PacketFacts, Rule, Group], int]
"""A vendor's own rule: the bucket, 0..255, of a packet that ``Rule`` covers and ``Group`` places.

It must be a pure function of its arguments and the same on all nodes. An ICMP echo request comes with the
VIP's first rule. ``established_here`` is always ``False``: it differs from node to node.
"""

MAX_PLACES = 16_384
"""Places kept in a cache, unless told otherwise."""

_TCP, _UDP = int(Protocol.TCP), int(Protocol.UDP)
_ENDS = FIN | SYN | RST

# Total length, fragment flags and offset, protocol, addresses and ports, TCP's data offset and flags; in IPv6
# payload length, next header and so on. They read as far as a TCP header goes: shorter packets are filled up.
_IPV4 = struct.Struct(">2xHxxHxB2x12s8xBB").unpack_from
_IPV6 = struct.Struct(">4xHBx36s8xBB").unpack_from
_SHORTEST, _LONGEST = 40, 60  # bytes of an IPv4 and an IPv6 packet with a TCP header
_UNKNOWN, _NOT_FILTERED = -1, -2  # in place of a place

_DRAIN, _ADOPT, _OWN = int(BucketState.DRAIN), int(BucketState.ADOPT), int(BucketState.OWN)
_BLOCKED, _NOT_NEW, _NO_LEASE = 4, 5, 6
# What a group counts; the first five are also what the state of a place can be.
_GROUP_REASONS = (
    Reason.FOREIGN,
    Reason.DRAIN,
    Reason.ADOPT,
    Reason.OWN,
    Reason.BLOCKED,
    Reason.NOT_NEW,
    Reason.NO_LEASE,
)
_COLUMNS = {reason: column for column, reason in enumerate(_GROUP_REASONS)}
_ROW = 8  # counters of a group, rounded up

# Of a state, what it means without SYN: ``DRAIN`` is ``FOREIGN``, ``ADOPT`` is ``OWN``.
_AT_ONCE = bytes((0, 0, _OWN, _OWN, *range(_BLOCKED, 256)))


class Judge:
    """Judges packets by a policy, bucket states and a lease; counts them; remembers flows.

    Everything it remembers is bounded. It begins closed: every bucket ``FOREIGN``, no lease. Not for several
    threads at a time.

    Args:
        policy: What to enforce.
        bucket: A vendor's own bucket function in place of the hash rule. If it raises, or returns anything
            but an ``int`` of 0..255, the packet is dropped as malformed and ``trouble`` says so.
        max_flows: TCP flows remembered as established here at most; as many UDP flows again.
        udp_idle: Seconds of silence that end a UDP flow.
        snap: If packets arrive cut to their first bytes (a queue's copy range), to how many: 60 or more,
            better 128. A header that is cut off is malformed.
        max_places: Places kept in a cache, one for each interface with VIPs and for TCP and UDP; when it is
            full, it starts anew.

    Raises:
        UsageError: ``snap`` is below 60.

    Attributes:
        lease_end: Packets are accepted only before (seconds, monotonic).
        trouble: What was wrong with the vendor's bucket function the first time, for a person, or empty.
    """

    def __init__(
        self,
        policy: FilterPolicy,
        *,
        bucket: BucketFunction | None = None,
        max_flows: int = 65_536,
        udp_idle: float = 60.0,
        snap: int | None = None,
        max_places: int = MAX_PLACES,
    ) -> None:
        if snap is not None and snap < _LONGEST:
            raise UsageError(f"packets cut to {snap} bytes cannot be judged: write {_LONGEST} or more")
        self.lease_end = float("-inf")
        self.trouble = ""
        self._policy = policy
        self._bucket = bucket
        self._snap = snap
        self._max_places = max_places
        self._indexes = {group.name: index for index, group in enumerate(policy.groups)}
        self._arrivals = arrivals(policy)
        self._flows = FlowTable(len(policy.groups), max_flows=max_flows, udp_idle=udp_idle)
        self._tcp_flows, self._udp_flows = self._flows.tcp, self._flows.udp
        self._fragments: FragmentTable[Packet] = FragmentTable()
        self._counts = [0] * (len(policy.groups) * _ROW)
        self._other: Counter[Reason] = Counter()
        self._tables: dict[BucketStates, bytes] = {}  # states by bucket
        self._states = self._at_once = b""  # states by place, of TCP and of the others
        self.apply({})

    def apply(self, states: Mapping[str, BucketStates]) -> None:
        """Replace the bucket states of all groups.

        Args:
            states: By group; a group left out is all ``FOREIGN``.

        Raises:
            UsageError: A group that the policy does not have; nothing was changed.
        """
        self._require(states)
        # Most groups of a farm have the states of another group, or those that they had before.
        tables: dict[BucketStates, bytes] = {}
        row = []
        for group in self._policy.groups:
            chosen = states.get(group.name, BucketStates())
            if group.mode is Mode.BLOCKED:
                row.append(bytes((_BLOCKED,)) * BUCKETS)
                continue
            if chosen not in tables:
                tables[chosen] = self._tables.get(chosen) or _table(chosen)
            row.append(tables[chosen])
        self._tables = tables
        self._states = b"".join(row)
        self._at_once = self._states.translate(_AT_ONCE)

    def judge(self, data: bytes | memoryview, interface: str, now: float) -> bool:
        """Judge a packet that arrived, count it, and remember its flow; never raises, on any bytes.

        Args:
            data: The packet from its IP header on.
            interface: Name of the interface it arrived on.
            now: Seconds, monotonic, never less than in a call before.

        Returns:
            Whether it may pass.
        """
        arrival = self._arrivals.get(interface)
        if arrival is None:
            return True
        if self._bucket is not None:
            return self._long_way(data, arrival, now)[0]
        size = len(data)
        head = data
        if size < _LONGEST and (size < _SHORTEST or data[0] != 0x45):
            head = bytes(data).ljust(_LONGEST, b"\0")
        first = head[0]
        if first == 0x45:
            total, fragment, protocol, key, offset, flags = _IPV4(head)
            room = total - 20
            if fragment & 0x3FFF:
                return self._long_way(data, arrival, now)[0]
        elif first >> 4 == 6:
            room, protocol, key, offset, flags = _IPV6(head)
            total = room + 40
        else:
            return self._long_way(data, arrival, now)[0]
        if total > size and (self._snap is None or size < self._snap):
            return self._long_way(data, arrival, now)[0]

        # TCP's data offset in bytes is four times the upper half of its byte.
        if protocol == _TCP and 20 <= offset >> 2 & 0x3C <= room:
            place = arrival.tcp.get(key, _UNKNOWN)
            if place < 0:
                place = self._place(arrival, arrival.tcp, _TCP, key)
                if place < 0:
                    return place == _NOT_FILTERED or self._long_way(data, arrival, now)[0]
            state = self._states[place]
            if 0 < state < _BLOCKED:
                if now < self.lease_end:
                    flow = self._tcp_flows.get(key)
                    if flow is None or flags & _ENDS or now >= flow.again:
                        state = self._tcp(key, flow, place, state, flags, now)
                else:
                    state = _NO_LEASE
        elif protocol == _UDP and room >= 8:
            place = arrival.udp.get(key, _UNKNOWN)
            if place < 0:
                place = self._place(arrival, arrival.udp, _UDP, key)
                if place < 0:
                    return place == _NOT_FILTERED or self._long_way(data, arrival, now)[0]
            state = self._at_once[place]
            if state == _OWN:
                if now < self.lease_end:
                    flow = self._udp_flows.get(key)
                    if flow is None or now >= flow.again:
                        self._flows.packet_udp(key, place, now)
                else:
                    state = _NO_LEASE
        else:
            return self._long_way(data, arrival, now)[0]
        self._counts[place >> 8 << 3 | state] += 1
        return 0 < state < _BLOCKED

    def decide(self, data: bytes | memoryview, interface: str, now: float) -> Decision:
        """Judge a packet as ``judge`` does, and say why; for diagnosis and tests. Arguments as there."""
        arrival = self._arrivals.get(interface)
        if arrival is None:
            return Decision(Verdict.ACCEPT, Reason.NOT_FILTERED)
        accepted, reason, place = self._long_way(data, arrival, now)
        verdict = Verdict.ACCEPT if accepted else Verdict.DROP
        if place < 0:
            return Decision(verdict, reason)
        name = self._policy.groups[place >> 8].name
        return Decision(verdict, reason, name, None if reason is Reason.BLOCKED else place & 0xFF)

    def counters(self) -> FilterCounters:
        """Return how many packets were judged, by group and reason; what is not filtered is not counted."""
        groups = {}
        for name, index in self._indexes.items():
            row = self._counts[index * _ROW : index * _ROW + len(_GROUP_REASONS)]
            groups[name] = {
                reason.value: count for reason, count in zip(_GROUP_REASONS, row, strict=True) if count
            }
        return FilterCounters(groups, {reason.value: count for reason, count in self._other.items()})

    def flows(self, buckets: Mapping[str, Bitmap]) -> dict[str, dict[int, int]]:
        """Count the TCP flows established here, as of the last ``expire``.

        Args:
            buckets: For each group the buckets that are asked about; a group left out is not.

        Returns:
            For each group asked about, by bucket; buckets without one are left out.

        Raises:
            UsageError: A group that the policy does not have.
        """
        self._require(buckets)
        return {
            name: self._flows.counts(self._indexes[name], bitmap & ((1 << BUCKETS) - 1))
            for name, bitmap in buckets.items()
        }

    def ended(self, client: IPAddress, client_port: int, vip: IPAddress, port: int, now: float) -> bool:
        """Take a TCP connection as closed, because the host says so; returns whether it was known.

        Args:
            client, client_port, vip, port: Its ends.
            now: Seconds, monotonic.
        """
        key = client.packed + vip.packed + client_port.to_bytes(2, "big") + port.to_bytes(2, "big")
        return self._flows.close(key, now)

    def expire(self, now: float) -> None:
        """Forget flows and fragments that were silent too long; call it about once a second.

        Args:
            now: Seconds, monotonic.
        """
        self._flows.expire(now)
        self._fragments.expire(now)

    def _require(self, named: Mapping[str, object]) -> None:
        if unknown := sorted(named.keys() - self._indexes.keys()):
            raise UsageError(f"no group {', '.join(unknown)} in the policy of farm {self._policy.farm}")

    def _place(self, arrival: Arrival, cache: dict[bytes, int], protocol: int, key: bytes) -> int:
        """Find the place of an ordinary packet: ``_UNKNOWN`` if no rule covers it, or ``_NOT_FILTERED``."""
        half = (len(key) - 4) // 2
        destination = arrival.destinations.get(key[half:-4])
        if destination is None:
            return _NOT_FILTERED
        service = destination.services[protocol].get(key[-2:])
        if service is None:
            return _UNKNOWN
        place = service.base if service.blocked else service.base + service.hash(key)
        if len(cache) >= self._max_places:
            cache.clear()
        cache[key] = place
        return place

    def _tcp(self, key: bytes, flow: Flow | None, place: int, state: int, flags: int, now: float) -> int:
        """Judge a TCP packet for a bucket that is not foreign, under a lease; note its flow.

        Returns:
            The state by which it was accepted, or ``_NOT_NEW``.
        """
        opens = flags & (SYN | ACK) == SYN
        if flow is not None:
            flow = self._flows.known(key, now)  # it may be over
        if state != _OWN and (flow is None or (opens and flow.finished)) and not (opens and state == _ADOPT):
            return _NOT_NEW
        if flow is not None:
            self._flows.packet(flow, flags, place, now)
        elif opens:
            self._flows.add(key, place, now)
        return state

    def _long_way(self, data: bytes | memoryview, arrival: Arrival, now: float) -> tuple[bool, Reason, int]:
        """Judge any packet in the order of the oracle; verdict, reason, and place or -1."""
        accepted, reason, place = self._decide(data, arrival, now)
        if place >= 0:
            self._counts[(place >> 8) * _ROW + _COLUMNS[reason]] += 1
        elif reason is not Reason.NOT_FILTERED:
            self._other[reason] += 1
        return accepted, reason, place

    def _decide(self, data: bytes | memoryview, arrival: Arrival, now: float) -> tuple[bool, Reason, int]:
        packet = read(data, self._snap)
        if packet is None:  # for whom it is cannot be known
            return False, Reason.MALFORMED, -1
        destination = arrival.destinations.get(packet.destination)
        if destination is None:
            return True, Reason.NOT_FILTERED, -1
        if packet.datagram is not None:
            packet = follow(packet, self._fragments, now)
        if packet.icmp is IcmpKind.NEIGHBOUR:
            return True, Reason.NOT_FILTERED, -1
        if packet.malformed:
            return False, Reason.MALFORMED, -1
        if packet.icmp is IcmpKind.ERROR:
            return self._leased(Reason.ICMP_ERROR, now)

        if packet.icmp is IcmpKind.ECHO_REQUEST:
            service = destination.first
        else:
            services = destination.services.get(packet.protocol, {})
            service = services.get(packet.destination_port.to_bytes(2, "big"))
        if service is None:
            if destination.accept_uncovered:
                return self._leased(Reason.UNCOVERED, now)
            return False, Reason.UNCOVERED, -1

        if service.blocked:
            return False, Reason.BLOCKED, service.base
        bucket = self._bucket_of(packet, service, arrival)
        if bucket < 0:
            return False, Reason.MALFORMED, -1
        place = service.base + bucket
        state = (self._states if packet.protocol == _TCP else self._at_once)[place]
        if state and now >= self.lease_end:
            state = _NO_LEASE
        elif state and packet.protocol == _TCP:
            key = _key(packet)
            flow = self._tcp_flows.get(key)
            # Noted as seldom as by ``judge``: a full table forgets the flow that was noted longest ago.
            if flow is None or packet.flags & _ENDS or now >= flow.again:
                state = self._tcp(key, flow, place, state, packet.flags, now)
        elif state and packet.protocol == _UDP:
            key = _key(packet)
            flow = self._udp_flows.get(key)
            if flow is None or now >= flow.again:
                self._flows.packet_udp(key, place, now)
        return 0 < state < _BLOCKED, _GROUP_REASONS[state], place

    def _leased(self, reason: Reason, now: float) -> tuple[bool, Reason, int]:
        return (True, reason, -1) if now < self.lease_end else (False, Reason.NO_LEASE, -1)

    def _bucket_of(self, packet: Packet, service: Service, arrival: Arrival) -> int:
        """Return the bucket of a packet, or -1 if the vendor's function does not say."""
        if self._bucket is None:
            return (service.hash if packet.icmp is None else service.echo)(_key(packet))
        try:
            bucket = self._bucket(as_facts(packet, arrival.interface), service.rule, service.group)
        except Exception as error:  # noqa: BLE001 - a plug-in's fault drops its packet, and no other
            self._complain(service.rule, f"raised {type(error).__name__}", error)
            return -1
        if type(bucket) is not int or not 0 <= bucket < BUCKETS:
            self._complain(service.rule, f"returned no int of 0..{BUCKETS - 1}", bucket)
            return -1
        return bucket

    def _complain(self, rule: Rule, what: str, thing: object) -> None:
        if self.trouble:
            return
        try:
            detail = f"{thing!s:.200}"
        except Exception:  # noqa: BLE001 - it is a stranger's object, and not even an int can always be printed
            detail = f"an object of type {type(thing).__name__}"
        told = f"the bucket function, for rule {rule.name}, {what}: {detail}"
        self.trouble = f"{told}; such packets are dropped and counted as malformed"


def _table(states: BucketStates) -> bytes:
    table = bytearray(BUCKETS)
    for state, bitmap in ((_OWN, states.own), (_ADOPT, states.adopt), (_DRAIN, states.drain)):
        for bucket in bits(bitmap):
            table[bucket] = state
    return bytes(table)


def _key(packet: Packet) -> bytes:
    ports = packet.source_port << 16 | packet.destination_port
    return packet.source + packet.destination + ports.to_bytes(4, "big")
