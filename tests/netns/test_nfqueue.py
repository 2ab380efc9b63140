"""The NFQUEUE backend in a real kernel: its contract, what stays in the kernel, and how it fails: closed."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.netns import nfqueue_child
from tests.netns.nfqueue_child import policy
from tests.netns.packets import Bench, Tcp
from tests.netns.support import Namespace, eventually, eventually_async
from tests.netns.test_nftables import FOREIGN_RULES, Flows, ruleset, syn

from nlbfarm.backends.nfqueue import NfqueueBackend, table
from nlbfarm.backends.nfqueue.backend import BucketPath
from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.policy import Group, Protocol, Rule
from nlbfarm.errors import HostError
from nlbfarm.interfaces import FilterBackend
from nlbfarm.testing.filter_backend import check_filter_backend_contract

pytest.importorskip("netfilterqueue", reason="the package netfilterqueue is not installed")

pytestmark = pytest.mark.netns

VIP = IPv4Address("192.0.2.100")
QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
OWN = {"web": BucketStates(own=ALL)}


@pytest.fixture
def bench(rng: random.Random) -> Iterator[Bench]:
    bench = Bench([VIP, IPv4Address("192.0.2.101")], (80, 443), rng)
    try:
        with bench.node.entered():
            yield bench
    finally:
        bench.close()


@pytest.fixture
def empty() -> Iterator[Namespace]:
    """A namespace with nothing in it."""
    namespace = Namespace()
    try:
        with namespace.entered():
            yield namespace
    finally:
        namespace.close()


def queues() -> list[list[int]]:
    """What the kernel tells of the queues of this namespace, by number."""
    return sorted([int(field) for field in line.split()] for line in QUEUES.read_text().splitlines())


def asked() -> int:
    """How many packets have been queued."""
    return sum(fields[7] for fields in queues())


class Judged(Flows):
    """Waits until a worker has judged what was queued; the packets of others overtake it meanwhile."""

    def __init__(self, bench: Bench, backend: NfqueueBackend) -> None:
        super().__init__(bench)
        self.backend = backend

    async def offer(self, facts: PacketFacts) -> bool:
        key = (facts.source, facts.source_port or 0, facts.destination_port or 0)
        tcp = None
        if facts.protocol == Protocol.TCP:
            if facts.opens_flow:
                tcp = Tcp(self.sequences.setdefault(key, self.bench.rng.getrandbits(32)))
            elif key in self.answers and not facts.syn:
                sequence, acknowledge = self.answers[key]
                tcp = Tcp(acknowledge, (sequence + 1) % 2**32)
        number = self.bench.send(facts, tcp)
        await self.settle()
        self.answers.update(self.bench.answers())
        return number in self.bench.seen(4)

    async def reset(self, facts: PacketFacts) -> None:
        await super().reset(facts)
        await self.settle()

    async def settle(self) -> None:
        """Return when every packet sent so far has been judged."""
        self.bench.settle()
        await eventually(lambda: not any(fields[2] for fields in queues()), "nothing waits in a queue")
        team = self.backend._team
        if team is not None and team.complete:  # what a worker judged before it answers is through
            await team.tell(self.backend._in_order(self.backend._applied))


@asynccontextmanager
async def opened(backend: NfqueueBackend | None = None) -> AsyncIterator[tuple[NfqueueBackend, list[str]]]:
    backend = backend or NfqueueBackend()
    damages: list[str] = []
    await backend.open(policy("shop"), damages.append)
    try:
        await backend.apply(OWN)
        yield backend, damages
    finally:
        await backend.close()


@pytest.mark.parametrize("path", ["kernel", "python"])
async def test_it_keeps_the_contract(bench: Bench, path: BucketPath) -> None:
    async def flush(_: FilterBackend) -> None:
        before = bench.node.run("nft", "list", "table", "inet", "observer")
        bench.node.run("nft", "-f", "-", stdin=f"flush ruleset\n{before}")

    def probe(backend: FilterBackend) -> Judged:
        assert isinstance(backend, NfqueueBackend)
        return Judged(bench, backend)

    await check_filter_backend_contract(lambda: NfqueueBackend(path=path), probe, vip=VIP, damage=flush)


@pytest.mark.parametrize("path", ["kernel", "python"])
async def test_what_was_decided_stays_in_the_kernel(bench: Bench, path: BucketPath) -> None:
    async with opened(NfqueueBackend(path=path)) as (backend, damages):
        flows = Judged(bench, backend)
        held, rejected = syn(bench.rng), syn(bench.rng)
        assert backend.lease(1.0)
        assert await flows.offer(held)
        assert await flows.offer(replace(held, syn=False, ack=True))
        before = asked()
        for _ in range(5):
            assert backend.lease(1.0)
            assert await flows.offer(replace(held, syn=False, ack=True))
        assert asked() == before, "a packet of an established flow was asked about"

        await backend.apply({})
        assert backend.lease(1.0)
        assert not await flows.offer(rejected)
        before = asked()
        for _ in range(5):
            assert not await flows.offer(rejected)
            assert not await flows.offer(replace(rejected, syn=False, ack=True))
        assert asked() == before, "a packet of a flow that was rejected was asked about"
        await backend.apply({"web": BucketStates(adopt=ALL)})
        assert backend.lease(1.0)
        stranger = replace(syn(bench.rng), syn=False, ack=True)
        assert not await flows.offer(stranger)
        before = asked()
        assert not await flows.offer(stranger)
        assert asked() == before, "a packet that is not new was asked about twice"
        assert await flows.offer(rejected), "a change of states forgets what was rejected"
        assert await flows.offer(replace(stranger, syn=True, ack=False)), "ADOPT takes a SYN"
        assert await flows.offer(stranger), "its flow is established here by now"
        listed = ruleset(bench.node)
        assert f"{stranger.source} . {VIP} . {stranger.source_port} . 80" in listed, "it can be looked at"
        assert not damages


async def test_clients_are_spread_over_several_queues(bench: Bench) -> None:
    async with opened(NfqueueBackend(queues=3)) as (backend, damages):
        flows = Judged(bench, backend)
        for _ in range(12):
            assert backend.lease(1.0)
            assert await flows.offer(syn(bench.rng))
        found = queues()
        assert len(found) == len(backend.workers) == 3
        assert all(fields[7] for fields in found), found
        await backend.apply({})
        assert not await flows.offer(syn(bench.rng))
        assert not damages


class Child:
    """``nfqueue_child`` in a namespace, and the lines that it printed."""

    def __init__(self, namespace: Namespace, farm: str) -> None:
        with namespace.entered():
            self.process = subprocess.Popen(
                [sys.executable, "-u", str(Path(nfqueue_child.__file__)), farm], stdout=subprocess.PIPE
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.said = ""

    def lines(self) -> Sequence[str]:
        assert self.process.stdout is not None
        self.said += (self.process.stdout.read() or b"").decode()
        return self.said.splitlines()

    async def ready(self) -> list[int]:
        """Wait until its filter is leased; returns the process ids of its workers."""
        await eventually(lambda: "lease True" in self.lines(), "the child is ready", within=20)
        return [int(word) for word in self.lines()[0].split()[1:]]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def child(bench: Bench) -> Iterator[Child]:
    child = Child(bench.node, "frozen")
    try:
        yield child
    finally:
        child.kill()


async def accepted_last(bench: Bench, seconds: float) -> float:
    """Send new flows for so long; return when the last that was accepted was sent, from now on."""
    flows = Flows(bench)
    begin = last = time.monotonic()
    while time.monotonic() < begin + seconds:
        sent = time.monotonic()
        if await flows.offer(syn(bench.rng)):
            last = sent
    return last - begin


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
async def test_without_its_node_nothing_is_accepted_after_the_lease(
    bench: Bench, child: Child, how: signal.Signals
) -> None:
    workers = await child.ready()
    flows = Flows(bench)
    held = syn(bench.rng)
    later = replace(held, syn=False, ack=True)

    async def accepted() -> bool:
        return await flows.offer(held) or await flows.offer(later)

    await eventually_async(accepted, "the flow is accepted")
    child.process.send_signal(how)
    last = await accepted_last(bench, 1.0)
    print(f"\nthe last new flow was accepted {last * 1000:.0f} ms after {how.name}, lease 300 ms")
    assert last < 0.3
    assert not await flows.offer(later), "an established flow, with no lease"
    if how is signal.SIGSTOP:
        child.process.send_signal(signal.SIGCONT)
        await eventually_async(lambda: flows.offer(later), "the node goes on, and so does the flow")
    else:
        child.process.wait(10)
        await eventually(lambda: not any(map(alive, workers)), "the workers end with their node")
        assert not queues()


def alive(process: int) -> bool:
    """Whether there is such a process; one that nobody waited for is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_worker_that_dies_is_damage_and_is_replaced(bench: Bench) -> None:
    async with opened(NfqueueBackend(queues=2)) as (backend, damages):
        flows = Judged(bench, backend)
        assert backend.lease(1.0)
        held = syn(bench.rng)
        assert await flows.offer(held)
        os.kill(backend.workers[0], signal.SIGKILL)
        await eventually(lambda: bool(damages), "the damage is reported")
        assert "has ended" in damages[0]
        assert not backend.lease(1.0)
        for _ in range(4):
            assert not await flows.offer(syn(bench.rng)), "closed until it is repaired"
        assert not await flows.offer(replace(held, syn=False, ack=True))
        await backend.repair()
        assert not await flows.offer(syn(bench.rng)), "repaired, but closed"
        assert backend.lease(1.0)
        assert await flows.offer(syn(bench.rng))
        assert await flows.offer(replace(held, syn=False, ack=True))
        assert len(damages) == 1


