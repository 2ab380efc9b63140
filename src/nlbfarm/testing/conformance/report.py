"""What came of a run: counts for each category, and every packet that was decided otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nlbfarm.core.decision import Decision, PacketFacts
from nlbfarm.testing.conformance.packet import Packet
from nlbfarm.testing.conformance.wire import hexdump

__all__ = ["Difference", "DifferenceError", "Outcome", "Report"]

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """A packet that the filter and the oracle decide differently.

    Args:
        packet: The packet.
        data: Its bytes as they were sent.
        phase: Number of the phase.
        lease: Whether the filter had a lease.
        decision: What the oracle says.
        seen: What the filter did, in words.
        state: State of its bucket, if it has one.
    """

    packet: Packet
    data: bytes
    phase: int
    lease: bool
    decision: Decision
    seen: str
    state: str = ""

    def __str__(self) -> str:
        decision, packet = self.decision, self.packet
        bucket = ""
        if decision.bucket is not None:
            bucket = f", bucket {decision.bucket} of group {decision.group!r} is {self.state}"
        known = ", flow established here" if packet.established else ""
        return (
            f"packet {packet.index} ({packet.category}), phase {self.phase}, "
            f"{'with' if self.lease else 'without'} a lease{bucket}{known}\n"
            f"  oracle: {decision.verdict.value} ({decision.reason}); filter: {self.seen}\n"
            f"  {_told(packet.facts)}\n"
            f"{hexdump(self.data, indent='  ')}"
        )


class DifferenceError(AssertionError):
    """A filter decides otherwise than the oracle: ``report`` has all of it, the message the first of a kind.

    Args:
        report: What came of the run.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        firsts = {difference.packet.category: difference for difference in reversed(report.differences)}
        shown = sorted(firsts.values(), key=report.differences.index)[:_SHOWN]
        indices = ", ".join(str(difference.packet.index) for difference in shown)
        super().__init__(
            f"backend {report.backend!r} decides otherwise than the oracle for {len(report.differences)} of "
            f"{report.compared} packets; the first of a kind:\n\n"
            + "\n\n".join(map(str, shown))
            + f"\n\nsend these again: check_filter_backend(make, seed={report.seed}, "
            f"packets={report.packets}, families={report.families}, only=({indices},))\n\n{report}"
        )


def _told(facts: PacketFacts) -> str:
    ports = "" if facts.source_port is None else f" ports {facts.source_port} -> {facts.destination_port}"
    flags = "".join(f" {name}" for name, there in (("SYN", facts.syn), ("ACK", facts.ack)) if there)
    kind = f" {facts.icmp.value}" if facts.icmp is not None else ""
    return (
        f"{facts.source} -> {facts.destination} on {facts.interface}, protocol {int(facts.protocol)}"
        f"{ports}{flags}{kind}{' malformed' if facts.malformed else ''}"
    )


@dataclass(slots=True)
class Outcome:
    """Packets of one category and IP version.

    Args:
        accepted: The oracle and the filter let them through.
        dropped: The oracle and the filter dropped them.
        host: The host's stack drops them in any case: without a filter they are not seen, either.
        apart: The oracle and the filter differ, for a reason that is known of the category.
        different: The oracle and the filter differ.
    """

    accepted: int = 0
    dropped: int = 0
    host: int = 0
    apart: int = 0
    different: int = 0

    @property
    def packets(self) -> int:
        """All of them."""
        return self.accepted + self.dropped + self.host + self.apart + self.different


@dataclass(slots=True)
class Report:
    """The result of ``check_filter_backend``; as text, a table.

    Args:
        backend: Name of the backend.
        seed, packets, families: What the corpus was made from.
        whole: By IP version, whether the filter sees fragmented datagrams in one piece.
        outcomes: By category and IP version.
        reasons: Packets compared, by the oracle's reason, whether there was a lease, and what the filter did.
        differences: What differs, in the order in which it was sent.
        untried: What was not tried, and why.
        apart: Categories whose differences are counted apart, and why.
        repaired: Packets that passed with a wrong checksum put right.
        resent: Packets sent a second time, because the host was too slow and the lease may have run out.
    """

    backend: str
    seed: int
    packets: int
    families: tuple[int, ...]
    whole: Mapping[int, bool] = field(default_factory=dict)
    outcomes: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    reasons: Counter[tuple[str, bool, bool]] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    untried: Sequence[str] = ()
    apart: Mapping[str, str] = field(default_factory=dict)
    repaired: int = 0
    resent: int = 0

    @property
    def compared(self) -> int:
        """Packets whose verdict was compared with the oracle's."""
        return sum(self.reasons.values())

    @property
    def host(self) -> int:
        """Packets that the host's stack drops in any case."""
        return sum(outcome.host for outcome in self.outcomes.values())

    def require(self) -> None:
        """Raise ``DifferenceError`` with the first packets that differ, and how to send them again."""
        if self.differences:
            raise DifferenceError(self)

    def __str__(self) -> str:
        lines = [
            f"{'category':<48}{'IP':>3}{'packets':>9}{'accept':>8}{'drop':>8}{'host':>7}{'apart':>7}{'differ':>8}"
        ]
        total = Outcome()
        for (category, version), outcome in sorted(self.outcomes.items()):
            lines.append(_row(category, f"{version}", outcome))
            total.accepted += outcome.accepted
            total.dropped += outcome.dropped
            total.host += outcome.host
            total.apart += outcome.apart
            total.different += outcome.different
        lines.append(_row("all", "", total))
        lines.append("")
        lines.append(f"{'reason (of the oracle)':<26}{'lease':<7}{'passed':>8}{'not':>8}")
        for reason, lease in sorted({(reason, lease) for reason, lease, _ in self.reasons}):
            passed, not_passed = (self.reasons[reason, lease, seen] for seen in (True, False))
            lines.append(f"{reason:<26}{'yes' if lease else 'no':<7}{passed:>8}{not_passed:>8}")
        lines.append("")
        for version, whole in sorted(self.whole.items()):
            seen = "in one piece" if whole else "fragment by fragment"
            lines.append(f"IPv{version}: the filter sees fragmented datagrams {seen}")
        for category, why in self.apart.items():
            there = sum(outcome.apart for (name, _), outcome in self.outcomes.items() if name == category)
            lines.append(f"differences counted apart: {there} of {category!r}: {why}")
        lines.append("host: dropped by the host's own stack, with a filter or without")
        lines.extend(f"not tried: {line}" for line in self.untried)
        if self.repaired:
            lines.append(f"passed with a wrong checksum put right: {self.repaired}")
        if self.resent:
            lines.append(f"sent twice, because the lease may have run out on this busy host: {self.resent}")
        lines.append(
            f"{self.backend}: {total.packets} packets (seed {self.seed}), {self.compared} compared, "
            f"{len(self.differences)} differences"
        )
        return "\n".join(lines)


def _row(category: str, version: str, outcome: Outcome) -> str:
    return (
        f"{category:<48}{version:>3}{outcome.packets:>9}{outcome.accepted:>8}{outcome.dropped:>8}"
        f"{outcome.host:>7}{outcome.apart:>7}{outcome.different:>8}"
    )
