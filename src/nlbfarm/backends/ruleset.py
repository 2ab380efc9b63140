"""What the packet paths of the kernel have in common, as nft script: lease, VIPs, services, counters; pure.

``nlbfarm.backends.render`` and ``nlbfarm.backends.nfqueue.render`` put whole tables together from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nlbfarm.backends.marks import LEASES_MS, RENEW_PORT, Marks
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, Mode, Rule, Vip
from nlbfarm.errors import UsageError

__all__ = [
    "AFTER_CONNTRACK",
    "DADDR",
    "SADDR",
    "WHOLE_HEADER",
    "Entry",
    "chain",
    "close_script",
    "counter_names",
    "counter_object",
    "dispatch",
    "entries",
    "group_map",
    "leased",
    "objects",
    "renewals",
    "table_name",
    "verdict_map",
    "vip_chains",
]

_BEFORE_CONNTRACK = -201  # NF_IP_PRI_CONNTRACK is -200 (linux/netfilter_ipv4.h)
AFTER_CONNTRACK = -199
"""Priority of a hook right after conntrack."""
_BEFORE_OUTPUT = -500  # before everybody: a packet that somebody else drops renews nothing

SADDR = {4: "ip saddr", 6: "ip6 saddr"}
DADDR = {4: "ip daddr", 6: "ip6 daddr"}
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_ADDRESS_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}
_NETWORK_MASK = {4: "255.255.255.0", 6: "ffff:ffff:ffff:ffff::"}
_ICMP_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
_ECHO_REQUEST = {4: 8, 6: 128}

_TCP_WORDS = range(5, 16)  # what a data offset may be (RFC 9293 section 3.1)
WHOLE_HEADER = "meta l4proto vmap { tcp : jump whole_tcp, udp : jump whole_udp }"
"""Goes on only if the header of TCP or UDP is all there, as ``nlbfarm.core.packets`` has it."""

_GROUP_COUNTERS = ("own", "adopt", "drain", "foreign", "not-new", "no-lease")
_OTHER_COUNTERS = ("uncovered", "icmp-error", "malformed", "no-lease")


def table_name(farm: str) -> str:
    """Return the name of the table of ``farm``; two farms never get the same.

    Letters, digits, ``-``, ``_`` and ``.`` stay; any other byte becomes ``/`` and two hexadecimal digits.
    """
    kept = b"-._"
    return "nlbfarm_" + "".join(
        chr(byte) if byte in kept or (chr(byte).isascii() and chr(byte).isalnum()) else f"/{byte:02x}"
        for byte in farm.encode()
    )


def group_map(index: int) -> str:
    """Return the name of the map from bucket to verdict of the group at ``index`` of the policy."""
    return f"g{index}"


def counter_names(policy: FilterPolicy) -> Iterator[tuple[str, str | None, str]]:
    """Yield ``(counter object, group or None, verdict)`` for every counter of the table."""
    for index, group in enumerate(policy.groups):
        for verdict in ("blocked",) if group.mode is Mode.BLOCKED else _GROUP_COUNTERS:
            yield counter_object(index, verdict), group.name, verdict
    for verdict in _OTHER_COUNTERS:
        yield counter_object(None, verdict), None, verdict


def close_script(farm: str) -> str:
    """Render the removal of the farm's table, whether it is there or not."""
    table = table_name(farm)
    return f"add table inet {table}\ndelete table inet {table}\n"


def objects(policy: FilterPolicy) -> Iterator[str]:
    """Yield the table's counters, and the set that is the lease."""
    for name, _, _ in counter_names(policy):
        yield f"counter {name} {{ }}"
    # The key must come from the packet, and must need no mark and no header: the family does.
    yield "set lease {"
    yield "\ttype nf_proto"
    yield "\tsize 65535"  # an expired element counts until it is collected, about a second later
    yield "\tflags dynamic,timeout"
    yield "}"


def renewals(policy: FilterPolicy, marks: Marks) -> Iterator[str]:
    """Yield the output hook that renews the lease, and a chain for each length."""
    steps = {marks.lease(-1): "goto lease_end"}
    yield from chain("lease_end", ["delete @lease { meta nfproto } drop"])
    for step, length in enumerate(LEASES_MS):
        name = f"lease_{length}ms"
        steps[marks.lease(step)] = f"goto {name}"
        yield from chain(name, [f"update @lease {{ meta nfproto timeout {length}ms }} drop"])
    yield from verdict_map("renewals", "mark", steps)
    families = sorted({vip.address.version for vip in policy.vips})
    yield from chain(
        "renew",
        [
            f"type filter hook output priority {_BEFORE_OUTPUT}; policy accept;",
            'oif != "lo" accept',
            *(
                f"{DADDR[family]} {_LOOPBACK[family]} udp dport {RENEW_PORT} meta mark vmap @renewals"
                for family in families
            ),
        ],
    )