async def test_a_worker_that_hangs_is_damage_and_is_replaced(bench: Bench) -> None:
    async with opened() as (backend, damages):
        assert backend.lease(1.0)
        os.kill(backend.workers[0], signal.SIGSTOP)
        waiting = syn(bench.rng)
        number = bench.send(waiting)

        def damaged() -> bool:
            backend.lease(0.3)
            return bool(damages)

        took = await eventually(damaged, "the damage is reported", within=10)
        print(f"\na stopped worker was found out after {took:.1f} s")
        assert "not turned" in damages[0]
        bench.settle()
        assert number not in bench.seen(4), "what waits for a stopped worker is not accepted"
        await backend.repair()
        assert backend.lease(1.0)
        assert await Judged(bench, backend).offer(syn(bench.rng))
        assert number not in bench.seen(4), "what waited for a killed worker is gone"


async def test_a_change_of_states_does_not_wait_for_a_worker_that_hangs(bench: Bench) -> None:
    async with opened(NfqueueBackend(queues=2)) as (backend, damages):
        assert backend.lease(1.0)
        os.kill(backend.workers[1], signal.SIGSTOP)
        await backend.apply({})
        assert "did not take" in damages[0]
        assert not backend.lease(1.0)
        await backend.repair()
        assert backend.lease(1.0)
        assert not await Judged(bench, backend).offer(syn(bench.rng)), "the last applied states hold"
        await backend.apply(OWN)
        assert await Judged(bench, backend).offer(syn(bench.rng))


