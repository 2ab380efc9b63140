"""The codec: round trips, canonical bytes, and exactly one error type for everything else."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nlbfarm.core.buckets import ALL, BUCKETS, NOBODY
from nlbfarm.core.wire import (
    CHUNK,
    MAX_CHUNKS,
    MAX_DATAGRAM,
    MAX_REASON,
    Codec,
    Echo,
    Epoch,
    Heartbeat,
    Keyring,
    Member,
    Message,
    NodeState,
    Plan,
    PlanChunk,
    PlanRequest,
    View,
    clip_reason,
    decode_plan,
    encode_plan,
    largest_heartbeat,
    plan_chunks,
    plan_digest,
)
from nlbfarm.errors import PeerError, UsageError

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
    bitmaps = [(draw(st.integers(0, ALL)), draw(st.integers(0, ALL))) for _ in range(groups)]
    return Heartbeat(
        sender=sender,
        incarnation=incarnation,
        sequence=draw(st.integers(1, U64)),
        config_digest=draw(eights),
        secret_digest=draw(eights),
        state=draw(st.sampled_from(NodeState)),
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


def plan_or_none(data: bytes) -> Plan | None:
    """Decode a plan, letting nothing but ``PeerError`` be raised."""
    try:
        return decode_plan(data)
    except PeerError:
        return None


def decode_or_refuse(data: bytes) -> Message | None:
    """Decode, letting nothing but ``PeerError`` be raised."""
    try:
        return CODEC.decode(data)
    except PeerError:
        return None


def refused(data: bytes, codec: Codec = CODEC) -> str:
    with pytest.raises(PeerError) as caught:
        codec.decode(data)
    return caught.value.kind


# --- what is encoded comes back ---------------------------------------------------------------


@given(messages)
def test_round_trip_is_exact_and_canonical(message: Message) -> None:
    data = CODEC.encode(message)
    assert len(data) <= MAX_DATAGRAM
    back = CODEC.decode(data)
    if isinstance(message, Heartbeat) and message.plan is not None:
        assert isinstance(back, Heartbeat)
        room = MAX_DATAGRAM - len(CODEC.encode(dataclasses.replace(message, plan=None)))
        packed = 32 * len(message.plan.view.members).bit_length() * len(message.powers)
        assert (back.plan is not None) == (packed <= room)
        if back.plan is None:
            message = dataclasses.replace(message, plan=None)
    assert back == message
    assert CODEC.encode(back) == data


@given(plans())
def test_plans_round_trip_and_reassemble_from_chunks(plan: Plan) -> None:
    encoded = encode_plan(plan)
    assert decode_plan(encoded) == plan
    assert plan_digest(decode_plan(encoded)) == plan_digest(plan)
    pieces = plan_chunks(encoded)
    digest = plan_digest(plan)
    received = [
        CODEC.decode(CODEC.encode(PlanChunk(1, 1, digest, index, len(pieces), piece)))
        for index, piece in enumerate(pieces)
    ]
    assert b"".join(chunk.data for chunk in received if isinstance(chunk, PlanChunk)) == encoded


def test_the_layout_of_version_1_does_not_change() -> None:
    """A golden datagram: nodes of one farm run different releases while it is being updated."""
    data = CODEC.encode(example(reason="ok"))
    assert data[:8] == b"NLBf\x01\x01\x00\x07"
    assert data[8:16] == hashlib.sha256(b"nlbfarm farm\0shop").digest()[:8]
    assert len(data) == 298
    assert (
        hashlib.sha256(data).hexdigest() == "fcc1f45a6c6a4514aad267a0af972ca16e068d27bba0e3901846149ad6bb20a6"
    )
    assert encode_plan(Plan(View(Epoch(5, 1), (Member(1, 2),)), ((0, 1) * 128,))) == (
        b"\x01\x01" + b"\0\0\0\0\0\0\0\x05\x01" + b"\x01\0\0\0\0\0\0\0\x02" + b"\x55" * 32
    )


def test_equal_plans_decode_to_the_same_object() -> None:
    first, second = (CODEC.decode(CODEC.encode(example(sequence=n))) for n in (1, 2))
    assert isinstance(first, Heartbeat)
    assert isinstance(second, Heartbeat)
    assert first.plan is second.plan
    assert first.plan is not None


def test_caches_do_not_mix_plans_up() -> None:
    codec = Codec("shop", Keyring({7: KEY}, 7))
    base = example()
    assert base.view is not None
    for shift in range(40):
        view = dataclasses.replace(base.view, epoch=Epoch(5 + shift % 12, 1))
        plan = Plan(view, (tuple(1 + (bucket + shift) % 3 for bucket in range(BUCKETS)),))
        beat = dataclasses.replace(base, view=view, plan=plan, plan_digest=plan_digest(plan))
        assert codec.decode(codec.encode(beat)) == beat


# --- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "groups"), [(1, 1), (2, 4), (3, 10), (8, 8), (16, 6), (32, 3)])
def test_largest_heartbeat_is_what_the_largest_takes_and_fits(nodes: int, groups: int) -> None:
    view = View(Epoch(U64, 255), tuple(Member(255 - n, U64) for n in reversed(range(nodes))))
    beat = example(
        sender=255,
        incarnation=U64,
        sequence=U64,
        reason="ä" * (MAX_REASON // 2),
        view=view,
        plan=None,
        echoes=tuple(Echo(254 - n, U64, U64) for n in reversed(range(nodes - 1))),
        powers=(65535,) * groups,
        holding=(ALL,) * groups,
        draining=(0,) * groups,
    )
    data = CODEC.encode(beat)
    assert len(data) == largest_heartbeat(nodes, groups) <= MAX_DATAGRAM
    assert CODEC.decode(data) == beat
    plan = Plan(view, ((NOBODY,) * BUCKETS,) * groups)
    assert len(plan_chunks(encode_plan(plan))) <= MAX_CHUNKS


def test_a_heartbeat_that_cannot_fit_is_the_callers_error() -> None:
    assert largest_heartbeat(3, 20) > MAX_DATAGRAM
    with pytest.raises(UsageError, match="at most 1200"):
        CODEC.encode(example(plan=None, powers=(1,) * 20, holding=(0,) * 20, draining=(0,) * 20))


def test_the_largest_plan_has_max_chunks() -> None:
    view = View(Epoch(1, 1), tuple(Member(n, n) for n in range(1, 33)))
    plan = Plan(view, ((32,) * BUCKETS,) * 255)
    assert len(plan_chunks(encode_plan(plan))) == MAX_CHUNKS
    assert decode_plan(encode_plan(plan)) == plan


# --- what is not the farm's is refused, and told apart ----------------------------------------


@given(st.binary(max_size=1300))
def test_arbitrary_bytes_raise_only_the_one_error(data: bytes) -> None:
    with pytest.raises(PeerError):
        CODEC.decode(data)


@given(st.binary(max_size=1168))
def test_arbitrary_authentic_bytes_raise_only_the_one_error(body: bytes) -> None:
    header = CODEC.encode(example())[:HEADER]
    for kind in (0, 1, 2, 3, 255):
        decode_or_refuse(sign(header[:5] + bytes([kind]) + header[6:] + body))


@given(messages, st.data())
def test_a_mutated_datagram_is_refused(message: Message, data: st.DataObject) -> None:
    valid = CODEC.encode(message)
    mutant = mutate(valid, data)
    assume(mutant != valid)
    with pytest.raises(PeerError):
        CODEC.decode(mutant)


@given(messages, st.data())
def test_a_mutated_and_signed_body_is_refused_or_canonical(message: Message, data: st.DataObject) -> None:
    """A peer with the key and a bug: whatever is accepted is a message that we could have sent."""
    valid = CODEC.encode(message)
    mutant = sign(valid[:HEADER] + mutate(valid[HEADER:-TAG], data))
    if len(mutant) <= MAX_DATAGRAM and (back := decode_or_refuse(mutant)) is not None:
        assert CODEC.encode(back) == mutant


@given(plans(), st.data())
def test_a_mutated_plan_is_refused_or_canonical(plan: Plan, data: st.DataObject) -> None:
    mutant = mutate(encode_plan(plan), data)
    if (back := plan_or_none(mutant)) is not None:
        assert encode_plan(back) == mutant


@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_no_plan(data: bytes) -> None:
    if (back := plan_or_none(data)) is not None:
        assert encode_plan(back) == data


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


def test_every_kind_of_refusal() -> None:
    valid = CODEC.encode(example())
    assert refused(b"") == "malformed"
    assert refused(b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n") == "malformed"
    assert refused(valid + bytes(1200)) == "malformed"
    assert refused(valid[:4] + b"\x02" + valid[5:]) == "version"
    assert refused(valid[:4] + b"\x00" + valid[5:]) == "version"
    assert refused(Codec("other", Keyring({7: KEY}, 7)).encode(example())) == "farm"
    assert refused(Codec("shop", Keyring({8: KEY}, 8)).encode(example())) == "key"
    assert refused(Codec("shop", Keyring({7: KEY[::-1]}, 7)).encode(example())) == "forged"
    assert refused(valid[:-1] + bytes([valid[-1] ^ 1])) == "forged"
    assert refused(valid[:6] + b"\x00\x08" + valid[8:]) == "key"
    assert refused(valid[:-1]) == "forged"
    assert refused(sign(valid[:-TAG] + b"\0")) == "malformed"
    assert refused(sign(valid[:5] + b"\x04" + valid[6:-TAG])) == "malformed"


def test_an_unsigned_body_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> Message:
        raise AssertionError("the body of a forged datagram was looked at")

    codec = Codec("shop", Keyring({7: KEY}, 7))
    monkeypatch.setattr(codec, "_message", explode)
    valid = codec.encode(example())
    for at in range(HEADER, len(valid)):
        assert refused(valid[:at] + bytes([valid[at] ^ 0xFF]) + valid[at + 1 :], codec) == "forged"


def test_keys_are_rotated_without_a_gap() -> None:
    old, new = b"o" * 32, b"n" * 32
    before = Codec("shop", Keyring({1: old}, 1))
    accepts_both = Codec("shop", Keyring({1: old, 2: new}, 1))
    signs_new = Codec("shop", Keyring({1: old, 2: new}, 2))
    after = Codec("shop", Keyring({2: new}, 2))
    steps = [before, accepts_both, signs_new, after]
    for earlier, later in pairwise(steps):
        assert earlier.decode(later.encode(example())) == example()
        assert later.decode(earlier.encode(example())) == example()
    assert refused(before.encode(example()), after) == "key"
    assert accepts_both.encode(example())[6:8] == b"\x00\x01"
    assert signs_new.encode(example())[6:8] == b"\x00\x02"


@pytest.mark.parametrize(
    ("keys", "active"), [({}, 1), ({1: KEY}, 2), ({1: b"short"}, 1), ({65536: KEY}, 65536), ({-1: KEY}, -1)]
)
def test_a_wrong_keyring_is_refused(keys: dict[int, bytes], active: int) -> None:
    with pytest.raises(UsageError):
        Keyring(keys, active)


def test_a_keyring_does_not_print_its_keys() -> None:
    assert repr(Keyring({1: b"secret-secret-secret"}, 1)) == "Keyring(active=1)"


# --- what breaks a rule is neither sent nor accepted ------------------------------------------

VIEW = View(Epoch(5, 1), (Member(1, 11), Member(2, 12)))
OUTSIDE: dict[str, Any] = {"inside": False, "plan": None, "plan_digest": None}


def alien_plan() -> dict[str, Any]:
    plan = Plan(VIEW, ((1,) * BUCKETS,))
    return {"plan": plan, "plan_digest": plan_digest(plan)}


@pytest.mark.parametrize(
    "changes",
    [
        {"sender": 0},
        {"sender": 256},
        {"sender": 4},
        {"incarnation": 12},
        {"incarnation": -1},
        {"incarnation": U64 + 1},
        {"sequence": 0},
        {"config_digest": b"short"},
        {"secret_digest": bytes(9)},
        {"state": 9},
        {"reason": "x" * 81},
        {"reason": "ä" * 41},
        {"reason": "two\nlines"},
        {"reason": "\ud800"},
        {"known_epoch": Epoch(0, 1)},
        {"known_epoch": Epoch(1, 0)},
        {"known_epoch": Epoch(1, 256)},
        {"view": None},
        {"plan_digest": None},
        {"plan_digest": bytes(16)},
        {"plan_digest": bytes(15), "plan": None},
        {"inside": False},
        {"inside": False, "plan": None},
        alien_plan(),
        {"echoes": (Echo(3, 1, 1), Echo(2, 1, 1))},
        {"echoes": (Echo(2, 1, 1), Echo(2, 2, 1))},
        {"echoes": (Echo(1, 11, 1),)},
        {"echoes": (Echo(2, 1, 0),)},
        {"echoes": (Echo(0, 1, 1),)},
        {"echoes": tuple(Echo(n, 1, 1) for n in range(2, 34))},
        {"powers": ()},
        {"powers": (65536,)},
        {"powers": (-1,)},
        {"powers": (1, 1), "holding": (0, 0), "draining": (0, 0)},
        {"holding": (0, 0)},
        {"draining": ()},
        {"holding": (ALL + 1,)},
        {"holding": (-1,)},
        {"holding": (1,), "draining": (1,)},
        {**OUTSIDE, "view": View(Epoch(0, 1), (Member(1, 1),))},
        {**OUTSIDE, "view": View(Epoch(1, 0), (Member(1, 1),))},
        {**OUTSIDE, "view": View(Epoch(1, 1), ())},
        {**OUTSIDE, "view": View(Epoch(1, 1), (Member(2, 1), Member(1, 1)))},
        {**OUTSIDE, "view": View(Epoch(1, 1), (Member(1, 1), Member(1, 2)))},
        {**OUTSIDE, "view": View(Epoch(1, 1), tuple(Member(n, 1) for n in range(1, 34)))},
        {"sequence": "1"},
    ],
    ids=lambda changes: "-".join(f"{key}" for key in changes),
)
def test_a_heartbeat_that_breaks_a_rule_is_not_encoded(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CODEC.encode(example(**changes))


@pytest.mark.parametrize(
    "message",
    [
        PlanRequest(0, 1, bytes(16), 0),
        PlanRequest(1, 1, bytes(15), 0),
        PlanRequest(1, 1, bytes(16), MAX_CHUNKS),
        PlanRequest(1, -1, bytes(16), 0),
        PlanChunk(1, 1, bytes(16), 0, 0, b"x"),
        PlanChunk(1, 1, bytes(16), 1, 1, b"x"),
        PlanChunk(1, 1, bytes(16), 0, 1, b""),
        PlanChunk(1, 1, bytes(16), 0, 2, b"x"),
        PlanChunk(1, 1, bytes(16), 0, 1, bytes(CHUNK + 1)),
        PlanChunk(1, 1, bytes(16), 0, MAX_CHUNKS + 1, bytes(CHUNK)),
    ],
)
def test_a_plan_message_that_breaks_a_rule_is_not_encoded(message: Message) -> None:
    with pytest.raises(UsageError):
        CODEC.encode(message)


# Offsets in an encoded ``example()`` without a reason: the body's fixed part is 48 bytes.
BODY = HEADER
COUNTS = BODY + 44
SECTION = BODY + 48


@pytest.mark.parametrize(
    ("at", "new", "why"),
    [
        (BODY, b"\x00", "sender 0"),
        (BODY + 9, bytes(8), "sequence 0"),
        (BODY + 33, b"\x05", "state out of range"),
        (BODY + 34, b"\x0a", "spare flag"),
        (BODY + 34, b"\x04", "plan, but outside"),
        (COUNTS, b"\x51", "reason of 81 bytes"),
        (COUNTS + 1, b"\x21", "33 members"),
        (COUNTS + 1, b"\x00", "inside no view"),
        (COUNTS + 2, b"\x20", "32 echoes"),
        (COUNTS + 3, b"\x02", "more groups than bytes"),
        (SECTION + 8, b"\x00", "leader 0"),
        (SECTION + 9, b"\x02", "members doubled"),
        (SECTION + 9, b"\x09", "members unsorted"),
        (-TAG - 1, b"\xff", "plan and digest disagree"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_authentic_heartbeat_that_breaks_a_rule_is_malformed(at: int, new: bytes, why: str) -> None:
    valid = CODEC.encode(example())
    at %= len(valid)
    assert valid[at : at + len(new)] != new, why
    assert refused(sign((valid[:at] + new + valid[at + len(new) :])[:-TAG])) == "malformed"


def test_an_owner_who_is_no_member_is_malformed_even_with_a_fitting_digest() -> None:
    view = View(Epoch(5, 1), (Member(1, 11), Member(2, 12)))
    beat = example(view=view, **alien_plan())
    valid = CODEC.encode(beat)
    assert beat.plan is not None
    bad = encode_plan(beat.plan)[:-1] + b"\x57"  # the last owner: position 3 of 2 members
    with pytest.raises(PeerError, match="not a member"):
        decode_plan(bad)
    digest = hashlib.sha256(b"nlbfarm plan\0" + bad).digest()[:16]
    assert refused(sign(valid[: -TAG - 64 - 16] + digest + bad[-64:])) == "malformed"


def test_bad_utf8_is_malformed() -> None:
    valid = CODEC.encode(example(reason="ab"))
    at = valid.index(b"ab", SECTION)
    for bad in (b"\xff\xff", b"\xc0\x80", b"a\xc3", b"a\n"):
        assert refused(sign((valid[:at] + bad + valid[at + 2 :])[:-TAG])) == "malformed"


def test_overlapping_bitmaps_are_malformed() -> None:
    valid = CODEC.encode(example())
    holding = (ALL // 3).to_bytes(32, "big")
    at = valid.index(holding) + 32
    assert valid[at : at + 32] == bytes(32)
    assert refused(sign((valid[:at] + holding + valid[at + 32 :])[:-TAG])) == "malformed"


@pytest.mark.parametrize(
    "plan",
    [
        Plan(VIEW, ((3,) * BUCKETS,)),
        Plan(VIEW, ((1,) * 255,)),
        Plan(VIEW, ((1,) * BUCKETS,) * 256),
        Plan(View(Epoch(1, 1), ()), ()),
    ],
)
def test_a_plan_that_breaks_a_rule_is_not_encoded(plan: Plan) -> None:
    with pytest.raises(UsageError):
        encode_plan(plan)


@given(st.text())
def test_clip_reason_makes_any_text_fit(text: str) -> None:
    reason = clip_reason(text)
    back = CODEC.decode(CODEC.encode(example(reason=reason)))
    assert isinstance(back, Heartbeat)
    assert back.reason == reason


def test_clip_reason_does_not_cut_a_character() -> None:
    assert clip_reason("x" + "ä" * 60) == "x" + "ä" * 39
    assert clip_reason("checker page:\tHTTP 503\n") == "checker page: HTTP 503 "
