"""A filter that judges packets inside this process: for tests, simulation and embedding trials.

Nothing on the host is filtered by it; whoever has packets hands their facts to ``MemoryBackend.judge``.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from nlbfarm.core.buckets import Bitmap, BucketStates
from nlbfarm.core.decision import Decision, PacketFacts, Reason, Verdict, decide
from nlbfarm.core.policy import FilterPolicy, IPAddress, Protocol
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import Clock, FilterBackend, FilterCounters, Usability

__all__ = ["MAX_FLOWS", "MemoryBackend"]

MAX_FLOWS = 65_536
"""Flows remembered as established here, unless told otherwise."""

_MAX_LEASE = 1.0
_NOT_FILTERED = Decision(Verdict.ACCEPT, Reason.NOT_FILTERED)

_Flow = tuple[IPAddress, int | None, IPAddress, int | None]
_Place = tuple[str, int]  # group and bucket


class _HostClock(Clock):
    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class MemoryBackend(FilterBackend):
    """A filter in memory. Its lease runs on the clock that it is given.

    It sees only what arrives, so whoever ends a connection tells it (``forget``). The flows that it remembers
    outlive ``close``, as a kernel's do: opened again with the same policy, it knows them.

    Args:
        clock: What the lease is measured with; the host's clock by default.
        max_flows: How many flows it remembers as established here. When there are more, the one that was
            silent longest is forgotten: to a bucket in ``ADOPT`` or ``DRAIN`` its packets are strangers then.

    Raises:
        UsageError: ``max_flows`` is below 1.
    """

    name = "memory"

    def __init__(self, clock: Clock | None = None, *, max_flows: int = MAX_FLOWS) -> None:
        if max_flows < 1:
            raise UsageError(f"max_flows is {max_flows}: write 1 or more")
        self._clock = clock if clock is not None else _HostClock()
        self._max_flows = max_flows
        self._policy: FilterPolicy | None = None
        self._flows_of: FilterPolicy | None = None  # by which the flows were put into buckets
        self._on_damage: Callable[[str], None] | None = None
        self._damaged = False
        self._states: Mapping[str, BucketStates] = {}
        self._lease_end = 0.0
        self._flows: OrderedDict[_Flow, _Place] = OrderedDict()  # that of the longest silence first
        self._groups: dict[str, Counter[str]] = {}
        self._other: Counter[str] = Counter()

    @classmethod
    async def probe(cls) -> Usability:
        return Usability(True, "judges packets inside this process; nothing on the host is filtered")

    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        if self._policy is not None:
            raise UsageError("the memory filter is open already: close it first")
        self._policy = policy
        if policy != self._flows_of:
            self._flows.clear()
            self._flows_of = policy
        self._on_damage = on_damage
        self._damaged = False
        self._states = {}
        self._lease_end = self._clock.monotonic()
        self._groups = {group.name: Counter() for group in policy.groups}
        self._other = Counter()

    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        self._require_groups(states)
        if self._damaged:
            raise HostError("the memory filter was removed by somebody else: repair it first")
        self._states = dict(states)

    def lease(self, seconds: float) -> bool:
        self._opened()
        if not seconds <= _MAX_LEASE:  # written so that NaN is refused, too
            raise UsageError(f"a lease of {seconds} s: at most {_MAX_LEASE} s")
        if self._damaged:
            return False
        self._lease_end = self._clock.monotonic() + max(seconds, 0.0)
        return True

    async def repair(self) -> None:
        self._opened()
        self._damaged = False
        self._lease_end = self._clock.monotonic()

    async def flows(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        self._require_groups(buckets)
        found: dict[str, dict[int, int]] = {group: {} for group in buckets}
        for group, bucket in self._flows.values():
            if buckets.get(group, 0) >> bucket & 1:
                found[group][bucket] = found[group].get(bucket, 0) + 1
        return found

    async def counters(self) -> FilterCounters:
        self._opened()
        groups = {name: dict(counts) for name, counts in self._groups.items()}
        return FilterCounters(groups=groups, other=dict(self._other))

    async def close(self) -> None:
        self._policy = None
        self._on_damage = None
        self._states = {}

    @classmethod
    async def cleanup(cls, farm: str) -> Sequence[str]:
        return ()

    def judge(self, facts: PacketFacts) -> Decision:
        """Decide on a packet, count it, and remember the flow if it opens one.

        Args:
            facts: The packet. Whether its flow is established here the filter knows by itself; the flag in
                the facts is for a flow that it should take as known although it never saw it begin.

        Returns:
            The decision. Where no filter is in place (not open, closed, damaged) everything passes, as it
            does on a host whose tables were flushed.
        """
        if self._policy is None or self._damaged:
            return _NOT_FILTERED
        flow = _flow(facts)
        known = facts.protocol == Protocol.TCP and flow in self._flows
        if known:
            facts = replace(facts, established_here=True)
        decision = decide(self._policy, self._states, self._clock.monotonic() < self._lease_end, facts)
        if decision.accepted and (known or facts.opens_flow):
            self._remember(flow, decision)
        if decision.reason is not Reason.NOT_FILTERED:
            counts = self._other if decision.group is None else self._groups[decision.group]
            counts[decision.reason.value] += 1
        return decision

    def forget(self, facts: PacketFacts) -> bool:
        """Take the TCP connection that this packet belongs to as closed: both FINs, or an RST, were seen.

        Args:
            facts: Any packet that the client sent in it.

        Returns:
            Whether the connection was remembered.
        """
        return self._flows.pop(_flow(facts), None) is not None

    def damage(self, what: str = "the memory filter was removed by somebody else") -> None:
        """Take the filter away as a stranger's ``nft flush ruleset`` would, and report it.

        Args:
            what: The sentence for ``on_damage``.

        Raises:
            UsageError: The filter is not open.
        """
        self._opened()
        if self._damaged or self._on_damage is None:
            return
        self._damaged = True
        self._lease_end = self._clock.monotonic()
        self._on_damage(what)

    def _opened(self) -> FilterPolicy:
        if self._policy is None:
            raise UsageError("the memory filter is not open: call open() first")
        return self._policy

    def _require_groups(self, named: Mapping[str, object]) -> None:
        policy = self._opened()
        known = {group.name for group in policy.groups}
        if unknown := sorted(named.keys() - known):
            raise UsageError(f"no group {', '.join(unknown)} in the policy of farm {policy.farm}")

    def _remember(self, flow: _Flow, decision: Decision) -> None:
        if decision.group is None or decision.bucket is None:
            return
        self._flows[flow] = (decision.group, decision.bucket)
        self._flows.move_to_end(flow)
        if len(self._flows) > self._max_flows:
            self._flows.popitem(last=False)


def _flow(facts: PacketFacts) -> _Flow:
    return facts.source, facts.source_port, facts.destination, facts.destination_port