@pytest.mark.parametrize("path", ["kernel", "python"])
async def test_what_waited_while_its_bucket_came_here_is_dropped(bench: Bench, path: BucketPath) -> None:
    """It was its former owner's when it came, and that one may have accepted it."""
    async with opened(NfqueueBackend(path=path)) as (backend, damages):
        flows = Judged(bench, backend)
        await backend.apply({})
        early, later = syn(bench.rng), syn(bench.rng)
        before = asked()
        os.kill(backend.workers[0], signal.SIGSTOP)
        try:
            number = bench.send(early)
            await eventually(lambda: asked() == before + 1, "it waits in the queue")
            gaining = asyncio.create_task(backend.apply(OWN))
            await asyncio.sleep(0.1)
            assert backend.lease(1.0)
        finally:
            os.kill(backend.workers[0], signal.SIGCONT)
        await gaining
        await flows.settle()
        assert backend.lease(1.0)
        assert number not in bench.seen(4)
        counts = (await backend.counters()).groups["web"]
        assert (counts["own"], counts["foreign"]) == (0, 1)
        assert await flows.offer(early), "repeated, it is accepted"
        assert await flows.offer(later)
        assert not damages


async def test_a_full_queue_drops_and_counts(bench: Bench) -> None:
    async with opened() as (backend, _):
        assert backend.lease(1.0)
        before = len(bench.seen(4))
        os.kill(backend.workers[0], signal.SIGSTOP)
        for _ in range(9_000):
            bench.send(syn(bench.rng))
        bench.settle()
        counters = await backend.counters()
        assert counters.other["queue-full"] >= 9_000 - 8_192
        assert len(bench.seen(4)) - before <= 1, "something was let past a full queue"
        lease = time.monotonic() + 0.3
        assert backend.lease(0.3)
        await eventually(lambda: time.monotonic() > lease, "the lease is over")
        os.kill(backend.workers[0], signal.SIGCONT)
        await eventually(lambda: not any(fields[2] for fields in queues()), "the queue was worked off")
        bench.settle()
        assert len(bench.seen(4)) - before <= 2, "what had waited was accepted without a lease"
        assert (await backend.counters()).groups["web"]["no-lease"] >= 8_000


async def test_after_kill_cleanup_leaves_nothing(empty: Namespace) -> None:
    empty.run("nft", "-f", "-", stdin=FOREIGN_RULES)
    before = ruleset(empty)
    child = Child(empty, "shop")
    try:
        workers = await child.ready()
    finally:
        child.kill()
    assert "nlbfarm_shop" in ruleset(empty)
    await eventually(lambda: not any(map(alive, workers)), "the workers end with their node")
    assert await NfqueueBackend.cleanup("other") == []
    removed = await NfqueueBackend.cleanup("shop")
    assert "removed the nftables table inet nlbfarm_shop" in removed
    assert await NfqueueBackend.cleanup("shop") == []
    assert ruleset(empty) == before


