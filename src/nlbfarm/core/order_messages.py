"""Orders, an administrator's commands for another node: the messages, and their bodies as bytes.

They came with wire version 2 (``nlbfarm.core.wire``); ``nlbfarm.core.orders`` says what is done with them.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from nlbfarm.core.messages import check_node, check_u64, clip

__all__ = [
    "MAX_ARGUMENT",
    "MAX_TEXT",
    "MAX_VERB",
    "Order",
    "OrderAnswer",
    "OrderMessage",
    "OrderState",
    "check_order",
    "clip_text",
    "decode_answer",
    "decode_order",
    "encode_answer",
    "encode_order",
]

MAX_VERB = 32
"""Bytes of an order's verb, at most."""

MAX_ARGUMENT = 512
"""Bytes of an order's argument in UTF-8, at most."""

MAX_TEXT = 240
"""Bytes of an answer's text in UTF-8, at most."""

_ORDER_HEAD = struct.Struct(">BQBQQQB")  # the last is the verb's bytes; verb and argument follow
_ANSWER_HEAD = struct.Struct(">BQBQQB")  # the text follows


class OrderState(enum.IntEnum):
    """What has become of an order."""

    ACCEPTED = 1
    DONE = 2
    FAILED = 3
    REFUSED = 4


_ORDER_STATES = frozenset(OrderState)


@dataclass(frozen=True, slots=True)
class Order:
    """An administrator's command, typed at ``sender`` and meant for ``target``.

    Args:
        sender, incarnation: Who gives it, in which life.
        target, target_incarnation, target_sequence: For whom it is, in which life, and the newest heartbeat
            of that life that the sender had heard when it sent this datagram: the order is as fresh as that.
        number: Numbers the orders of one life of the sender, from 1; a repetition has the same.
        verb: What to do: 1..32 bytes of printable UTF-8.
        argument: With what: at most 512 bytes of printable UTF-8.
    """

    sender: int
    incarnation: int
    target: int
    target_incarnation: int
    target_sequence: int
    number: int
    verb: str
    argument: str


@dataclass(frozen=True, slots=True)
class OrderAnswer:
    """What ``sender`` says of order ``number``, which ``target`` gave it.

    Args:
        sender, incarnation: Who was given the order, in the life that the order names.
        target, target_incarnation: Who gave it, in which life.
        number: The order's.
        state, text: What has become of it, in at most 240 bytes of printable UTF-8 (``clip_text`` makes any
            text fit).
    """

    sender: int
    incarnation: int
    target: int
    target_incarnation: int
    number: int
    state: OrderState
    text: str


OrderMessage = Order | OrderAnswer


def clip_text(text: str) -> str:
    """Return ``text`` as an answer may carry it: printable, cut to 240 bytes of UTF-8 between characters."""
    return clip(text, MAX_TEXT)


def check_order(message: OrderMessage) -> None:
    """Hold ``message`` against the rules of its fields.

    Raises:
        ValueError: One is broken; names it.
    """
    check_node(message.sender)
    check_u64("incarnation", message.incarnation, 0)
    check_node(message.target)
    if message.target == message.sender:
        raise ValueError("an order from a node to itself")
    check_u64("the target's incarnation", message.target_incarnation, 0)
    check_u64("number", message.number, 1)
    if isinstance(message, Order):
        check_u64("the target's sequence", message.target_sequence, 1)
        _text("verb", message.verb, 1, MAX_VERB)
        _text("argument", message.argument, 0, MAX_ARGUMENT)
        return
    if message.state not in _ORDER_STATES:
        raise ValueError(f"order state {message.state} is not known")
    _text("text", message.text, 0, MAX_TEXT)


def encode_order(order: Order) -> bytes:
    """Return the body of a checked order."""
    verb = order.verb.encode()
    who = order.sender, order.incarnation, order.target, order.target_incarnation, order.target_sequence
    return _ORDER_HEAD.pack(*who, order.number, len(verb)) + verb + order.argument.encode()


def decode_order(body: bytes) -> Order:
    """Return the order in ``body``, not checked; ``ValueError`` or ``struct.error`` if it is none."""
    sender, incarnation, target, life, sequence, number, verb_size = _ORDER_HEAD.unpack_from(body)
    argument_at = _ORDER_HEAD.size + verb_size
    if len(body) < argument_at:
        raise ValueError(f"an order of {len(body)} bytes with a verb of {verb_size}")
    verb, argument = body[_ORDER_HEAD.size : argument_at].decode(), body[argument_at:].decode()
    return Order(sender, incarnation, target, life, sequence, number, verb, argument)


def encode_answer(answer: OrderAnswer) -> bytes:
    """Return the body of a checked answer."""
    who = answer.sender, answer.incarnation, answer.target, answer.target_incarnation
    return _ANSWER_HEAD.pack(*who, answer.number, answer.state) + answer.text.encode()


def decode_answer(body: bytes) -> OrderAnswer:
    """Return the answer in ``body``, not checked; ``ValueError`` or ``struct.error`` if it is none."""
    sender, incarnation, target, life, number, state = _ANSWER_HEAD.unpack_from(body)
    text = body[_ANSWER_HEAD.size :].decode()
    return OrderAnswer(sender, incarnation, target, life, number, OrderState(state), text)


def _text(what: str, text: str, low: int, most: int) -> None:
    if not text.isprintable():
        raise ValueError(f"the {what} has characters that cannot be printed")
    if not low <= len(text.encode()) <= most:
        raise ValueError(f"the {what} has {len(text.encode())} bytes; {low}..{most} can be sent")
