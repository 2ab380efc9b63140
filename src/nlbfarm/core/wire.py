"""The messages of nodes as bytes: one strict, authenticated encoding.

Every datagram, in network byte order::

    magic "NLBf" | version | type | key id (2) | farm (8) | body | tag (16)

*farm* is a hash of the farm's name: two farms on one network are told apart before, and
whatever, their keys are. *key id* goes in clear so that keys can be rotated: first every node
gets the new key, then it becomes the active one, then the old one is removed. *tag* is
HMAC-SHA-256-128 (RFC 4868: SHA-256, truncated to 16 bytes; RFC 2104 section 5 allows half)
over everything before it, the version too. It is compared in constant time and **before** the type
or the body is looked at: bytes of a stranger never reach the parser. The 16 bytes saved go to the plan.

Nothing here knows of replays: a datagram of an earlier life of a node is authentic, and the
core refuses it by its incarnation and sequence.

The encoding is canonical: ``encode(decode(data), version_of(data)) == data`` under one key. Fields that
have a choice (order, padding, spare bits) are refused when they are not as the encoder writes them.

*Version policy*: versions 1 to 3 are written and read. Version 2 is version 1 and two more message
types, ``Order`` and ``OrderAnswer``; who is heard in it also adopts what a peer drains. Version 3 is
version 2 and the sender's *fitness* in two bits of a heartbeat's flags; ``nlbfarm.core.versions.spoken``
says how that is put in earlier ones. A release speaks its own version and those before, and to each peer in
the newest that this peer has been heard in (``nlbfarm.core.versions``): a farm is updated node by node, and
can be put back the same way. The first five bytes never change their meaning.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import TypeVar

from nlbfarm.core.keyring import Keyring
from nlbfarm.core.messages import (
    CHUNK,
    MAX_CHUNKS,
    MAX_GROUPS,
    MAX_NODES,
    MAX_REASON,
    Echo,
    Epoch,
    Fitness,
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
from nlbfarm.core.order_messages import (
    MAX_ARGUMENT,
    MAX_TEXT,
    MAX_VERB,
    Order,
    OrderAnswer,
    OrderMessage,
    OrderState,
    check_order,
    clip_text,
    decode_answer,
    decode_order,
    encode_answer,
    encode_order,
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
    "MAX_ARGUMENT",
    "MAX_CHUNKS",
    "MAX_DATAGRAM",
    "MAX_GROUPS",
    "MAX_NODES",
    "MAX_REASON",
    "MAX_TEXT",
    "MAX_VERB",
    "OLDEST",
    "VERSION",
    "AnyMessage",
    "Codec",
    "Echo",
    "Epoch",
    "Fitness",
    "Heartbeat",
    "Keyring",
    "Member",
    "Message",
    "NodeState",
    "Order",
    "OrderAnswer",
    "OrderMessage",
    "OrderState",
    "Plan",
    "PlanChunk",
    "PlanRequest",
    "View",
    "clip_reason",
    "clip_text",
    "decode_plan",
    "encode_plan",
    "largest_heartbeat",
    "plan_chunks",
    "plan_digest",
    "version_of",
]

MAX_DATAGRAM = 1200
"""Bytes of a datagram, at most: fits through every path of IPv6's least MTU (RFC 8200 section 5)."""

VERSION = 3
"""The newest version of the encoding that this module speaks."""

OLDEST = 1
"""The oldest version that it still speaks."""

_ORDERS = 2
"""The version in which orders came."""

_FITNESS = 3
"""The version in which fitness came."""

_MAGIC = b"NLBf"
_HEADER = struct.Struct(">4sBBH8s")
_TAG = 16
_HEARTBEAT, _REQUEST, _CHUNK_OF_PLAN, _ORDER, _ORDER_ANSWER = 1, 2, 3, 4, 5

# sender, incarnation, sequence, two digests, state, flags, known epoch (2), then the counts on
# which the length of everything behind depends: reason bytes, members, echoes, groups.
_BEAT = struct.Struct(">BQQ8s8sBBQBBBBB")
_ANSWER_NOW, _INSIDE, _PLAN = 1, 2, 4
_FITNESS_SHIFT, _FITNESS_BITS = 3, 3 << 3
_ECHO = struct.Struct(">BQQ")
_BITMAP = 32
_REQUEST_BODY = struct.Struct(">BQ16sH")
_CHUNK_HEAD = struct.Struct(">BQ16sHH")

_KEPT = 8  # decoded views and plans that are remembered: nodes that agree all send the same one

_T = TypeVar("_T")

AnyMessage = Message | OrderMessage
"""What a datagram can carry."""


