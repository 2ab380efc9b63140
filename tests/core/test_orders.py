"""Orders: what one side says and the other does, case by case."""

from __future__ import annotations

import dataclasses

import pytest

from nlbfarm.core.orders import (
    ASK_AGAIN,
    FRESH,
    MOST_GIVEN,
    MOST_TAKEN,
    REMEMBERED,
    SEND_AGAIN,
    Accepted,
    Action,
    Execute,
    Life,
    Orders,
    Outcome,
    Result,
    SendOrder,
)
from nlbfarm.core.wire import MAX_TEXT, Order, OrderAnswer, OrderState
from nlbfarm.errors import UsageError

NAMES = {1: "web1", 2: "web2", 3: "web3"}
LIVES = {1: Life(10, 100), 2: Life(20, 200), 3: Life(30, 300)}
INTERVAL = 0.1
ACCEPTED, DONE, FAILED, REFUSED = OrderState


def orders(node: int) -> Orders:
    return Orders(node, NAMES, INTERVAL)


def order(number: int, **changes: int) -> Order:
    """Make an order of web1 for web2."""
    return dataclasses.replace(Order(1, 10, 2, 20, 200, number, "drain", ""), **changes)  # type: ignore[arg-type]


def answer(number: int, state: OrderState, text: str = "") -> OrderAnswer:
    return OrderAnswer(2, 20, 1, 10, number, state, text)


def given(one: Orders, verb: str = "drain", now: float = 0.0) -> Order:
    """Give an order to web2 and return what is sent."""
    one.give(2, verb, "", LIVES, now)
    (sent,) = one.fired(LIVES, now)
    assert isinstance(sent, SendOrder)
    assert isinstance(sent.message, Order)
    assert sent.node == 2
    return sent.message


def taken(target: Orders, number: int, now: float = 0.0) -> list[Action]:
    return target.arrived(order(number), LIVES, now)


# --- the orderer ------------------------------------------------------------------------------


def test_an_order_is_repeated_until_it_is_taken_and_asked_for_until_it_is_done() -> None:
    one = orders(1)
    assert one.timer() is None
    first = given(one)
    assert first == order(1)
    assert one.timer() == SEND_AGAIN * INTERVAL
    assert one.fired(LIVES, 0.1) == []
    later = LIVES | {2: Life(20, 202)}
    assert one.fired(later, 0.2) == [SendOrder(order(1, target_sequence=202), 2)]
    assert one.arrived(answer(1, ACCEPTED), LIVES, 0.25) == [Accepted(1, "")]
    assert one.timer() == 0.25 + ASK_AGAIN * INTERVAL
    assert one.fired({1: LIVES[1]}, 1.25) == [SendOrder(order(1, target_sequence=202), 2)]
    assert one.arrived(answer(1, ACCEPTED, "3 left"), LIVES, 1.3) == [Accepted(1, "3 left")]
    assert one.arrived(answer(1, ACCEPTED, "3 left"), LIVES, 1.4) == []
    assert one.arrived(answer(1, DONE, "drained"), LIVES, 1.5) == [Outcome(1, Result.DONE, "drained")]
    assert one.arrived(answer(1, ACCEPTED), LIVES, 1.6) == []
    assert one.timer() is None


@pytest.mark.parametrize(("state", "result"), [(FAILED, Result.FAILED), (REFUSED, Result.REFUSED)])
def test_a_failure_names_the_node(state: OrderState, result: Result) -> None:
    one = orders(1)
    given(one)
    assert one.arrived(answer(1, state, "no"), LIVES, 0.1) == [Outcome(1, result, "web2: no")]


def test_without_an_answer_nobody_knows() -> None:
    one = orders(1)
    given(one)
    assert one.fired(LIVES, 4.9) != []
    (outcome,) = one.fired(LIVES, 5.0)
    assert isinstance(outcome, Outcome)
    assert (outcome.number, outcome.result) == (1, Result.UNKNOWN)
    assert "no answer from web2 for 5 s" in outcome.text
    assert one.arrived(answer(1, DONE), LIVES, 5.1) == []


