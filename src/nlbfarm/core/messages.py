"""What nodes say to one another: the messages, and what every valid one fulfils.

``nlbfarm.core.wire`` turns them into bytes and back. The same ``check`` runs before a message
is encoded and after one is decoded, so that the decoder accepts exactly what the encoder makes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from nlbfarm.core.buckets import ALL, BUCKETS, NOBODY, Bitmap, Placement

__all__ = [
    "CHUNK",
    "MAX_CHUNKS",
    "MAX_EPOCH",
    "MAX_GROUPS",
    "MAX_INCARNATION",
    "MAX_NODES",
    "MAX_REASON",
    "Echo",
    "Epoch",
    "Fitness",
    "Heartbeat",
    "Member",
    "Message",
    "NodeState",
    "Plan",
    "PlanChunk",
    "PlanRequest",
    "View",
    "check",
    "check_node",
    "check_plan",
    "check_u64",
    "clip",
    "clip_reason",
]

MAX_NODES = 32
"""Nodes of a farm, at most; their ids are 1..255."""

MAX_GROUPS = 255
"""Groups in an encoded plan, at most; what fits into a heartbeat is less: ``wire.largest_heartbeat``."""

MAX_REASON = 80
"""Bytes of a heartbeat's reason in UTF-8, at most."""

CHUNK = 1024
"""Bytes of an encoded plan in each ``PlanChunk`` but the last, which has 1..1024."""

MAX_CHUNKS = 49
"""Chunks of the largest plan: 32 members and 255 groups of 192 bytes, 49,259 bytes."""

MAX_INCARNATION = MAX_EPOCH = 1 << 62
"""What no incarnation and no epoch's counter reaches: a node must be able to count on from what it hears."""

_U64 = (1 << 64) - 1


class NodeState(enum.IntEnum):
    """State of a node, as the administrator sees it."""

    STOP = 0
    STARTING = 1
    WAIT = 2
    UP = 3
    DRAINING = 4


_STATES = frozenset(NodeState)


class Fitness(enum.IntEnum):
    """How well a node that is ``UP`` can serve; the leader prefers the fitter ones (``membership``)."""

    SOUND = 0
    SUSPECT = 1
    """Something is wrong that may be wrong for everybody: it keeps what it has until the others had the time
    to find the same."""
    DEGRADED = 2
    """Something is wrong here: it serves only while nobody is better."""
    DOWN = 3
    """Its application is not there: it has buckets only while nobody has an application."""


_FITNESSES = frozenset(Fitness)


class Epoch(NamedTuple):
    """Number of a view; compared as a pair, so that two leaders never make the same one.

    ``(0, 0)`` stands for "none yet"; in every other epoch both numbers are at least 1.
    """

    counter: int = 0
    leader: int = 0


class Member(NamedTuple):
    """A node in one life: its id and its incarnation."""

    node: int
    incarnation: int


class Echo(NamedTuple):
    """The newest heartbeat heard from a peer: proves to it that we hear it."""

    node: int
    incarnation: int
    sequence: int


