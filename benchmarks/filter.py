"""What a packet costs in each filter, and how many packets a second those in user space decide on.

**Cost**: CPU time a packet, in ns, over the same load through an empty nft chain; for rejected packets also
over an unconditional drop where nlbfarm's first chain stands. trafgen, the kernel's receiving path and the
filter (of user-space filters also the process) share one CPU, and their CPU clocks are added up. So nothing
depends on how fast trafgen is: its share is the same in each figure and drops out of the differences, and
every packet is taken before the next is sent. As clocks of processes are read, not that of the wall, other
work on the host disturbs little. This is the idea of the kernel's own benchmark of its receiving path
(pktgen's ``xmit_mode netif_receive``), with a generator that any host has. (From a network card packets
come in batches, which is kinder to the caches: trust differences and ratios, not the totals.)

What is compared is in place at the same time, each in a namespace of its own, and takes turns of 10 ms: a
host whose speed changes from one second to the next does that to all alike. A difference is the median over
the turns; a repetition has fresh namespaces and filters, in random order. Reported are the median and the
range over the repetitions; a ratio is one of differences of the same repetition.

Behind the filter a sink drops what was accepted, after routing and after conntrack has confirmed it: no
answers, no sockets. For established packets real handshakes come first. That packets were accepted and
rejected as they should be, and that new flows were new, is checked in every turn.

**Rate** (user space only): trafgen floods from one CPU, the filter's processes have another one (where the
host has two). Every packet is the first of its flow, so that each has to be decided; where that is so of
all packets (windivert), packets of known flows are another figure. Counted is what was decided while the
flood lasted, beside a process that only drops. The goals go by packets a second of the
processes' CPU time, which is the rate of a core that they have for themselves.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks._filter_cells import DROP, EMPTY, Cell, Line, Lines, Rate, Sample, cost, rate
from benchmarks._filter_host import Meter, Wire, softirq_apart
from benchmarks._filter_load import Generator, Kind, load
from benchmarks._filter_results import (
    CLUSTER,
    DIVERT,
    NFTABLES,
    QUEUE_KERNEL,
    QUEUE_PYTHON,
    costs,
    goals,
    rates,
)
from benchmarks._filter_subjects import (
    Subject,
    backend,
    conntrack,
    dropping,
    empty,
    importable,
    iptables_drop,
    lacking,
    plain_drop,
    program,
    xt_cluster,
)
from nlbfarm.errors import HostError, NlbfarmError

RULES = (1, 500)
_TURN_S = 0.01
_USER_ROUNDS = 5
_RATE_S = 0.5
_MOST_S = 900  # of a repetition, on a host that has other things to do

_OWNED = {Kind.REJECTED: (0, 50), Kind.SCATTERED: (0,), Kind.NEW: (50, 100), Kind.ESTABLISHED: (50, 100)}
CONNTRACK, IPTABLES = "conntrack only", "iptables drop"

KERNEL = (
    Subject(EMPTY, empty, drops=False),
    Subject(DROP, plain_drop),
    Subject(CONNTRACK, conntrack, drops=False, tracks=True),
    Subject(IPTABLES, iptables_drop),
    Subject(CLUSTER, xt_cluster, tracks=True, missing=program("iptables-restore")),
    Subject(NFTABLES, backend("nftables"), tracks=True, nlbfarm=True, missing=lacking("nftables")),
)
USER_SPACE = (
    Subject(
        QUEUE_KERNEL,
        backend("nfqueue", path="kernel"),
        True,
        tracks=True,
        nlbfarm=True,
        missing=lacking("nfqueue"),
    ),
    Subject(
        QUEUE_PYTHON,
        backend("nfqueue", path="python"),
        True,
        tracks=True,
        nlbfarm=True,
        missing=lacking("nfqueue"),
    ),
    Subject(DIVERT, backend("windivert", counts=True), True, nlbfarm=True, missing=lacking("windivert")),
)
_netfilterqueue, _pydivert = importable("netfilterqueue", "nfqueue"), importable("pydivert", "windivert")
DROPPERS = (
    Subject("NFQUEUE, drop only", dropping("queue"), True, missing=_netfilterqueue),
    Subject("NFQUEUE with headers, drop only", dropping("queue-headers"), True, missing=_netfilterqueue),
    Subject("pydivert, drop only", dropping("divert"), True, missing=_pydivert),
    Subject("pydivert in batches, drop only", dropping("divert-batch"), True, missing=_pydivert),
)


def panels() -> Iterator[list[Cell]]:
    """Yield what is measured of the cost of a packet: cells that are measured beside each other."""
    for kind in (Kind.REJECTED, Kind.NEW, Kind.ESTABLISHED):
        panel = [*itertools.chain.from_iterable(_bases(kind, rules) for rules in RULES)]
        panel += [Cell(NFTABLES, kind, owned, rules) for owned in _OWNED[kind] for rules in RULES]
        panel.append(Cell(CLUSTER, kind, 50, 1))
        if kind is Kind.REJECTED:
            panel += [Cell(CLUSTER, kind, 50, RULES[-1]), Cell(IPTABLES, kind, 0, 1)]
        else:
            panel.append(Cell(CONNTRACK, kind, 0, 1))
        yield panel
    for subject, rules in itertools.product(USER_SPACE, RULES):
        for kind, each in _OWNED.items():
            yield from ([*_bases(kind, rules), Cell(subject.name, kind, owned, rules)] for owned in each)


def _bases(kind: Kind, rules: int) -> list[Cell]:
    """Return what the cells of that kind are compared with."""
    names = (EMPTY, DROP) if kind is Kind.REJECTED else (EMPTY,)
    return [Cell(name, kind, 0, rules) for name in names]


def rated() -> Iterator[Cell]:
    """Yield what is measured of the rate of decisions."""
    for subject in (*DROPPERS, *USER_SPACE):
        yield Cell(subject.name, Kind.SCATTERED, 0, 1)
        if subject.name.startswith(("pydivert", DIVERT)):
            yield Cell(subject.name, Kind.REJECTED, 0, 1)  # nfqueue has the kernel remember these
    for subject in USER_SPACE:
        yield Cell(subject.name, Kind.SCATTERED, 100, 1)
        yield Cell(subject.name, Kind.SCATTERED, 0, RULES[-1])


def measure(repeat: int, rounds: int, only: str, plot: str) -> dict[str, Any]:
    """Return what packets cost in each filter that can work here, and how fast those in user space decide.

    Args:
        repeat: Repetitions, each with fresh namespaces and filters.
        rounds: In how many turns each filter in the kernel is measured in a repetition.
        only: Begin of the names of nlbfarm's filters to measure; empty for all.
        plot: File for a plot; empty for none.

    Raises:
        HostError: It cannot be measured here.
    """
    _require()
    subjects, skipped = _usable(only)
    wanted = [_known(panel, subjects) for panel in panels()]
    wanted = [panel for panel in wanted if any(cell.name not in (EMPTY, DROP) for cell in panel)]
    paces = {cell: list[Rate | None]() for cell in rated() if cell.name in subjects}
    samples = {cell: list[Sample | None]() for panel in wanted for cell in panel}
    failed: list[str] = []
    cpus = sorted(os.sched_getaffinity(0))
    chance = random.Random(repeat)
    with ExitStack() as stack:
        lines = _lines(stack, [*wanted, list(paces)], cpus[-1], _MOST_S * (repeat + 1))
        line = lines[Kind.REJECTED, 1][0]
        apart = softirq_apart(line.wire, line.generator)
        meter = Meter(cpus[-1], softirq_apart=apart)
        for number in range(repeat):
            for panel in chance.sample(wanted, len(wanted)):
                user = any(subjects[cell.name].user_space for cell in panel)
                turns = _USER_ROUNDS if user else rounds
                found = asyncio.run(
                    cost(
                        panel,
                        subjects,
                        lines,
                        meter,
                        rounds=turns,
                        seconds=_TURN_S,
                        chance=chance,
                        failed=failed,
                    )
                )
                for cell in panel:
                    if not user or subjects[cell.name].user_space:
                        samples[cell].append(found.get(cell))
            for cell in chance.sample(list(paces), len(paces)):
                line = lines[cell.kind, cell.rules][0]
                paces[cell].append(_paced(subjects[cell.name], cell, line, cpus[0], failed))
            print(f"{number + 1}/{repeat}", file=sys.stderr)
    results = {
        "benchmark": "filter",
        **_host(),
        "repeat": repeat,
        "rounds": rounds,
        "clock": "wall, without waiting" if apart else "CPU time",
        "skipped": skipped,
        "failed": failed,
        "cost": costs(samples),
        "rate": rates(paces),
        "goals": goals(samples, paces),
    }
    if plot:
        from benchmarks._filter_plot import draw

        draw(results, Path(plot))
    return results


def _known(panel: list[Cell], subjects: Mapping[str, Subject]) -> list[Cell]:
    return [cell for cell in panel if cell.name in subjects]


def _lines(stack: ExitStack, panels: Sequence[Collection[Cell]], cpu: int, lifetime: int) -> Lines:
    """Make as many wires, with a generator each, as the largest panel needs of each kind of packets."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nlbfarm-benchmark-")))
    most: Counter[tuple[Kind, int]] = Counter()
    for panel in panels[:-1]:
        most |= Counter((cell.kind, cell.rules) for cell in panel)
    most |= Counter({(cell.kind, cell.rules) for cell in panels[-1]})
    lines = {}
    for (kind, rules), number in most.items():
        file = directory / f"{kind.name}-{rules}.cfg"
        file.write_text(load(kind, rules))
        lines[kind, rules] = [_line(stack, file, cpu, lifetime) for _ in range(number)]
    return lines


