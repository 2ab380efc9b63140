"""The conformance check of ``FilterBackend`` notices backends that are wrong in one way each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
from tests.backends.memory_support import Clocked, Probe, damage

from nlbfarm.core.buckets import ALL, Bitmap, BucketStates, bits
from nlbfarm.core.decision import Decision, PacketFacts, Reason, Verdict
from nlbfarm.core.policy import FilterPolicy, Protocol
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import FilterCounters
from nlbfarm.testing.filter_backend import check_filter_backend_contract


class FailOpen(Clocked):
    def judge(self, facts: PacketFacts) -> Decision:
        decision = super().judge(facts)
        return replace(decision, verdict=Verdict.ACCEPT) if decision.reason == "no-lease" else decision


class OpenedOwningAll(Clocked):
    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        await super().open(policy, on_damage)
        await self.apply({group.name: BucketStates(own=ALL) for group in policy.groups})


class LeaseFromOpen(Clocked):
    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        await super().open(policy, on_damage)
        self.lease(0.5)


class DropsAll(Clocked):
    def judge(self, facts: PacketFacts) -> Decision:
        return replace(super().judge(facts), verdict=Verdict.DROP)


class LeaseRoundedUp(Clocked):
    def lease(self, seconds: float) -> bool:
        return super().lease(min(math.ceil(seconds * 4) / 4, 1.0) if seconds <= 1 else seconds)


class LeaseOnlyGrows(Clocked):
    end = 0.0

    def lease(self, seconds: float) -> bool:
        now = self.fake_clock.monotonic()
        if 0 < seconds <= 1:
            self.end = max(self.end, now + seconds)
            return super().lease(min(1.0, self.end - now))
        return super().lease(seconds)


class LeaseOnlyShrinks(Clocked):
    """Takes a longer lease only when the one before has run out."""

    end = 0.0

    def lease(self, seconds: float) -> bool:
        now = self.fake_clock.monotonic()
        if 0 < seconds <= 1:
            self.end = min(self.end, now + seconds) if self.end > now else now + seconds
            return super().lease(self.end - now)
        return super().lease(seconds)


class LeaseNeverShortened(Clocked):
    """Gives ``lease(0)`` the longest time there is."""

    def lease(self, seconds: float) -> bool:
        return super().lease(seconds if seconds > 0 or seconds != seconds else 1.0)


class LeaseUnlimited(Clocked):
    def lease(self, seconds: float) -> bool:
        return super().lease(min(seconds, 1.0))


class LeaseSaysNo(Clocked):
    def lease(self, seconds: float) -> bool:
        super().lease(seconds)
        return False


class ApplyMerges(Clocked):
    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        self.merged: dict[str, BucketStates] = {}
        await super().open(policy, on_damage)

    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await super().apply({**self.merged, **states})
        self.merged.update(states)


class ApplyRenewsTheLease(Clocked):
    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await super().apply(states)
        self.lease(0.5)


class ApplyTakesUnknownGroups(Clocked):
    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await super().apply({name: states[name] for name in states if name != "nobody"})


class ApplyHalfDone(Clocked):
    """Raises as it should, after the change."""

    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await super().apply({name: states[name] for name in states if name != "nobody"})
        if "nobody" in states:
            raise UsageError("no such group")


class OneBucketOff(Clocked):
    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await super().apply(
            {name: BucketStates(own=(s.own << 1 | s.own >> 255) & ALL) for name, s in states.items()}
        )


class Stateless(Clocked):
    """Takes every packet for what it looks like: remembers no flow."""

    def judge(self, facts: PacketFacts) -> Decision:
        self._flows.clear()
        return super().judge(facts)


class KnowsEverybody(Clocked):
    """What conntrack's own state does: picks up flows in the middle."""

    def judge(self, facts: PacketFacts) -> Decision:
        return super().judge(replace(facts, established_here=facts.established_here or facts.ack))


