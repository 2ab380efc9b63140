"""Policy and bucket states as nft scripts; pure text, no kernel.

Each function returns one script, which the caller runs as one transaction. All of it lives in
one table, ``inet nlbfarm_<farm>``. A packet for a VIP passes:

1. ``arrive``, a hook just before conntrack: the service by one look-up of (address, protocol, port), or else
   the VIP by its address; nothing more if it is not on the VIP's interface. The bucket by ``jhash`` into the
   packet's mark, the bucket's state by one look-up of the mark in the group's map. Foreign packets end here;
   ``OWN`` packets are accepted here. A packet whose verdict needs conntrack goes on with a mark that says so.
2. ``tracked``, a hook right after conntrack: labels a new flow, and tells new, established and other
   packets apart for ``ADOPT`` and ``DRAIN``.

A packet whose TCP, UDP or ICMP header is cut off, or longer than the packet, is dropped before anything
accepts it; one of a foreign bucket is dropped, and counted, as foreign.

The hooks stand directly at either side of conntrack (-201 and -199 around -200), so that no chain of
somebody else's runs while a packet carries our mark; every accepted packet leaves with mark 0.

The lease: a datagram of ours to the loopback, with the right mark, meets the output hook ``renew``, which
writes the set ``lease`` and drops the datagram (its sender sees ``EPERM``). Every accepting path looks
that set up.

The oracle is ``nlbfarm.core.decision.decide``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nlbfarm.backends.marks import LABEL_BIT, Marks
from nlbfarm.backends.netlink import MapChange
from nlbfarm.backends.ruleset import (
    AFTER_CONNTRACK,
    WHOLE_HEADER,
    Entry,
    chain,
    close_script,
    counter_object,
    dispatch,
    entries,
    group_map,
    objects,
    renewals,
    table_name,
    verdict_map,
    vip_chains,
)
from nlbfarm.core.buckets import BucketState, BucketStates, bits
from nlbfarm.core.policy import FilterPolicy, Mode

__all__ = ["changes", "elements", "open_script"]

_VERDICT_CHAINS = {BucketState.OWN: "own", BucketState.ADOPT: "adopt", BucketState.DRAIN: "drain"}


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
        objects(policy),
        renewals(policy, marks),
        dispatch(policy),
        vip_chains(policy),
        entries(policy, _hashed),
        _states(policy, states, marks, socket_match),
    ):
        body.extend(part)
    inner = "".join(f"\t{line}\n" if line else "\n" for line in body)
    return f"{close_script(policy.farm)}table inet {table_name(policy.farm)} {{\n{inner}}}\n"


def _hashed(entry: Entry) -> list[str]:
    return [
        f"meta mark set jhash {entry.key} mod 256 seed 0x{entry.group.seed:08x}",
        f"meta mark vmap @{group_map(entry.index)}",
        f"counter name {counter_object(entry.index, 'foreign')} drop",
    ]


def _states(
    policy: FilterPolicy, states: Mapping[str, BucketStates], marks: Marks, socket_match: bool
) -> Iterator[str]:
    # A new flow is remembered; the label is set again by a SYN that is sent again.
    new = f"ct label set {LABEL_BIT} goto"
    syn = "tcp flags & (syn | ack) == syn"
    yield from chain("own_new", [f"{new} take"])
    tracked = {marks.new_flow: "goto own_new"}
    for index, group in enumerate(policy.groups):
        if group.mode is Mode.BLOCKED:
            yield from chain(f"g{index}_blocked", [f"counter name {counter_object(index, 'blocked')} drop"])
            continue
        own, adopt, drain, foreign, not_new, no_lease = (
            f"counter name {counter_object(index, verdict)}"
            for verdict in ("own", "adopt", "drain", "foreign", "not-new", "no-lease")
        )
        leased = f"meta nfproto != @lease {no_lease} drop"
        known = [f"ct label {LABEL_BIT} goto"]
        if socket_match:
            # Out of the window: conntrack calls it invalid and lets go of the flow, label and all; but the
            # local stack has a connection for it. (A listener bound to the VIP itself matches, too. A packet
            # of another node's flow does not get here: conntrack would have picked it up as new.)
            known.append("ct state invalid tcp flags & (fin | syn | rst) == 0 socket wildcard 0 goto")
        yield from chain(
            f"g{index}_own",
            [leased, WHOLE_HEADER, own, f"{syn} meta mark set {marks.new_flow:#x} accept", "goto take"],
            comment=f"group {group.name}",
        )
        # UDP and ICMP echo have no SYN: for them ADOPT is OWN and DRAIN is FOREIGN.
        yield from chain(
            f"g{index}_adopt",
            [
                f"meta l4proto != tcp goto g{index}_own",
                leased,
                "jump whole_tcp",
                f"meta mark set {marks.adopt(index):#x} accept",
            ],
        )
        yield from chain(
            f"g{index}_drain",
            [
                f"meta l4proto != tcp {foreign} drop",
                leased,
                "jump whole_tcp",
                f"meta mark set {marks.drain(index):#x} accept",
            ],
        )
        yield from chain(f"g{index}_adopted", [adopt, "goto take"])
        yield from chain(f"g{index}_drained", [drain, "goto take"])
        yield from chain(
            f"g{index}_adopt_tracked",
            [
                f"{syn} {new} g{index}_adopted",
                *(f"{match} g{index}_adopted" for match in known),
                f"{not_new} drop",
            ],
        )
        yield from chain(
            f"g{index}_drain_tracked",
            [*(f"{match} g{index}_drained" for match in known), f"{not_new} drop"],
        )
        tracked[marks.adopt(index)] = f"goto g{index}_adopt_tracked"
        tracked[marks.drain(index)] = f"goto g{index}_drain_tracked"
        # Every key is there or not: a hash of fixed size, one probe, where intervals would be a tree.
        chosen = elements(index, states.get(group.name, BucketStates()))
        verdicts = {bucket: f"goto {chain}" for bucket, chain in chosen.items()}
        yield from verdict_map(group_map(index), "mark", verdicts, size=256)
    yield from verdict_map("carried", "mark", tracked)
    yield from chain(
        "tracked",
        [
            f"type filter hook prerouting priority {AFTER_CONNTRACK}; policy accept;",
            "meta mark vmap @carried",
        ],
    )
