"""Flows accepted here, for filters without connection tracking; every operation takes constant time.

An inbound filter sees the client's half of a conversation. A TCP flow goes through these stages:

=========== ============================================== ================== =====================
stage       begins with                                    silence that ends  afterwards
=========== ============================================== ================== =====================
``BEGUN``   a SYN                                          10 s               forgotten
``OPEN``    another packet                                 2 h 4 min          forgotten
``CLOSING`` a FIN of the client                            5 s                ``CLOSED``
``CLOSED``  an RST, or ``close``: the host said so         2 min              forgotten
=========== ============================================== ================== =====================

``CLOSED`` flows are known but do not count as there: a late packet still finds its flow, and one that shows
that the end was none (an RST that somebody made up, a client that only stopped sending) takes it back to
where it was. 2 h 4 min is the least that RFC 5382 (REQ-5) asks of whoever tracks connections.

What the server sends is not seen: where it ends a connection by an RST, or where the client has vanished, the
flow counts until the silence of its stage is over, unless the host says that it is closed.

A UDP flow has no end to see: it is over after a time of silence.

Times are noted to within ``RESOLUTION``, so a flow may be known that much longer, never shorter. Both kinds
end at the age ``lifetime``, too. When a table is full, what matters least goes first: ``CLOSED``, then
``CLOSING``, then ``BEGUN``, then ``OPEN``, of each the one that was silent longest. So a flood of SYNs
pushes out no connection.
"""

from __future__ import annotations

import enum
from collections import OrderedDict

from nlbfarm.core.buckets import BUCKETS, Bitmap, bits
from nlbfarm.core.packets import ACK, FIN, RST, SYN

__all__ = ["LIFETIME", "RESOLUTION", "TCP_IDLE", "Flow", "FlowTable", "Stage"]

RESOLUTION = 1.0
"""Seconds between two notes that a flow is alive."""

LIFETIME = 30 * 86_400.0
"""Seconds after which a flow is forgotten, however busy it is."""


class Stage(enum.IntEnum):
    """Where in its life a flow is, as far as the client's packets tell."""

    BEGUN = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3
    UDP = 4


TCP_IDLE = {Stage.BEGUN: 10.0, Stage.OPEN: 7440.0, Stage.CLOSING: 5.0, Stage.CLOSED: 120.0}
"""Seconds of silence that end each stage of a TCP flow."""

_BEGUN, _OPEN, _CLOSING, _CLOSED, _UDP = Stage  # a look-up in a module is cheaper than one in an enumeration
_EXPENDABLE = (_CLOSED, _CLOSING, _BEGUN, _OPEN)
_AT_ONCE = float("-inf")


class Flow:
    """One flow.

    Args:
        key: Addresses and ports as they stand in the packet.
        place: Index of the group times 256, plus the bucket.
        stage: Where it begins.
        now: Seconds, monotonic.

    Attributes:
        again: Until then (seconds, monotonic) no packet needs a note but one with FIN, SYN or RST.
    """

    __slots__ = ("again", "began", "closing", "key", "place", "seen", "stage")

    def __init__(self, key: bytes, place: int, stage: Stage, now: float) -> None:
        self.key = key
        self.place = place
        self.stage = stage
        self.seen = self.began = now
        self.again = now + RESOLUTION if stage is _UDP else _AT_ONCE
        self.closing = False  # its FIN was seen

    @property
    def finished(self) -> bool:
        """Whether it is a TCP flow at whose end a SYN can only begin another."""
        return self.stage is _CLOSING or self.stage is _CLOSED