class DrainTakesNew(Clocked):
    def judge(self, facts: PacketFacts) -> Decision:
        return super().judge(replace(facts, established_here=facts.established_here or facts.syn))


class DrainsUdp(Clocked):
    def judge(self, facts: PacketFacts) -> Decision:
        decision = super().judge(facts)
        states = self._states.get(decision.group or "", BucketStates())
        if facts.protocol == Protocol.UDP and states.drain:
            return replace(decision, verdict=Verdict.ACCEPT)
        return decision


class TakesBlocked(Clocked):
    def judge(self, facts: PacketFacts) -> Decision:
        decision = super().judge(facts)
        return replace(decision, verdict=Verdict.ACCEPT) if decision.reason == "blocked" else decision


class TakesUncovered(Clocked):
    def judge(self, facts: PacketFacts) -> Decision:
        decision = super().judge(facts)
        return replace(decision, verdict=Verdict.ACCEPT) if decision.reason == "uncovered" else decision


class DropsIcmpErrors(Clocked):
    def judge(self, facts: PacketFacts) -> Decision:
        decision = super().judge(facts)
        return replace(decision, verdict=Verdict.DROP) if decision.reason == "icmp-error" else decision


class OpensTwice(Clocked):
    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        if self._policy is None:
            await super().open(policy, on_damage)


class LeasesWhenClosed(Clocked):
    def lease(self, seconds: float) -> bool:
        return self._policy is not None and super().lease(seconds)


class ClosesOnce(Clocked):
    async def close(self) -> None:
        if self._policy is None:
            raise HostError("no such table")
        await super().close()


class FiltersAfterClose(Clocked):
    was_open = False

    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        await super().open(policy, on_damage)
        self.was_open = True

    def judge(self, facts: PacketFacts) -> Decision:
        if self.was_open and self._policy is None:
            return Decision(Verdict.DROP, Reason.FOREIGN)
        return super().judge(facts)


class LeavesThingsBehind(Clocked):
    @classmethod
    async def cleanup(cls, farm: str) -> Sequence[str]:
        return (f"removed the table of {farm}",)


class WrongCounterNames(Clocked):
    async def counters(self) -> FilterCounters:
        counters = await super().counters()
        return replace(counters, other={name.upper(): n for name, n in counters.other.items()})


class CountsNothing(Clocked):
    async def counters(self) -> FilterCounters:
        await super().counters()
        return FilterCounters()


