"""The judge in plain words: facts of a packet, a dictionary of flows, and the oracle. Slow, and unbounded.

It does not let flows end by silence: the tests that use it let little time pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.core.raw_packets import POLICY

from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.counters import FilterCounters
from nlbfarm.core.decision import Decision, PacketFacts, Reason, Verdict, decide
from nlbfarm.core.fragments import FragmentTable
from nlbfarm.core.judging import Judge
from nlbfarm.core.packets import FIN, RST, Packet, facts, follow, read
from nlbfarm.core.policy import FilterPolicy, Protocol

GROUPS = tuple(group.name for group in POLICY.groups)
OWN = {name: BucketStates(own=ALL) for name in GROUPS}
ADOPT = {name: BucketStates(adopt=ALL) for name in GROUPS}
DRAIN = {name: BucketStates(drain=ALL) for name in GROUPS}


def judge(states: Mapping[str, BucketStates] = OWN, **arguments: object) -> Judge:
    """A judge with states and a lease until 1000 s."""
    made = Judge(POLICY, **arguments)  # type: ignore[arg-type]
    made.apply(states)
    made.lease_end = 1000.0
    return made


class Reference:
    """Judges as ``nlbfarm.core.judging.Judge`` has to."""

    def __init__(self, policy: FilterPolicy) -> None:
        self.policy = policy
        self.states: Mapping[str, BucketStates] = {}
        self.lease_end = 0.0
        self.flows: dict[object, tuple[str, str | None, int | None]] = {}  # stage, group, bucket
        self._facts: FragmentTable[Packet] = FragmentTable(1 << 20)
        self._packets: FragmentTable[Packet] = FragmentTable(1 << 20)
        self._groups: dict[str, Counter[str]] = {group.name: Counter() for group in policy.groups}
        self._other: Counter[str] = Counter()

    def decide(self, data: bytes, interface: str, now: float) -> Decision:
        """Decide on a packet, count it and remember its flow."""
        decision = self._decide(data, interface, now)
        if decision.reason is not Reason.NOT_FILTERED:
            counts = self._other if decision.group is None else self._groups[decision.group]
            counts[decision.reason.value] += 1
        return decision

    def counters(self) -> FilterCounters:
        """What was counted."""
        return FilterCounters(
            {name: dict(counts) for name, counts in self._groups.items()}, dict(self._other)
        )

    def established(self) -> dict[str, dict[int, int]]:
        """How many flows count as established, by group and bucket."""
        found: dict[str, dict[int, int]] = {group.name: {} for group in self.policy.groups}
        for stage, group, bucket in self.flows.values():
            if not stage.startswith("closed"):
                assert group is not None
                assert bucket is not None
                found[group][bucket] = found[group].get(bucket, 0) + 1
        return found

    def _decide(self, data: bytes, interface: str, now: float) -> Decision:
        if all(vip.interface != interface for vip in self.policy.vips):
            return Decision(Verdict.ACCEPT, Reason.NOT_FILTERED)
        # Only what comes to a VIP on its interface is remembered, first fragments, too.
        packet = read(data)
        if packet is None:
            return Decision(Verdict.DROP, Reason.MALFORMED)
        plain = facts(data, interface)
        assert plain is not None
        vip = any(v.address == plain.destination and v.interface == interface for v in self.policy.vips)
        if not vip:
            return decide(self.policy, self.states, now < self.lease_end, plain)
        whole = facts(data, interface, fragments=self._facts, now=now)
        assert whole is not None
        if packet.datagram is not None:
            packet = follow(packet, self._packets, now)
        flow = (whole.source, whole.source_port, whole.destination, whole.destination_port)
        if whole.protocol == Protocol.TCP and self._known(flow, whole):
            whole = replace(whole, established_here=True)
        decision = decide(self.policy, self.states, now < self.lease_end, whole)
        if decision.accepted and whole.protocol == Protocol.TCP and decision.group is not None:
            self._note(flow, whole, packet.flags, decision)
        return decision

    def _known(self, flow: object, packet: PacketFacts) -> bool:
        stage, *_ = self.flows.get(flow, ("",))
        return stage in ("begun", "open") or (bool(stage) and not packet.opens_flow)

    def _note(self, flow: Any, packet: PacketFacts, flags: int, decision: Decision) -> None:
        stage, *_ = self.flows.get(flow, ("",))
        if packet.opens_flow:
            stage = stage if stage in ("begun", "open") else "begun"
        elif not stage:
            return  # a stranger to a bucket in OWN
        elif flags & RST:
            stage = "closed after a fin" if stage.endswith("fin") else "closed"
        elif flags & FIN or stage.endswith("fin"):
            stage = "fin"
        else:
            stage = "open"
        self.flows[flow] = stage, decision.group, decision.bucket
