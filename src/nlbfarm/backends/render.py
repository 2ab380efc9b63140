"""Policy and bucket states as nft scripts; pure text, no kernel.

Each function returns one script, which the caller runs as one transaction. All of it lives in
one table, ``inet nlbfarm_<farm>``. A packet for a VIP passes:

1. ``arrive``, a hook just before conntrack: the VIP by destination address, the service by one look-up of
   (address, protocol, port), the bucket by ``jhash`` into the packet's mark, the bucket's state by one
   look-up of the mark in the group's map. Foreign packets end here; ``OWN`` packets are accepted here.
   A packet whose verdict needs conntrack goes on with a mark that says so.
2. ``tracked``, a hook right after conntrack: labels a new flow, and tells new, established and other
   packets apart for ``ADOPT`` and ``DRAIN``.

The hooks stand directly at either side of conntrack (-201 and -199 around -200), so that no chain of
somebody else's runs while a packet carries our mark; every accepted packet leaves with mark 0.

The lease: a datagram of ours to the loopback, with the right mark, meets the output hook ``renew``, which
writes the set ``lease`` and drops the datagram (its sender sees ``EPERM``). Every accepting path looks
that set up.

The oracle is ``nlbfarm.core.decision.decide``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nlbfarm.backends.marks import LABEL_BIT, LEASES_MS, RENEW_PORT, Marks
from nlbfarm.backends.netlink import MapChange
from nlbfarm.core.buckets import BucketState, BucketStates, bits
from nlbfarm.core.policy import Affinity, FilterPolicy, Group, Mode, Rule, Vip
from nlbfarm.errors import UsageError

__all__ = [
    "changes",
    "close_script",
    "counter_names",
    "elements",
    "group_map",
    "open_script",
    "table_name",
]

_BEFORE_CONNTRACK = -201  # NF_IP_PRI_CONNTRACK is -200 (linux/netfilter_ipv4.h)
_AFTER_CONNTRACK = -199
_BEFORE_OUTPUT = -500  # before everybody: a packet that somebody else drops renews nothing

_SADDR = {4: "ip saddr", 6: "ip6 saddr"}
_DADDR = {4: "ip daddr", 6: "ip6 daddr"}
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}
_ADDRESS_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}
_NETWORK_MASK = {4: "255.255.255.0", 6: "ffff:ffff:ffff:ffff::"}
_ICMP_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
_ECHO_REQUEST = {4: 8, 6: 128}

_VERDICT_CHAINS = {BucketState.OWN: "own", BucketState.ADOPT: "adopt", BucketState.DRAIN: "drain"}
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
            yield _counter(index, verdict), group.name, verdict
    for verdict in _OTHER_COUNTERS:
        yield _counter(None, verdict), None, verdict


def elements(index: int, states: BucketStates) -> dict[int, str]:
    """Return the elements of a group's map: bucket to chain. ``FOREIGN`` buckets have none."""
    pairs = (
        (bucket, f"g{index}_{_VERDICT_CHAINS[state]}")
        for state, bitmap in (
            (BucketState.OWN, states.own),
            (BucketState.ADOPT, states.adopt),
            (BucketState.DRAIN, states.drain),
        )
        for bucket in bits(bitmap)
    )
    return dict(sorted(pairs))


def close_script(farm: str) -> str:
    """Render the removal of the farm's table, whether it is there or not."""
    table = table_name(farm)
    return f"add table inet {table}\ndelete table inet {table}\n"


def changes(
    policy: FilterPolicy, before: Mapping[str, BucketStates], after: Mapping[str, BucketStates]
) -> list[MapChange]:
    """Return what changes in the groups' maps: only the buckets whose state differs.

    Args:
        policy: The policy that the table was opened with.
        before, after: States by group; a group left out is all ``FOREIGN``.
    """
    found = []
    for index, group in enumerate(policy.groups):
        earlier, later = (states.get(group.name, BucketStates()) for states in (before, after))
        if group.mode is Mode.BLOCKED or earlier == later:
            continue  # a blocked group has no map: nothing of it is accepted anywhere
        old, new = elements(index, earlier), elements(index, later)
        gone = [bucket for bucket, chain in old.items() if new.get(bucket) != chain]
        come = {bucket: chain for bucket, chain in new.items() if old.get(bucket) != chain}
        found.append(MapChange(group_map(index), gone, come))
    return found


