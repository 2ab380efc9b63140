"""The bench of ``nlbfarm.testing.filter_backend``: a filter, packets for it, and expectations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Protocol as TypingProtocol

from nlbfarm.core.buckets import ALL, Bitmap, BucketStates
from nlbfarm.core.decision import ICMP, ICMPV6, IcmpKind, PacketFacts, decide
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, IPAddress, Mode, Protocol, Rule, Vip
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import FilterBackend

FARM = "conformance"
"""Name of the farm in the policy that the check opens backends with."""


ALL_OWN: Mapping[str, BucketStates] = {name: BucketStates(own=ALL) for name in ("web", "api", "shut")}
"""Every bucket of every group of the policy is ``OWN``."""


class PacketProbe(TypingProtocol):
    """Brings packets before a filter; written by who tests a backend.

    With real packets, keep the flows credible to conntrack: a SYN that the filter takes needs its SYN-ACK
    (let something listen on TCP 80 and 443 of the VIP), an ACK in the middle of a flow needs fitting numbers,
    and an answer with RST ends the flow that the check goes on to use. Sources are 198.51.100.0/24 and
    2001:db8:c::/64, so neither route nor ``rp_filter`` may refuse them.
    """

    async def offer(self, facts: PacketFacts) -> bool:
        """Let one packet arrive, and say whether the filter let it through.

        Args:
            facts: The packet to make. ``established_here`` and ``malformed`` are never set: the filter has to
                know its flows by itself.
        """

    async def reset(self, facts: PacketFacts) -> None:
        """Let the client give up (RST) the connection that ``facts`` opened, if the filter lets that through.

        Where the filter sees only what it is told, tell it.
        """

    async def wait(self, seconds: float) -> None:
        """Let at least ``seconds`` pass, on the clock that the filter's lease runs on."""


@dataclass(slots=True)
class Bench:
    """A backend, packets for it, and expectations."""

    backend: FilterBackend
    probe: PacketProbe
    vip: IPAddress
    interface: str
    tolerance: float
    ports: Iterator[int]
    check: str
    damages: list[str] = field(default_factory=list)

    @property
    def policy(self) -> FilterPolicy:
        def rule(name: str, group: str, protocol: Protocol, port: int, affinity: Affinity) -> Rule:
            return Rule(name, group, self.vip, protocol, (port,), affinity)

        return FilterPolicy(
            farm=FARM,
            vips=(Vip(self.vip, self.interface),),
            groups=(Group("web", 0x5EED), Group("api", 7), Group("shut", 9, Mode.BLOCKED)),
            rules=(
                rule("web", "web", Protocol.TCP, 80, Affinity.CLIENT_PORT),
                rule("api", "api", Protocol.TCP, 443, Affinity.CLIENT),
                rule("dns", "api", Protocol.UDP, 53, Affinity.CLIENT),
                rule("shut", "shut", Protocol.TCP, 99, Affinity.CLIENT_PORT),
            ),
        )

    async def open(self) -> None:
        await self.backend.open(self.policy, self.damages.append)

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            name = getattr(self.backend, "name", type(self.backend).__name__)
            raise AssertionError(f"backend {name!r} breaks its contract ({self.check}): {message}")

    def lease(self, seconds: float) -> None:
        self.require(
            self.backend.lease(seconds) is True, f"lease({seconds}) of an undamaged filter was not True"
        )

    async def accepts(self, facts: PacketFacts, message: str) -> None:
        """Require that ``facts`` pass under a fresh lease.

        On a busy host a real packet may come after the end of the lease: three leases, three packets.
        """
        for _ in range(3):
            self.lease(1.0)
            if await self.probe.offer(facts):
                return
        self.require(False, f"dropped, though {message}: {facts}")

    async def drops(self, facts: PacketFacts, message: str, *, lease: bool = True) -> None:
        """Require that ``facts`` do not pass, under a fresh lease or whatever lease there is."""
        if lease:
            self.lease(1.0)
        self.require(not await self.probe.offer(facts), f"accepted, though {message}: {facts}")

    async def raises(self, call: Callable[[], object], message: str) -> None:
        """Require that ``call``, plain or async, raises ``UsageError``."""
        try:
            result = call()
            if isinstance(result, Awaitable):
                await result
        except UsageError:
            return
        self.require(False, f"no UsageError for {message}")

    def client(self, host: int = 7) -> IPAddress:
        base = "198.51.100.0" if self.vip.version == 4 else "2001:db8:c::"
        return ip_address(base) + host

    def new(self, port: int = 80, host: int = 7) -> PacketFacts:
        """The first packet of a connection that nobody has seen yet."""
        return PacketFacts(
            interface=self.interface,
            source=self.client(host),
            destination=self.vip,
            protocol=Protocol.TCP,
            source_port=next(self.ports),
            destination_port=port,
            syn=True,
        )

    def datagram(self, host: int = 7) -> PacketFacts:
        return replace(self.new(53, host), protocol=Protocol.UDP, syn=False)

    def icmp(self, kind: IcmpKind, host: int = 7) -> PacketFacts:
        return PacketFacts(
            interface=self.interface,
            source=self.client(host),
            destination=self.vip,
            protocol=ICMP if self.vip.version == 4 else ICMPV6,
            icmp=kind,
        )

    def bucket(self, facts: PacketFacts) -> int:
        bucket = decide(self.policy, {}, True, facts).bucket
        if bucket is None:
            raise UsageError(f"no bucket for {facts}")
        return bucket

    async def flows(self, buckets: Mapping[str, Bitmap]) -> dict[str, dict[int, int]]:
        """Ask in which buckets flows are left; groups without one are left out of the answer."""
        counts = await self.backend.flows(buckets)
        for group, bitmap in buckets.items():
            strange = [bucket for bucket in counts.get(group, {}) if not bitmap >> bucket & 1]
            self.require(not strange, f"flows of buckets {strange} of {group}, which nobody asked about")
        return {group: dict(found) for group, found in counts.items() if found}

    async def lone(self, group: str, *beside: PacketFacts) -> PacketFacts:
        """The first packet of a new connection in a bucket without flows, ``beside`` included."""
        # A kernel may still know the flows of the check before.
        known = {*(await self.flows({group: ALL})).get(group, {}), *map(self.bucket, beside)}
        return self._search(group, lambda bucket: bucket not in known)

    def beside(self, group: str, facts: PacketFacts) -> PacketFacts:
        """The first packet of a new connection in the bucket of ``facts``."""
        return self._search(group, lambda bucket: bucket == self.bucket(facts))

    def _search(self, group: str, fits: Callable[[int], bool]) -> PacketFacts:
        port = {"web": 80, "api": 443}[group]
        for attempt in range(5_000):
            facts = self.new(port, attempt % 254 + 1)
            if fits(self.bucket(facts)):
                return facts
        raise UsageError(f"no client found for a bucket of group {group}")

    async def reset(self, facts: PacketFacts) -> None:
        """Let a connection end, under a fresh lease."""
        self.lease(1.0)
        await self.probe.reset(facts)


def later(facts: PacketFacts) -> PacketFacts:
    """A packet in the middle of the flow that ``facts`` open."""
    return replace(facts, syn=False, ack=True)
