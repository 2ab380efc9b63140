"""Throws mutated packets at what judges raw packets in user space; says what broke, and how memory went.

    python -m scripts.fuzz_packets                       # 1,000,000 packets
    python -m scripts.fuzz_packets --packets 50000 --seed 7

Every packet goes through judges as the NFQUEUE and the WinDivert backend use them: whole and cut to a copy
range, as bytes and as a view, with the hash and with a vendor's function that often fails. None may raise;
the short way (``judge``) and the long way (``decide``) must agree, in a first part with the oracle, too. In a
long run the bounded tables are filled after that part, and memory must not grow from then on. Exit code 1 if
something of this does not hold.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from tests.core.raw_packets import MORE4, OPEN4, POLICY, Traffic, ipv4, tcp, udp
from tests.core.reference import Reference

from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.decision import PacketFacts
from nlbfarm.core.fragments import MAX_FRAGMENTED
from nlbfarm.core.judging import Judge
from nlbfarm.core.policy import Group, Protocol, Rule

GROWTH_MIB = 4.0
"""What the second half of a long run may add to the memory of the process."""

_ENTRIES = 2_000  # flows and places, so that tables and caches are full over and over
_LONG = 100_000  # packets of a run whose memory is looked at
_WITH_ORACLE = 20_000  # packets: the reference forgets nothing, so it would spoil the look at memory
_STATES_EVERY = 1_000
_STEP = 2e-5  # seconds between packets
_SNAP = 128


@dataclass
class Report:
    """What a run found.

    Args:
        packets: How many were judged.
        reasons: How often each verdict was given.
        failures: One line for each packet that was judged wrongly, or raised; the first ten.
        resident_mib: Memory of the process after each tenth of the run; empty where it cannot be read.
    """

    packets: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    resident_mib: list[float] = field(default_factory=list)

    @property
    def growth_mib(self) -> float:
        """What the second half of the run added to memory."""
        half = self.resident_mib[len(self.resident_mib) // 2 :]
        return max(half) - half[0] if half else 0.0


def run(packets: int, seed: int) -> Report:
    """Judge ``packets`` mutated packets.

    Args:
        packets: How many.
        seed: Of all chance in the run; a run with the same seed does the same.
    """
    rng = random.Random(seed)
    make = partial(Judge, POLICY, max_flows=_ENTRIES, max_places=_ENTRIES)
    short, long, *others = make(), make(), make(snap=_SNAP), make(bucket=_vendors)
    reference: Reference | None = Reference(POLICY)
    judges = [short, long, *others]
    report = Report()
    now = 0.0
    for number, (data, interface) in enumerate(_mutated(rng, packets)):
        now += _STEP
        if number == _WITH_ORACLE:
            reference = None
            if packets >= _LONG:
                _fill(judges, now)
        if number % _STATES_EVERY == 0:
            states = _states(rng)
            lease_end = now + rng.choice((_STEP * _STATES_EVERY / 2, 1e9, 1e9))
            for judge in judges:
                judge.apply(states)
                judge.lease_end = lease_end
                judge.expire(now)
            if reference is not None:
                reference.states, reference.lease_end = states, lease_end
        try:
            told = long.decide(data, interface, now)
            accepted = short.judge(memoryview(data), interface, now)
            for judge, view in ((others[0], data[:_SNAP]), (others[1], memoryview(data))):
                judge.judge(view, interface, now)
            expected = told if reference is None else reference.decide(data, interface, now)
        except Exception as error:  # noqa: BLE001 - this is what it looks for
            problem = f"{type(error).__name__}: {error}"
        else:
            report.reasons[told.reason.value] += 1
            agreed = accepted is told.accepted and told == expected
            problem = "" if agreed else f"judge {accepted}, decide {told}, oracle {expected}"
        if problem and len(report.failures) < 10:
            report.failures.append(f"packet {number} on {interface}: {problem}: {data.hex()}")
        report.packets += 1
        if report.packets % max(1, packets // 10) == 0:
            gc.collect()
            report.resident_mib.extend(_resident_mib())
    if short.counters() != long.counters():
        report.failures.append(f"counters differ: {short.counters()} and {long.counters()}")
    return report


def _fill(judges: Sequence[Judge], now: float) -> None:
    """Fill the tables and caches of the judges to their bounds."""
    for judge in judges:
        judge.apply({group.name: BucketStates(own=ALL) for group in POLICY.groups})
        judge.lease_end = now + 1.0
    for number in range(MAX_FRAGMENTED):
        client = IPv4Address(0xCB007100 + number)  # none of the traffic's
        packets = [
            (ipv4(Protocol.TCP, tcp(port=80), source=client), "eth0"),
            (ipv4(Protocol.UDP, udp(port=53), source=client), "eth0"),
            (ipv4(Protocol.TCP, tcp(port=80), source=client, destination=OPEN4), "eth1"),
            (ipv4(Protocol.UDP, udp(payload=bytes(8)), source=client, fragment=MORE4), "eth0"),
        ]
        for judge in judges:
            for data, interface in packets:
                judge.judge(data, interface, now)


def _mutated(rng: random.Random, packets: int) -> Iterator[tuple[bytes, str]]:
    traffic = Traffic(rng, clients=20)
    for _ in range(packets):
        chance = rng.random()
        if chance < 0.05:
            data = rng.choice((b"", b"\x45\0", b"\x60\0")) + rng.randbytes(rng.randrange(120))
        else:
            data = traffic.packet()
            if chance < 0.7:
                data = traffic.broken(data)
        yield data, traffic.interface(data)


def _states(rng: random.Random) -> dict[str, BucketStates]:
    own, adopt = rng.getrandbits(256), rng.getrandbits(256)
    drain = ALL & ~own & ~adopt & rng.getrandbits(256)
    return {
        group.name: BucketStates(own, adopt & ~own, drain) for group in POLICY.groups if rng.random() < 0.9
    }


def _vendors(packet: PacketFacts, rule: Rule, group: Group) -> int:
    port = packet.source_port or 0
    return port if port % 3 else 255 // port  # port 0 divides by zero, and most ports are no bucket


def _resident_mib() -> list[float]:
    status = Path("/proc/self/status")
    if not status.exists():
        return []
    lines = status.read_text(encoding="ascii").splitlines()
    return [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    report = run(chosen.packets, chosen.seed)
    print(f"{report.packets:,} packets, seed {chosen.seed}")
    for reason, count in report.reasons.most_common():
        print(f"  {reason:14} {count:>10,}")
    print("memory, MiB:", " ".join(f"{value:.1f}" for value in report.resident_mib) or "cannot be read here")
    for failure in report.failures:
        print(failure, file=sys.stderr)
    if report.growth_mib > GROWTH_MIB:
        print(f"memory grew by {report.growth_mib:.1f} MiB in the second half", file=sys.stderr)
    return 1 if report.failures or report.growth_mib > GROWTH_MIB else 0


if __name__ == "__main__":
    sys.exit(main())