def open_script(
    policy: FilterPolicy,
    states: Mapping[str, BucketStates],
    marks: Marks,
    *,
    socket_match: bool = True,
) -> str:
    """Render a whole table: closed (no lease), with the given states, in place of any that is there.

    Args:
        policy: What to enforce.
        states: States by group; a group left out is all ``FOREIGN``.
        marks: The marks of this life of the table.
        socket_match: Whether the kernel has the ``socket`` match (CONFIG_NFT_SOCKET) and picks up flows in
            the middle (``nf_conntrack_tcp_loose``): the rule for packets that it calls invalid needs both.
    """
    body: list[str] = []
    for part in (
        _objects(policy),
        _lease(policy, marks),
        _dispatch(policy),
        _vips(policy),
        _hashing(policy),
        _states(policy, states, marks, socket_match),
    ):
        body.extend(part)
    inner = "".join(f"\t{line}\n" if line else "\n" for line in body)
    return f"{close_script(policy.farm)}table inet {table_name(policy.farm)} {{\n{inner}}}\n"


def _objects(policy: FilterPolicy) -> Iterator[str]:
    for name, _, _ in counter_names(policy):
        yield f"counter {name} {{ }}"
    # The key must come from the packet, and must need no mark and no header: the family does.
    yield "set lease {"
    yield "\ttype nf_proto"
    yield "\tsize 65535"  # an expired element counts until it is collected, about a second later
    yield "\tflags dynamic,timeout"
    yield "}"


def _lease(policy: FilterPolicy, marks: Marks) -> Iterator[str]:
    steps = {marks.lease(-1): "goto lease_end"}
    yield from _chain("lease_end", ["delete @lease { meta nfproto } drop"])
    for step, length in enumerate(LEASES_MS):
        name = f"lease_{length}ms"
        steps[marks.lease(step)] = f"goto {name}"
        yield from _chain(name, [f"update @lease {{ meta nfproto timeout {length}ms }} drop"])
    yield from _map("renewals", "mark", steps)
    families = sorted({vip.address.version for vip in policy.vips})
    yield from _chain(
        "renew",
        [
            f"type filter hook output priority {_BEFORE_OUTPUT}; policy accept;",
            'oif != "lo" accept',
            *(
                f"{_DADDR[family]} {_LOOPBACK[family]} udp dport {RENEW_PORT} meta mark vmap @renewals"
                for family in families
            ),
        ],
    )


def _dispatch(policy: FilterPolicy) -> Iterator[str]:
    rules = [f"type filter hook prerouting priority {_BEFORE_CONNTRACK}; policy accept;"]
    for family in _families(policy):
        vips = {
            str(vip.address): f"goto v{index}"
            for index, vip in enumerate(policy.vips)
            if vip.address.version == family
        }
        yield from _map(f"vips{family}", _ADDRESS_TYPE[family], vips)
        services = {
            f"{rule.vip} . {rule.protocol.name.lower()} . {port}": f"goto {_entry(policy, rule)}"
            for rule in policy.rules
            if rule.vip.version == family
            for port in rule.ports
        }
        key = f"{_ADDRESS_TYPE[family]} . inet_proto . inet_service"
        yield from _map(f"services{family}", key, services)
        rules.append(f"{_DADDR[family]} vmap @vips{family}")
    yield from _chain("arrive", rules)


def _vips(policy: FilterPolicy) -> Iterator[str]:
    # TCP ignores what was not sent to the host's own MAC address (tcp_v4_rcv). Of broadcasts that is right
    # (RFC 1122 section 3.3.6).
    yield from _chain("take", ["meta mark set 0", "meta pkttype multicast meta pkttype set host", "accept"])
    yield from _chain("malformed", [f"counter name {_counter(None, 'malformed')} drop"])
    yield from _chain("uncovered", [f"counter name {_counter(None, 'uncovered')} drop"])
    yield from _chain("uncovered_accept", _leased(None, "uncovered"))
    yield from _chain("icmp_error", _leased(None, "icmp-error"))
    for index, vip in enumerate(policy.vips):
        yield from _vip(policy, index, vip)


