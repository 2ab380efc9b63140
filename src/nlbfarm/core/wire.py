"""Heartbeat messages as bytes: one strict, authenticated encoding.

Every datagram, in network byte order::

    magic "NLBf" | version 1 | type | key id (2) | farm (8) | body | tag (16)

*farm* is a hash of the farm's name: two farms on one network are told apart before, and
whatever, their keys are. *key id* goes in clear so that keys can be rotated: first every node
gets the new key, then it becomes the active one, then the old one is removed. *tag* is
HMAC-SHA-256-128 (RFC 4868: SHA-256, truncated to 16 bytes; RFC 2104 section 5 allows half)
over everything before it. It is compared in constant time and **before** the type or the body is
looked at: bytes of a stranger never reach the parser. The 16 bytes saved go to the plan.

Nothing here knows of replays: a datagram of an earlier life of a node is authentic, and the
core refuses it by its incarnation and sequence.

The encoding is canonical: ``encode(decode(data)) == data`` under one key. Fields that have a
choice (order, padding, spare bits) are refused when they are not as the encoder writes them.

*Version policy*: the decoder accepts exactly version 1. The first five bytes never change their
meaning. A next version gets its own body functions; for one release nodes then decode both and
encode the older one, and only the release after that encodes the newer, so that a farm can be
updated node by node.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from nlbfarm.core.messages import (
    CHUNK,
    MAX_CHUNKS,
    MAX_GROUPS,
    MAX_NODES,
    MAX_REASON,
    Echo,
    Epoch,
    Heartbeat,
    Member,
    Message,
    NodeState,
    Plan,
    PlanChunk,
    PlanRequest,
    View,
    check,
    clip_reason,
)
from nlbfarm.core.plans import (
    DIGEST,
    EPOCH,
    MEMBER,
    PLAN_COUNTS,
    decode_plan,
    decode_view,
    digest_of,
    encode_plan,
    encode_view,
    packed_size,
    plan_chunks,
    plan_digest,
    unpack_placements,
)
from nlbfarm.errors import PeerError, UsageError

__all__ = [
    "CHUNK",
    "MAX_CHUNKS",
    "MAX_DATAGRAM",
    "MAX_GROUPS",
    "MAX_NODES",
    "MAX_REASON",
    "VERSION",
    "Codec",
    "Echo",
    "Epoch",
    "Heartbeat",
    "Keyring",
    "Member",
    "Message",
    "NodeState",
    "Plan",
    "PlanChunk",
    "PlanRequest",
    "View",
    "clip_reason",
    "decode_plan",
    "encode_plan",
    "largest_heartbeat",
    "plan_chunks",
    "plan_digest",
]

MAX_DATAGRAM = 1200
"""Bytes of a datagram, at most: fits through every path of IPv6's least MTU (RFC 8200 section 5)."""

VERSION = 1
"""The version of the encoding that this module speaks."""

_MAGIC = b"NLBf"
_HEADER = struct.Struct(">4sBBH8s")
_TAG = 16
_HEARTBEAT, _REQUEST, _CHUNK_OF_PLAN = 1, 2, 3

# sender, incarnation, sequence, two digests, state, flags, known epoch (2), then the counts on
# which the length of everything behind depends: reason bytes, members, echoes, groups.
_BEAT = struct.Struct(">BQQ8s8sBBQBBBBB")
_ANSWER_NOW, _INSIDE, _PLAN = 1, 2, 4
_ECHO = struct.Struct(">BQQ")
_BITMAP = 32
_REQUEST_BODY = struct.Struct(">BQ16sH")
_CHUNK_HEAD = struct.Struct(">BQ16sHH")

_KEPT = 8  # decoded views and plans that are remembered: nodes that agree all send the same one

_T = TypeVar("_T")


@dataclass(frozen=True)
class Keyring:
    """The farm's heartbeat keys.

    Args:
        keys: Key id (0..65535) to key, at least 16 bytes each; every one of them is accepted.
        active: Id of the key that signs what this node sends.

    Raises:
        UsageError: An id or a key is out of range, or the active one is missing.
    """

    keys: Mapping[int, bytes] = field(repr=False)
    active: int

    def __post_init__(self) -> None:
        for key_id, key in self.keys.items():
            if not 0 <= key_id <= 0xFFFF:
                raise UsageError(f"heartbeat key id {key_id} is not in 0..65535")
            if len(key) < 16:
                raise UsageError(f"heartbeat key {key_id} has {len(key)} bytes; at least 16 are needed")
        if self.active not in self.keys:
            raise UsageError(f"the active heartbeat key {self.active} is not among the keys")


