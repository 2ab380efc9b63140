"""The codec: what breaks a rule of a message is neither sent nor accepted."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.wire_words import (
    CODEC,
    HEADER,
    TAG,
    U64,
    example,
    refused,
    sign,
)

from nlbfarm.core.buckets import ALL, BUCKETS
from nlbfarm.core.wire import (
    CHUNK,
    MAX_ARGUMENT,
    MAX_CHUNKS,
    MAX_TEXT,
    MAX_VERB,
    Echo,
    Epoch,
    Heartbeat,
    Member,
    Message,
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
    decode_plan,
    encode_plan,
    plan_digest,
)
from nlbfarm.errors import PeerError, UsageError

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


ORDER = Order(1, 11, 2, 12, 98, 7, "stop", "")
ANSWER = OrderAnswer(2, 12, 1, 11, 7, OrderState.DONE, "")


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (ORDER, {"sender": 0}),
        (ORDER, {"incarnation": -1}),
        (ORDER, {"target": 256}),
        (ORDER, {"target": 1}),
        (ORDER, {"target_incarnation": U64 + 1}),
        (ORDER, {"target_sequence": 0}),
        (ORDER, {"number": 0}),
        (ORDER, {"verb": ""}),
        (ORDER, {"verb": "x" * (MAX_VERB + 1)}),
        (ORDER, {"verb": "st\nop"}),
        (ORDER, {"argument": "ä" * (MAX_ARGUMENT // 2) + "x"}),
        (ORDER, {"argument": "\0"}),
        (ORDER, {"argument": "\ud800"}),
        (ANSWER, {"target": 2}),
        (ANSWER, {"number": U64 + 1}),
        (ANSWER, {"state": 0}),
        (ANSWER, {"state": 5}),
        (ANSWER, {"text": "x" * (MAX_TEXT + 1)}),
        (ANSWER, {"text": "\x1b[2J"}),
    ],
)
def test_an_order_that_breaks_a_rule_is_neither_encoded_nor_decoded(
    message: OrderMessage, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = dataclasses.replace(message, **changes)
    with pytest.raises(UsageError):
        CODEC.encode(wrong)
    monkeypatch.setattr("nlbfarm.core.wire.check_order", lambda _: None)
    try:
        datagram = CODEC.encode(wrong)
    except UsageError:
        return  # there are no bytes for it at all
    monkeypatch.undo()
    assert refused(datagram) == "malformed"


def test_an_order_with_a_verb_longer_than_itself_is_malformed() -> None:
    valid = CODEC.encode(ORDER)
    at = HEADER + 34
    assert valid[at] == len("stop")
    assert refused(sign(valid[:at] + b"\x05" + valid[at + 1 : -TAG])) == "malformed"
    assert refused(sign(valid[: at - 1])) == "malformed"


@given(st.text())
def test_any_text_fits_into_an_answer(text: str) -> None:
    answer = dataclasses.replace(ANSWER, text=clip_text(text))
    assert CODEC.decode(CODEC.encode(answer)) == answer


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
