"""The check on filters without a wire: right ones pass, one that is wrong in one way does not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nlbfarm.backends.memory import MemoryBackend
from nlbfarm.core.buckets import BucketStates
from nlbfarm.core.decision import Decision, PacketFacts
from nlbfarm.core.judging import Judge
from nlbfarm.core.policy import Affinity, FilterPolicy
from nlbfarm.interfaces import FilterBackend
from nlbfarm.testing.conformance import DifferenceError, Packet, check_filter_backend
from nlbfarm.testing.conformance.__main__ import main

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "conformance.md"


class Facts:
    """Shows a memory backend what the packets mean."""

    def __init__(self, backend: FilterBackend) -> None:
        assert isinstance(backend, MemoryBackend)
        self._backend = backend

    async def offer(self, packet: Packet) -> bool:
        return self._backend.judge(packet.facts).accepted


class Judging(MemoryBackend):
    """The judge of the user-space filters, in the place of the memory backend's own."""

    name = "judge"

    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        await super().open(policy, on_damage)
        self.by_bytes = Judge(policy)

    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        self.by_bytes.apply(states)

    def lease(self, seconds: float) -> bool:
        self.by_bytes.lease_end = time.monotonic() + seconds
        return True


class Bytes:
    """Shows a judge the bytes of the packets."""

    def __init__(self, backend: FilterBackend) -> None:
        assert isinstance(backend, Judging)
        self._backend = backend

    async def offer(self, packet: Packet) -> bool:
        return self._backend.by_bytes.judge(packet.data, packet.facts.interface, time.monotonic())


async def test_memory_decides_as_the_oracle_does() -> None:
    """As the documentation has it."""
    _, example = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(example, str(DOCUMENT), "exec"), names)
    report = await names["check"]()
    print(f"\n{report}")
    assert report.compared >= 18_000
    assert not report.differences


@pytest.mark.parametrize("whole", [False, True])
async def test_the_judge_decides_as_the_oracle_does(whole: bool) -> None:
    report = await check_filter_backend(
        Judging,
        packets=5_000,
        seed=2,
        probe=Bytes,
        whole=whole,
    )
    assert report.compared >= 4_500
    assert report.whole == {4: whole, 6: whole}


class AdoptIsOwn(MemoryBackend):
    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await super().apply(
            {name: replace(state, own=state.own | state.adopt, adopt=0) for name, state in states.items()}
        )


class DrainIsForeign(MemoryBackend):
    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await super().apply({name: replace(state, drain=0) for name, state in states.items()})


class OneGroupLate(MemoryBackend):
    _before: Mapping[str, BucketStates] = {}

    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        await super().apply({**states, "sticky": self._before.get("sticky", BucketStates())})
        self._before = states


class LeaseForEver(MemoryBackend):
    def lease(self, seconds: float) -> bool:
        return super().lease(1.0)


class OtherPolicy(MemoryBackend):
    def changed(self, policy: FilterPolicy) -> FilterPolicy:
        raise NotImplementedError

    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        await super().open(self.changed(policy), on_damage)


class OtherSeed(OtherPolicy):
    def changed(self, policy: FilterPolicy) -> FilterPolicy:
        groups = (replace(policy.groups[0], seed=policy.groups[0].seed ^ 1), *policy.groups[1:])
        return replace(policy, groups=groups)


class NetworksAreClients(OtherPolicy):
    def changed(self, policy: FilterPolicy) -> FilterPolicy:
        wrong = {Affinity.NETWORK: Affinity.CLIENT}
        rules = (replace(rule, affinity=wrong.get(rule.affinity, rule.affinity)) for rule in policy.rules)
        return replace(policy, rules=tuple(rules))


class EveryInterface(OtherPolicy):
    def changed(self, policy: FilterPolicy) -> FilterPolicy:
        return replace(policy, vips=tuple(replace(vip, interface="eth0") for vip in policy.vips))


class NoUncovered(OtherPolicy):
    def changed(self, policy: FilterPolicy) -> FilterPolicy:
        return replace(policy, vips=tuple(replace(vip, accept_uncovered=False) for vip in policy.vips))


class Judges(MemoryBackend):
    def seen(self, facts: PacketFacts) -> PacketFacts:
        raise NotImplementedError

    def judge(self, facts: PacketFacts) -> Decision:
        return super().judge(self.seen(facts))


class AnySynIsNew(Judges):
    def seen(self, facts: PacketFacts) -> PacketFacts:
        return replace(facts, ack=facts.ack and not facts.syn)


class EverythingIsUnderstood(Judges):
    def seen(self, facts: PacketFacts) -> PacketFacts:
        return replace(facts, malformed=False)


class FlowsAreForgotten(Judges):
    def seen(self, facts: PacketFacts) -> PacketFacts:
        self.forget(facts)
        return facts


class SynOpensAnotherNodesFlow(Judges):
    def seen(self, facts: PacketFacts) -> PacketFacts:
        return replace(facts, established_here=facts.ack)


WRONG = (
    AdoptIsOwn, DrainIsForeign, OneGroupLate, LeaseForEver, OtherSeed, NetworksAreClients, EveryInterface,
    NoUncovered, AnySynIsNew, EverythingIsUnderstood, FlowsAreForgotten, SynOpensAnotherNodesFlow,
)  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_filter_is_found_out(wrong: type[MemoryBackend]) -> None:
    with pytest.raises(AssertionError, match="decides otherwise than the oracle"):
        await check_filter_backend(wrong, packets=1_000, probe=Facts)


async def test_a_difference_is_shown_and_can_be_sent_again() -> None:
    async def complaint(only: tuple[int, ...]) -> str:
        with pytest.raises(AssertionError) as found:
            await check_filter_backend(
                DrainIsForeign,
                packets=2_000,
                seed=5,
                probe=Facts,
                only=only,
            )
        return str(found.value)

    first = await complaint(())
    assert re.search(r"bucket \d+ of group '\w+' is DRAIN, flow established here", first)
    assert "oracle: accept (drain); filter: dropped it" in first
    assert re.search(r"^  000000  (4[0-9a-f]|60) ", first, re.MULTILINE)
    again = re.search(r"seed=5, packets=2000, families=\(4, 6\), only=\((.*),\)\)", first)
    assert again is not None
    indices = tuple(map(int, again[1].split(", ")))
    assert 1 <= len(indices) <= 5
    second = await complaint(indices)
    assert [f"packet {index} (" in second for index in indices] == [True] * len(indices)


async def test_what_is_known_of_a_category_is_counted_apart() -> None:
    with pytest.raises(DifferenceError) as found:
        await check_filter_backend(EverythingIsUnderstood, packets=1_000, probe=Facts)
    differences = found.value.report.differences
    known = {difference.packet.category: "it takes everything" for difference in differences}
    report = await check_filter_backend(EverythingIsUnderstood, packets=1_000, probe=Facts, apart=known)
    assert sum(outcome.apart for outcome in report.outcomes.values()) == len(differences)
    assert report.compared == found.value.report.compared - len(differences)
    assert "it takes everything" in str(report)


async def test_once_is_enough() -> None:
    """A right filter that is shown only what was wrong elsewhere has nothing wrong."""
    report = await check_filter_backend(
        MemoryBackend,
        packets=2_000,
        probe=Facts,
        only=(100, 101),
    )
    assert 2 <= report.compared + report.host < 100


def test_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "--packets", "500", "--family", "4"]) == 0
    assert "500 packets (seed 1), " in capsys.readouterr().out
    assert main(["nobody"]) == 2
    assert "there is no backend 'nobody'" in capsys.readouterr().err