@dataclass(frozen=True, slots=True)
class View:
    """The nodes that a leader has agreed on.

    Args:
        epoch: Its number; ``epoch.leader`` proposed it.
        members: Sorted by node id, unique, at least 1, at most 32.
    """

    epoch: Epoch
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A view and who owns what in it.

    Args:
        view: The view; the plan has its epoch.
        placements: One per group, in the order of the policy's groups; owners are members or ``NOBODY``.
    """

    view: View
    placements: tuple[Placement, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a node tells all others every interval.

    Args:
        sender, incarnation, sequence: Who, in which life (a wall-clock-based u64, only ever
            rising), how many-th heartbeat of that life (u64, from 1).
        config_digest, secret_digest: 8 bytes each: what the sender was configured with.
        state, reason: Its state, and why in at most 80 UTF-8 bytes of printable characters
            (``clip_reason`` makes any text fit).
        answer_now: The receiver should answer at once: an acknowledgement is overdue.
        known_epoch: The newest epoch it has heard of.
        inside: ``True`` if it follows ``view``, which then names it in this incarnation;
            ``False`` if it is outside and defers to it.
        view: The view it follows or defers to; ``None`` outside, deferring to none.
        plan: The plan of ``view``, if inside and small enough to go along.
        plan_digest: 16 bytes, of the plan that it follows; ``None`` outside.
        echoes: For each peer heard within the detection time; sorted by node id, without the sender.
        powers: One per group, 0..65535.
        holding, draining: One bitmap per group: buckets it may accept, and those it still drains;
            no bucket is in both.
        fitness: How well it can serve; ``SOUND`` in every other state than ``UP``.
    """

    sender: int
    incarnation: int
    sequence: int
    config_digest: bytes
    secret_digest: bytes
    state: NodeState
    reason: str
    answer_now: bool
    known_epoch: Epoch
    inside: bool
    view: View | None
    plan: Plan | None
    plan_digest: bytes | None
    echoes: tuple[Echo, ...]
    powers: tuple[int, ...]
    holding: tuple[Bitmap, ...]
    draining: tuple[Bitmap, ...]
    fitness: Fitness = Fitness.SOUND


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Asks ``sender``'s peer for a plan whose digest it announced, from chunk ``first`` on."""

    sender: int
    incarnation: int
    digest: bytes
    first: int


@dataclass(frozen=True, slots=True)
class PlanChunk:
    """One piece of an encoded plan: chunk ``index`` (from 0) of ``count``."""

    sender: int
    incarnation: int
    digest: bytes
    index: int
    count: int
    data: bytes


Message = Heartbeat | PlanRequest | PlanChunk
"""What nodes say as members of a farm; for ``nlbfarm.core.node``."""


def clip_reason(text: str) -> str:
    """Return ``text`` as a heartbeat may carry it: printable, cut to 80 bytes of UTF-8 between characters."""
    return clip(text, MAX_REASON)


