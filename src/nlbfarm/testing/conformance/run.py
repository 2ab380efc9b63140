"""The corpus on the wire: once through the filter, once without any."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.policy import Protocol
from nlbfarm.errors import HostError
from nlbfarm.interfaces import FilterBackend
from nlbfarm.testing.conformance import scene, wire
from nlbfarm.testing.conformance.bench import Bench
from nlbfarm.testing.conformance.packet import Corpus, Packet, Phase

__all__ = ["Run", "Seen", "lease_ends", "open_host"]

_BATCH = 64
_LEASE_S = 1.0
_RENEW_EVERY_S = 0.05
_SURE_S = 0.8
"""A batch that took longer may have met a filter whose lease had run out."""
_LAST_LEASE_S = 0.05
_LEASE_OVER_S = 0.15
_HOST_DROPS = (
    "bad IP header",
    "bad checksum of the IP header",
    "fragments below 1280 bytes",
    "fragments, first missing",
    "fragments, last missing",
    "fragments, overlapping",
    "martian source",
    "ports behind the first fragment",
    "tiny first fragment",
    "truncated packet",
)
"""What a host may drop by itself."""
_QUIET_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.02


@dataclass(slots=True)
class Seen:
    """What was seen behind a filter.

    Args:
        whole: By IP version, whether fragmented datagrams came in one piece.
        passed, datagrams: Packets, and fragmented datagrams in one piece, that passed.
        changed: Packets that passed, but not as they were.
        repeated: Packets that passed more often than they were sent.
        data: Bytes of packets that depended on what the node answered.
        bare: Packets that pass where there is no filter; ``None`` if that was not tried.
        resent: Packets sent a second time.
    """

    whole: Mapping[int, bool]
    passed: set[int] = field(default_factory=set)
    datagrams: set[int | None] = field(default_factory=set)
    changed: Mapping[int, bytes] = field(default_factory=dict)
    repeated: Collection[int] = ()
    data: dict[int, bytes] = field(default_factory=dict)
    bare: set[int] | None = None
    resent: int = 0


class Run:
    """Sends a corpus through a filter; the calling thread is in the node's namespace.

    Args:
        backend: The filter, not open.
        corpus: What to send.
        bench: Where.
    """

    def __init__(self, backend: FilterBackend, corpus: Corpus, bench: Bench) -> None:
        self._backend, self._corpus, self._bench = backend, corpus, bench
        self._damages: list[str] = []
        self._data: dict[int, bytes] = {}
        self._resent = 0

    async def go(self) -> Seen:
        """Send it all.

        Raises:
            AssertionError: The filter refuses a lease, reports damage, or is closed to what it owns.
            HostError: It could not be opened.
        """
        backend, corpus, bench = self._backend, self._corpus, self._bench
        try:
            await backend.open(corpus.policy, self._damages.append)
            whole = await self._calibrate()
            for phase in corpus.phases:
                await self._phase(phase)
        finally:
            await backend.close()
        assert not self._damages, f"backend {backend.name!r} reports damage that nobody did: {self._damages}"
        sightings = bench.sightings
        return Seen(
            whole,
            sightings.passed,
            {*sightings.whole},
            sightings.changed,
            sightings.repeated,
            self._data,
            None,
            self._resent,
        )

    async def _calibrate(self) -> dict[int, bool]:
        """Find out whether the filter sees fragmented datagrams in one piece, for each IP version."""
        bench = self._bench
        found: dict[int, bool] = {}
        await self._backend.apply({"marker": BucketStates(own=ALL)})
        async with self._leased():
            for family in sorted({vip.address.version for vip in self._corpus.policy.vips}):
                pieces = _marker_in_pieces(family)
                for piece in pieces:
                    bench.send(piece)
                await self._settle()
                sightings = bench.sightings
                found[family] = -family in sightings.whole
                assert found[family] or sightings.passed.issuperset(piece.index for piece in pieces), (
                    f"backend {self._backend.name!r} drops an IPv{family} datagram in two fragments, in "
                    "order, in a bucket that it owns"
                )
        return found

    async def _phase(self, phase: Phase) -> None:
        if not phase.lease:
            await lease_ends(self._backend)
        await self._backend.apply(phase.states)
        if phase.lease:
            async with self._leased():
                await self._rounds(phase)
        else:
            await self._rounds(phase)
            await self._quiet()
            self._bench.look()

    async def _rounds(self, phase: Phase) -> None:
        for packets in phase.rounds:
            for start in range(0, len(packets), _BATCH):
                batch = packets[start : start + _BATCH]
                began = self._renew(phase.lease)
                self._send(batch)
                await self._settle(lease=phase.lease)
                if phase.lease and time.monotonic() - began > _SURE_S:
                    await self._send_again(phase, batch)

    def _send(self, packets: Sequence[Packet]) -> None:
        for packet in packets:
            data = self._bench.send(packet)
            if packet.transport is not None:
                self._data[packet.index] = data

    async def _send_again(self, phase: Phase, batch: Sequence[Packet]) -> None:
        sightings = self._bench.sightings
        missing = [
            packet
            for packet in batch
            if packet.index not in sightings.passed
            and packet.datagram not in sightings.whole
            and self._corpus.decision(phase, packet, whole=True).accepted
        ]
        self._resent += len(missing)
        self._renew(True)
        self._send(missing)
        await self._settle()

    async def _settle(self, *, lease: bool = True) -> None:
        renew = [lambda: self._renew(True)] if lease else []
        came = await self._bench.settle(filtered=lease, renew=renew)
        what = "a UDP packet in a bucket that it owns" if lease else "a packet that is not for a VIP"
        assert came, f"backend {self._backend.name!r} did not let {what} through for seconds"

    def _renew(self, lease: bool) -> float:
        if lease and not self._backend.lease(_LEASE_S):
            raise AssertionError(f"backend {self._backend.name!r} took no lease: {self._damages}")
        return time.monotonic()

    @asynccontextmanager
    async def _leased(self) -> AsyncIterator[None]:
        async def renew() -> None:
            while True:
                self._renew(True)
                await asyncio.sleep(_RENEW_EVERY_S)

        task = asyncio.create_task(renew())
        await asyncio.sleep(0)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _quiet(self) -> None:
        """Without a lease no marker passes: wait until the filter counts no more packets."""
        until = time.monotonic() + _QUIET_WITHIN_S
        before = -1
        while time.monotonic() < until:
            counters = await self._backend.counters()
            total = sum(sum(counts.values()) for counts in (*counters.groups.values(), counters.other))
            if total == before:
                return
            before = total
            await asyncio.sleep(_LOOK_EVERY_S)


async def lease_ends(backend: FilterBackend) -> None:
    """Let the lease of a filter run out."""
    backend.lease(_LAST_LEASE_S)
    await asyncio.sleep(_LEASE_OVER_S)


async def open_host(corpus: Corpus, bench: Bench, whole: Mapping[int, bool]) -> set[int]:
    """Send the corpus to a host without a filter; return the packets that its stack did not drop.

    Args:
        corpus: What to send.
        bench: Where.
        whole: By IP version, whether the host puts fragments together before they are seen.

    Raises:
        HostError: A packet was lost that no stack drops.
    """
    bench.reassemble([family for family, together in whole.items() if together])
    for phase in corpus.phases:
        for packets in phase.rounds:
            for start in range(0, len(packets), _BATCH):
                for packet in packets[start : start + _BATCH]:
                    bench.send(packet)
                assert await bench.settle(filtered=False), "a host without a filter lost an ordinary packet"
    sightings = bench.sightings
    passed = {
        packet.index
        for packet in corpus.packets()
        if packet.index in sightings.passed or packet.datagram in sightings.whole
    }
    for packet in corpus.packets():
        if packet.index not in passed and not packet.category.startswith(_HOST_DROPS):
            raise HostError(
                f"a host without a filter dropped packet {packet.index} ({packet.category}), which it "
                "should not: was it too busy, or does something else filter here?"
            )
    return passed


def _marker_in_pieces(family: int) -> list[Packet]:
    client, vip = scene.marker_client(family, 251), scene.VIP[family]
    facts = PacketFacts("eth0", client, vip, Protocol.UDP, 999, scene.MARKER_PORT)
    payload = wire.udp(client, vip, (999, scene.MARKER_PORT), bytes(2600))
    make = wire.ipv4 if family == 4 else wire.ipv6
    data = make(client, vip, Protocol.UDP, payload, number=0xEFFF)
    index = count(-10 * family)
    return [
        Packet(next(index), "calibration", piece, facts, datagram=-family)
        for piece in wire.cut(data, [1280], number=family)
    ]
