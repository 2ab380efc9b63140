"""The conformance check of ``FilterBackend``: what the interface promises, tried with packets.

A backend's own tests call ``check_filter_backend_contract`` with a way to make the backend and a *probe*
that brings a packet before it. The memory backend runs it on a fake clock, the nftables backend with real
packets in a network namespace; a vendor's backend can do the same.

The check tries the contract, not every packet: ``nlbfarm.testing.conformance`` sends thousands and compares
their verdicts with ``nlbfarm.core.decision.decide``.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from itertools import count

from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.decision import IcmpKind, decide
from nlbfarm.core.policy import IPAddress
from nlbfarm.interfaces import FilterBackend, FilterCounters
from nlbfarm.testing._filter_bench import ALL_OWN, FARM, Bench, PacketProbe, later
from nlbfarm.testing._filter_flows import (
    flows_of_an_earlier_process,
    flows_of_buckets_that_open_again,
    flows_that_are_left,
)

__all__ = ["FARM", "PacketProbe", "check_filter_backend_contract"]

_GROUP_COUNTERS = frozenset({"own", "adopt", "drain", "foreign", "not-new", "no-lease", "blocked"})
_OTHER_COUNTERS = frozenset({"uncovered", "icmp-error", "malformed", "no-lease", "queue-full", "lost"})

_DAMAGE_SEEN_WITHIN = 5.0
_LOOK_EVERY = 0.02


async def check_filter_backend_contract(
    make: Callable[[], FilterBackend],
    probe: Callable[[FilterBackend], PacketProbe],
    *,
    vip: IPAddress | None = None,
    interface: str = "eth0",
    damage: Callable[[FilterBackend], Awaitable[None]] | None = None,
    tolerance: float = 0.0,
    survives: bool = True,
) -> None:
    """Check that a backend keeps the contract of ``FilterBackend``.

    Args:
        make: Makes a new backend, not open. The check closes each one it makes.
        probe: Returns the probe for a backend that ``make`` returned.
        vip: The VIP that the packets are for, IPv4 or IPv6; 192.0.2.100 by default.
        interface: The interface that they arrive on.
        damage: Removes the filter as a stranger would (``nft flush ruleset``). Without it the reporting and
            repair of damage is not checked.
        tolerance: Seconds by which a lease may be seen to end late, for a kernel that counts in ticks.
        survives: Whether the filter's flows outlive ``close`` on this host. Those of a filter that remembers
            them in its own process do not.

    Raises:
        AssertionError: The contract is broken; the message names the check and what was seen.
    """
    address = vip if vip is not None else IPv4Address("192.0.2.100")
    checks = [
        _probe_is_usable,
        _closed_when_opened,
        _nothing_before_the_first_lease,
        _accepts_what_it_owns,
        _lease_ends_by_itself,
        _lease_is_replaced,
        _bucket_states_of_tcp,
        _moves_without_syn,
        _apply_replaces_everything,
        _packets_outside_every_bucket,
        _bad_calls_change_nothing,
        _calls_in_the_wrong_state,
        _close_in_any_state,
        _counters,
        flows_that_are_left,
        flows_of_buckets_that_open_again,
    ]
    if survives:
        checks.append(flows_of_an_earlier_process)
    # Ports count on through all the checks: a kernel may still know the flows of the check before.
    ports = count(20_001)
    for check in checks:
        backend = make()
        bench = Bench(backend, probe(backend), address, interface, tolerance, ports, _title(check))
        try:
            await check(bench)
        finally:
            await backend.close()
        bench.require(not bench.damages, f"it reported damage that nobody did: {bench.damages}")
    if damage is not None:
        backend = make()
        bench = Bench(
            backend, probe(backend), address, interface, tolerance, ports, _title(_damage_and_repair)
        )
        try:
            await _damage_and_repair(bench, damage)
        finally:
            await backend.close()


def _title(check: Callable[..., object]) -> str:
    return check.__name__.replace("_", " ").strip()


async def _probe_is_usable(bench: Bench) -> None:
    usability = await bench.backend.probe()
    bench.require(usability.usable, f"probe says that it cannot work here: {usability.detail}")
    bench.require(bool(usability.detail.strip()), "probe says nothing for an administrator")


async def _closed_when_opened(bench: Bench) -> None:
    await bench.open()
    packet = bench.new()
    await bench.drops(packet, "nothing was applied and there is no lease", lease=False)
    await bench.drops(packet, "every bucket is FOREIGN after open")


async def _nothing_before_the_first_lease(bench: Bench) -> None:
    await bench.open()
    await bench.backend.apply(ALL_OWN)
    for packet in (
        bench.new(),
        bench.datagram(),
        bench.icmp(IcmpKind.ECHO_REQUEST),
        bench.icmp(IcmpKind.ERROR),
    ):
        await bench.drops(packet, "there was no lease yet", lease=False)


async def _accepts_what_it_owns(bench: Bench) -> None:
    await bench.open()
    flows = [bench.new() for _ in range(6)] + [bench.new(443, host) for host in (1, 2, 3)]
    for group in ("web", "api"):
        mine = [flow for flow in flows if decide(bench.policy, {}, True, flow).group == group][::2]
        own = 0
        for flow in mine:
            own |= 1 << bench.bucket(flow)
        await bench.backend.apply({group: BucketStates(own=own)})
        for flow in flows:
            decision = decide(bench.policy, {group: BucketStates(own=own)}, True, flow)
            if decision.accepted:
                await bench.accepts(flow, f"group {group} owns bucket {decision.bucket}")
            else:
                await bench.drops(flow, f"bucket {decision.bucket} of group {decision.group} is FOREIGN")


async def _lease_ends_by_itself(bench: Bench) -> None:
    await bench.open()
    await bench.backend.apply(ALL_OWN)
    flow = bench.new()
    await bench.accepts(flow, "its bucket is OWN")
    bench.lease(0.2)
    await bench.probe.wait(0.2 + bench.tolerance)
    for packet in (bench.new(), flow, later(flow), bench.datagram(), bench.icmp(IcmpKind.ECHO_REQUEST)):
        await bench.drops(packet, "the lease has run out", lease=False)
    await bench.drops(bench.icmp(IcmpKind.ERROR), "the lease has run out", lease=False)
    await bench.backend.apply(ALL_OWN)
    await bench.drops(later(flow), "apply is no lease", lease=False)
    await bench.accepts(later(flow), "a new lease was given")


async def _lease_is_replaced(bench: Bench) -> None:
    await bench.open()
    await bench.backend.apply(ALL_OWN)
    bench.lease(1.0)
    bench.lease(0.2)
    await bench.probe.wait(0.2 + bench.tolerance)
    await bench.drops(bench.new(), "a lease of 0.2 s replaced that of 1 s", lease=False)
    for attempt in range(3):  # on a busy host a real packet may come after the end of the longer lease, too
        bench.lease(0.2)
        bench.lease(1.0)
        await bench.probe.wait(0.2 + bench.tolerance)
        if await bench.probe.offer(bench.new()):
            break
        bench.require(attempt < 2, "dropped, though a lease of 1 s replaced that of 0.2 s")
    for nothing in (0.0, -1.0):
        bench.lease(0.3)
        bench.lease(nothing)
        await bench.probe.wait(0.3 + bench.tolerance)
        await bench.drops(bench.new(), f"lease({nothing}) never lengthens a lease", lease=False)


async def _bucket_states_of_tcp(bench: Bench) -> None:
    await bench.open()
    held = bench.new()
    bit = 1 << bench.bucket(held)
    await bench.backend.apply({"web": BucketStates(own=ALL)})
    await bench.accepts(held, "its bucket is OWN")
    await bench.accepts(later(bench.new()), "OWN takes strangers too: the local stack answers them")

    await bench.backend.apply({"web": BucketStates(drain=ALL)})
    await bench.accepts(later(held), "DRAIN keeps what is established here")
    await bench.accepts(held, "a SYN sent again belongs to its flow")
    await bench.drops(bench.new(), "DRAIN takes no new flow")
    await bench.drops(later(bench.new()), "DRAIN takes nothing that is not established here")

    await bench.backend.apply({"web": BucketStates(adopt=ALL)})
    await bench.accepts(later(held), "ADOPT keeps what is established here")
    adopted = bench.new()
    await bench.accepts(adopted, "ADOPT takes new flows")
    await bench.accepts(later(adopted), "a flow taken in ADOPT is established here")
    stranger = bench.new()
    await bench.drops(later(stranger), "another node may still serve what ADOPT does not know")
    await bench.drops(
        replace(stranger, ack=True), "a SYN with ACK opens no flow, and ADOPT does not know this one"
    )

    await bench.backend.apply({"web": BucketStates(own=ALL & ~bit)})
    await bench.drops(later(held), "FOREIGN drops what was established here")
    await bench.drops(held, "FOREIGN drops a SYN sent again")


async def _moves_without_syn(bench: Bench) -> None:
    await bench.open()
    packets = (bench.datagram(), bench.icmp(IcmpKind.ECHO_REQUEST))
    for states, taken in (
        (BucketStates(own=ALL), True),
        (BucketStates(drain=ALL), False),
        (BucketStates(adopt=ALL), True),
        (BucketStates(), False),
    ):
        await bench.backend.apply({"web": states, "api": states})
        for packet in packets:
            if taken:
                await bench.accepts(packet, "UDP and echo take ADOPT as OWN")
            else:
                await bench.drops(packet, "UDP and echo take DRAIN as FOREIGN")


async def _apply_replaces_everything(bench: Bench) -> None:
    await bench.open()
    await bench.backend.apply(ALL_OWN)
    await bench.accepts(bench.new(), "its bucket is OWN")
    await bench.accepts(bench.new(443), "its bucket is OWN")
    await bench.backend.apply({"api": BucketStates(own=ALL)})
    await bench.drops(bench.new(), "a group left out is FOREIGN")
    await bench.accepts(bench.new(443), "its bucket is OWN still")
    flow = bench.new()
    await bench.backend.apply({"web": BucketStates(own=1 << bench.bucket(flow))})
    await bench.accepts(flow, "its bucket is OWN again")
    await bench.drops(bench.new(443), "a group left out is FOREIGN")
    await bench.backend.apply({})
    await bench.drops(bench.new(), "everything was left out")


async def _packets_outside_every_bucket(bench: Bench) -> None:
    await bench.open()
    await bench.backend.apply(ALL_OWN)
    await bench.drops(bench.new(8080), "no rule covers port 8080")
    await bench.drops(bench.new(53), "the rule for port 53 is for UDP")
    await bench.drops(bench.new(99), "its group is blocked")
    await bench.backend.apply({})
    await bench.accepts(bench.icmp(IcmpKind.ERROR), "every node takes ICMP errors while its lease runs")


async def _bad_calls_change_nothing(bench: Bench) -> None:
    await bench.open()
    backend = bench.backend
    flow = bench.new()
    await backend.apply({"web": BucketStates(own=1 << bench.bucket(flow))})
    await bench.raises(bench.open, "open of an open filter")
    everything = {**ALL_OWN, "nobody": BucketStates(own=ALL)}
    await bench.raises(partial(backend.apply, everything), "apply with a group that the policy lacks")
    await bench.raises(partial(backend.flows, {"nobody": ALL}), "flows of a group that the policy lacks")
    await bench.accepts(flow, "the refused calls changed nothing")
    await bench.drops(bench.new(443), "the refused apply changed nothing")
    bench.lease(0.3)
    for seconds in (1.001, 60.0, math.inf, math.nan):
        await bench.raises(partial(backend.lease, seconds), f"lease({seconds})")
    await bench.probe.wait(0.3 + bench.tolerance)
    await bench.drops(bench.new(), "the refused leases changed nothing", lease=False)


async def _calls_in_the_wrong_state(bench: Bench) -> None:
    backend = bench.backend
    calls: dict[str, Callable[[], object]] = {
        "apply": partial(backend.apply, {}),
        "lease": partial(backend.lease, 0.1),
        "repair": backend.repair,
        "counters": backend.counters,
        "flows": partial(backend.flows, {}),
    }
    for name, call in calls.items():
        await bench.raises(call, f"{name} before open")
    await bench.open()
    await backend.close()
    for name, call in calls.items():
        await bench.raises(call, f"{name} after close")


async def _close_in_any_state(bench: Bench) -> None:
    backend = bench.backend
    await backend.close()
    await backend.close()
    await bench.open()
    await bench.drops(bench.new(), "it was just opened", lease=False)
    await backend.close()
    await backend.close()
    bench.require(await bench.probe.offer(bench.new()), "something still filters after close")
    leftovers = await backend.cleanup(FARM)
    bench.require(not leftovers, f"close left something behind that cleanup found: {leftovers}")


async def _counters(bench: Bench) -> None:
    await bench.open()
    backend = bench.backend
    bench.require(_total(await backend.counters()) == 0, "counters of a filter just opened are not zero")
    flow = bench.new()
    await backend.apply({"web": BucketStates(own=1 << bench.bucket(flow))})
    await bench.accepts(flow, "its bucket is OWN")
    for packet in (bench.new(443), bench.new(99), bench.new(8080)):
        await bench.drops(packet, "nothing covers or owns it")
    await bench.accepts(bench.icmp(IcmpKind.ERROR), "every node takes ICMP errors while its lease runs")
    counters = await backend.counters()
    for name, counts in counters.groups.items():
        bench.require(name in {"web", "api", "shut"}, f"counters of a group {name!r} that the policy lacks")
        bench.require(counts.keys() <= _GROUP_COUNTERS, f"unknown counters in group {name}: {sorted(counts)}")
    bench.require(counters.other.keys() <= _OTHER_COUNTERS, f"unknown counters: {sorted(counters.other)}")
    for name, counter in (("web", "own"), ("api", "foreign"), ("shut", "blocked")):
        seen = counters.groups.get(name, {}).get(counter, 0)
        bench.require(seen >= 1, f"{counter!r} of group {name} did not count its packet: {counters}")
    for counter in ("uncovered", "icmp-error"):
        bench.require(
            counters.other.get(counter, 0) >= 1, f"{counter!r} did not count its packet: {counters}"
        )


def _total(counters: FilterCounters) -> int:
    return sum(sum(counts.values()) for counts in (*counters.groups.values(), counters.other))


async def _damage_and_repair(bench: Bench, damage: Callable[[FilterBackend], Awaitable[None]]) -> None:
    await bench.open()
    backend = bench.backend
    flow = bench.new()
    await backend.apply({"web": BucketStates(own=1 << bench.bucket(flow))})
    await bench.accepts(flow, "its bucket is OWN")
    bench.lease(1.0)
    await damage(backend)
    for _ in range(round(_DAMAGE_SEEN_WITHIN / _LOOK_EVERY)):
        if bench.damages:
            break
        await bench.probe.wait(_LOOK_EVERY)
    bench.require(bool(bench.damages), f"damage was not reported within {_DAMAGE_SEEN_WITHIN} s")
    bench.require(all(what.strip() for what in bench.damages), "damage was reported without a word")
    bench.require(backend.lease(0.5) is False, "a filter known to be damaged took a lease")
    await backend.repair()
    await bench.drops(later(flow), "a repaired filter has no lease", lease=False)
    await bench.accepts(flow, "the states applied last hold after repair")
    await bench.drops(bench.new(443), "the states applied last hold after repair")
