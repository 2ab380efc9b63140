"""A farm inside a program: two nodes in this process, real heartbeats over loopback, filters in memory.

What a vendor's product does with ``nlbfarm`` as a library, with nothing changed on the host and no rights
needed. In a product, ``nftables`` and ``LinuxVIPManager`` stand where the memory parts stand here; see
``nlbfarm.assembly.build``.

Run it: ``python examples/embed.py``
"""

from __future__ import annotations

import asyncio
import tempfile
from ipaddress import IPv4Address
from pathlib import Path

from nlbfarm.backends.memory import MemoryBackend
from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.policy import FilterPolicy, Group, Mode, Protocol, Rule, Vip
from nlbfarm.core.settings import Settings
from nlbfarm.core.wire import Codec, Keyring
from nlbfarm.heartbeat.udp import UdpHeartbeat
from nlbfarm.interfaces import VipSpec
from nlbfarm.parts import Parts, SystemClock
from nlbfarm.runtime import Runtime
from nlbfarm.vip.memory import MemoryVIPManager

VIP = IPv4Address("192.0.2.100")
NODES = {1: IPv4Address("127.0.0.11"), 2: IPv4Address("127.0.0.12")}
POLICY = FilterPolicy(
    farm="embedded",
    vips=(Vip(VIP, "eth0"),),
    groups=(Group("web", seed=0x5EED),),
    rules=(Rule("web", "web", VIP, Protocol.TCP, (80,)),),
)


def node(number: int, backend: MemoryBackend, directory: Path) -> Runtime:
    """Build node ``number`` from parts."""
    clock = SystemClock()
    peers = {other: [address] for other, address in NODES.items() if other != number}
    return Runtime(
        Parts(
            settings=Settings(
                node=number,
                nodes={other: f"node{other}" for other in NODES},
                groups=("web",),
                modes=(Mode.BALANCED,),
                powers=(1,),
            ),
            policy=POLICY,
            codec=Codec("embedded", Keyring({1: b"a key of at least sixteen bytes"}, active=1)),
            backend=backend,
            vips=MemoryVIPManager((VipSpec(VIP, "eth0", "multicast", "01:00:5e:7f:02:64"),)),
            heartbeat=UdpHeartbeat([NODES[number]], peers, port=4814, clock=clock),
            peers=peers,
            incarnation_file=directory / f"incarnation-{number}",
            clock=clock,
        )
    )


def buckets_of(runtime: Runtime) -> int:
    """Return how many buckets the node holds."""
    return runtime.node.holding[0].bit_count() if runtime.node is not None else 0


async def until_shares_are(runtimes: list[Runtime], shares: list[int]) -> None:
    """Wait until every node has that many buckets, for at most ten seconds."""
    async with asyncio.timeout(10):
        while [buckets_of(runtime) for runtime in runtimes] != shares:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def main() -> None:
    """Bring two nodes up, ask who takes a client, take one node down."""
    with tempfile.TemporaryDirectory() as directory:
        backends = [MemoryBackend(), MemoryBackend()]
        runtimes = [node(number, backends[number - 1], Path(directory)) for number in NODES]
        try:
            for runtime in runtimes:
                await runtime.open()
            await until_shares_are(runtimes, [128, 128])
            print("two nodes share the buckets: 128 and 128")

            packet = PacketFacts(
                interface="eth0",
                source=IPv4Address("198.51.100.7"),
                destination=VIP,
                protocol=Protocol.TCP,
                source_port=40001,
                destination_port=80,
                syn=True,
            )
            takers = [f"node{n}" for n, backend in enumerate(backends, 1) if backend.judge(packet).accepted]
            print(f"198.51.100.7:40001 is taken by {' and '.join(takers)}")

            runtimes[0].stop()
            await runtimes[0].wait()
            await until_shares_are(runtimes[1:], [256])
            print("node1 has left in good order: node2 serves all 256")
        finally:
            for runtime in runtimes:
                await runtime.close()


if __name__ == "__main__":
    asyncio.run(main())
