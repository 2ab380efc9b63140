"""Messages of every kind, as hypothesis makes them, and what an attacker does to their bytes."""

from __future__ import annotations

import dataclasses
import hmac
import random
from typing import Any

import pytest
from hypothesis import strategies as st

from nlbfarm.core.buckets import ALL, BUCKETS, NOBODY
from nlbfarm.core.versions import spoken
from nlbfarm.core.wire import (
    CHUNK,
    MAX_CHUNKS,
    MAX_VERB,
    Codec,
    Echo,
    Epoch,
    Fitness,
    Heartbeat,
    Keyring,
    Member,
    NodeState,
    Order,
    OrderAnswer,
    OrderMessage,
    OrderState,
    Plan,
    PlanChunk,
    PlanRequest,
    View,
    clip_reason,
    clip_text,
    plan_digest,
)
from nlbfarm.errors import PeerError

KEY = bytes(range(32))
CODEC = Codec("shop", Keyring({7: KEY}, 7))
HEADER = 16
TAG = 16

U64 = (1 << 64) - 1
u64s = st.integers(0, U64) | st.integers(0, 9)
digests = st.binary(min_size=16, max_size=16)
eights = st.binary(min_size=8, max_size=8)


def sign(unsigned: bytes, key: bytes = KEY) -> bytes:
    """Make what the holder of a key could make: any bytes, validly signed."""
    return unsigned + hmac.digest(key, unsigned, "sha256")[:TAG]


@st.composite
def views(draw: st.DrawFn, sender: int | None = None, incarnation: int = 0, most: int = 32) -> View:
    nodes = draw(st.sets(st.integers(1, 255), min_size=1 if sender is None else 0, max_size=most - 1))
    lives = {node: draw(u64s) for node in nodes}
    if sender is not None:
        lives[sender] = incarnation
    epoch = Epoch(draw(st.integers(1, U64)), draw(st.integers(1, 255)))
    return View(epoch, tuple(Member(node, lives[node]) for node in sorted(lives)))


@st.composite
def plans(draw: st.DrawFn, view: View | None = None, groups: int | None = None) -> Plan:
    if view is None:
        view = draw(views())
    if groups is None:
        groups = draw(st.integers(0, 4))
    owners = [NOBODY, *(member.node for member in view.members)]
    rng = random.Random(draw(st.integers(0, 2**32)))
    return Plan(view, tuple(tuple(rng.choices(owners, k=BUCKETS)) for _ in range(groups)))


@st.composite
def heartbeats(draw: st.DrawFn) -> Heartbeat:
    sender = draw(st.integers(1, 255))
    incarnation = draw(u64s)
    most = draw(st.sampled_from([3, 8, 32]))
    groups = draw(st.integers(0, {3: 13, 8: 10, 32: 3}[most]))
    inside = draw(st.booleans())
    view = draw(views(sender, incarnation, most) if inside else st.none() | views(most=most))
    plan = draw(st.none() | plans(view, groups)) if inside else None
    digest = plan_digest(plan) if plan is not None else draw(digests) if inside else None
    peers = draw(st.sets(st.integers(1, 255).filter(lambda node: node != sender), max_size=most - 1))
    state = draw(st.sampled_from(NodeState))
    bitmaps = [(draw(st.integers(0, ALL)), draw(st.integers(0, ALL))) for _ in range(groups)]
    return Heartbeat(
        sender=sender,
        incarnation=incarnation,
        sequence=draw(st.integers(1, U64)),
        config_digest=draw(eights),
        secret_digest=draw(eights),
        state=state,
        fitness=draw(st.sampled_from(Fitness)) if state is NodeState.UP else Fitness.SOUND,
        reason=clip_reason(draw(st.text(max_size=100))),
        answer_now=draw(st.booleans()),
        known_epoch=draw(
            st.just(Epoch()) | st.builds(Epoch, st.integers(1, U64), st.integers(1, 255)),
        ),
        inside=inside,
        view=view,
        plan=plan,
        plan_digest=digest,
        echoes=tuple(Echo(node, draw(u64s), draw(st.integers(1, U64))) for node in sorted(peers)),
        powers=tuple(draw(st.integers(0, 65535)) for _ in range(groups)),
        holding=tuple(holding for holding, _ in bitmaps),
        draining=tuple(draining & ~holding for holding, draining in bitmaps),
    )


