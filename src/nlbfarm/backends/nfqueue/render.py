"""The packet path as an nft script, and what changes in it; pure text, no kernel.

It is that of ``nlbfarm.backends.render`` up to the service of a packet. From there on:

1. ``arrive``, before conntrack: a packet of a flow of a foreign bucket that was rejected lately is rejected
   again. Every other one gets a mark with its group and, where the kernel computes the hash, its bucket.
2. ``tracked``, after conntrack: a flow that is established here (its label says so) and whose bucket is not
   foreign is accepted. What is left gets a mark that says what is asked, and is queued (chain ``wait``).
3. A worker answers with another mark (``nlbfarm.backends.nfqueue.verdicts``).
4. ``judged``, right behind the queue: asks the lease, counts, labels a new flow, remembers a
   rejected one, and accepts or drops. A packet with a mark of ours that is no answer came around the queue
   and is dropped.

Without the kernel's hash (or with a bucket function of a vendor's) the kernel does not know a packet's
bucket. Then it remembers, by addresses and ports, which flows were accepted, as it does for rejected ones,
and asks a worker again after a while.

What was rejected, and what was accepted by addresses, holds for the bucket states it was decided by. Their
number, the *generation*, is part of every key in these sets, and the transaction that changes the states
changes it: what was remembered before is never found again, and expires. (To empty a set of 65,000 flows
takes the kernel a second.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nlbfarm.backends.marks import LABEL_BIT, Marks
from nlbfarm.backends.netlink import MapChange, ValueChange
from nlbfarm.backends.nfqueue.marks import ASKED, GROUPS, KIND_AND_GROUP, NONCE, Kind, QueueMarks
from nlbfarm.backends.render import changes, elements
from nlbfarm.backends.ruleset import (
    AFTER_CONNTRACK,
    DADDR,
    SADDR,
    WHOLE_HEADER,
    Entry,
    chain,
    close_script,
    counter_object,
    dispatch,
    entries,
    group_map,
    leased,
    objects,
    renewals,
    table_name,
    verdict_map,
    vip_chains,
)
from nlbfarm.core.buckets import BucketStates
from nlbfarm.core.decision import ICMP, ICMPV6
from nlbfarm.core.policy import FilterPolicy, Mode, Protocol
from nlbfarm.errors import UsageError

__all__ = [
    "GENERATION",
    "Queueing",
    "cached",
    "generation_changes",
    "map_changes",
    "map_elements",
    "open_script",
    "remembered",
]

GENERATION = "generation"
"""The map that holds the number of the bucket states: what was remembered under another one is void."""

_REJECTED_S, _REJECTED = 10, 32_768
_ACCEPTED_S, _ACCEPTED = 60, 262_144
# For how long, and how many in a set. What is not remembered is asked about again.
_QUEUE_PRIORITY = AFTER_CONNTRACK + 1
_JUDGED_PRIORITY = AFTER_CONNTRACK + 2
_ADDRESS_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}
_FAMILY = {4: "ip", 6: "ip6"}
_LOOK_UP = f"meta mark set meta l4proto map @{GENERATION}"
# nft lists no key of more than five fields (it aborts), so the protocol is in the generation's number, too.
_PROTOCOLS = (Protocol.TCP, Protocol.UDP, ICMP, ICMPV6)
_KEPT = ("own", "adopt", "drain")
_OPENS = "tcp flags & (syn | ack) == syn"


@dataclass(frozen=True, slots=True)
class Queueing:
    """How packets are queued.

    Args:
        first: Number of the first queue.
        queues: How many there are, one after the other.
        statement: Whether nft's ``queue`` is used; otherwise the target NFQUEUE stands in tables of the
            families ``ip`` and ``ip6`` (``nlbfarm.backends.nfqueue.queueing`` puts it there).
        hashing: Whether the kernel computes the bucket.
    """

    first: int
    queues: int
    statement: bool
    hashing: bool


def remembered(policy: FilterPolicy, *, hashing: bool) -> list[str]:
    """Return the names of the sets in which the packet path remembers what was decided."""
    names = []
    for family in _families(policy):
        names += [f"foreign{family}", f"pinged{family}", f"unknown{family}"]
    if not hashing:
        for index in _served(policy):
            names += [cached(index, kept, family) for family in _families(policy, index) for kept in _KEPT]
    return names


def generation_changes(generation: int) -> list[ValueChange]:
    """Return what makes void all that the packet path has remembered.

    Args:
        generation: A number that it has not had before; it is opened with 0.
    """
    return [
        ValueChange(GENERATION, bytes([protocol]), generation * len(_PROTOCOLS) + number)
        for number, protocol in enumerate(_PROTOCOLS)
    ]


def cached(group: int, kept: str, family: int) -> str:
    """Return the name of the set of flows of the group at that index that are accepted in a state."""
    return f"g{group}_{kept}{family}"


def map_elements(marks: QueueMarks, index: int, states: BucketStates) -> dict[int, str]:
    """Return the elements of a group's map: mark to chain. ``FOREIGN`` buckets have none."""
    return {
        marks.mark(Kind.HASHED, index, bucket): chain for bucket, chain in elements(index, states).items()
    }