def clip(text: str, most: int) -> str:
    """Return ``text`` without what cannot be printed, cut to ``most`` bytes of UTF-8 between characters."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return printable.encode()[:most].decode(errors="ignore")


def check(message: Message) -> None:
    """Hold ``message`` against the rules of its fields.

    Raises:
        ValueError: One is broken; names it.
    """
    if isinstance(message, Heartbeat):
        _check_heartbeat(message)
        return
    check_node(message.sender)
    check_u64("incarnation", message.incarnation, 0)
    _size("digest", message.digest, 16)
    if isinstance(message, PlanRequest):
        if not 0 <= message.first < MAX_CHUNKS:
            raise ValueError(f"first chunk {message.first} is not in 0..{MAX_CHUNKS - 1}")
        return
    if not 0 <= message.index < message.count <= MAX_CHUNKS:
        raise ValueError(f"chunk {message.index} of {message.count} cannot be")
    size = len(message.data)
    last = message.index == message.count - 1
    if not (1 <= size <= CHUNK if last else size == CHUNK):
        raise ValueError(f"chunk {message.index} of {message.count} has {size} bytes")


def check_plan(plan: Plan) -> None:
    """Hold ``plan`` against the rules of its fields.

    Raises:
        ValueError: One is broken; names it.
    """
    _check_view(plan.view)
    if len(plan.placements) > MAX_GROUPS:
        raise ValueError(f"{len(plan.placements)} groups; at most {MAX_GROUPS}")
    owners = {member.node for member in plan.view.members} | {NOBODY}
    for placement in plan.placements:
        if len(placement) != BUCKETS:
            raise ValueError(f"a placement of {len(placement)} buckets")
        if not owners.issuperset(placement):
            raise ValueError("a bucket's owner is not a member of the view")


def _check_heartbeat(beat: Heartbeat) -> None:
    sender = beat.sender
    check_node(sender)
    check_u64("incarnation", beat.incarnation, 0)
    check_u64("sequence", beat.sequence, 1)
    _size("configuration digest", beat.config_digest, 8)
    _size("secret digest", beat.secret_digest, 8)
    if beat.state not in _STATES:
        raise ValueError(f"state {beat.state} is not known")
    if beat.fitness not in _FITNESSES or (beat.fitness and beat.state is not NodeState.UP):
        raise ValueError(f"fitness {beat.fitness} in state {beat.state}")
    if not beat.reason.isprintable():
        raise ValueError("the reason has characters that cannot be printed")
    counter, leader = beat.known_epoch
    check_u64("epoch counter", counter, 0)
    if not 0 <= leader <= 255 or (counter == 0) is not (leader == 0):
        raise ValueError(f"epoch {counter}.{leader} cannot be")
    _check_view_of(beat)
    _check_echoes(beat)
    groups = len(beat.powers)
    if groups > MAX_GROUPS or len(beat.holding) != groups or len(beat.draining) != groups:
        raise ValueError(f"{groups} powers, {len(beat.holding)} and {len(beat.draining)} bitmaps")
    for power in beat.powers:
        if not 0 <= power <= 65535:
            raise ValueError(f"power {power} is not in 0..65535")
    for holding, draining in zip(beat.holding, beat.draining, strict=True):
        if holding & draining:
            raise ValueError("a bucket is both held and drained")
        if not 0 <= holding | draining <= ALL:
            raise ValueError("a bitmap names a bucket outside 0..255")


def _check_view_of(beat: Heartbeat) -> None:
    """Check the view, the plan and its digest against ``inside``."""
    view = beat.view
    if view is not None:
        _check_view(view)
    if not beat.inside:
        if beat.plan is not None or beat.plan_digest is not None:
            raise ValueError("a node outside has no plan")
        return
    if view is None or beat.plan_digest is None:
        raise ValueError("a node inside has a view and a plan digest")
    if (beat.sender, beat.incarnation) not in view.members:
        raise ValueError("a node is inside a view that does not name it")
    _size("plan digest", beat.plan_digest, 16)
    plan = beat.plan
    if plan is not None:
        if plan.view is not view and plan.view != view:
            raise ValueError("the plan is not the view's")
        if len(plan.placements) != len(beat.powers):
            raise ValueError(f"{len(plan.placements)} placements for {len(beat.powers)} groups")


def _check_echoes(beat: Heartbeat) -> None:
    if len(beat.echoes) >= MAX_NODES:
        raise ValueError(f"{len(beat.echoes)} echoes; at most {MAX_NODES - 1}")
    before = 0
    for node, incarnation, sequence in beat.echoes:
        if not before < node <= 255 or node == beat.sender:
            raise ValueError("echoes are not of rising node ids 1..255 without the sender's")
        before = node
        if not (0 <= incarnation <= _U64 and 1 <= sequence <= _U64):
            raise ValueError(f"an echo of incarnation {incarnation}, sequence {sequence} cannot be")


def _check_view(view: View) -> None:
    counter, leader = view.epoch
    check_u64("epoch counter", counter, 1)
    if not 1 <= leader <= 255:
        raise ValueError(f"leader {leader} is not in 1..255")
    if not 1 <= len(view.members) <= MAX_NODES:
        raise ValueError(f"a view of {len(view.members)} members; 1..{MAX_NODES} can be")
    before = 0
    for node, incarnation in view.members:
        if not before < node <= 255:
            raise ValueError("members are not of rising node ids 1..255")
        before = node
        if not 0 <= incarnation <= _U64:
            raise ValueError(f"a member's incarnation {incarnation} is not in 0..2**64-1")


def check_node(node: int) -> None:
    """Raise ``ValueError`` unless ``node`` can be a node's id."""
    if not 1 <= node <= 255:
        raise ValueError(f"node id {node} is not in 1..255")


def check_u64(what: str, value: int, low: int) -> None:
    """Raise ``ValueError`` unless ``value`` is in ``low`` .. 2**64-1."""
    if not low <= value <= _U64:
        raise ValueError(f"{what} {value} is not in {low}..2**64-1")


def _size(what: str, data: bytes, size: int) -> None:
    if len(data) != size:
        raise ValueError(f"{what} has {len(data)} bytes, not {size}")
