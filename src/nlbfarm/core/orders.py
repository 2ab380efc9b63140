"""Orders: commands that an administrator types on one node and another node carries out.

A machine without IO for both sides. The orderer repeats an order until it is answered, and asks again until
it is done; the target carries each order out at most once. There is no session and no clock in common:

* The orders of one life of the orderer are numbered. The target takes an order only if its number is above
  every number taken from that life; whatever else arrives under a number is a repetition.
* An order names the life of the target that it is meant for. After a restart nothing of it is left, and no
  order of before is taken.
* An order is taken only from a peer that is heard, in the life in which it is heard.
* An order names the target's newest heartbeat that the orderer has heard. One whose heartbeat is more than
  ``FRESH`` ago was held back on the way and is not taken: who can delay datagrams cannot keep a "stop" for
  later either.

Everything that breaks one of these is ignored without a word, and changes nothing: an honest orderer would
learn nothing from an answer that it does not learn from heartbeats. Only who has too many orders under way
already is told so. A repetition is answered with what has become of the order, at most once an interval for
each order, and to the configured addresses of the peer, not to where the datagram came from: it is of no
use as an amplifier.

To one target at most one order is under way that is not taken yet; the next waits for it. So a later
order cannot overtake an earlier one and void it, and orders are taken as they were typed. They may well be
carried out side by side.

What is done is at most once. "Done" is said only after it was. When the orderer dies, or its life ends,
only the word on the outcome is lost; when the target's does, or it is not heard any more, the outcome says
so, and nobody knows.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from nlbfarm.core.order_messages import (
    Order,
    OrderAnswer,
    OrderMessage,
    OrderState,
    check_order,
    clip_text,
)
from nlbfarm.errors import UsageError

__all__ = ["Accepted", "Action", "Execute", "Life", "Orders", "Outcome", "Result", "SendOrder"]

SEND_AGAIN = 2
"""Intervals after which an order that has not been answered is sent again."""

ASK_AGAIN = 10
"""Intervals after which the target of an order that it has taken is asked how far it is."""

FRESH = 128
"""Heartbeats after which an order is stale: 13 s at the default interval, some seconds in a hurry."""

MOST_GIVEN = 64
"""Orders of this node that have no outcome yet, at most."""

MOST_TAKEN = 8
"""Orders of one peer that are carried out side by side, at most."""

REMEMBERED = 2 * MOST_TAKEN
"""Orders of one peer whose repetitions are answered, at most."""


class Life(NamedTuple):
    """A node's present life: its incarnation, and the sequence of its newest heartbeat heard (or sent)."""

    incarnation: int
    sequence: int


class Result(enum.Enum):
    """How an order ended, as far as the orderer knows."""

    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    """It was not begun."""
    RESTARTED = "restarted"
    """The target began a new life before it said how the order ended."""
    UNKNOWN = "unknown"
    """No answer in time, or this node itself began a new life: it may have been carried out."""


@dataclass(frozen=True, slots=True)
class SendOrder:
    """Send this message to ``node``."""

    message: OrderMessage
    node: int


@dataclass(frozen=True, slots=True)
class Execute:
    """Carry this order of ``sender`` out, then say ``Orders.done`` with the same three numbers."""

    sender: int
    incarnation: int
    number: int
    verb: str
    argument: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The target has taken order ``number``, and is this far; said again when ``text`` changes."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Order ``number`` has ended; unless it is done, ``text`` says why in a sentence."""

    number: int
    result: Result
    text: str


Action = SendOrder | Execute | Accepted | Outcome


class _Given:
    """An order of ours without an outcome; times are seconds on the monotonic clock."""

    __slots__ = ("accepted", "deadline", "order", "patience", "send_at", "started", "text", "until")

    def __init__(self, order: Order, patience: float, now: float) -> None:
        self.order = order
        self.patience = patience
        self.started = False
        self.accepted = False
        self.text = ""
        self.send_at = now
        self.deadline = float("inf")
        """Without an answer until then, nobody knows the outcome."""
        self.until = float("inf")
        """So long it is waited for, however often the target says that it is not done yet."""


class _Taken:
    """What has become of an order that a peer gave."""

    __slots__ = ("answer", "answered_at")

    def __init__(self, answer: OrderAnswer) -> None:
        self.answer = answer
        self.answered_at = float("-inf")

    @property
    def under_way(self) -> bool:
        return self.answer.state is OrderState.ACCEPTED

    def say(self, now: float) -> SendOrder:
        self.answered_at = now
        return SendOrder(self.answer, self.answer.target)


class _Orderer:
    """A peer that gives orders, in one life."""

    __slots__ = ("incarnation", "number", "taken")

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.number = 0
        """The highest number taken."""
        self.taken: dict[int, _Taken] = {}


