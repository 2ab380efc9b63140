"""The codec: round trips, canonical bytes, and exactly one error type for everything else."""

from __future__ import annotations

import dataclasses
import hashlib
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.core.wire_words import (
    CODEC,
    HEADER,
    KEY,
    TAG,
    U64,
    example,
    in_versions,
    messages,
    mutate,
    plans,
    refused,
    sign,
)

from nlbfarm.core.buckets import ALL, BUCKETS, NOBODY
from nlbfarm.core.wire import (
    MAX_CHUNKS,
    MAX_DATAGRAM,
    MAX_REASON,
    OLDEST,
    VERSION,
    AnyMessage,
    Codec,
    Echo,
    Epoch,
    Fitness,
    Heartbeat,
    Keyring,
    Member,
    Message,
    NodeState,
    Order,
    OrderAnswer,
    OrderState,
    Plan,
    PlanChunk,
    View,
    decode_plan,
    encode_plan,
    largest_heartbeat,
    plan_chunks,
    plan_digest,
    version_of,
)
from nlbfarm.errors import PeerError, UsageError


def plan_or_none(data: bytes) -> Plan | None:
    """Decode a plan, letting nothing but ``PeerError`` be raised."""
    try:
        return decode_plan(data)
    except PeerError:
        return None


def decode_or_refuse(data: bytes) -> AnyMessage | None:
    """Decode, letting nothing but ``PeerError`` be raised."""
    try:
        return CODEC.decode(data)
    except PeerError:
        return None


# --- what is encoded comes back ---------------------------------------------------------------


@given(in_versions)
def test_round_trip_is_exact_and_canonical(spoken: tuple[AnyMessage, int]) -> None:
    message, version = spoken
    data = CODEC.encode(message, version)
    assert len(data) <= MAX_DATAGRAM
    back = CODEC.decode(data)
    assert version_of(data) == version
    if isinstance(message, Heartbeat) and message.plan is not None:
        assert isinstance(back, Heartbeat)
        room = MAX_DATAGRAM - len(CODEC.encode(dataclasses.replace(message, plan=None)))
        packed = 32 * len(message.plan.view.members).bit_length() * len(message.powers)
        assert (back.plan is not None) == (packed <= room)
        if back.plan is None:
            message = dataclasses.replace(message, plan=None)
    assert back == message
    assert CODEC.encode(back, version) == data


@given(messages)
def test_a_later_version_is_the_one_before_and_more(message: Message) -> None:
    if isinstance(message, Heartbeat):
        message = dataclasses.replace(message, fitness=Fitness.SOUND)
    first, second, third = (CODEC.encode(message, version) for version in (1, 2, 3))
    assert CODEC.encode(message) == third
    assert second[:-TAG] == first[:4] + b"\x02" + first[5:-TAG]
    assert third[:-TAG] == first[:4] + b"\x03" + first[5:-TAG]


@pytest.mark.parametrize("fitness", Fitness)
def test_version_3_has_the_fitness_in_two_bits_of_the_flags(fitness: Fitness) -> None:
    sound = CODEC.encode(example(state=NodeState.UP))
    beat = example(state=NodeState.UP, fitness=fitness)
    data = CODEC.encode(beat)
    changed = [at for at in range(len(data) - TAG) if data[at] != sound[at]]
    flags = HEADER + 1 + 8 + 8 + 8 + 8 + 1
    assert changed == ([flags] if fitness else [])
    assert data[flags] >> 3 & 3 == fitness
    assert CODEC.decode(data) == beat
    if fitness:
        with pytest.raises(UsageError, match="fitness needs wire version 3"):
            CODEC.encode(beat, 2)
        assert refused(sign(data[:4] + b"\x02" + data[5:-TAG])) == "malformed"
        with pytest.raises(UsageError, match="fitness"):
            CODEC.encode(example(state=NodeState.WAIT, fitness=fitness))


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
    data = CODEC.encode(example(reason="ok"), 1)
    assert data[:8] == b"NLBf\x01\x01\x00\x07"
    assert data[8:16] == hashlib.sha256(b"nlbfarm farm\0shop").digest()[:8]
    assert len(data) == 298
    assert (
        hashlib.sha256(data).hexdigest() == "fcc1f45a6c6a4514aad267a0af972ca16e068d27bba0e3901846149ad6bb20a6"
    )
    assert encode_plan(Plan(View(Epoch(5, 1), (Member(1, 2),)), ((0, 1) * 128,))) == (
        b"\x01\x01" + b"\0\0\0\0\0\0\0\x05\x01" + b"\x01\0\0\0\0\0\0\0\x02" + b"\x55" * 32
    )