def dispatch(policy: FilterPolicy) -> Iterator[str]:
    """Yield the hook before conntrack, ``arrive``, and the maps of services and VIPs that it looks up.

    Services come first: of a farm's packets hardly any is for a VIP and for no service of it.
    """
    rules = [f"type filter hook prerouting priority {_BEFORE_CONNTRACK}; policy accept;"]
    for family in _families(policy):
        services = {
            f"{rule.vip} . {rule.protocol.name.lower()} . {port}": f"goto {_entry(policy, rule)}"
            for rule in policy.rules
            if rule.vip.version == family
            for port in rule.ports
        }
        key = f"{_ADDRESS_TYPE[family]} . inet_proto . inet_service"
        yield from verdict_map(f"services{family}", key, services)
        vips = {
            str(vip.address): f"goto v{index}"
            for index, vip in enumerate(policy.vips)
            if vip.address.version == family
        }
        yield from verdict_map(f"vips{family}", _ADDRESS_TYPE[family], vips)
        if services:
            rules.append(f"{DADDR[family]} . meta l4proto . th dport vmap @services{family}")
        rules.append(f"{DADDR[family]} vmap @vips{family}")
    yield from chain("arrive", rules)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the packets of a service go.

    Args:
        index: Of the group in the policy.
        group: The group.
        family: 4 or 6.
        key: What the hash is computed of.
        echo: Whether it is for echo requests.
    """

    index: int
    group: Group
    family: int
    key: str
    echo: bool


def entries(policy: FilterPolicy, inside: Callable[[Entry], Sequence[str]]) -> Iterator[str]:
    """Yield the chains that services and echo requests go to.

    Args:
        policy: What to enforce.
        inside: Returns the rules of one. Of a blocked group it is not asked.
    """
    done = set()
    for rule in policy.rules:
        index, group = _group_of(policy, rule)
        family, interface = rule.vip.version, policy.vips[_vip_of(policy, rule)].interface
        source = SADDR[family]
        key = {
            Affinity.CLIENT_PORT: f"{source} . th sport",
            Affinity.CLIENT: source,
            Affinity.NETWORK: f"{source} & {_NETWORK_MASK[family]}",
        }[rule.affinity]
        blocked = [f"goto g{index}_blocked"]
        for name, first, made in (
            (_entry(policy, rule), [_elsewhere(interface)], Entry(index, group, family, key, False)),
            (_echo_entry(policy, rule), [], Entry(index, group, family, source, True)),
        ):
            if name in done or name == f"g{index}_blocked":  # that one is the caller's
                continue
            done.add(name)
            yield from chain(name, [*first, *(blocked if group.mode is Mode.BLOCKED else inside(made))])


def _elsewhere(interface: str) -> str:
    # Between quotes "*" would be a pattern.
    if not re.fullmatch(r'[^\s"*/]{1,15}', interface):
        raise UsageError(f"{interface!r} is no name of an interface")
    return f'iifname != "{interface}" accept'


def vip_chains(policy: FilterPolicy) -> Iterator[str]:
    """Yield a chain for each VIP, down to ``entry`` and ``echo_entry``, and those that all VIPs share."""
    # TCP ignores what was not sent to the host's own MAC address (tcp_v4_rcv). Of broadcasts that is right
    # (RFC 1122 section 3.3.6).
    yield from chain("take", ["meta mark set 0", "meta pkttype multicast meta pkttype set host", "accept"])
    yield from chain("malformed", [f"counter name {counter_object(None, 'malformed')} drop"])
    lengths = {words: f"goto whole_tcp_{4 * words}" for words in _TCP_WORDS}
    yield from chain("whole_tcp", [f"tcp doff vmap {{ {_verdicts(lengths)} }}", "goto malformed"])
    for words in _TCP_WORDS:
        yield from chain(f"whole_tcp_{4 * words}", _reaches(4 * words))
    yield from chain("whole_udp", _reaches(8))
    yield from chain("uncovered", [f"counter name {counter_object(None, 'uncovered')} drop"])
    yield from chain("uncovered_accept", leased(None, "uncovered"))
    yield from chain("icmp_error", leased(None, "icmp-error"))
    for index, vip in enumerate(policy.vips):
        yield from _vip(policy, index, vip)


def _vip(policy: FilterPolicy, index: int, vip: Vip) -> Iterator[str]:
    family = vip.address.version
    icmp, header = ("icmp", "icmp") if family == 4 else ("ipv6-icmp", "icmpv6")
    uncovered = "uncovered_accept" if vip.accept_uncovered else "uncovered"
    first = next((rule for rule in policy.rules if rule.vip == vip.address), None)
    kinds = {f"{_ECHO_REQUEST[family]}": f"goto {_echo_entry(policy, first) if first else uncovered}"}
    kinds.update({f"{kind}": "goto icmp_error" for kind in _ICMP_ERRORS[family]})
    if family == 6:
        kinds["133-137"] = "accept"  # neighbour discovery (RFC 4861)
    yield from chain(f"v{index}_icmp", [*_reaches(8, f"goto v{index}_icmp_type")])
    yield from chain(
        f"v{index}_icmp_type", [f"{header} type vmap {{ {_verdicts(kinds)} }}", f"goto {uncovered}"]
    )
    yield from chain(
        f"v{index}",
        [
            _elsewhere(vip.interface),
            f"meta l4proto {icmp} goto v{index}_icmp",
            WHOLE_HEADER,
            # An IPv6 extension header that is cut off leaves the protocol open.
            *(_if_there("meta l4proto", f"goto {uncovered}") if family == 6 else [f"goto {uncovered}"]),
        ],
        comment=f"{vip.address} on {vip.interface}",
    )


def _reaches(length: int, verdict: str = "return") -> list[str]:
    """Require that the packet has so many bytes from its transport header on."""
    return _if_there(f"@th,{8 * (length - 1)},8", verdict)


def _if_there(field: str, verdict: str) -> list[str]:
    # A field that is not in the packet makes neither comparison true.
    return [f"{field} 0 {verdict}", f"{field} != 0 {verdict}", "goto malformed"]


def leased(group: int | None, verdict: str) -> list[str]:
    """Return rules that take a packet while the lease runs, and count it as ``verdict``."""
    return [
        f"meta nfproto != @lease counter name {counter_object(group, 'no-lease')} drop",
        f"counter name {counter_object(group, verdict)}",
        "goto take",
    ]


def _families(policy: FilterPolicy) -> Sequence[int]:
    return sorted({vip.address.version for vip in policy.vips})


def _group_of(policy: FilterPolicy, rule: Rule) -> tuple[int, Group]:
    index = next(index for index, group in enumerate(policy.groups) if group.name == rule.group)
    return index, policy.groups[index]


def _vip_of(policy: FilterPolicy, rule: Rule) -> int:
    return next(index for index, vip in enumerate(policy.vips) if vip.address == rule.vip)


def _entry(policy: FilterPolicy, rule: Rule) -> str:
    """Return the name of the chain that a rule's packets go to: one for each interface."""
    index, group = _group_of(policy, rule)
    names = list(dict.fromkeys(vip.interface for vip in policy.vips))
    number = names.index(policy.vips[_vip_of(policy, rule)].interface)
    what = "blocked_" if group.mode is Mode.BLOCKED else rule.affinity.value.replace("-", "_")
    return f"g{index}_{what}{rule.vip.version}" + (f"_{number}" if number else "")