def test_patience_ends_although_the_target_answers() -> None:
    one = orders(1)
    one.give(2, "drain", "", LIVES, 0.0, patience=8.0)
    one.fired(LIVES, 0.0)
    for second in range(8):
        one.arrived(answer(1, ACCEPTED), LIVES, second)
        assert not any(isinstance(action, Outcome) for action in one.fired(LIVES, second))
    (outcome,) = one.fired(LIVES, 8.0)
    assert isinstance(outcome, Outcome)
    assert outcome.result is Result.UNKNOWN
    assert "web2 is not done after 8 s" in outcome.text


def test_a_new_life_of_the_target_or_of_this_node_ends_it() -> None:
    one = orders(1)
    given(one)
    (outcome,) = one.fired(LIVES | {2: Life(21, 1)}, 0.1)
    assert outcome == Outcome(1, Result.RESTARTED, "web2 restarted before it said that it was done")
    given(one)
    (outcome,) = one.fired(LIVES | {1: Life(11, 1)}, 0.1)
    assert isinstance(outcome, Outcome)
    assert (outcome.number, outcome.result) == (2, Result.UNKNOWN)
    assert one.arrived(answer(2, DONE), LIVES, 0.2) == []


@pytest.mark.parametrize(
    "changes",
    [{"sender": 3}, {"incarnation": 21}, {"target": 2}, {"target_incarnation": 9}, {"number": 2}],
)
def test_an_answer_of_another_life_order_or_node_is_ignored(changes: dict[str, int]) -> None:
    one = orders(1)
    given(one)
    stray = dataclasses.replace(answer(1, DONE), **changes)  # type: ignore[arg-type]
    assert one.arrived(stray, LIVES, 0.1) == []
    assert one.arrived(answer(1, DONE), LIVES, 0.1) == [Outcome(1, Result.DONE, "")]


def test_orders_for_one_target_are_taken_one_after_the_other() -> None:
    one = orders(1)
    assert [one.give(node, "stop", "", LIVES, 0.0) for node in (2, 2, 3, 2)] == [1, 2, 3, 4]
    sent = [action.message.number for action in one.fired(LIVES, 0.0) if isinstance(action, SendOrder)]
    assert sent == [1, 3]
    assert one.arrived(answer(2, DONE), LIVES, 0.0) == []  # not said yet: nobody can have done it
    one.arrived(answer(1, ACCEPTED), LIVES, 0.1)
    due = one.timer()
    assert due is not None
    assert due <= 0.1
    later = LIVES | {2: Life(20, 209)}
    (action,) = one.fired(later, 0.1)
    assert isinstance(action, SendOrder)
    assert action.message == Order(1, 10, 2, 20, 209, 2, "stop", "")
    one.arrived(answer(2, DONE), LIVES, 0.15)
    assert [action.message.number for action in one.fired(LIVES, 0.15) if isinstance(action, SendOrder)] == [
        4
    ]


def test_an_order_that_waited_is_meant_for_the_life_in_which_it_is_sent() -> None:
    one = orders(1)
    one.give(2, "drain", "", LIVES, 0.0)
    one.give(2, "start", "", LIVES, 0.0)
    one.fired(LIVES, 0.0)
    restarted, sent = one.fired({1: Life(10, 101), 2: Life(21, 5)}, 0.1)
    assert isinstance(restarted, Outcome)
    assert restarted.result is Result.RESTARTED
    assert isinstance(sent, SendOrder)
    assert sent.message == Order(1, 10, 2, 21, 5, 2, "start", "")


def test_what_cannot_be_sent_is_the_users_error() -> None:
    one = orders(1)
    with pytest.raises(UsageError, match="web3 is not heard"):
        one.give(3, "stop", "", {1: LIVES[1]}, 0.0)
    with pytest.raises(UsageError, match="to itself"):
        one.give(1, "stop", "", LIVES, 0.0)
    with pytest.raises(UsageError, match="cannot be sent to web2: the argument has 600 bytes"):
        one.give(2, "stop", "x" * 600, LIVES, 0.0)
    assert one.timer() is None
    for _ in range(MOST_GIVEN):
        one.give(2, "stop", "", LIVES, 0.0)
    with pytest.raises(UsageError, match="under way"):
        one.give(2, "stop", "", LIVES, 0.0)


# --- the target -------------------------------------------------------------------------------