def _vip(policy: FilterPolicy, index: int, vip: Vip) -> Iterator[str]:
    if not re.fullmatch(
        r'[^\s"*/]{1,15}', vip.interface
    ):  # it stands in quotes, where "*" would be a pattern
        raise UsageError(f"{vip.interface!r} is no name of an interface")
    family = vip.address.version
    icmp, header = ("icmp", "icmp") if family == 4 else ("ipv6-icmp", "icmpv6")
    uncovered = "uncovered_accept" if vip.accept_uncovered else "uncovered"
    first = next((rule for rule in policy.rules if rule.vip == vip.address), None)
    kinds = {f"{_ECHO_REQUEST[family]}": f"goto {_echo(policy, first) if first else uncovered}"}
    kinds.update({f"{kind}": "goto icmp_error" for kind in _ICMP_ERRORS[family]})
    if family == 6:
        kinds["133-137"] = "accept"  # neighbour discovery (RFC 4861)
    yield from _chain(
        f"v{index}_icmp",
        [
            f"{header} type vmap {{ {_verdicts(kinds)} }}",
            *_unless_cut_off(f"{header} type", uncovered),
        ],
    )
    yield from _chain(f"v{index}_ports", _unless_cut_off("th dport", uncovered))
    yield from _chain(
        f"v{index}",
        [
            f'iifname != "{vip.interface}" accept',
            f"{_DADDR[family]} . meta l4proto . th dport vmap @services{family}",
            f"meta l4proto {icmp} goto v{index}_icmp",
            f"meta l4proto {{ tcp, udp }} goto v{index}_ports",
            f"goto {uncovered}",
        ],
        comment=f"{vip.address} on {vip.interface}",
    )


def _unless_cut_off(field: str, chain: str) -> list[str]:
    # A field that is not in the packet makes neither comparison true.
    return [f"{field} 0 goto {chain}", f"{field} != 0 goto {chain}", "goto malformed"]


def _hashing(policy: FilterPolicy) -> Iterator[str]:
    done = set()
    for rule in policy.rules:
        index, group = _group(policy, rule)
        family = rule.vip.version
        source = _SADDR[family]
        keys = {
            Affinity.CLIENT_PORT: f"{source} . th sport",
            Affinity.CLIENT: source,
            Affinity.NETWORK: f"{source} & {_NETWORK_MASK[family]}",
        }
        for name, key in ((_entry(policy, rule), keys[rule.affinity]), (_echo(policy, rule), source)):
            if group.mode is Mode.BLOCKED or name in done:
                continue
            done.add(name)
            yield from _chain(
                name,
                [
                    f"meta mark set jhash {key} mod 256 seed 0x{group.seed:08x}",
                    f"meta mark vmap @{group_map(index)}",
                    f"counter name {_counter(index, 'foreign')} drop",
                ],
            )