def map_changes(
    policy: FilterPolicy,
    marks: QueueMarks,
    before: Mapping[str, BucketStates],
    after: Mapping[str, BucketStates],
) -> list[MapChange]:
    """Return what changes in the groups' maps: only the buckets whose state differs."""
    by_name = {group_map(index): marks.mark(Kind.HASHED, index) for index in range(len(policy.groups))}
    return [
        MapChange(
            change.name,
            [by_name[change.name] + bucket for bucket in change.gone],
            {by_name[change.name] + bucket: chain for bucket, chain in change.come.items()},
        )
        for change in changes(policy, before, after)
    ]


def open_script(
    policy: FilterPolicy,
    states: Mapping[str, BucketStates],
    marks: Marks,
    asking: QueueMarks,
    queueing: Queueing,
    *,
    socket_match: bool = True,
) -> str:
    """Render the tables: closed (no lease), with the given states, in place of any that are there.

    Args:
        policy: What to enforce.
        states: States by group; a group left out is all ``FOREIGN``.
        marks: The marks that renew the lease, of this life of the table.
        asking: The marks of the queued packets, of this life of the workers.
        queueing: How packets are queued.
        socket_match: As for ``nlbfarm.backends.render.open_script``.

    Raises:
        UsageError: More groups than marks can tell apart.
    """
    if len(policy.groups) > GROUPS:
        raise UsageError(f"{len(policy.groups)} groups: the nfqueue backend tells {GROUPS} apart")
    body: list[str] = []
    for part in (
        objects(policy),
        renewals(policy, marks),
        _memory(policy, queueing),
        dispatch(policy),
        vip_chains(policy),
        entries(policy, lambda entry: _asking(entry, asking, queueing.hashing)),
        _tracked(policy, states, asking, queueing, socket_match),
        _judged(policy, asking, queueing),
    ):
        body.extend(part)
    table = _table("inet", policy.farm, body)
    if not queueing.statement:
        match = f"meta mark & {NONCE:#x} == {asking.ours:#x} goto ask"
        hook = f"type filter hook prerouting priority {_QUEUE_PRIORITY}; policy accept;"
        inner = [*chain("ask", ["drop"]), *chain("wait", [hook, match])]
        table += "".join(_table(_FAMILY[family], policy.farm, inner) for family in _families(policy))
    return close_script(policy.farm) + table


def _table(family: str, farm: str, body: Sequence[str]) -> str:
    inner = "".join(f"\t{line}\n" for line in body)
    return f"table {family} {table_name(farm)} {{\n{inner}}}\n"


def _memory(policy: FilterPolicy, queueing: Queueing) -> Iterator[str]:
    yield f"map {GENERATION} {{"
    yield "\ttype inet_proto : mark"
    numbers = (f"{int(protocol)} : {number}" for number, protocol in enumerate(_PROTOCOLS))
    yield f"\telements = {{ {', '.join(numbers)} }}"
    yield "}"
    for name in remembered(policy, hashing=queueing.hashing):
        address = _ADDRESS_TYPE[int(name[-1])]
        ports = "" if name.startswith("pinged") else " . inet_service . inet_service"
        yield f"set {name} {{"
        yield f"\ttype mark . {address} . {address}{ports}"
        yield f"\tsize {_ACCEPTED if name.startswith('g') else _REJECTED}"
        yield "\tflags dynamic,timeout"
        yield "}"