def test_an_order_is_carried_out_once_and_repetitions_are_answered_with_what_became_of_it() -> None:
    target = orders(2)
    assert taken(target, 1) == [
        SendOrder(answer(1, ACCEPTED), 1),
        Execute(1, 10, 1, "drain", ""),
    ]
    assert taken(target, 1, 0.05) == []  # the copy of another network
    assert taken(target, 1, 0.2) == [SendOrder(answer(1, ACCEPTED), 1)]
    target.progress(1, 10, 1, "412 connections left")
    assert taken(target, 1, 0.4) == [SendOrder(answer(1, ACCEPTED, "412 connections left"), 1)]
    assert target.done(1, 10, 1, True, "drained", 0.5) == [SendOrder(answer(1, DONE, "drained"), 1)]
    assert target.done(1, 10, 1, False, "", 0.6) == []
    target.progress(1, 10, 1, "late")
    assert taken(target, 1, 0.7) == [SendOrder(answer(1, DONE, "drained"), 1)]


def test_a_failure_is_told_in_a_text_that_fits() -> None:
    target = orders(2)
    taken(target, 1)
    (said,) = target.done(1, 10, 1, False, "line\n" * 100, 0.1)
    assert isinstance(said, SendOrder)
    assert isinstance(said.message, OrderAnswer)
    assert said.message.state is FAILED
    assert said.message.text == ("line " * 100)[:MAX_TEXT]


@pytest.mark.parametrize(
    ("changes", "lives"),
    [
        pytest.param({"target": 3}, LIVES, id="for another node"),
        pytest.param({"target_incarnation": 19}, LIVES, id="for an earlier life of ours"),
        pytest.param({"target_incarnation": 21}, LIVES, id="for a life that we never had"),
        pytest.param({"incarnation": 9}, LIVES, id="of an earlier life of the sender"),
        pytest.param({"incarnation": 11}, LIVES, id="of a life that was not heard yet"),
        pytest.param({}, {2: LIVES[2]}, id="of a peer that is not heard"),
        pytest.param({"sender": 9}, LIVES, id="of a stranger"),
        pytest.param({"target_sequence": 200 - FRESH - 1}, LIVES, id="held back"),
        pytest.param({"target_sequence": 201}, LIVES, id="of a heartbeat that was never sent"),
    ],
)
def test_what_is_not_meant_for_this_life_now_is_ignored_and_changes_nothing(
    changes: dict[str, int], lives: dict[int, Life]
) -> None:
    target = orders(2)
    assert target.arrived(order(5, **changes), lives, 0.0) == []
    assert len(taken(target, 5)) == 2


def test_a_number_is_taken_once_and_none_below_it_after() -> None:
    target = orders(2)
    assert len(taken(target, 5)) == 2
    assert taken(target, 4, 1.0) == []
    assert len(taken(target, 6, 1.0)) == 2


def test_a_new_life_of_the_orderer_counts_anew_and_the_old_one_never_again() -> None:
    target = orders(2)
    taken(target, 7)
    reborn = LIVES | {1: Life(11, 1)}
    assert len(target.arrived(order(1, incarnation=11), reborn, 0.0)) == 2
    assert target.done(1, 10, 7, True, "", 0.1) == []
    # Even if an old heartbeat made somebody believe in the old life again.
    assert target.arrived(order(8), LIVES, 0.2) == []


def test_who_gives_too_many_is_refused_and_memory_is_bounded() -> None:
    target = orders(2)
    for number in range(1, MOST_TAKEN + 1):
        assert len(taken(target, number)) == 2
    for number in range(MOST_TAKEN + 1, MOST_TAKEN + 40):
        (said,) = taken(target, number)
        assert isinstance(said, SendOrder)
        assert isinstance(said.message, OrderAnswer)
        assert said.message.state is REFUSED
        assert taken(target, number, 1.0) == [said]
    assert len(target._orderers[1].taken) == REMEMBERED
    assert taken(target, MOST_TAKEN + 1, 2.0) == []  # forgotten, but taken
    assert len(target.done(1, 10, 1, True, "", 3.0)) == 1
    assert len(taken(target, 99, 3.0)) == 2


def test_repetitions_are_answered_once_an_interval() -> None:
    target = orders(2)
    taken(target, 1)
    answers = sum(len(taken(target, 1, step * INTERVAL / 100)) for step in range(1, 1000))
    assert answers == 9