class Codec:
    """Encodes and decodes the messages of one farm; holds keys and small caches, no other state.

    Args:
        farm: Name of the farm.
        keyring: Its keys.
    """

    def __init__(self, farm: str, keyring: Keyring) -> None:
        self._farm = hashlib.sha256(b"nlbfarm farm\0" + farm.encode()).digest()[:8]
        # The keyed state is computed once and copied for each datagram.
        self._macs = {key_id: hmac.new(key, digestmod="sha256") for key_id, key in keyring.keys.items()}
        self._active = keyring.active
        self._mac = self._macs[keyring.active]
        # A plan lives for many heartbeats: the last one encoded, and a few decoded ones by their bytes.
        self._sent: tuple[Plan, bytes, bytes] | None = None
        self._plans: dict[bytes, tuple[Plan, bytes]] = {}
        self._views: dict[bytes, View] = {}

    def encode(self, message: Message) -> bytes:
        """Return the datagram for ``message``, at most 1,200 bytes.

        A heartbeat's plan goes along if it fits, and is left out otherwise; its digest always goes.

        Raises:
            UsageError: The message cannot be encoded: a field is out of its range, or it is too long.
        """
        try:
            check(message)
            if isinstance(message, Heartbeat):
                kind, body = _HEARTBEAT, self._heartbeat(message)
            elif isinstance(message, PlanRequest):
                kind = _REQUEST
                body = _REQUEST_BODY.pack(message.sender, message.incarnation, message.digest, message.first)
            else:
                kind = _CHUNK_OF_PLAN
                body = _CHUNK_HEAD.pack(
                    message.sender, message.incarnation, message.digest, message.index, message.count
                )
                body += message.data
        except (ValueError, TypeError, struct.error) as error:
            raise UsageError(f"{type(message).__name__} cannot be encoded: {error}") from error
        signed = _HEADER.pack(_MAGIC, VERSION, kind, self._active, self._farm) + body
        if len(signed) + _TAG > MAX_DATAGRAM:
            raise UsageError(
                f"{type(message).__name__} of {len(signed) + _TAG} bytes; at most {MAX_DATAGRAM} can be sent"
            )
        mac = self._mac.copy()
        mac.update(signed)
        return signed + mac.digest()[:_TAG]

    def decode(self, data: bytes) -> Message:
        """Return the message in ``data``.

        Raises:
            PeerError: ``data`` is no valid message of this farm. Its ``kind`` is ``malformed`` (no datagram
                of nlbfarm, or an authentic one that breaks a rule), ``version``, ``farm`` (another
                farm's), ``key`` (signed with a key that this node does not have) or ``forged``.
        """
        if not _HEADER.size + _TAG <= len(data) <= MAX_DATAGRAM:
            raise PeerError("malformed", f"a datagram of {len(data)} bytes")
        magic, version, kind, key_id, farm = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise PeerError("malformed", "not a heartbeat of nlbfarm")
        if version != VERSION:
            raise PeerError("version", f"wire version {version}; this node speaks {VERSION}")
        if farm != self._farm:
            raise PeerError("farm", "a heartbeat of another farm")
        keyed = self._macs.get(key_id)
        if keyed is None:
            raise PeerError("key", f"signed with key {key_id}, which this node does not have")
        mac = keyed.copy()
        mac.update(data[:-_TAG])
        if not hmac.compare_digest(mac.digest()[:_TAG], data[-_TAG:]):
            raise PeerError("forged", "the signature is wrong")
        try:
            return self._message(kind, data[_HEADER.size : -_TAG])
        except (ValueError, struct.error) as error:
            raise PeerError("malformed", str(error)) from error

    def _message(self, kind: int, body: bytes) -> Message:
        message: Message
        if kind == _HEARTBEAT:
            message = self._parse_heartbeat(body)
        elif kind == _REQUEST:
            message = PlanRequest(*_REQUEST_BODY.unpack(body))
        elif kind == _CHUNK_OF_PLAN:
            sender, incarnation, digest, index, count = _CHUNK_HEAD.unpack_from(body)
            message = PlanChunk(sender, incarnation, digest, index, count, body[_CHUNK_HEAD.size :])
        else:
            raise ValueError(f"message type {kind} is not known")
        check(message)
        return message

    def _heartbeat(self, beat: Heartbeat) -> bytes:
        reason = beat.reason.encode()
        if len(reason) > MAX_REASON:
            raise ValueError(f"a reason of {len(reason)} bytes; at most {MAX_REASON}")
        groups = len(beat.powers)
        parts = [reason]
        if beat.view is not None:
            parts.append(encode_view(beat.view))
        parts += [_ECHO.pack(*echo) for echo in beat.echoes]
        parts.append(struct.pack(f">{groups}H", *beat.powers))
        parts += [bitmap.to_bytes(_BITMAP, "big") for bitmap in beat.holding]
        parts += [bitmap.to_bytes(_BITMAP, "big") for bitmap in beat.draining]
        if beat.plan_digest is not None:
            parts.append(beat.plan_digest)
        tail = b"".join(parts)
        flags = (_ANSWER_NOW if beat.answer_now else 0) | (_INSIDE if beat.inside else 0)
        if beat.plan is not None:
            packed = self._pack_plan(beat.plan, beat.plan_digest)
            if _HEADER.size + _BEAT.size + len(tail) + len(packed) + _TAG <= MAX_DATAGRAM:
                tail += packed
                flags |= _PLAN
        return (
            _BEAT.pack(
                beat.sender,
                beat.incarnation,
                beat.sequence,
                beat.config_digest,
                beat.secret_digest,
                beat.state,
                flags,
                *beat.known_epoch,
                len(reason),
                len(beat.view.members) if beat.view is not None else 0,
                len(beat.echoes),
                groups,
            )
            + tail
        )

    def _pack_plan(self, plan: Plan, digest: bytes | None) -> bytes:
        """Return the packed placements of ``plan``; its digest must be ``digest``."""
        if self._sent is None or self._sent[0] is not plan:
            encoded = encode_plan(plan)
            packed = encoded[len(encoded) - len(plan.placements) * packed_size(len(plan.view.members)) :]
            self._sent = plan, packed, digest_of(encoded)
        if self._sent[2] != digest:
            raise ValueError("the plan digest is not the plan's")
        return self._sent[1]

    def _parse_heartbeat(self, body: bytes) -> Heartbeat:
        (sender, incarnation, sequence, config_digest, secret_digest, state, flags, counter, leader,
         reason_size, members, echoes, groups) = _BEAT.unpack_from(body)  # fmt: skip
        if flags & ~(_ANSWER_NOW | _INSIDE | _PLAN) or (flags & _PLAN and not flags & _INSIDE):
            raise ValueError(f"flags {flags:#x} cannot be")
        if members > MAX_NODES or echoes >= MAX_NODES or reason_size > MAX_REASON:
            raise ValueError(f"{members} members, {echoes} echoes, {reason_size} bytes of reason")
        view_at = _BEAT.size + reason_size
        echoes_at = view_at + (EPOCH.size + members * MEMBER.size if members else 0)
        powers_at = echoes_at + echoes * _ECHO.size
        holding_at = powers_at + groups * 2
        draining_at = holding_at + groups * _BITMAP
        digest_at = draining_at + groups * _BITMAP
        plan_at = digest_at + (DIGEST if flags & _INSIDE else 0)
        end = plan_at + (groups * packed_size(members) if flags & _PLAN else 0)
        if len(body) != end:
            raise ValueError(f"a heartbeat of {len(body)} bytes that should have {end}")
        view = self._view(body[view_at:echoes_at]) if members else None
        digest = body[digest_at:plan_at] if flags & _INSIDE else None
        plan = None
        if flags & _PLAN:
            if view is None:
                raise ValueError("a plan without a view")
            plan = self._plan(view, body[view_at:echoes_at], groups, body[plan_at:end], digest)
        return Heartbeat(
            sender=sender,
            incarnation=incarnation,
            sequence=sequence,
            config_digest=config_digest,
            secret_digest=secret_digest,
            state=NodeState(state),
            reason=body[_BEAT.size : view_at].decode(),
            answer_now=bool(flags & _ANSWER_NOW),
            known_epoch=Epoch(counter, leader),
            inside=bool(flags & _INSIDE),
            view=view,
            plan=plan,
            plan_digest=digest,
            echoes=tuple(map(Echo._make, _ECHO.iter_unpack(body[echoes_at:powers_at]))),
            powers=struct.unpack_from(f">{groups}H", body, powers_at),
            holding=_bitmaps(body, holding_at, draining_at),
            draining=_bitmaps(body, draining_at, digest_at),
        )

    def _view(self, section: bytes) -> View:
        view = self._views.get(section)
        if view is None:
            view = decode_view(section)
            _keep(self._views, section, view)
        return view

    def _plan(self, view: View, section: bytes, groups: int, packed: bytes, digest: bytes | None) -> Plan:
        """Return the inline plan; the same object for the same bytes, so that comparing plans is cheap."""
        encoded = PLAN_COUNTS.pack(len(view.members), groups) + section + packed
        known = self._plans.get(encoded)
        if known is None:
            known = Plan(view, unpack_placements(packed, view, groups)), digest_of(encoded)
            _keep(self._plans, encoded, known)
        plan, expected = known
        if digest != expected:
            raise ValueError("the plan digest is not the plan's")
        return plan


def largest_heartbeat(nodes: int, groups: int) -> int:
    """Return the most bytes that a heartbeat can take, its plan left out.

    Args:
        nodes: Configured nodes, 1..32.
        groups: Configured groups.
    """
    view = EPOCH.size + nodes * MEMBER.size
    echoes = (nodes - 1) * _ECHO.size
    return _HEADER.size + _BEAT.size + MAX_REASON + view + echoes + groups * (2 + 2 * _BITMAP) + DIGEST + _TAG


def _keep(cache: dict[bytes, _T], key: bytes, value: _T) -> None:
    """Remember ``value``, forgetting the oldest when there are too many."""
    if len(cache) >= _KEPT:
        del cache[next(iter(cache))]
    cache[key] = value


def _bitmaps(body: bytes, start: int, end: int) -> tuple[int, ...]:
    return tuple([int.from_bytes(body[at : at + _BITMAP], "big") for at in range(start, end, _BITMAP)])
