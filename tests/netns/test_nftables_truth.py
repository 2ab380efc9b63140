"""Kernel truth: verdicts, counters and marks of the nftables backend; many more packets: test_conformance."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from tests.netns.packets import NODE_MAC, Bench, Tcp, fragments, frame

from nlbfarm.backends.nftables import NftablesBackend
from nlbfarm.core.buckets import ALL, BUCKETS, BucketState, BucketStates
from nlbfarm.core.decision import ICMP, ICMPV6, IcmpKind, PacketFacts, Reason, Verdict, decide
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, IPAddress, Mode, Protocol, Rule, Vip
from nlbfarm.interfaces import FilterCounters

pytestmark = pytest.mark.netns

VIP = IPv4Address("192.0.2.100")
OPEN_VIP = IPv4Address("192.0.2.101")
BARE_VIP = IPv4Address("192.0.2.102")
VIP6 = IPv6Address("2001:db8::64")
GROUP_MAC = "01:00:5e:7f:02:64"
PACKETS = 4_000

POLICY = FilterPolicy(
    farm="truth",
    vips=(
        Vip(VIP, "eth0"),
        Vip(OPEN_VIP, "eth0", accept_uncovered=True),
        Vip(BARE_VIP, "eth1"),
        Vip(VIP6, "eth0"),
    ),
    groups=(
        Group("web", 0x1B2C3D4E),
        Group("mail", 0xFFFFFFFF, Mode.FAILOVER),
        Group("shut", 5, Mode.BLOCKED),
        Group("sticky", 0),
    ),
    rules=(
        Rule("web", "web", VIP, Protocol.TCP, (80, 443)),
        Rule("quic", "web", VIP, Protocol.UDP, (443,)),
        Rule("mail", "mail", VIP, Protocol.TCP, (25,), Affinity.NETWORK),
        Rule("ssh", "shut", VIP, Protocol.TCP, (22,)),
        Rule("app", "sticky", OPEN_VIP, Protocol.TCP, (8080,), Affinity.CLIENT),
        Rule("dns", "sticky", OPEN_VIP, Protocol.UDP, (53,), Affinity.NETWORK),
        Rule("elsewhere", "web", BARE_VIP, Protocol.TCP, (80,)),
        Rule("web6", "web", VIP6, Protocol.TCP, (80, 443)),
        Rule("dns6", "sticky", VIP6, Protocol.UDP, (53,), Affinity.NETWORK),
        Rule("app6", "sticky", VIP6, Protocol.TCP, (8080,), Affinity.CLIENT),
    ),
)
PORTS = (80, 443, 25, 22, 8080, 53, 9999)


@pytest.fixture
def bench(rng: random.Random) -> Iterator[Bench]:
    vips = [vip.address for vip in POLICY.vips]
    bench = Bench(vips, (80, 443, 25, 8080), rng)
    try:
        with bench.node.entered():
            yield bench
    finally:
        bench.close()


@asynccontextmanager
async def opened(policy: FilterPolicy = POLICY) -> AsyncIterator[NftablesBackend]:
    damages: list[str] = []
    backend = NftablesBackend()
    await backend.open(policy, damages.append)
    try:
        yield backend
    finally:
        await backend.close()
    assert not damages


@asynccontextmanager
async def leased(backend: NftablesBackend) -> AsyncIterator[None]:
    """Keep the lease running."""

    async def renew() -> None:
        while True:
            assert backend.lease(1.0)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(renew())
    await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def random_states(rng: random.Random) -> dict[str, BucketStates]:
    states = {}
    for group in POLICY.groups:
        bitmaps = dict.fromkeys(BucketState, 0)
        for bucket in range(BUCKETS):
            bitmaps[rng.choice(list(BucketState))] |= 1 << bucket
        states[group.name] = BucketStates(
            bitmaps[BucketState.OWN], bitmaps[BucketState.ADOPT], bitmaps[BucketState.DRAIN]
        )
    return states


def random_facts(rng: random.Random) -> PacketFacts:
    """A packet of a client that nobody has seen yet, for a VIP or for the node's own address."""
    destination: IPAddress = rng.choice(
        (VIP, VIP, VIP, OPEN_VIP, OPEN_VIP, BARE_VIP, VIP6, VIP6, IPv4Address("192.0.2.1"))
    )
    source: IPAddress
    if destination.version == 4:
        source = IPv4Address(rng.randrange(0x0B000000, 0x7E000000))
    else:
        source = IPv6Address(0x20010DB8_0001 << 80 | rng.getrandbits(80))
    facts = PacketFacts("eth0", source, destination, 253)
    kind = rng.choices(("tcp", "udp", "icmp", "other", "cut"), (12, 4, 2, 1, 1))[0]
    if kind == "tcp" or kind == "udp":
        protocol = Protocol.TCP if kind == "tcp" else Protocol.UDP
        covered = [
            port
            for rule in POLICY.rules
            if (rule.vip, rule.protocol) == (destination, protocol)
            for port in rule.ports
        ]
        return replace(
            facts,
            protocol=protocol,
            source_port=rng.randrange(1, 65536),
            destination_port=rng.choice(covered if covered and rng.random() < 0.9 else PORTS),
            syn=kind == "tcp" and rng.random() < 0.5,
            ack=kind == "tcp" and rng.random() < 0.5,
        )
    icmp = ICMP if destination.version == 4 else ICMPV6
    if kind == "icmp":
        kinds = [IcmpKind.ECHO_REQUEST, IcmpKind.ECHO_REQUEST, IcmpKind.ERROR, IcmpKind.OTHER]
        return replace(facts, protocol=icmp, icmp=rng.choice(kinds))
    if kind == "cut":
        return replace(facts, protocol=rng.choice((Protocol.TCP, Protocol.UDP, icmp)))
    return facts


