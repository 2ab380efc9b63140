"""In which buckets flows are left: the nftables backend's answer beside what the test itself has opened."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from tests.netns.connections import POLICY, VIPS, Connection, Network
from tests.netns.filter_child import policy as single
from tests.netns.packets import Bench, Tcp
from tests.netns.support import eventually, eventually_async

from nlbfarm.backends import flows
from nlbfarm.backends.conntrack import Conntrack, Flow, Life, Services
from nlbfarm.backends.netlink import attribute
from nlbfarm.backends.nftables import NftablesBackend
from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.policy import FilterPolicy, Protocol
from nlbfarm.errors import HostError

pytestmark = pytest.mark.netns

ASKED = {"web": ALL, "api": ALL}
OWN = dict.fromkeys(ASKED, BucketStates(own=ALL))
DRAIN = dict.fromkeys(ASKED, BucketStates(drain=ALL))
ZONES = """
table inet zones {
    chain arrive {
        type filter hook prerouting priority raw;
        iifname eth0 ct zone set 7
    }
    chain leave {
        type filter hook output priority raw;
        oifname eth0 ct zone set 7
    }
}
"""


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    try:
        with network.node.entered():
            yield network
    finally:
        network.close()


@asynccontextmanager
async def opened(policy: FilterPolicy = POLICY) -> AsyncIterator[NftablesBackend]:
    """A backend with a lease that is renewed."""
    damages: list[str] = []
    backend = NftablesBackend()
    await backend.open(policy, damages.append)

    async def renew() -> None:
        while True:
            assert backend.lease(1.0)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(renew())
    await asyncio.sleep(0)
    try:
        yield backend
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await backend.close()
    assert not damages


def truth(connections: Iterable[Connection]) -> dict[str, dict[int, int]]:
    counts: dict[str, dict[int, int]] = {group: {} for group in ASKED}
    for connection in connections:
        group, bucket = connection.place
        counts[group][bucket] = counts[group].get(bucket, 0) + 1
    return counts


async def eventually_counts(
    backend: NftablesBackend, connections: Collection[Connection], *, exact: bool = True
) -> None:
    """Wait until the backend counts these; ``exact=False``: until the same buckets are empty."""
    expected = truth(connections)
    seen: Mapping[str, Mapping[int, int]] = {}

    async def right() -> bool:
        nonlocal seen
        seen = await backend.flows(ASKED)
        if exact:
            return seen == expected
        return all(seen[group].keys() == expected[group].keys() for group in ASKED)

    try:
        await eventually_async(right, "the backend's counts are those of the test")
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen}, where there are {expected}") from None


async def test_counts_are_those_of_real_connections(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "HALF_OPEN_S", 3600.0)
    async with opened() as backend:
        await backend.apply(OWN)
        kinds: dict[str, list[Connection]] = {}
        for version in (4, 6):
            for port in (80, 443):
                for kind in ("open", "idle", "half closed", "closed", "closed by the node", "reset"):
                    for client in (0, 0, 1):
                        kinds.setdefault(kind, []).append(network.connect(version, port, client))
                kinds.setdefault("half open", []).append(network.begin(version, port))
        every = [connection for of_kind in kinds.values() for connection in of_kind]
        await eventually_counts(backend, every)
        # What begins on the node itself is not filtered, and nothing that a drain would wait for.
        local = socket.create_connection((str(VIPS[4]), 80), timeout=5)
        for connection in kinds["half closed"]:
            connection.mine.shutdown(socket.SHUT_WR)
        for connection in kinds["closed"]:
            connection.close("mine")
        for connection in kinds["closed by the node"]:
            connection.close("theirs")
        for connection in kinds["reset"]:
            connection.reset()
        for connection in kinds["open"]:
            connection.talk()
        left = [*kinds["open"], *kinds["idle"], *kinds["half closed"], *kinds["half open"]]
        await eventually_counts(backend, left)
        waiting = network.node.run("ss", "-Htn", "state", "time-wait").splitlines()
        print(f"\n{len(every)} connections, {len(left)} left; {len(waiting)} of the node in TIME_WAIT")
        assert len(waiting) == len(kinds["closed by the node"])

        # From now on known flows are looked up, and the table is not scanned.
        await backend.apply(DRAIN)
        await eventually_counts(backend, left)
        while kinds["open"]:
            kinds["open"].pop().close("mine")
            kinds["idle"].pop().reset()
            left = [*kinds["open"], *kinds["idle"], *kinds["half closed"], *kinds["half open"]]
            await eventually_counts(backend, left)
            for connection in kinds["open"]:
                connection.talk()
        monkeypatch.setattr(flows, "HALF_OPEN_S", -1.0)
        await eventually_counts(backend, kinds["half closed"])
        local.close()


async def test_connections_of_an_earlier_process_are_found_and_go_on(network: Network) -> None:
    async with opened() as backend:
        await backend.apply(OWN)
        held = [network.connect(version, port) for version in (4, 6) for port in (80, 443)]
        for connection in held:
            connection.talk()
    # Now no rule of the namespace knows of labels, nor even of connections: conntrack itself is switched off.
    assert network.node.run("nft", "list", "ruleset") == ""
    async with opened() as backend:
        assert await backend.flows(ASKED) == truth(held)
        await backend.apply(DRAIN)
        for connection in held:
            connection.talk()
        assert await backend.flows(ASKED) == truth(held)
        network.begin(4, 80)  # DRAIN takes no new flow, so it does not count
        for connection in held:
            connection.close("mine")
        await eventually_counts(backend, [])


async def test_connections_outlive_a_table_that_is_replaced(network: Network) -> None:
    killed = NftablesBackend()
    await killed.open(POLICY, lambda _: None)
    try:
        await killed.apply(OWN)
        assert killed.lease(1.0)
        held = [network.connect(4, 80), network.connect(6, 443)]
        async with opened() as backend:
            assert await backend.flows(ASKED) == truth(held)
            await backend.apply(DRAIN)
            for connection in held:
                connection.talk()
            await backend.repair()
            assert backend.lease(1.0)
            for connection in held:
                connection.talk()
            assert await backend.flows(ASKED) == truth(held)
    finally:
        await killed.close()


async def test_connections_in_a_zone_of_somebody_elses_are_found(network: Network) -> None:
    network.node.run("nft", "-f", "-", stdin=ZONES)
    async with opened() as backend:
        await backend.apply(OWN)
        held = [network.connect(4, 80), network.connect(6, 80)]
        await backend.apply(DRAIN)
        for _ in range(3):
            assert await backend.flows(ASKED) == truth(held)
        for connection in held:
            connection.talk()
            connection.reset()
        await eventually_counts(backend, [])


async def test_a_flow_accepted_just_before_the_drain_is_not_missed(rng: random.Random) -> None:
    """The truth is a scan after the last packet: what the filter took before the change is labelled."""
    vip = IPv4Address("192.0.2.100")
    policy = single("flows")
    bench = Bench([vip], (80,), rng)
    sent = 0

    def send() -> None:
        nonlocal sent
        for _ in range(500):
            source = IPv4Address(rng.randrange(0x0B000000, 0x7E000000))
            syn = PacketFacts("eth0", source, vip, Protocol.TCP, rng.randrange(1024, 65536), 80, syn=True)
            bench.send(syn, Tcp(rng.getrandbits(32)))
            sent += 1

    def scan() -> dict[int, int]:
        with Conntrack(Services(policy)) as conntrack:
            found = {flow for part in conntrack.scan() for flow in part}
        return dict(Counter(flow.bucket for flow in found))

    try:
        with bench.node.entered():
            async with opened(policy) as backend:
                for _ in range(3):
                    await backend.apply({"web": BucketStates(own=ALL)})
                    enough = sent + 100
                    sender = threading.Thread(target=send)
                    sender.start()
                    try:
                        await eventually(lambda: sent >= enough, "SYNs arrive")  # noqa: B023
                        await backend.apply({"web": BucketStates(drain=ALL)})
                        counts = await backend.flows({"web": ALL})
                    finally:
                        sender.join()
                    bench.settle()
                    assert counts["web"] == scan()
                print(f"\n{sent} SYNs, {sum(counts['web'].values())} taken before the drains, each counted")
                assert 0 < sum(counts["web"].values()) < sent
    finally:
        bench.close()


async def test_a_change_of_the_filter_does_not_wait_for_a_count(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, go_on = threading.Event(), threading.Event()
    scan = Conntrack.scan

    def slow(conntrack: Conntrack) -> Iterator[list[Flow]]:
        counting.set()
        assert go_on.wait(10)
        return scan(conntrack)

    monkeypatch.setattr(Conntrack, "scan", slow)
    async with opened() as backend:
        question = asyncio.create_task(backend.flows(ASKED))
        await eventually(counting.is_set, "the count has begun")
        await backend.apply(OWN)
        connection = network.connect(4, 80)
        assert not question.done()
        go_on.set()
        assert await question == truth([connection])


async def test_close_does_not_wait_for_a_count(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = threading.Event()

    def endless(conntrack: Conntrack) -> Iterator[list[Flow]]:
        counting.set()
        while True:
            yield []

    monkeypatch.setattr(Conntrack, "scan", endless)
    async with opened() as backend:
        question = asyncio.create_task(backend.flows(ASKED))
        await eventually(counting.is_set, "the count has begun")
    with pytest.raises(HostError, match="closed"):
        await question


async def test_without_the_right_it_says_so(network: Network) -> None:
    program = (
        "from nlbfarm.backends.conntrack import Conntrack, Services\n"
        "from nlbfarm.errors import HostError\n"
        "from tests.netns.filter_child import policy\n"
        "try:\n"
        "    with Conntrack(Services(policy('shop'))) as conntrack:\n"
        "        print(list(conntrack.scan()))\n"
        "except HostError as error:\n"
        "    print('HostError', error)\n"
    )
    said = network.node.run(
        "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", sys.executable, "-c", program
    )
    assert said.startswith("HostError")
    assert "CAP_NET_ADMIN" in said


async def test_a_dump_is_narrowed_to_what_the_services_share(network: Network) -> None:
    """Two services of one address and two ports; then one of each: every filter finds its flows."""
    held: list[Connection] = []
    for version in (4, 6):
        for ports in ((80, 443), (80,), (443,)):
            rules = tuple(
                rule for rule in POLICY.rules if rule.vip.version == version and rule.ports[0] in ports
            )
            async with opened(replace(POLICY, rules=rules)) as backend:
                await backend.apply(OWN)
                held += [network.connect(version, port) for port in ports]
                mine = [
                    connection
                    for connection in held
                    if connection.port in ports and connection.version == version
                ]
                assert await backend.flows(ASKED) == truth(mine)


async def test_a_kernel_that_does_not_know_the_filter_tells_everything(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = attribute(25 | 0x8000, attribute(1, struct.pack("=I", 1 << 31)))  # CTA_FILTER, _ORIG_FLAGS
    monkeypatch.setattr(Services, "filters", lambda _: iter([(4, unknown), (6, unknown)]))
    async with opened() as backend:
        await backend.apply(OWN)
        held = [network.connect(4, 80), network.connect(6, 443)]
        assert await backend.flows(ASKED) == truth(held)


async def test_where_connections_cannot_be_told_the_probe_says_what_follows(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "drain" not in (await NftablesBackend.probe()).detail

    def refuse(conntrack: Conntrack, question: bytes) -> Life:
        raise HostError("this kernel is old")

    monkeypatch.setattr(Conntrack, "look_up", refuse)
    usability = await NftablesBackend.probe()
    assert usability.usable
    assert "drain always lasts for drain_timeout here, because this kernel is old" in usability.detail