def _echo_entry(policy: FilterPolicy, rule: Rule) -> str:
    """Return the name of the chain that echo requests go to if ``rule`` is the VIP's first."""
    index, group = _group_of(policy, rule)
    return f"g{index}_blocked" if group.mode is Mode.BLOCKED else f"g{index}_echo{rule.vip.version}"


def counter_object(group: int | None, verdict: str) -> str:
    """Return the name of a counter, of the group at that index or of none."""
    return f"{'other' if group is None else f'g{group}'}_{verdict.replace('-', '_')}"


def chain(name: str, rules: Iterable[str], *, comment: str = "") -> Iterator[str]:
    """Yield a chain."""
    yield f"chain {name} {{"
    if comment:
        yield f'\tcomment "{re.sub(r"[^ -!#-~]", "?", comment)[:100]}"'
    for rule in rules:
        yield f"\t{rule}"
    yield "}"


def verdict_map(
    name: str, key: str, pairs: Mapping[int, str] | Mapping[str, str], *, size: int = 0
) -> Iterator[str]:
    """Yield a verdict map; ``size`` is that of its elements if more may come."""
    yield f"map {name} {{"
    yield f"\ttype {key} : verdict"
    yield f"\tsize {size or max(1, len(pairs))}"
    if pairs:
        yield f"\telements = {{ {_verdicts(pairs)} }}"
    yield "}"


def _verdicts(pairs: Mapping[int, str] | Mapping[str, str]) -> str:
    return ", ".join(
        f"{key:#x} : {verdict}" if isinstance(key, int) else f"{key} : {verdict}"
        for key, verdict in pairs.items()
    )