def _line(stack: ExitStack, file: Path, cpu: int, lifetime: int) -> Line:
    wire = stack.enter_context(closing(Wire()))
    return Line(wire, stack.enter_context(closing(Generator(wire.outside, "wire", file, cpu, lifetime))))


def _paced(subject: Subject, cell: Cell, line: Line, cpu: int, failed: list[str]) -> Rate | None:
    try:
        return asyncio.run(rate(subject, cell, line, cpu, _RATE_S))
    except (NlbfarmError, RuntimeError, TimeoutError) as error:
        failed.append(f"{cell}: {error}")
        return None


def _require() -> None:
    if os.geteuid() != 0:
        raise HostError("the filter benchmark makes network namespaces and sends raw packets: run it as root")
    for name, package in (
        ("trafgen", "netsniff-ng"),
        ("nft", "nftables"),
        ("ip", "iproute2"),
        ("timeout", "coreutils"),
        ("setpriv", "util-linux"),
    ):
        if shutil.which(name) is None:
            raise HostError(f"the program {name} is missing; install the package {package}")


def _usable(only: str) -> tuple[dict[str, Subject], dict[str, str]]:
    """Return what can be measured here, by name, and why the rest cannot."""
    found, skipped = {}, {}
    for subject in (*KERNEL, *USER_SPACE, *DROPPERS):
        if only and not subject.name.startswith(only) and subject.nlbfarm:
            continue
        if why := subject.missing():
            skipped[subject.name] = why
        else:
            found[subject.name] = subject
    return found, skipped


def _host() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "nft": _version("nft"),
        "iptables": _version("iptables"),
        "trafgen": _version("trafgen"),
        "netfilterqueue": _installed("netfilterqueue"),
        "pydivert": _installed("pydivert"),
    }


def _version(name: str) -> str:
    if shutil.which(name) is None:
        return ""
    said = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    return said.strip().partition("\n")[0]


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