def _asking(entry: Entry, asking: QueueMarks, hashing: bool) -> list[str]:
    """Return the rules of one service: reject again what was rejected, mark the rest."""
    index, family = entry.index, entry.family

    def marked(kind: Kind) -> str:
        first = asking.mark(kind, index)
        if kind is Kind.BARE or not hashing:
            return f"meta mark set {first:#x} accept"
        seed = f"0x{entry.group.seed:08x}"
        return f"meta mark set jhash {entry.key} mod 256 seed {seed} offset {first:#x} accept"

    remembered = f"{_pair(family)} @pinged{family}" if entry.echo else f"{_flow(family)} @foreign{family}"
    rules = [_LOOK_UP, f"{remembered} counter name {counter_object(index, 'foreign')} drop"]
    if not entry.echo:
        rules.append(WHOLE_HEADER)
        if not hashing:
            # A SYN may begin another flow between the same ports, which needs a label of its own.
            rules.append(f"{_OPENS} {marked(Kind.BARE)}")
            rules += [
                f"{_flow(family)} @{cached(index, kept, family)} goto g{index}_{kept}" for kept in _KEPT
            ]
        rules.append(f"{_flow(family)} @unknown{family} {marked(Kind.SUSPECT)}")
    rules.append(marked(Kind.HASHED if hashing else Kind.BARE))
    return rules


def _tracked(
    policy: FilterPolicy,
    states: Mapping[str, BucketStates],
    asking: QueueMarks,
    queueing: Queueing,
    socket_match: bool,
) -> Iterator[str]:
    known = [f"ct label {LABEL_BIT}"]
    if socket_match:
        # See nlbfarm.backends.render: conntrack lets go of a flow whose packet is out of the window.
        known.append("ct state invalid tcp flags & (fin | syn | rst) == 0 socket wildcard 0")
    last = queueing.first + queueing.queues - 1
    numbers = f"{queueing.first}-{last}" if queueing.queues > 1 else f"{queueing.first}"
    yield from chain("wait", [f"queue to {numbers}" if queueing.statement else "accept"])
    arrived = Kind.HASHED if queueing.hashing else Kind.BARE
    to_ask = {kind: f"meta mark set meta mark ^ {(arrived ^ kind) << 16:#x} goto wait" for kind in ASKED}
    carried: dict[int, str] = {}
    for index, group in enumerate(policy.groups):
        if group.mode is Mode.BLOCKED:
            yield from chain(f"g{index}_blocked", [f"counter name {counter_object(index, 'blocked')} drop"])
            continue
        yield from _kept(index, group.name)
        if queueing.hashing:
            established = [f"{match} meta mark vmap @{group_map(index)}" for match in known]
            chosen = map_elements(asking, index, states.get(group.name, BucketStates()))
            verdicts = {mark: f"goto {chain}" for mark, chain in chosen.items()}
            yield from verdict_map(group_map(index), "mark", verdicts, size=256)
        else:
            established = [f"{match} {to_ask[Kind.KNOWN]}" for match in known]
        not_new = f"counter name {counter_object(index, 'not-new')} drop"
        yield from chain(
            f"g{index}_tracked",
            [
                *(established if queueing.hashing else []),
                f"meta l4proto != tcp {to_ask[Kind.OTHER]}",
                *([] if queueing.hashing else established),
                f"{_OPENS} {to_ask[Kind.NEW]}",
                to_ask[Kind.STRANGER],
            ],
        )
        carried[asking.mark(arrived, index)] = f"goto g{index}_tracked"
        yield from chain(
            f"g{index}_suspected",
            [
                f"meta mark set meta mark ^ {(arrived ^ Kind.SUSPECT) << 16:#x}",
                *established,
                f"{_OPENS} {to_ask[Kind.NEW]}",
                not_new,
            ],
        )
        carried[asking.mark(Kind.SUSPECT, index)] = f"goto g{index}_suspected"
    yield from verdict_map("carried", "mark", carried)
    yield from chain(
        "tracked",
        [
            f"type filter hook prerouting priority {AFTER_CONNTRACK}; policy accept;",
            f"meta mark & {KIND_AND_GROUP:#x} vmap @carried",
        ],
    )