class Codec:
    """Encodes and decodes the messages of one farm; holds keys and small caches, no other state.

    Args:
        farm: Name of the farm.
        keyring: Its keys.
        newest: Newest version to write and read; one below ``VERSION`` stands in for an earlier release.
    """

    def __init__(self, farm: str, keyring: Keyring, newest: int = VERSION) -> None:
        self._farm = hashlib.sha256(b"nlbfarm farm\0" + farm.encode()).digest()[:8]
        # The keyed state is computed once and copied for each datagram.
        self._macs = {key_id: hmac.new(key, digestmod="sha256") for key_id, key in keyring.keys.items()}
        self._active = keyring.active
        self._mac = self._macs[keyring.active]
        self.newest = newest
        """The newest version that it writes and reads."""
        # A plan lives for many heartbeats: the last one encoded, and a few decoded ones by their bytes.
        self._sent: tuple[Plan, bytes, bytes] | None = None
        self._plans: dict[bytes, tuple[Plan, bytes]] = {}
        self._views: dict[bytes, View] = {}

    def encode(self, message: AnyMessage, version: int = VERSION) -> bytes:
        """Return the datagram for ``message``, at most 1,200 bytes.

        A heartbeat's plan goes along if it fits, and is left out otherwise; its digest always goes.

        Args:
            message: What to say.
            version: The wire version to say it in.

        Raises:
            UsageError: The message cannot be encoded: a field is out of its range, it is too long, or
                the version does not have it.
        """
        if not OLDEST <= version <= self.newest:
            raise UsageError(f"wire version {version}; this node speaks {OLDEST} to {self.newest}")
        try:
            kind, body = self._body(message)
        except (ValueError, TypeError, struct.error) as error:
            raise UsageError(f"{type(message).__name__} cannot be encoded: {error}") from error
        if isinstance(message, Heartbeat) and message.fitness and version < _FITNESS:
            raise UsageError(f"fitness needs wire version {_FITNESS}: say it otherwise (versions.spoken)")
        if kind >= _ORDER and version < _ORDERS:
            raise UsageError(
                f"orders need wire version {_ORDERS}: the peer is too old, upgrade nlbfarm there"
            )
        signed = _HEADER.pack(_MAGIC, version, kind, self._active, self._farm) + body
        size = len(signed) + _TAG
        if size > MAX_DATAGRAM:
            raise UsageError(f"{type(message).__name__} of {size} bytes; at most {MAX_DATAGRAM} can be sent")
        mac = self._mac.copy()
        mac.update(signed)
        return signed + mac.digest()[:_TAG]

    def decode(self, data: bytes) -> AnyMessage:
        """Return the message in ``data``; ``version_of`` tells the version that it is written in.

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
        if not OLDEST <= version <= self.newest:
            raise PeerError("version", f"wire version {version}; this node speaks {OLDEST} to {self.newest}")
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
            return self._message(version, kind, data[_HEADER.size : -_TAG])
        except (ValueError, struct.error) as error:
            raise PeerError("malformed", str(error)) from error

    def _body(self, message: AnyMessage) -> tuple[int, bytes]:
        """Return the type and the body of ``message``, checked."""
        if isinstance(message, Heartbeat):
            check(message)
            return _HEARTBEAT, self._heartbeat(message)
        if isinstance(message, OrderMessage):
            check_order(message)
            if isinstance(message, Order):
                return _ORDER, encode_order(message)
            return _ORDER_ANSWER, encode_answer(message)
        check(message)
        life = message.sender, message.incarnation
        if isinstance(message, PlanRequest):
            return _REQUEST, _REQUEST_BODY.pack(*life, message.digest, message.first)
        head = _CHUNK_HEAD.pack(*life, message.digest, message.index, message.count)
        return _CHUNK_OF_PLAN, head + message.data

    def _message(self, version: int, kind: int, body: bytes) -> AnyMessage:
        message: Message
        if kind == _HEARTBEAT:
            message = self._parse_heartbeat(version, body)
        elif kind == _REQUEST:
            message = PlanRequest(*_REQUEST_BODY.unpack(body))
        elif kind == _CHUNK_OF_PLAN:
            sender, incarnation, digest, index, count = _CHUNK_HEAD.unpack_from(body)
            message = PlanChunk(sender, incarnation, digest, index, count, body[_CHUNK_HEAD.size :])
        elif version >= _ORDERS and kind in {_ORDER, _ORDER_ANSWER}:
            order = decode_order(body) if kind == _ORDER else decode_answer(body)
            check_order(order)
            return order
        else:
            raise ValueError(f"message type {kind} is not known in version {version}")
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
        flags |= beat.fitness << _FITNESS_SHIFT
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

    def _parse_heartbeat(self, version: int, body: bytes) -> Heartbeat:
        (sender, incarnation, sequence, config_digest, secret_digest, state, flags, counter, leader,
         reason_size, members, echoes, groups) = _BEAT.unpack_from(body)  # fmt: skip
        known = _ANSWER_NOW | _INSIDE | _PLAN | (_FITNESS_BITS if version >= _FITNESS else 0)
        if flags & ~known or (flags & _PLAN and not flags & _INSIDE):
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
            fitness=Fitness((flags & _FITNESS_BITS) >> _FITNESS_SHIFT),
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


def version_of(data: bytes) -> int:
    """Return the wire version of a datagram that ``Codec.decode`` has accepted."""
    return data[len(_MAGIC)]


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