async def test_what_a_killed_process_left_is_replaced(bench: Bench) -> None:
    child = Child(bench.node, "shop")
    try:
        await child.ready()
    finally:
        child.kill()
    async with opened() as (backend, damages):
        assert backend.lease(1.0)
        assert await Judged(bench, backend).offer(syn(bench.rng))
        assert not damages


async def test_close_leaves_the_ruleset_as_it_was(empty: Namespace) -> None:
    empty.run("nft", "-f", "-", stdin=FOREIGN_RULES)
    before = ruleset(empty)
    async with opened() as (backend, _):
        workers = backend.workers
        assert backend.lease(0.3)
        assert ruleset(empty) != before
    assert ruleset(empty) == before
    assert not any(map(alive, workers))
    assert not queues()


@pytest.mark.parametrize(
    "command",
    [
        "delete table inet nlbfarm_shop",
        "insert rule inet nlbfarm_shop judged accept",
        "flush chain inet nlbfarm_shop tracked",
        "delete table ip nlbfarm_shop",
        "flush chain ip nlbfarm_shop ask",
        "insert rule ip nlbfarm_shop wait accept",
    ],
)
async def test_damage_is_seen_and_repaired(bench: Bench, command: str) -> None:
    async with opened() as (backend, damages):
        if " ip " in command and backend.statement:
            pytest.skip("this kernel has nft's queue statement: there is no such table")
        assert backend.lease(1.0)
        await asyncio.to_thread(bench.node.run, "nft", "-f", "-", stdin=command)
        await eventually(lambda: bool(damages), "the damage is reported")
        assert not backend.lease(1.0), "a damaged filter must not take a lease"
        flows = Judged(bench, backend)
        if "judged" not in command and "inet" not in command:
            assert not await flows.offer(syn(bench.rng)), "what comes around the queue is dropped"
        await backend.repair()
        assert not await flows.offer(syn(bench.rng)), "repaired, but closed"
        assert backend.lease(1.0)
        assert await flows.offer(syn(bench.rng))
        assert len(damages) == 1


def by_last_byte(facts: PacketFacts, rule: Rule, group: Group) -> int:
    """A bucket function: the last byte of the client's address."""
    return facts.source.packed[-1]


def by_accident(facts: PacketFacts, rule: Rule, group: Group) -> int:
    """A bucket function that does not work."""
    raise LookupError("no such client")


async def test_a_bucket_function_of_ones_own(bench: Bench) -> None:
    async with opened(NfqueueBackend(bucket=by_last_byte)) as (backend, damages):
        flows = Judged(bench, backend)
        await backend.apply({"web": BucketStates(own=1 << 7)})
        for last in (6, 7, 8):
            assert backend.lease(1.0)
            client = IPv4Address(int(syn(bench.rng).source) & ~0xFF | last)
            assert await flows.offer(replace(syn(bench.rng), source=client)) is (last == 7)
        assert not damages


async def test_a_bucket_function_that_fails_drops_and_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        async with opened(NfqueueBackend(bucket=by_accident)) as (backend, damages):
            flows = Judged(bench, backend)
            assert backend.lease(1.0)
            for _ in range(3):
                assert not await flows.offer(syn(bench.rng))
            assert (await backend.counters()).other["malformed"] == 3
            await eventually(lambda: "no such client" in caplog.text, "it is told")
            assert caplog.text.count("no such client") == 1
            assert not damages


async def test_a_kernel_that_cannot_queue_is_told_what_to_load(
    empty: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "has_statement", lambda _: False)
    monkeypatch.setattr(table, "has_target", lambda: False)
    usability = await NfqueueBackend.probe()
    assert not usability.usable
    assert "CONFIG_NFT_QUEUE" in usability.detail
    assert "modprobe" in usability.detail
    backend = NfqueueBackend()
    with pytest.raises(HostError, match="modprobe"):
        await backend.open(policy("shop"), lambda _: None)
    assert backend.workers == []


async def test_a_missing_package_is_an_error_that_says_what_to_do(
    empty: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netfilterqueue.py").write_text("raise ImportError('libnetfilter_queue.so.1 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    backend = NfqueueBackend()
    with pytest.raises(
        HostError, match=r"libnetfilter_queue.so.1 is missing.*pip install 'nlbfarm\[nfqueue\]'"
    ):
        await backend.open(policy("shop"), lambda _: None)
    assert "nlbfarm" not in ruleset(empty)
    await backend.close()