class FlowTable:
    """The flows accepted here, TCP and UDP apart, and how many there are in each bucket.

    Args:
        groups: How many groups there are.
        max_flows: TCP flows remembered at most; as many UDP flows again.
        udp_idle: Seconds of silence that end a UDP flow.
        lifetime: Seconds after which a flow is forgotten, however busy.

    Attributes:
        tcp, udp: The flows by key, to look at: what is found is good before ``again``.

    Raises:
        ValueError: ``max_flows`` is below 1, or a time is not above 0.
    """

    def __init__(
        self, groups: int, *, max_flows: int = 65_536, udp_idle: float = 60.0, lifetime: float = LIFETIME
    ) -> None:
        if max_flows < 1 or not udp_idle > 0 or not lifetime > 0:
            raise ValueError(f"a table of {max_flows} flows, UDP for {udp_idle} s, all for {lifetime} s")
        self._max_flows = max_flows
        self._lifetime = lifetime
        self._over = [TCP_IDLE.get(stage, udp_idle) + RESOLUTION for stage in Stage]
        self._counts = [0] * (groups * BUCKETS)
        # By stage, in each the flow that was silent longest first.
        self._stages: list[OrderedDict[bytes, Flow]] = [OrderedDict() for _ in Stage]
        self.tcp: dict[bytes, Flow] = {}
        self.udp = self._stages[_UDP]

    def __len__(self) -> int:
        return len(self.tcp) + len(self.udp)

    def known(self, key: bytes, now: float) -> Flow | None:
        """Return a TCP flow, if there is one at ``now`` (seconds, monotonic)."""
        flow = self.tcp.get(key)
        while flow is not None and self._is_over(flow, now):
            flow = self._end(flow, now)
        return flow

    def known_udp(self, key: bytes, now: float) -> Flow | None:
        """Return a UDP flow, if there is one at ``now`` (seconds, monotonic)."""
        flow = self.udp.get(key)
        if flow is not None and self._is_over(flow, now):
            return self._end(flow, now)
        return flow

    def add(self, key: bytes, place: int, now: float) -> None:
        """Remember a TCP flow whose SYN was accepted.

        Args:
            key: Its key; ``known`` has just said that there is no such flow.
            place: Index of the group times 256, plus the bucket.
            now: Seconds, monotonic.
        """
        if len(self.tcp) >= self._max_flows:
            oldest = next(self._stages[stage] for stage in _EXPENDABLE if self._stages[stage])
            self._remove(oldest[next(iter(oldest))])
        self.tcp[key] = self._stages[_BEGUN][key] = Flow(key, place, _BEGUN, now)
        self._counts[place] += 1

    def packet(self, flow: Flow, flags: int, place: int, now: float) -> None:
        """Note a packet of a TCP flow that was accepted; a SYN after its end begins another.

        Args:
            flow: What ``known`` returned just now.
            flags: TCP flags.
            place: Index of the group times 256, plus the bucket.
            now: Seconds, monotonic.
        """
        if flags & (SYN | ACK) == SYN:
            if flow.finished:
                self._remove(flow)
                self.add(flow.key, place, now)
                return
            stage = flow.stage
        elif flags & RST:
            stage = _CLOSED
        elif flags & FIN or flow.closing:
            flow.closing = True
            stage = _CLOSING
        else:
            stage = _OPEN
        self._note(flow, stage, place, now)

    def packet_udp(self, key: bytes, place: int, now: float) -> None:
        """Note a UDP packet that was accepted.

        Args:
            key: The flow's key.
            place: Index of the group times 256, plus the bucket.
            now: Seconds, monotonic.
        """
        flow = self.known_udp(key, now)
        if flow is not None:
            flow.place, flow.seen, flow.again = place, now, now + RESOLUTION
            self.udp.move_to_end(key)
            return
        if len(self.udp) >= self._max_flows:
            self.udp.popitem(last=False)
        self.udp[key] = Flow(key, place, _UDP, now)

    def close(self, key: bytes, now: float) -> bool:
        """Take a TCP flow as closed, because the host says so; returns whether it was known."""
        flow = self.known(key, now)
        if flow is None:
            return False
        self._note(flow, _CLOSED, flow.place, now)
        return True

    def counts(self, group: int, buckets: Bitmap) -> dict[int, int]:
        """Return how many TCP flows there are in each of these buckets; those without are left out.

        Args:
            group: Index of the group.
            buckets: The buckets asked about.
        """
        first = group * BUCKETS
        found = ((bucket, self._counts[first + bucket]) for bucket in bits(buckets))
        return {bucket: count for bucket, count in found if count}

    def expire(self, now: float) -> None:
        """Forget what was silent too long at ``now`` (seconds, monotonic); the counts follow."""
        for flows in self._stages:  # CLOSING before CLOSED, where its flows go
            while flows:
                flow = flows[next(iter(flows))]
                if not self._is_over(flow, now):
                    break
                self._end(flow, now)

    def _is_over(self, flow: Flow, now: float) -> bool:
        return now - flow.seen >= self._over[flow.stage] or now - flow.began >= self._lifetime

    def _end(self, flow: Flow, now: float) -> Flow | None:
        """End the stage of a flow that is over at ``now``; returns it if it has another."""
        if flow.stage is _CLOSING and now - flow.began < self._lifetime:
            self._note(flow, _CLOSED, flow.place, flow.seen + TCP_IDLE[_CLOSING])
            return flow
        self._remove(flow)
        return None

    def _note(self, flow: Flow, stage: Stage, place: int, now: float) -> None:
        before = flow.stage
        if before is not _CLOSED:
            self._counts[flow.place] -= 1
        if stage is not _CLOSED:
            self._counts[place] += 1
        if before is stage:
            self._stages[stage].move_to_end(flow.key)
        else:
            del self._stages[before][flow.key]
            self._stages[stage][flow.key] = flow
            flow.stage = stage
        flow.place = place
        flow.seen = now
        flow.again = now + RESOLUTION if stage is _OPEN or stage is _CLOSING else _AT_ONCE

    def _remove(self, flow: Flow) -> None:
        del self._stages[flow.stage][flow.key]
        if flow.stage is not _UDP:
            del self.tcp[flow.key]
            if flow.stage is not _CLOSED:
                self._counts[flow.place] -= 1