def _states(
    policy: FilterPolicy, states: Mapping[str, BucketStates], marks: Marks, socket_match: bool
) -> Iterator[str]:
    # A new flow is remembered; the label is set again by a SYN that is sent again.
    new = f"ct label set {LABEL_BIT} goto"
    syn = "tcp flags & (syn | ack) == syn"
    yield from _chain("own_new", [f"{new} take"])
    tracked = {marks.new_flow: "goto own_new"}
    for index, group in enumerate(policy.groups):
        if group.mode is Mode.BLOCKED:
            yield from _chain(f"g{index}_blocked", [f"counter name {_counter(index, 'blocked')} drop"])
            continue
        own, adopt, drain, foreign, not_new, no_lease = (
            f"counter name {_counter(index, verdict)}"
            for verdict in ("own", "adopt", "drain", "foreign", "not-new", "no-lease")
        )
        leased = f"meta nfproto != @lease {no_lease} drop"
        known = [f"ct label {LABEL_BIT} goto"]
        if socket_match:
            # Out of the window: conntrack calls it invalid and lets go of the flow, label and all; but the
            # local stack has a connection for it. (A listener bound to the VIP itself matches, too. A packet
            # of another node's flow does not get here: conntrack would have picked it up as new.)
            known.append("ct state invalid tcp flags & (fin | syn | rst) == 0 socket wildcard 0 goto")
        yield from _chain(
            f"g{index}_own",
            [leased, own, f"{syn} meta mark set {marks.new_flow:#x} accept", "goto take"],
            comment=f"group {group.name}",
        )
        # UDP and ICMP echo have no SYN: for them ADOPT is OWN and DRAIN is FOREIGN.
        yield from _chain(
            f"g{index}_adopt",
            [
                f"meta l4proto != tcp goto g{index}_own",
                leased,
                f"meta mark set {marks.adopt(index):#x} accept",
            ],
        )
        yield from _chain(
            f"g{index}_drain",
            [f"meta l4proto != tcp {foreign} drop", leased, f"meta mark set {marks.drain(index):#x} accept"],
        )
        yield from _chain(f"g{index}_adopted", [adopt, "goto take"])
        yield from _chain(f"g{index}_drained", [drain, "goto take"])
        yield from _chain(
            f"g{index}_adopt_tracked",
            [
                f"{syn} {new} g{index}_adopted",
                *(f"{match} g{index}_adopted" for match in known),
                f"{not_new} drop",
            ],
        )
        yield from _chain(
            f"g{index}_drain_tracked",
            [*(f"{match} g{index}_drained" for match in known), f"{not_new} drop"],
        )
        tracked[marks.adopt(index)] = f"goto g{index}_adopt_tracked"
        tracked[marks.drain(index)] = f"goto g{index}_drain_tracked"
        # Every key is there or not: a hash of fixed size, one probe, where intervals would be a tree.
        chosen = elements(index, states.get(group.name, BucketStates()))
        verdicts = {bucket: f"goto {chain}" for bucket, chain in chosen.items()}
        yield from _map(group_map(index), "mark", verdicts, size=256)
    yield from _map("carried", "mark", tracked)
    yield from _chain(
        "tracked",
        [
            f"type filter hook prerouting priority {_AFTER_CONNTRACK}; policy accept;",
            "meta mark vmap @carried",
        ],
    )


def _leased(group: int | None, verdict: str) -> list[str]:
    return [
        f"meta nfproto != @lease counter name {_counter(group, 'no-lease')} drop",
        f"counter name {_counter(group, verdict)}",
        "goto take",
    ]


def _families(policy: FilterPolicy) -> Sequence[int]:
    return sorted({vip.address.version for vip in policy.vips})


def _group(policy: FilterPolicy, rule: Rule) -> tuple[int, Group]:
    index = next(index for index, group in enumerate(policy.groups) if group.name == rule.group)
    return index, policy.groups[index]


def _entry(policy: FilterPolicy, rule: Rule) -> str:
    index, group = _group(policy, rule)
    if group.mode is Mode.BLOCKED:
        return f"g{index}_blocked"
    return f"g{index}_{rule.affinity.value.replace('-', '_')}{rule.vip.version}"


def _echo(policy: FilterPolicy, rule: Rule) -> str:
    index, group = _group(policy, rule)
    return f"g{index}_blocked" if group.mode is Mode.BLOCKED else f"g{index}_echo{rule.vip.version}"


def _counter(group: int | None, verdict: str) -> str:
    return f"{'other' if group is None else f'g{group}'}_{verdict.replace('-', '_')}"


def _chain(name: str, rules: Iterable[str], *, comment: str = "") -> Iterator[str]:
    yield f"chain {name} {{"
    if comment:
        yield f'\tcomment "{re.sub(r"[^ -!#-~]", "?", comment)[:100]}"'
    for rule in rules:
        yield f"\t{rule}"
    yield "}"


def _map(
    name: str, key: str, pairs: Mapping[int, str] | Mapping[str, str], *, size: int = 0
) -> Iterator[str]:
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
