"""Plans as bytes: who owns which bucket, packed, and the digest by which a plan is announced.

The encoding is part of wire versions 1 and 2 (``nlbfarm.core.wire``), and canonical: a plan has one.
"""

from __future__ import annotations

import hashlib
import struct

from nlbfarm.core.buckets import NOBODY, Placement
from nlbfarm.core.messages import CHUNK, MAX_NODES, Epoch, Member, Plan, View, check_plan
from nlbfarm.errors import PeerError, UsageError

__all__ = ["decode_plan", "encode_plan", "plan_chunks", "plan_digest"]

EPOCH = struct.Struct(">QB")
MEMBER = struct.Struct(">BQ")
PLAN_COUNTS = struct.Struct(">BB")
DIGEST = 16
_BITS = 32  # bytes of one bit for each of 256 buckets


def encode_plan(plan: Plan) -> bytes:
    """Return ``plan`` as bytes: members, groups, the view, then for each group 256 packed owners.

    An owner is 0 for nobody or a member's position from 1, in as many bits as the number of
    members has, bucket 0 first: 64 bytes a group for two or three nodes, 192 for 32.

    Raises:
        UsageError: The plan cannot be encoded.
    """
    try:
        check_plan(plan)
        position = {member.node: index for index, member in enumerate(plan.view.members, 1)}
        position[NOBODY] = 0
        width = len(plan.view.members).bit_length()
        digits = [f"{index:0{width}b}" for index in range(len(position))]
        encoded = PLAN_COUNTS.pack(len(plan.view.members), len(plan.placements)) + encode_view(plan.view)
        for placement in plan.placements:
            packed = int("".join([digits[position[owner]] for owner in placement]), 2)
            encoded += packed.to_bytes(_BITS * width, "big")
    except (ValueError, TypeError, struct.error) as error:
        raise UsageError(f"the plan cannot be encoded: {error}") from error
    return encoded


def decode_plan(data: bytes) -> Plan:
    """Return the plan in ``data``, which ``encode_plan`` made.

    Whoever asked for it by digest compares ``plan_digest`` of the result with what was announced.

    Raises:
        PeerError: ``malformed``: ``data`` is no plan.
    """
    try:
        members, groups = PLAN_COUNTS.unpack_from(data)
        if not 1 <= members <= MAX_NODES:
            raise ValueError(f"a plan of {members} members")
        packed_at = PLAN_COUNTS.size + EPOCH.size + members * MEMBER.size
        if len(data) != packed_at + groups * packed_size(members):
            raise ValueError(f"a plan of {len(data)} bytes for {members} members and {groups} groups")
        view = decode_view(data[PLAN_COUNTS.size : packed_at])
        plan = Plan(view, unpack_placements(data[packed_at:], view, groups))
        check_plan(plan)
    except (ValueError, struct.error) as error:
        raise PeerError("malformed", str(error)) from error
    return plan


def plan_digest(plan: Plan) -> bytes:
    """Return the 16 bytes by which ``plan`` is announced.

    Raises:
        UsageError: The plan cannot be encoded.
    """
    return digest_of(encode_plan(plan))


def plan_chunks(encoded: bytes) -> tuple[bytes, ...]:
    """Cut an encoded plan into the data of its ``PlanChunk`` messages, in order."""
    return tuple(encoded[at : at + CHUNK] for at in range(0, len(encoded), CHUNK))


def encode_view(view: View) -> bytes:
    """Return the view as it stands in plans and heartbeats; the number of members goes before it."""
    return EPOCH.pack(*view.epoch) + b"".join([MEMBER.pack(*member) for member in view.members])


def decode_view(section: bytes) -> View:
    """Return the view in ``section``, not checked; ``ValueError`` or ``struct.error`` if it is cut short."""
    epoch = Epoch._make(EPOCH.unpack_from(section))
    return View(epoch, tuple(map(Member._make, MEMBER.iter_unpack(section[EPOCH.size :]))))


def packed_size(members: int) -> int:
    """Return the bytes of one group's packed placement."""
    return _BITS * members.bit_length()


def unpack_placements(packed: bytes, view: View, groups: int) -> tuple[Placement, ...]:
    """Return the placements in ``packed``; ``ValueError`` if an owner is not a member of ``view``."""
    width = len(view.members).bit_length()
    owners = (NOBODY, *(member.node for member in view.members))
    size = _BITS * width
    placements = []
    for group in range(groups):
        number = int.from_bytes(packed[group * size : (group + 1) * size], "big")
        digits = f"{number:0{8 * size}b}"
        positions = [int(digits[at : at + width], 2) for at in range(0, len(digits), width)]
        if max(positions) >= len(owners):
            raise ValueError("a bucket's owner is not a member of the view")
        placements.append(tuple([owners[position] for position in positions]))
    return tuple(placements)


def digest_of(encoded: bytes) -> bytes:
    """Return the digest of an encoded plan."""
    return hashlib.sha256(b"nlbfarm plan\0" + encoded).digest()[:DIGEST]
