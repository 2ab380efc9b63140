"""The check: the corpus through a filter, and every verdict beside the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Protocol

from nlbfarm.core.buckets import BucketStates
from nlbfarm.interfaces import FilterBackend
from nlbfarm.testing.conformance import wire
from nlbfarm.testing.conformance.bench import Bench, has_vlan
from nlbfarm.testing.conformance.corpus import make_corpus
from nlbfarm.testing.conformance.packet import Corpus, Packet, Phase
from nlbfarm.testing.conformance.report import Difference, Outcome, Report
from nlbfarm.testing.conformance.run import Run, Seen, lease_ends, open_host

__all__ = ["PacketProbe", "check_filter_backend"]


class PacketProbe(Protocol):
    """Brings packets before a filter that has no wire; written by who tests such a filter."""

    async def offer(self, packet: Packet) -> bool:
        """Show one packet to the filter, and say whether it let it through.

        Args:
            packet: The packet: ``data`` are its bytes, ``facts`` what they mean. Whether a flow is
                established here the filter has to know by itself.
        """


async def check_filter_backend(
    make: Callable[[], FilterBackend],
    *,
    packets: int = 20_000,
    seed: int = 1,
    families: Collection[int] = (4, 6),
    probe: Callable[[FilterBackend], PacketProbe] | None = None,
    whole: bool = True,
    repairs_checksums: bool = False,
    apart: Mapping[str, str] | None = None,
    only: Collection[int] = (),
) -> Report:
    """Send the corpus through a filter, and compare every verdict with that of ``nlbfarm.core.decision``.

    It makes a node and its wires in network namespaces of its own, and sends real packets. ``make`` and
    everything else of the backend is called with the calling thread inside the node's namespace.

    Args:
        make: Makes a new backend, not open; it is closed in the end.
        packets: How many packets there shall be.
        seed: What the packets are made from.
        families: IP versions, of 4 and 6.
        probe: Shows packets to a filter that has no wire. Nothing of the host is touched then.
        whole: With ``probe``: whether the filter is shown fragmented datagrams in one piece.
        repairs_checksums: Whether the filter may put a wrong checksum right on its way through, which is
            counted apart then. (A stack whose hardware checks them may; on a wire it hides damage.)
        apart: Categories whose differences are counted apart, each with the reason, which the report tells:
            what an engine never gets to see.
        only: Indices of packets: nothing else is sent but the conversations and datagrams they belong to.

    Returns:
        The counts; printed, a table.

    Raises:
        DifferenceError: A verdict differs (an ``AssertionError``). It names the packets, with a dump, and how
            to send them again.
        AssertionError: The filter takes no lease, or is closed to what it owns.
        HostError: The host lacks something, or the filter could not be opened.
    """
    corpus = make_corpus(seed, packets, families, vlan=probe is None and has_vlan())
    if only:
        corpus = corpus.only(only)
    if probe is not None:
        backend = make()
        seen = await _shown(backend, probe(backend), corpus, whole=whole)
    else:
        with_filter = Bench(corpus.policy)
        try:
            with with_filter.inside():
                backend = make()
                seen = await Run(backend, corpus, with_filter).go()
        finally:
            with_filter.close()
        bare = Bench(corpus.policy, listening=False)
        try:
            seen.bare = await open_host(corpus, bare, seen.whole)
        finally:
            bare.close()
    report = _compare(
        getattr(backend, "name", type(backend).__name__), corpus, seen, repairs_checksums, apart or {}
    )
    report.packets, report.families = packets, tuple(sorted(families))
    report.require()
    return report


async def _shown(backend: FilterBackend, probe: PacketProbe, corpus: Corpus, *, whole: bool) -> Seen:
    seen = Seen(dict.fromkeys(sorted({packet.version for packet in corpus.packets()}), whole), bare=set())
    assert seen.bare is not None
    tried: set[int] = set()
    await backend.open(corpus.policy, lambda _: None)
    try:
        for phase in corpus.phases:
            await backend.apply(phase.states)
            if not phase.lease:
                await lease_ends(backend)
            for packet in phase.packets():
                datagram = corpus.datagrams[packet.datagram] if packet.datagram is not None else None
                if phase.lease:
                    backend.lease(1.0)
                if not whole or datagram is None:
                    seen.bare.add(packet.index)
                    if await probe.offer(packet):
                        seen.passed.add(packet.index)
                elif datagram.data is not None:
                    seen.bare.add(packet.index)
                    if datagram.number in tried:
                        continue
                    tried.add(datagram.number)
                    if await probe.offer(replace(packet, data=datagram.data, facts=datagram.facts)):
                        seen.datagrams.add(datagram.number)
    finally:
        await backend.close()
    return seen


def _compare(
    name: str, corpus: Corpus, seen: Seen, repairs_checksums: bool, apart: Mapping[str, str]
) -> Report:
    report = Report(
        name,
        corpus.seed,
        len(corpus),
        (),
        seen.whole,
        untried=corpus.untried,
        resent=seen.resent,
        apart=apart,
    )
    for phase in corpus.phases:
        for packet in phase.packets():
            decision = corpus.decision(phase, packet, whole=seen.whole[packet.version])
            passed = packet.index in seen.passed or packet.datagram in seen.datagrams
            outcome = report.outcomes.setdefault((packet.category, packet.version), Outcome())
            data = seen.data.get(packet.index, packet.data)
            changed = seen.changed.get(packet.index)
            if (
                repairs_checksums
                and changed is not None
                and wire.without_checksums(changed) == wire.without_checksums(data)
            ):
                report.repaired += 1
                changed = None
            by_host = seen.bare is not None and packet.index not in seen.bare
            if by_host and (not passed or (decision.accepted and changed is None)):
                outcome.host += 1
                continue
            same = passed == decision.accepted and changed is None and packet.index not in seen.repeated
            if not same and packet.category in apart:
                outcome.apart += 1
                continue
            report.reasons[str(decision.reason), phase.lease, passed] += 1
            if same:
                outcome.accepted += passed
                outcome.dropped += not passed
                continue
            said = "accepted it" if passed else "dropped it"
            if changed is not None:
                said += f", but changed it to {changed.hex(' ')}"
            elif packet.index in seen.repeated:
                said += " more than once"
            outcome.different += 1
            state = _state(phase, decision.group, decision.bucket)
            report.differences.append(
                Difference(packet, data, phase.number, phase.lease, decision, said, state)
            )
    return report


def _state(phase: Phase, group: str | None, bucket: int | None) -> str:
    if group is None or bucket is None:
        return ""
    return phase.states.get(group, BucketStates()).state(bucket).name