def totals(counters: FilterCounters) -> Counter[tuple[str | None, str]]:
    found: Counter[tuple[str | None, str]] = Counter()
    for group, verdicts in (*counters.groups.items(), (None, counters.other)):
        for verdict, packets in verdicts.items():
            found[group, verdict] += packets
    return +found


async def test_verdicts_of_random_packets_are_those_of_the_oracle(bench: Bench, rng: random.Random) -> None:
    table: Counter[tuple[str, str, str]] = Counter()
    expected_counters: Counter[tuple[str | None, str]] = Counter()
    differences: list[str] = []
    async with opened() as backend:
        for turn in range(10):
            states = random_states(rng)
            await backend.apply(states)
            bench.forget()
            running = turn not in (0, 5)
            sent: dict[tuple[int, int], PacketFacts] = {}
            assert backend.lease(0)
            async with leased(backend) if running else nothing():
                for index in range(PACKETS // 10):
                    facts = random_facts(rng)
                    number = bench.send(facts, mac=rng.choice((NODE_MAC, GROUP_MAC)))
                    sent[facts.destination.version, number] = facts
                    if index % 50 == 0:
                        bench.settle()
                        await asyncio.sleep(0)
                bench.settle()
            passed = {version: bench.seen(version) for version in (4, 6)}
            for (version, number), facts in sent.items():
                decision = decide(POLICY, states, running, facts)
                if decision.reason != "not-filtered":
                    expected_counters[decision.group, decision.reason.value] += 1
                seen = Verdict.ACCEPT if number in passed[version] else Verdict.DROP
                table[decision.reason.value, decision.verdict.value, seen.value] += 1
                if seen is not decision.verdict:
                    differences.append(f"{facts}: oracle {decision}, kernel {seen.value}")
        counted = totals(await backend.counters())
    print(f"\n{'reason':<14}{'oracle':<8}{'kernel':<8}{'packets':>8}")
    for (reason, oracle, kernel), packets in sorted(table.items()):
        print(f"{reason:<14}{oracle:<8}{kernel:<8}{packets:>8}")
    print(f"packets {sum(table.values())}, differences {len(differences)}")
    assert not differences, "\n".join(differences[:10])
    judged = {"own", "adopt", "foreign", "not-new", "no-lease"}
    assert sum(packets for (reason, _, _), packets in table.items() if reason in judged) >= 1_500
    assert {reason for reason, _, _ in table} == {str(reason) for reason in Reason} - {"drain"}
    assert counted == expected_counters
    assert bench.ignored_mark(), "a packet left the filter with our mark on it"


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    yield


async def test_fragments_follow_their_first_fragment(bench: Bench, rng: random.Random) -> None:
    async with opened() as backend:
        states = random_states(rng)
        await backend.apply(states)
        bench.forget()
        sent: dict[int, PacketFacts] = {}
        lone: list[int] = []
        async with leased(backend):
            for _ in range(200):
                client = IPv4Address(rng.randrange(0x0B000000, 0x7E000000))
                facts = PacketFacts("eth0", client, VIP, Protocol.UDP, rng.randrange(1, 65536), 443)
                number = bench.number()
                pieces = fragments(frame(facts, number, random.Random(number)), 8)
                if len(pieces) == 1:
                    continue
                if rng.random() < 0.2:
                    lone.append(number)
                    del pieces[0]
                else:
                    sent[number] = facts
                rng.shuffle(pieces)
                for piece in pieces:
                    bench.put(piece)
            bench.settle()
        passed = bench.seen(4)
    wrong = [
        facts
        for number, facts in sent.items()
        if decide(POLICY, states, True, facts).accepted != (number in passed)
    ]
    assert not wrong
    assert len(sent) > 50
    assert lone
    assert not passed & set(lone), "a fragment passed whose first was never seen"


class Held:
    """A connection that the test has opened through the filter."""

    def __init__(self, syn: PacketFacts, sequence: int, acknowledge: int) -> None:
        self.syn, self.sequence, self.acknowledge = syn, sequence, acknowledge

    @property
    def later(self) -> PacketFacts:
        return replace(self.syn, syn=False, ack=True, established_here=True)

    def tcp(self, **more: object) -> Tcp:
        return replace(Tcp(self.sequence, self.acknowledge), **more)  # type: ignore[arg-type]


async def hold(bench: Bench, backend: NftablesBackend, rng: random.Random, count: int) -> list[Held]:
    """Open connections: SYN, SYN-ACK of the node's own stack, ACK."""
    syns = {}
    async with leased(backend):
        for _ in range(count):
            syn = PacketFacts("eth0", IPv4Address(rng.randrange(0x0B000000, 0x7E000000)), VIP, Protocol.TCP,
                              rng.randrange(1024, 65536), rng.choice((80, 443)), syn=True)  # fmt: skip
            bench.send(syn, Tcp(rng.getrandbits(32)), mac=GROUP_MAC)
            syns[syn.source, syn.source_port, syn.destination_port] = syn
        bench.settle()
        held = [
            Held(syns[key], acknowledge, (sequence + 1) % 2**32)
            for key, (sequence, acknowledge) in bench.answers().items()
            if key in syns
        ]
        assert len(held) == count, "the node's own stack did not answer every SYN"
        for flow in held:
            bench.send(flow.later, flow.tcp(), mac=GROUP_MAC)
        bench.settle()
    established = bench.node.run("ss", "-Htn", "state", "established").count("192.0.2.100")
    assert established == count, f"{established} of {count} connections came up"
    return held


@pytest.mark.parametrize(
    "state", [BucketState.OWN, BucketState.ADOPT, BucketState.DRAIN, BucketState.FOREIGN]
)
async def test_held_connections_in_every_state(bench: Bench, rng: random.Random, state: BucketState) -> None:
    async with opened() as backend:
        await backend.apply({"web": BucketStates(own=ALL)})
        held = await hold(bench, backend, rng, 60)
        states: Mapping[str, BucketStates] = {
            "web": {
                BucketState.OWN: BucketStates(own=ALL),
                BucketState.ADOPT: BucketStates(adopt=ALL),
                BucketState.DRAIN: BucketStates(drain=ALL),
                BucketState.FOREIGN: BucketStates(),
            }[state]
        }
        await backend.apply(states)
        bench.forget()
        sent: dict[int, tuple[str, PacketFacts]] = {}

        def send(what: str, facts: PacketFacts, tcp: Tcp) -> None:
            sent[bench.send(facts, tcp, mac=GROUP_MAC)] = (what, facts)

        async with leased(backend):
            for flow in held:
                send("ACK", flow.later, flow.tcp())
                send("data", flow.later, flow.tcp(payload=b"GET / HTTP/1.0\r\n"))
                far = (flow.sequence + 5_000_000) % 2**32
                send("out of the window", flow.later, flow.tcp(sequence=far, payload=b"x"))
                resent = replace(flow.syn, established_here=True)
                send("SYN sent again", resent, Tcp((flow.sequence - 1) % 2**32))
                stranger = replace(flow.later, source_port=rng.randrange(1024, 65536), established_here=False)
                if stranger.source_port == flow.syn.source_port:
                    continue
                send("stranger's ACK", stranger, Tcp(rng.getrandbits(32), rng.getrandbits(32)))
                send("stranger's FIN", stranger, Tcp(rng.getrandbits(32), rng.getrandbits(32), fin=True))
                send("stranger's RST", stranger, Tcp(rng.getrandbits(32), rng.getrandbits(32), rst=True))
                send("stranger's SYN-ACK", replace(stranger, syn=True), Tcp(rng.getrandbits(32), 7))
                new = replace(flow.syn, source=IPv4Address(rng.randrange(0x0B000000, 0x7E000000)))
                send("new SYN", new, Tcp(rng.getrandbits(32)))
                bench.settle()
                await asyncio.sleep(0)
            for flow in held[:20]:
                send("FIN", flow.later, flow.tcp(sequence=(flow.sequence + 16) % 2**32, fin=True))
            for flow in held[20:40]:
                send("RST", flow.later, flow.tcp(sequence=(flow.sequence + 16) % 2**32, rst=True))
            bench.settle()
        passed = bench.seen(4)
    table: Counter[tuple[str, str, str]] = Counter()
    for number, (what, facts) in sent.items():
        decision = decide(POLICY, states, True, facts)
        table[what, decision.verdict.value, "accept" if number in passed else "drop"] += 1
    print(f"\n{state.name}: {'packet':<20}{'oracle':<8}{'kernel':<8}{'packets':>8}")
    for (what, oracle, kernel), packets in sorted(table.items()):
        print(f"{state.name}: {what:<20}{oracle:<8}{kernel:<8}{packets:>8}")
    assert all(oracle == kernel for _, oracle, kernel in table)
