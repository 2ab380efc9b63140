"""The parts of ``python -m benchmarks filter`` measure what they say; how fast, is not tested."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from benchmarks._filter_cells import Cell, Line, Rate, Sample, cost, rate
from benchmarks._filter_host import Meter, Wire
from benchmarks._filter_load import FLOWS, HALF, XT_CLUSTER_SEED, Generator, Kind, load, pick, policy
from benchmarks._filter_plot import draw
from benchmarks._filter_results import costs, goals, rates
from benchmarks._filter_subjects import Subject, backend, dropping, empty, plain_drop, xt_cluster

from nlbfarm.core.hashing import bucket_of, flow_key
from nlbfarm.core.policy import Affinity

FEW = 64


@pytest.mark.parametrize("rules", [1, 500])
@pytest.mark.parametrize("kind", [Kind.REJECTED, Kind.NEW, Kind.ESTABLISHED])
def test_flows_suit_both_hashes(kind: Kind, rules: int) -> None:
    flows = pick(kind, rules, 1000)
    assert len(set(flows)) == len(flows)
    owned = kind is not Kind.REJECTED
    service = {rule.ports[0]: policy(rules).group(rule.group) for rule in policy(rules).rules}
    assert {flow.port for flow in flows} == set(service)
    for flow in flows:
        key = flow_key(Affinity.CLIENT_PORT, flow.client, flow.client_port)
        assert bool(HALF >> bucket_of(key, service[flow.port].seed) & 1) is owned
        assert (bucket_of(flow.client.packed, XT_CLUSTER_SEED) < 128) is owned


def sample(over_drop_ns: float | None) -> Sample:
    return Sample(ns=1000.0, added_ns=-300.0, over_drop_ns=over_drop_ns, user_ns=0.0, lost=0.0)


def test_ratios_are_of_one_repetition() -> None:
    samples: dict[Cell, list[Sample | None]] = {
        Cell("nftables", Kind.REJECTED, 50, 1): [sample(100), sample(200), sample(300)],
        Cell("xt_cluster", Kind.REJECTED, 50, 1): [sample(400), sample(800), None],
    }
    row = next(row for row in costs(samples) if row["filter"] == "nftables")
    assert row["added_ns"] == {"median": -300, "min": -300, "max": -300}
    assert row["over_plain_drop_ns"] == {"median": 200, "min": 100, "max": 300}
    (goal,) = goals(samples, {}).values()
    assert goal == {
        "ratio": {"median": 0.25, "min": 0.25, "max": 0.25},
        "wanted": "at most 0.6",
        "met": True,
    }


def test_a_backend_is_compared_with_the_fastest_that_only_drops() -> None:
    def pace(per_cpu_second: float) -> Rate:
        return Rate(per_cpu_second / 2, per_cpu_second, 0.5)

    paces: dict[Cell, list[Rate | None]] = {
        Cell("NFQUEUE, drop only", Kind.SCATTERED, 0, 1): [pace(400), pace(200)],
        Cell("NFQUEUE with headers, drop only", Kind.SCATTERED, 0, 1): [pace(300), pace(100)],
        Cell("nfqueue, kernel's hash", Kind.SCATTERED, 0, 1): [pace(200), pace(100)],
    }
    (goal,) = goals({}, paces).values()
    assert goal["ratio"]["median"] == 0.5
    assert not goal["met"]


def test_plot(tmp_path: Path) -> None:
    samples: dict[Cell, list[Sample | None]] = {
        Cell("xt_cluster", Kind.REJECTED, 50, 1): [sample(600)],
        Cell("nftables", Kind.REJECTED, 50, 1): [sample(300)],
    }
    paces: dict[Cell, list[Rate | None]] = {Cell("windivert", Kind.SCATTERED, 0, 1): [Rate(1.0, 2.0, 0.5)]}
    draw({"cost": costs(samples), "rate": rates(paces)}, tmp_path / "plot.svg")
    assert "nftables, 50 % owned, 1 rule" in (tmp_path / "plot.svg").read_text()


class Measuring:
    """Wires with generators, as many as a test asks for, and what they found out."""

    def __init__(self, directory: Path) -> None:
        if shutil.which("trafgen") is None:
            pytest.skip("the program trafgen (Debian: netsniff-ng) is missing")
        self._file = directory / "load.cfg"
        self._cpus = sorted(os.sched_getaffinity(0))
        self.failed: list[str] = []

    def cost(self, kind: Kind, *subjects: tuple[Subject, int]) -> dict[str, Sample]:
        """Measure subjects, each with so many per cent owned; returns by name what could be measured."""
        with ExitStack() as stack:
            lines = {(kind, 1): [self._line(stack, kind) for _ in subjects]}
            found = asyncio.run(
                cost(
                    [Cell(subject.name, kind, owned, 1) for subject, owned in subjects],
                    {subject.name: subject for subject, _ in subjects},
                    lines,
                    Meter(self._cpus[-1]),
                    rounds=2,
                    seconds=0.005,
                    chance=random.Random(1),
                    failed=self.failed,
                )
            )
        return {cell.name: sample for cell, sample in found.items()}

    def rate(self, subject: Subject) -> Rate:
        with ExitStack() as stack:
            line = self._line(stack, Kind.SCATTERED)
            return asyncio.run(
                rate(subject, Cell(subject.name, Kind.SCATTERED, 0, 1), line, self._cpus[0], 0.05)
            )

    def _line(self, stack: ExitStack, kind: Kind) -> Line:
        self._file.write_text(load(kind, 1))
        wire = stack.enter_context(closing(Wire()))
        generator = Generator(wire.outside, "wire", self._file, self._cpus[-1], 60)
        return Line(wire, stack.enter_context(closing(generator)))


@pytest.fixture
def measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measuring:
    monkeypatch.setitem(FLOWS, Kind.REJECTED, FEW)
    monkeypatch.setitem(FLOWS, Kind.ESTABLISHED, FEW)
    return Measuring(tmp_path)


NOTHING = Subject("empty chain", empty, drops=False)


@pytest.mark.netns
def test_what_is_compared_with(measuring: Measuring) -> None:
    found = measuring.cost(Kind.REJECTED, (NOTHING, 0), (Subject("plain drop", plain_drop), 0))
    assert measuring.failed == []
    assert found["empty chain"].ns > 0
    assert found["empty chain"].added_ns == 0
    assert found["plain drop"].over_drop_ns == 0


@pytest.mark.netns
@pytest.mark.parametrize("kind", [Kind.REJECTED, Kind.NEW, Kind.ESTABLISHED])
def test_filters_judge_as_expected(measuring: Measuring, kind: Kind) -> None:
    if shutil.which("iptables-restore") is None:
        pytest.skip("the program iptables-restore is missing")
    found = measuring.cost(
        kind,
        (NOTHING, 0),
        (Subject("nftables", backend("nftables"), tracks=True), 50),
        (Subject("xt_cluster", xt_cluster, tracks=True), 50),
    )
    assert measuring.failed == []  # wrong verdicts would be here
    assert set(found) == {"empty chain", "nftables", "xt_cluster"}


@pytest.mark.netns
def test_wrong_verdicts_are_no_figure(measuring: Measuring) -> None:
    found = measuring.cost(Kind.NEW, (NOTHING, 0), (Subject("wrong", plain_drop), 50))
    assert set(found) == {"empty chain"}
    (reason,) = measuring.failed
    assert "0.00% were accepted" in reason


@pytest.mark.netns
def test_rate_of_a_process_that_only_drops(measuring: Measuring) -> None:
    pytest.importorskip("netfilterqueue")
    if shutil.which("iptables") is None:
        pytest.skip("the program iptables is missing")
    pace = measuring.rate(Subject("NFQUEUE", dropping("queue"), True))
    assert pace.per_second > 0
    assert pace.per_cpu_second > 0