def test_the_layout_of_version_2_does_not_change() -> None:
    order = Order(1, 11, 2, 12, 98, 7, "power", '{"n": 3}')
    data = CODEC.encode(order, 2)
    assert data[:8] == b"NLBf\x02\x04\x00\x07"
    assert data[HEADER:-TAG] == (
        b"\x01\0\0\0\0\0\0\0\x0b" + b"\x02\0\0\0\0\0\0\0\x0c" + b"\0\0\0\0\0\0\0\x62"
        b"\0\0\0\0\0\0\0\x07" + b'\x05power{"n": 3}'
    )
    assert data == sign(data[:-TAG])
    answer = CODEC.encode(OrderAnswer(2, 12, 1, 11, 7, OrderState.FAILED, "no"), 2)
    assert answer[:8] == b"NLBf\x02\x05\x00\x07"
    assert answer[HEADER:-TAG] == (
        b"\x02\0\0\0\0\0\0\0\x0c" + b"\x01\0\0\0\0\0\0\0\x0b" + b"\0\0\0\0\0\0\0\x07\x03no"
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
    for version in range(OLDEST, VERSION + 1):
        for kind in (0, 1, 2, 3, 4, 5, 6, 255):
            decode_or_refuse(sign(header[:4] + bytes([version, kind]) + header[6:] + body))


@given(in_versions, st.data())
def test_a_mutated_datagram_is_refused(spoken: tuple[AnyMessage, int], data: st.DataObject) -> None:
    valid = CODEC.encode(*spoken)
    mutant = mutate(valid, data)
    assume(mutant != valid)
    with pytest.raises(PeerError):
        CODEC.decode(mutant)


@given(in_versions, st.data())
def test_a_mutated_and_signed_body_is_refused_or_canonical(
    spoken: tuple[AnyMessage, int], data: st.DataObject
) -> None:
    """A peer with the key and a bug: whatever is accepted is a message that we could have sent."""
    valid = CODEC.encode(*spoken)
    mutant = sign(valid[:HEADER] + mutate(valid[HEADER:-TAG], data))
    if len(mutant) <= MAX_DATAGRAM and (back := decode_or_refuse(mutant)) is not None:
        assert CODEC.encode(back, version_of(mutant)) == mutant


@given(plans(), st.data())
def test_a_mutated_plan_is_refused_or_canonical(plan: Plan, data: st.DataObject) -> None:
    mutant = mutate(encode_plan(plan), data)
    if (back := plan_or_none(mutant)) is not None:
        assert encode_plan(back) == mutant


@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_no_plan(data: bytes) -> None:
    if (back := plan_or_none(data)) is not None:
        assert encode_plan(back) == data


def test_every_kind_of_refusal() -> None:
    valid = CODEC.encode(example())
    assert refused(b"") == "malformed"
    assert refused(b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n") == "malformed"
    assert refused(valid + bytes(1200)) == "malformed"
    assert refused(valid[:4] + b"\x04" + valid[5:]) == "version"
    assert refused(valid[:4] + b"\x01" + valid[5:]) == "forged"
    assert refused(valid[:4] + b"\x00" + valid[5:]) == "version"
    assert refused(Codec("other", Keyring({7: KEY}, 7)).encode(example())) == "farm"
    assert refused(Codec("shop", Keyring({8: KEY}, 8)).encode(example())) == "key"
    assert refused(Codec("shop", Keyring({7: KEY[::-1]}, 7)).encode(example())) == "forged"
    assert refused(valid[:-1] + bytes([valid[-1] ^ 1])) == "forged"
    assert refused(valid[:6] + b"\x00\x08" + valid[8:]) == "key"
    assert refused(valid[:-1]) == "forged"
    assert refused(sign(valid[:-TAG] + b"\0")) == "malformed"
    assert refused(sign(valid[:5] + b"\x06" + valid[6:-TAG])) == "malformed"


def test_an_earlier_release_refuses_version_2_unread_and_has_no_orders() -> None:
    earlier = Codec("shop", Keyring({7: KEY}, 7), newest=1)
    assert refused(CODEC.encode(example()), earlier) == "version"
    assert earlier.decode(CODEC.encode(example(), 1)) == example()
    order = Order(1, 11, 2, 12, 98, 7, "stop", "")
    with pytest.raises(UsageError, match="the peer is too old"):
        CODEC.encode(order, 1)
    assert refused(sign(b"NLBf\x01" + CODEC.encode(order)[5:-TAG])) == "malformed"
    for codec, version in ((CODEC, 0), (CODEC, 4), (earlier, 2)):
        with pytest.raises(UsageError, match=f"wire version {version}"):
            codec.encode(example(), version)


def test_an_unsigned_body_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> AnyMessage:
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