def _kept(index: int, name: str) -> Iterator[str]:
    # What the kernel knows to be accepted in each state; UDP and ICMP echo have no SYN and switch at once.
    foreign = f"meta l4proto != tcp counter name {counter_object(index, 'foreign')} drop"
    yield from chain(f"g{index}_own", leased(index, "own"), comment=f"group {name}")
    yield from chain(f"g{index}_adopt", [f"meta l4proto != tcp goto g{index}_own", *leased(index, "adopt")])
    yield from chain(f"g{index}_drain", [foreign, *leased(index, "drain")])


def _judged(policy: FilterPolicy, asking: QueueMarks, queueing: Queueing) -> Iterator[str]:
    verdicts: dict[int, str] = {}
    for index in _served(policy):
        families = _families(policy, index)
        for kind, kept in (
            (Kind.OWN, "own"),
            (Kind.BEGIN_OWN, "own"),
            (Kind.ADOPT, "adopt"),
            (Kind.BEGIN_ADOPT, "adopt"),
            (Kind.DRAIN, "drain"),
        ):
            lease, *rest = leased(index, kept)
            rules = [lease]
            if kind in (Kind.BEGIN_OWN, Kind.BEGIN_ADOPT):
                rules.append(f"ct label set {LABEL_BIT}")
            if not queueing.hashing:
                rules.append(_LOOK_UP)
                rules += [_remember(cached(index, kept, family), family) for family in families]
            verdicts[asking.mark(kind, index)] = f"g{index}_{kind.name.lower()}_now"
            yield from chain(verdicts[asking.mark(kind, index)], [*rules, *rest])
        for kind, into, counted in (
            (Kind.FOREIGN, ("foreign", "pinged"), "foreign"),
            (Kind.NOT_NEW, ("unknown",), "not-new"),
            (Kind.WAS_FOREIGN, (), "foreign"),
        ):
            # A foreign bucket is foreign without a lease, too; whatever else is dropped then has none.
            rules = leased(index, counted)[:1] if kind is Kind.NOT_NEW else []
            rules += [_LOOK_UP] if into else []
            rules += [_remember(f"{name}{family}", family) for name in into for family in families]
            verdicts[asking.mark(kind, index)] = f"g{index}_{kind.name.lower()}_now"
            yield from chain(
                verdicts[asking.mark(kind, index)],
                [*rules, f"counter name {counter_object(index, counted)} drop"],
            )
    yield from verdict_map("verdicts", "mark", {mark: f"goto {chain}" for mark, chain in verdicts.items()})
    yield from chain(
        "judged",
        [
            f"type filter hook prerouting priority {_JUDGED_PRIORITY}; policy accept;",
            f"meta mark & {KIND_AND_GROUP:#x} vmap @verdicts",
            f"meta mark & {NONCE:#x} == {asking.ours:#x} drop",
        ],
    )


def _remember(name: str, family: int) -> str:
    # A set that is full makes the rule end here, and no harm is done.
    seconds = _ACCEPTED_S if name.startswith("g") else _REJECTED_S
    icmp = "icmp" if family == 4 else "ipv6-icmp"
    if name.startswith("pinged"):
        return f"meta l4proto {icmp} update @{name} {{ {_pair(family)} timeout {seconds}s }}"
    return f"meta l4proto != {icmp} update @{name} {{ {_flow(family)} timeout {seconds}s }}"


def _flow(family: int) -> str:
    return f"meta mark . {SADDR[family]} . {DADDR[family]} . th sport . th dport"


def _pair(family: int) -> str:
    return f"meta mark . {SADDR[family]} . {DADDR[family]}"


def _families(policy: FilterPolicy, group: int | None = None) -> list[int]:
    """Return the IP versions of the VIPs, or of the rules of one group."""
    if group is None:
        return sorted({vip.address.version for vip in policy.vips})
    name = policy.groups[group].name
    return sorted({rule.vip.version for rule in policy.rules if rule.group == name})


def _served(policy: FilterPolicy) -> list[int]:
    return [index for index, group in enumerate(policy.groups) if group.mode is not Mode.BLOCKED]