class Orders:
    """The orders that one node gives and is given.

    ``lives`` in the methods are those of this node itself and of every peer that is heard at present, by id.

    Args:
        node: This node's id.
        names: Names of all configured nodes, by id, for texts.
        interval: Seconds between heartbeats.
        timeout: Seconds without any answer after which the orderer gives up.
    """

    def __init__(self, node: int, names: Mapping[int, str], interval: float, timeout: float = 5.0) -> None:
        self._node = node
        self._names = names
        self._interval = interval
        self._timeout = timeout
        self._number = 0
        self._given: dict[int, _Given] = {}
        # Kept for ever, at most one for each node id: a number that was taken once is never taken again.
        self._orderers: dict[int, _Orderer] = {}

    # -- the orderer -----------------------------------------------------------------------

    def give(
        self,
        target: int,
        verb: str,
        argument: str,
        lives: Mapping[int, Life],
        now: float,
        patience: float = 300.0,
    ) -> int:
        """Give an order; return its number. ``fired`` is due at once, and sends it.

        Args:
            target: Id of the node that is to carry it out.
            verb, argument: What to do: at most 32 and 512 bytes of printable UTF-8.
            lives: Of this node and of the peers heard.
            now: The present, seconds on the monotonic clock.
            patience: Seconds, once it was accepted, to wait for the end.

        Raises:
            UsageError: It cannot be given: the target is not heard, or the text is not as it must be.
        """
        own, life = lives[self._node], lives.get(target)
        if life is None:
            raise UsageError(f"{self._name(target)} is not heard: see 'nlbfarm-node status', or go there")
        if len(self._given) >= MOST_GIVEN:
            raise UsageError(f"{MOST_GIVEN} commands for other nodes are under way: wait for some of them")
        number = self._number + 1
        order = Order(
            self._node, own.incarnation, target, life.incarnation, life.sequence, number, verb, argument
        )
        try:
            check_order(order)
        except ValueError as error:
            raise UsageError(f"this cannot be sent to {self._name(target)}: {error}") from error
        self._number = number
        self._given[number] = _Given(order, patience, now)
        return number

    def timer(self) -> float | None:
        """Return when ``fired`` is to be called next; ``None`` if nothing is under way."""
        due = [min(given.send_at, given.deadline, given.until) for given in self._heads()]
        return min(due, default=None)

    def fired(self, lives: Mapping[int, Life], now: float) -> list[Action]:
        """Send what is due, and give up what has waited too long."""
        actions: list[Action] = []
        for number, given in list(self._given.items()):
            ended = self._ended(given, lives, now)
            if ended is not None:
                del self._given[number]
                actions.append(ended)
        actions += [self._send(given, lives, now) for given in self._heads() if now >= given.send_at]
        return actions

    def _heads(self) -> list[_Given]:
        """Return the orders that are under way: those taken, and the first of the others for each target."""
        heads, targets = [], set()
        for given in self._given.values():
            if given.accepted or given.order.target not in targets:
                heads.append(given)
            if not given.accepted:
                targets.add(given.order.target)
        return heads

    def _send(self, given: _Given, lives: Mapping[int, Life], now: float) -> SendOrder:
        """Send an order: soon again while it is not taken, later to ask how far it is."""
        order = given.order
        own, life = lives[self._node], lives.get(order.target)
        if not given.started:
            # It may have waited for others: only now it is meant for these two lives.
            given.started = True
            given.deadline = now + self._timeout
            order = replace(order, incarnation=own.incarnation)
            if life is not None:
                order = replace(order, target_incarnation=life.incarnation)
        if life is not None:
            order = replace(order, target_sequence=life.sequence)
        given.order = order
        given.send_at = now + (ASK_AGAIN if given.accepted else SEND_AGAIN) * self._interval
        return SendOrder(order, order.target)

    def _ended(self, given: _Given, lives: Mapping[int, Life], now: float) -> Outcome | None:
        """Return the outcome of an order on which no more answer will come."""
        order, name = given.order, self._name(given.order.target)
        life = lives.get(order.target)
        if not given.started:
            return None
        if lives[self._node].incarnation != order.incarnation:
            why = f"this node began a new life before {name} answered"
        elif life is not None and life.incarnation != order.target_incarnation:
            text = f"{name} restarted before it said that it was done"
            return Outcome(order.number, Result.RESTARTED, text)
        elif now >= given.until:
            why = f"{name} is not done after {given.patience:g} s"
        elif now >= given.deadline:
            why = f"no answer from {name} for {self._timeout:g} s"
        else:
            return None
        return Outcome(order.number, Result.UNKNOWN, f"{why}: see 'nlbfarm-node status' for what was done")

    def _answered(self, answer: OrderAnswer, now: float) -> list[Action]:
        """Take in what a target says of an order of ours."""
        given = self._given.get(answer.number)
        if given is None or not given.started:
            return []
        order = given.order
        asked = order.target, order.target_incarnation, order.sender, order.incarnation
        if asked != (answer.sender, answer.incarnation, answer.target, answer.target_incarnation):
            return []
        if answer.state is not OrderState.ACCEPTED:
            del self._given[answer.number]
            text = answer.text
            if answer.state is not OrderState.DONE:
                text = f"{self._name(answer.sender)}: {text}"
            return [Outcome(answer.number, Result[answer.state.name], text)]
        given.deadline = now + self._timeout
        if given.accepted and answer.text == given.text:
            return []
        if not given.accepted:
            given.accepted = True
            given.until = now + given.patience
            given.send_at = now + ASK_AGAIN * self._interval
        given.text = answer.text
        return [Accepted(answer.number, answer.text)]

    # -- the target ------------------------------------------------------------------------

    def _ordered(self, order: Order, lives: Mapping[int, Life], now: float) -> list[Action]:
        """Take an order, or say again what has become of it."""
        own, life = lives[self._node], lives.get(order.sender)
        age = own.sequence - order.target_sequence
        if (
            order.target_incarnation != own.incarnation
            or not 0 <= age <= FRESH
            or life is None
            or life.incarnation != order.incarnation
        ):
            return []
        orderer = self._orderers.get(order.sender)
        if orderer is None or orderer.incarnation < order.incarnation:
            orderer = self._orderers[order.sender] = _Orderer(order.incarnation)
        elif orderer.incarnation > order.incarnation:
            return []
        if order.number <= orderer.number:
            taken = orderer.taken.get(order.number)
            if taken is None or now - taken.answered_at < self._interval:
                return []
            return [taken.say(now)]
        return self._take(orderer, order, now)

    def _take(self, orderer: _Orderer, order: Order, now: float) -> list[Action]:
        """Begin a new order, unless too many of that peer are under way."""
        orderer.number = order.number
        state, text = OrderState.ACCEPTED, ""
        if sum(taken.under_way for taken in orderer.taken.values()) >= MOST_TAKEN:
            state = OrderState.REFUSED
            text = f"{MOST_TAKEN} commands of yours are still under way: wait for them"
        if len(orderer.taken) >= REMEMBERED:
            del orderer.taken[next(number for number, taken in orderer.taken.items() if not taken.under_way)]
        me, life = (order.target, order.target_incarnation), (order.sender, order.incarnation)
        taken = orderer.taken[order.number] = _Taken(OrderAnswer(*me, *life, order.number, state, text))
        if not taken.under_way:
            return [taken.say(now)]
        return [taken.say(now), Execute(*life, order.number, order.verb, order.argument)]

    def progress(self, sender: int, incarnation: int, number: int, text: str) -> None:
        """Say how far an order is: the next question of its orderer is answered with ``text``."""
        taken = self._under_way(sender, incarnation, number)
        if taken is not None:
            taken.answer = replace(taken.answer, text=clip_text(text))

    def done(
        self, sender: int, incarnation: int, number: int, ok: bool, text: str, now: float
    ) -> list[Action]:
        """Say that an order has been carried out, or could not be; nothing if its orderer's life is over.

        Args:
            sender, incarnation, number: As in ``Execute``.
            ok: Whether it was done.
            text: For the administrator; when it was not done, why. Cut to 240 bytes.
            now: The present, seconds on the monotonic clock.
        """
        taken = self._under_way(sender, incarnation, number)
        if taken is None:
            return []
        state = OrderState.DONE if ok else OrderState.FAILED
        taken.answer = replace(taken.answer, state=state, text=clip_text(text))
        return [taken.say(now)]

    def _under_way(self, sender: int, incarnation: int, number: int) -> _Taken | None:
        orderer = self._orderers.get(sender)
        if orderer is None or orderer.incarnation != incarnation:
            return None
        taken = orderer.taken.get(number)
        return taken if taken is not None and taken.under_way else None

    # -- both ------------------------------------------------------------------------------

    def arrived(self, message: OrderMessage, lives: Mapping[int, Life], now: float) -> list[Action]:
        """Take in an authenticated message.

        Args:
            message: What arrived.
            lives: Of this node and of the peers heard.
            now: The present, seconds on the monotonic clock.
        """
        if message.target != self._node:
            return []
        if isinstance(message, OrderAnswer):
            return self._answered(message, now)
        return self._ordered(message, lives, now)

    def _name(self, node: int) -> str:
        return self._names.get(node, f"node {node}")