class CountsNoFlows(Clocked):
    async def flows(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        await super().flows(buckets)
        return {}


class CountsBucketsOnly(Clocked):
    async def flows(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        counts = await super().flows(buckets)
        return {group: dict.fromkeys(found, 1) for group, found in counts.items()}


class CountsStrangers(Clocked):
    """What conntrack's own table does."""

    def judge(self, facts: PacketFacts) -> Decision:
        decision = super().judge(facts)
        if decision.accepted and facts.protocol == Protocol.TCP:
            self._remember((facts.source, facts.source_port, facts.destination, 80), decision)
        return decision


class CountsWhatNobodyAskedAbout(Clocked):
    async def flows(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        return await super().flows(dict.fromkeys(buckets, ALL))


class CountsAnyGroup(Clocked):
    async def flows(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        return await super().flows({group: buckets[group] for group in buckets if group != "nobody"})


class NeverLooksAgain(Clocked):
    """Answers from what it found when it was first asked."""

    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        self.found: dict[tuple[str, Bitmap], Mapping[int, int]] = {}
        await super().open(policy, on_damage)

    async def flows(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        counts = await super().flows(buckets)
        return {
            group: self.found.setdefault((group, bitmap), counts[group]) for group, bitmap in buckets.items()
        }


class EmptyForEver(Clocked):
    """Takes a bucket that once had no flow for one that has none."""

    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        self.empty: set[tuple[str, int]] = set()
        await super().open(policy, on_damage)

    async def flows(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        counts = await super().flows(buckets)
        for group, bitmap in buckets.items():
            if bitmap != ALL:
                self.empty |= {(group, bucket) for bucket in bits(bitmap) if bucket not in counts[group]}
        return {
            group: {bucket: n for bucket, n in found.items() if (group, bucket) not in self.empty}
            for group, found in counts.items()
        }


class ForgetsFlowsOnClose(Clocked):
    async def close(self) -> None:
        await super().close()
        self._flows.clear()


class CriesWolf(Clocked):
    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await super().apply(states)
        assert self._on_damage is not None
        self._on_damage("somebody changed the table (it was us)")


class Oblivious(Clocked):
    def damage(self, what: str = "") -> None:
        self._damaged = True


class DamagedButTakesLeases(Clocked):
    def lease(self, seconds: float) -> bool:
        super().lease(seconds)
        return True


class RepairKeepsTheLease(Clocked):
    async def repair(self) -> None:
        await super().repair()
        self.lease(0.5)


class RepairForgetsTheStates(Clocked):
    async def repair(self) -> None:
        await super().repair()
        await self.apply({})


WRONG = {
    FailOpen: "nothing before the first lease",
    OpenedOwningAll: "closed when opened",
    LeaseFromOpen: "nothing before the first lease",
    DropsAll: "accepts what it owns",
    LeaseRoundedUp: "lease ends by itself",
    LeaseOnlyGrows: "lease ends by itself",
    LeaseOnlyShrinks: "lease is replaced",
    LeaseNeverShortened: "lease is replaced",
    LeaseUnlimited: "bad calls change nothing",
    LeaseSaysNo: "closed when opened",
    ApplyMerges: "accepts what it owns",
    ApplyRenewsTheLease: "nothing before the first lease",
    ApplyTakesUnknownGroups: "bad calls change nothing",
    ApplyHalfDone: "bad calls change nothing",
    OneBucketOff: "accepts what it owns",
    Stateless: "bucket states of tcp",
    KnowsEverybody: "bucket states of tcp",
    DrainTakesNew: "bucket states of tcp",
    DrainsUdp: "moves without syn",
    TakesBlocked: "packets outside every bucket",
    TakesUncovered: "packets outside every bucket",
    DropsIcmpErrors: "packets outside every bucket",
    OpensTwice: "bad calls change nothing",
    LeasesWhenClosed: "calls in the wrong state",
    FiltersAfterClose: "close in any state",
    LeavesThingsBehind: "close in any state",
    WrongCounterNames: "counters",
    CountsNothing: "counters",
    CountsNoFlows: "flows that are left",
    CountsBucketsOnly: "flows that are left",
    CountsStrangers: "flows that are left",
    CountsWhatNobodyAskedAbout: "flows that are left",
    CountsAnyGroup: "bad calls change nothing",
    NeverLooksAgain: "flows that are left",
    EmptyForEver: "flows of buckets that open again",
    ForgetsFlowsOnClose: "flows of an earlier process",
    CriesWolf: "nothing before the first lease",
    Oblivious: "damage and repair",
    DamagedButTakesLeases: "damage and repair",
    RepairKeepsTheLease: "damage and repair",
    RepairForgetsTheStates: "damage and repair",
}


@pytest.mark.parametrize(
    ("wrong", "check"), WRONG.items(), ids=lambda value: getattr(value, "__name__", None)
)
async def test_the_check_notices_a_backend_that_is_wrong(wrong: type[Clocked], check: str) -> None:
    with pytest.raises(AssertionError, match=rf"'memory' breaks its contract \({check}\)"):
        await check_filter_backend_contract(wrong, Probe, damage=damage)


async def test_flows_that_end_with_their_process_are_no_fault_where_that_is_said() -> None:
    await check_filter_backend_contract(ForgetsFlowsOnClose, Probe, survives=False)


async def test_the_check_does_not_hide_a_close_that_raises() -> None:
    with pytest.raises(HostError, match="no such table"):
        await check_filter_backend_contract(ClosesOnce, Probe)