requests = st.builds(PlanRequest, st.integers(1, 255), u64s, digests, st.integers(0, MAX_CHUNKS - 1))


@st.composite
def chunks(draw: st.DrawFn) -> PlanChunk:
    count = draw(st.integers(1, MAX_CHUNKS))
    index = draw(st.integers(0, count - 1))
    size = draw(st.integers(1, CHUNK)) if index == count - 1 else CHUNK
    data = random.Random(draw(st.integers(0, 2**32))).randbytes(size)
    return PlanChunk(draw(st.integers(1, 255)), draw(u64s), draw(digests), index, count, data)


messages = heartbeats() | requests | chunks()


@st.composite
def orders(draw: st.DrawFn) -> OrderMessage:
    sender, target = draw(st.lists(st.integers(1, 255), min_size=2, max_size=2, unique=True))
    lives = sender, draw(u64s), target, draw(u64s)
    number = draw(st.integers(1, U64))
    if draw(st.booleans()):
        return OrderAnswer(*lives, number, draw(st.sampled_from(OrderState)), clip_text(draw(st.text())))
    verb = draw(printable.filter(bool))
    return Order(*lives, draw(st.integers(1, U64)), number, verb, draw(printable | st.just("ä" * 256)))


printable = st.text(max_size=MAX_VERB // 4).map(clip_text)
in_versions = st.tuples(messages, st.sampled_from([1, 2, 3])).map(
    lambda said: (spoken(*said), said[1])
) | st.tuples(orders(), st.sampled_from([2, 3]))
"""Every message in every version that has it."""


def example(**changes: Any) -> Heartbeat:
    """Make the heartbeat of a quiet farm of three, with changes."""
    view = View(Epoch(5, 1), (Member(1, 11), Member(2, 12), Member(3, 13)))
    plan = Plan(view, (tuple(1 + bucket % 3 for bucket in range(BUCKETS)),))
    beat = Heartbeat(
        sender=1,
        incarnation=11,
        sequence=99,
        config_digest=b"c" * 8,
        secret_digest=b"s" * 8,
        state=NodeState.UP,
        reason="",
        answer_now=False,
        known_epoch=Epoch(5, 1),
        inside=True,
        view=view,
        plan=plan,
        plan_digest=plan_digest(plan),
        echoes=(Echo(2, 12, 98), Echo(3, 13, 97)),
        powers=(1,),
        holding=(ALL // 3,),
        draining=(0,),
    )
    return dataclasses.replace(beat, **changes)


def mutate(valid: bytes, data: st.DataObject) -> bytes:
    """Flip bits, cut, lengthen, splice or overwrite."""
    mutant = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 3), label="mutations")):
        at = data.draw(st.integers(0, max(0, len(mutant) - 1)), label="at")
        match data.draw(st.sampled_from(["flip", "cut", "add", "splice", "set"]), label="how"):
            case "flip" if mutant:
                mutant[at] ^= 1 << data.draw(st.integers(0, 7))
            case "set" if mutant:
                mutant[at] = data.draw(st.sampled_from([0, 1, 31, 32, 33, 127, 128, 255]))
            case "cut":
                del mutant[at : at + data.draw(st.integers(1, 40))]
            case "add":
                mutant[at:at] = data.draw(st.binary(min_size=1, max_size=40))
            case "splice":
                start = data.draw(st.integers(0, max(0, len(valid) - 1)))
                piece = valid[start : start + data.draw(st.integers(1, 64))]
                mutant[at : at + len(piece)] = piece
    return bytes(mutant)


def refused(data: bytes, codec: Codec = CODEC) -> str:
    with pytest.raises(PeerError) as caught:
        codec.decode(data)
    return caught.value.kind
