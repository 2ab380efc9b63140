"""Nodes on parts that live in memory, for the tests of the asyncio shell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from nlbfarm.backends.memory import MemoryBackend
from nlbfarm.core.buckets import BucketStates
from nlbfarm.core.policy import FilterPolicy, Group, Mode, Protocol, Rule, Vip
from nlbfarm.core.settings import Settings
from nlbfarm.core.supervision import Action, RuleSpec
from nlbfarm.core.wire import VERSION, Codec, Keyring
from nlbfarm.errors import HostError
from nlbfarm.heartbeat.memory import MemoryHeartbeat, SimulatedNetwork
from nlbfarm.interfaces import Checker, CheckResult, Service, VipSpec
from nlbfarm.parts import Check, Parts, Supervised
from nlbfarm.runtime import Runtime, Verb
from nlbfarm.vip.memory import MemoryHost, MemoryVIPManager

VIP = IPv4Address("192.0.2.100")
SPEC = VipSpec(VIP, "eth0", "multicast", "01:00:5e:7f:02:64")
POLICY = FilterPolicy(
    "t", (Vip(VIP, "eth0"),), (Group("web", 1),), (Rule("web", "web", VIP, Protocol.TCP, (80,)),)
)
BOUND_S = 10.0
NAMES = {1: "one", 2: "two", 3: "three"}


class Backend(MemoryBackend):
    """One whose ``apply`` and ``repair`` can be made to fail, or to take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = ""
        self.hold = asyncio.Event()
        self.hold.set()

    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await self.hold.wait()
        if self.refuses:
            raise HostError(self.refuses)
        await super().apply(states)

    async def repair(self) -> None:
        if self.refuses:
            raise HostError(self.refuses)
        await super().repair()


class Page(Checker):
    """A page that is there or not, hangs or raises."""

    def __init__(self) -> None:
        self.does: Callable[[], CheckResult] = lambda: CheckResult(True, "HTTP 200")
        self.hangs = False
        self.closed = False

    async def check(self) -> CheckResult:
        if self.hangs:
            await asyncio.Event().wait()
        return self.does()

    async def close(self) -> None:
        self.closed = True


class App(Service):
    """An application in memory: it runs or not, cannot be started, or takes its time."""

    def __init__(self, page: Page | None = None) -> None:
        self.runs = False
        self.refuses = ""
        self.hold = asyncio.Event()
        self.hold.set()
        self.log: list[str] = []
        self.closed = False
        self.page = page
        self._end = asyncio.Event()
        self._why = ""

    async def start(self, reason: str) -> None:
        self.log.append("start")
        await self.hold.wait()
        if self.refuses:
            raise HostError(self.refuses)
        self.runs = True
        self._end.clear()

    async def stop(self, reason: str) -> None:
        self.log.append("stop")
        await self.hold.wait()
        self.runs = False

    async def running(self) -> CheckResult:
        return CheckResult(self.runs, "runs" if self.runs else self._why or "does not run")

    async def ended(self) -> str:
        await self._end.wait()
        return self._why

    def crash(self, why: str = "killed by signal 9") -> None:
        self.runs, self._why = False, why
        self._end.set()

    async def close(self) -> None:
        self.closed = True


@dataclass
class Bench:
    """One node of a pair, and what it stands on."""

    runtime: Runtime
    backend: Backend
    host: MemoryHost
    page: Page
    network: SimulatedNetwork = field(repr=False)

    @property
    def own(self) -> int:
        if self.runtime.node is None:
            return 0
        states = self.runtime.node.applied[0]
        return (states.own | states.adopt).bit_count()

    @property
    def state(self) -> str:
        return self.runtime.node.state.name if self.runtime.node is not None else ""

    @property
    def reason(self) -> str:
        return self.runtime.node.reason if self.runtime.node is not None else ""

    @property
    def leased(self) -> bool:
        node = self.runtime.node
        return node is not None and node.lease_until > asyncio.get_running_loop().time()


def make(
    number: int,
    network: SimulatedNetwork,
    directory: Path,
    host: MemoryHost | None = None,
    *,
    heartbeat: MemoryHeartbeat | None = None,
    newest: int = VERSION,
    services: Sequence[Supervised] = (),
    rules: Sequence[RuleSpec] = (),
    checks: Sequence[Check] = (),
    last_stays: bool = True,
    action: Action = Action.WAIT,
) -> Bench:
    host = host or MemoryHost()
    backend, page = Backend(), Page()
    service = services[0].spec.name if services else None
    parts = Parts(
        settings=Settings(
            number,
            {1: "one", 2: "two", number: NAMES[number]},
            ("web",),
            (Mode.BALANCED,),
            (1,),
            interval=0.02,
            lease=0.06,
        ),
        policy=POLICY,
        codec=Codec("t", Keyring({1: b"sixteen bytes ok"}, 1), newest),
        backend=backend,
        vips=MemoryVIPManager((SPEC,), host),
        heartbeat=heartbeat or network.heartbeat(number),
        peers={peer: [IPv4Address(f"192.0.2.{peer}")] for peer in (1, 2) if peer != number},
        incarnation_file=directory / f"incarnation-{number}",
        admin_file=directory / f"admin-{number}",
        starts_file=directory / f"starts-{number}",
        restarts_file=directory / f"restarts-{number}",
        checks=(
            Check("page", "http", page, 0.02, 0.05, rise=1, fall=2, action=action, service=service),
            *checks,
        ),
        services=services,
        failover_rules=rules,
        last_stays=last_stays,
    )
    return Bench(Runtime(parts), backend, host, page, network)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not condition():
            await asyncio.sleep(0.002)


async def give(bench: Bench, name: str, **args: object) -> str:
    return await bench.runtime.administration.carry_out(Verb.of(name, args))
