"""The filter strings of WinDivert, rendered (pure): divert as little as possible, but nothing less.

A filter names the packets that a decision is needed for: those that arrive (``inbound``, not loopback) for
one of the VIPs, on its interface where the platform says which, neighbour discovery excepted. It asks nothing
of ports and protocols: what no rule covers must be dropped, too.

WinDivert takes at most 256 tests in one filter. Neighbouring addresses are written as ranges; if that is not
enough, the filter that *diverts* takes in addresses between VIPs (the loop passes their packets on), the one
that *drops* never does: it is split into several.

Source: WinDivert 2.2 documentation, "Filter language"; the compiler's own limit (WINDIVERT_FILTER_MAXLEN).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import groupby

from nlbfarm.core.policy import IPAddress

__all__ = ["MAX_TESTS", "Target", "divert_filter", "drop_filters", "flow_filter"]

MAX_TESTS = 256
"""Tests that WinDivert's compiler takes in one filter."""

_BASE = "inbound and !loopback"
_BASE_TESTS = 2
_NO_DISCOVERY = "(not icmpv6 or icmpv6.Type < 133 or icmpv6.Type > 137)"  # RFC 4861 section 4
_NO_DISCOVERY_TESTS = 3


@dataclass(frozen=True, slots=True)
class Target:
    """An address whose packets are judged.

    Args:
        address: The VIP.
        interface: Index of its interface, where the filter shall test it; ``None`` where the handle is bound
            to the interfaces by other means.
    """

    address: IPAddress
    interface: int | None = None


@dataclass(frozen=True, slots=True)
class _Range:
    interface: int | None
    version: int
    first: int
    last: int

    @property
    def tests(self) -> int:
        return 1 if self.first == self.last else 2

    def __str__(self) -> str:
        field = "ip.DstAddr" if self.version == 4 else "ipv6.DstAddr"
        if self.first == self.last:
            return f"{field} == {self._address(self.first)}"
        return f"({field} >= {self._address(self.first)} and {field} <= {self._address(self.last)})"

    def _address(self, number: int) -> IPAddress:
        return ip_address(number.to_bytes(4 if self.version == 4 else 16, "big"))

    @property
    def group(self) -> tuple[int, int]:
        return (-1 if self.interface is None else self.interface), self.version


def divert_filter(targets: Iterable[Target], *, limit: int = MAX_TESTS) -> str:
    """Render the filter of the handle that judges.

    Args:
        targets: The VIPs; none gives a filter that matches nothing.
        limit: Tests that it may have.

    Returns:
        One filter that matches every packet that arrives for a target, and as few others as ``limit`` allows.

    Raises:
        ValueError: The targets are on more interfaces than ``limit`` has room for.
    """
    ranges = _exact(targets)
    while _tests(ranges) > limit:
        ranges = _merge_nearest(ranges, limit)
    return _render(ranges)


def drop_filters(targets: Iterable[Target], *, limit: int = MAX_TESTS) -> tuple[str, ...]:
    """Render the filters of handles that drop: together they match what arrives for a target, nothing else.

    Args:
        targets, limit: As for ``divert_filter``.
    """
    filters: list[str] = []
    chosen: list[_Range] = []
    for item in _exact(targets):
        if chosen and _tests([*chosen, item]) > limit:
            filters.append(_render(chosen))
            chosen = []
        chosen.append(item)
    return (*filters, _render(chosen)) if chosen else ()


def flow_filter(targets: Iterable[Target], *, limit: int = MAX_TESTS) -> str:
    """Render the filter of the flow layer: TCP connections of a VIP that have ended.

    Args:
        targets, limit: As for ``divert_filter``; with more addresses than fit it matches all there are.
    """
    addresses = sorted({target.address for target in targets}, key=lambda a: (a.version, int(a)))
    ended = "event == DELETED and protocol == 6"
    if not addresses or len(addresses) > limit - 2:
        return ended
    return f"{ended} and ({' or '.join(f'localAddr == {address}' for address in addresses)})"


def _exact(targets: Iterable[Target]) -> list[_Range]:
    """Return the targets as ranges; two neighbours stay apart, since a range costs two tests as well."""
    ordered = sorted(
        {(_Range(t.interface, t.address.version, int(t.address), int(t.address))) for t in targets},
        key=lambda r: (r.group, r.first),
    )
    ranges: list[_Range] = []
    for run in _runs(ordered):
        ranges += (
            [_Range(run[0].interface, run[0].version, run[0].first, run[-1].last)] if len(run) > 2 else run
        )
    return ranges


def _runs(ordered: Sequence[_Range]) -> Iterator[list[_Range]]:
    run: list[_Range] = []
    for item in ordered:
        if run and (item.group != run[-1].group or item.first != run[-1].last + 1):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _merge_nearest(ranges: Sequence[_Range], limit: int) -> list[_Range]:
    """Join the two ranges of one interface and version that have the fewest addresses between them."""
    pairs = [
        (ranges[index + 1].first - ranges[index].last, index)
        for index in range(len(ranges) - 1)
        if ranges[index].group == ranges[index + 1].group
    ]
    if not pairs:
        raise ValueError(f"the VIPs are on too many interfaces for one filter of {limit} tests")
    _, index = min(pairs)
    left, right = ranges[index], ranges[index + 1]
    joined = _Range(left.interface, left.version, left.first, right.last)
    return [*ranges[:index], joined, *ranges[index + 2 :]]


def _tests(ranges: Iterable[_Range]) -> int:
    total = _BASE_TESTS
    for (interface, version), members in groupby(ranges, key=lambda r: r.group):
        total += sum(member.tests for member in members)
        total += (interface != -1) + (_NO_DISCOVERY_TESTS if version == 6 else 0)
    return total


def _render(ranges: Iterable[_Range]) -> str:
    parts: list[str] = []
    for (interface, version), members in groupby(ranges, key=lambda r: r.group):
        terms = [f"ifIdx == {interface}"] if interface != -1 else []
        if version == 6:
            terms.append(_NO_DISCOVERY)
        addresses = " or ".join(map(str, members))
        parts.append(" and ".join([*terms, f"({addresses})"]))
    if not parts:
        return "false"
    if len(parts) == 1:
        return f"{_BASE} and {parts[0]}"
    return f"{_BASE} and ({' or '.join(f'({part})' for part in parts)})"
