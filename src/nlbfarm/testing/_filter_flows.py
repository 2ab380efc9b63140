"""Of the conformance check of ``FilterBackend``: in which buckets flows are left."""

from __future__ import annotations

from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.decision import IcmpKind
from nlbfarm.testing._filter_bench import ALL_OWN, Bench, later

__all__ = ["flows_of_an_earlier_process", "flows_of_buckets_that_open_again", "flows_that_are_left"]

_DRAIN = {"web": BucketStates(drain=ALL), "api": BucketStates(drain=ALL)}


async def flows_that_are_left(bench: Bench) -> None:
    await bench.open()
    backend = bench.backend
    await backend.apply(ALL_OWN)
    first, other = await bench.lone("web"), await bench.lone("api")
    second, alone = bench.beside("web", first), await bench.lone("web", first)
    stranger = await bench.lone("web", first, alone)
    for flow in (first, second, alone, other):
        await bench.accepts(flow, "its bucket is OWN")
        await bench.accepts(later(flow), "its bucket is OWN")
    for packet in (later(stranger), bench.datagram(), bench.icmp(IcmpKind.ECHO_REQUEST)):
        await bench.accepts(packet, "OWN takes it, though no flow begins with it")
    await backend.apply(_DRAIN)
    await bench.drops(bench.beside("web", stranger), "DRAIN takes no new flow")

    pair, single, unused = (bench.bucket(flow) for flow in (first, alone, stranger))
    asked = {"web": 1 << pair | 1 << single | 1 << unused, "api": 1 << bench.bucket(other)}
    expected = {"web": {pair: 2, single: 1}, "api": {bench.bucket(other): 1}}
    for moment in ("the first time", "the second time"):
        counts = await bench.flows(asked)
        bench.require(counts == expected, f"asked {moment}: flows {counts}, where there are {expected}")
    only = await bench.flows({"web": 1 << pair})
    bench.require(only == {"web": {pair: 2}}, f"flows {only}, asked about bucket {pair} of web alone")

    await bench.flows(asked)
    await bench.reset(first)
    await bench.reset(alone)
    counts = await bench.flows(asked)
    web = counts.get("web", {})
    bench.require(single not in web, f"a bucket has flows whose only one was reset: {counts}")
    bench.require(web.get(pair) in (1, 2), f"one flow of two is left in bucket {pair}: {counts}")
    bench.require(counts.get("api") == expected["api"], f"a flow of another group is left: {counts}")
    await bench.reset(second)
    await bench.reset(other)
    counts = await bench.flows(asked)
    bench.require(not counts, f"every flow was reset, and {counts} are left")


async def flows_of_buckets_that_open_again(bench: Bench) -> None:
    await bench.open()
    backend = bench.backend
    before = await bench.lone("web")
    asked = {"web": 1 << bench.bucket(before)}
    await backend.apply(_DRAIN)
    counts = await bench.flows(asked)
    bench.require(not counts, f"flows {counts} in a bucket that never had one")
    for states in (BucketStates(own=ALL), BucketStates(adopt=ALL)):
        await backend.apply({"web": states})
        flow = bench.beside("web", before)
        await bench.accepts(flow, "its bucket takes new flows again")
        await bench.accepts(later(flow), "it is established here")
        await backend.apply(_DRAIN)
        counts = await bench.flows(asked)
        bench.require(
            counts == {"web": {bench.bucket(flow): 1}},
            f"flows {counts}, and its bucket took one when it was open again",
        )
        await bench.reset(flow)


async def flows_of_an_earlier_process(bench: Bench) -> None:
    await bench.open()
    backend = bench.backend
    flow = await bench.lone("web")
    bucket = bench.bucket(flow)
    await backend.apply(ALL_OWN)
    await bench.accepts(flow, "its bucket is OWN")
    await bench.accepts(later(flow), "its bucket is OWN")
    await backend.close()
    await bench.open()
    counts = await bench.flows({"web": 1 << bucket, "api": ALL})
    bench.require(counts.get("web") == {bucket: 1}, f"flows {counts}, and one was accepted before close")
    await backend.apply({"web": BucketStates(drain=1 << bucket)})
    await bench.accepts(later(flow), "DRAIN keeps what was accepted before close")
    await bench.reset(flow)
    counts = await bench.flows({"web": 1 << bucket})
    bench.require(not counts, f"every flow was reset, and {counts} are left")
