"""Commands for other nodes, and from them: over the heartbeats, authenticated and not to be replayed.

``nlbfarm.core.orders`` decides; here its actions are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nlbfarm.core.orders import Accepted, Action, Execute, Life, Orders, Outcome, Result, SendOrder
from nlbfarm.core.versions import Versions
from nlbfarm.core.wire import OrderMessage
from nlbfarm.errors import NlbfarmError, UsageError
from nlbfarm.events import EventLog
from nlbfarm.interfaces import Clock
from nlbfarm.runtime.administration import Administration, Verb

if TYPE_CHECKING:
    from nlbfarm.core.node import Node

__all__ = ["Given", "Remote"]

ORDERS = 2
"""Wire version from which on a node takes orders."""

SLACK_S = 60.0
"""A node is waited for so much longer than the time that it may drain."""

KEPT = 64
"""So many orders are remembered after their end, for those who ask how it went."""


@dataclass(slots=True)
class Given:
    """An order that this node gave.

    Args:
        number: Its number.
        target: Id of the node that it was for.
        text: The newest word about it.
        ended: ``None`` while it is carried out.
        taken: Whether the target has it.
        begun: Set as soon as there is a word about how it goes.
    """

    number: int
    target: int
    text: str = ""
    ended: Result | None = None
    taken: bool = False
    begun: asyncio.Event = field(default_factory=asyncio.Event)


class Remote:
    """Gives orders, and follows them.

    Args:
        orders: The state machine.
        versions: What each peer speaks.
        administration: Carries out what this node is ordered.
        node: Returns this node's state machine.
        send: Sends a message to these nodes, in the newest version.
        spawn: Starts a task of the node.
        clock: The present.
        log: Of the node.
    """

    def __init__(
        self,
        orders: Orders,
        versions: Versions,
        administration: Administration,
        node: Callable[[], Node],
        send: Callable[[OrderMessage, Iterable[int]], None],
        spawn: Callable[[Coroutine[None, None, None]], object],
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._orders = orders
        self._versions = versions
        self._administration = administration
        self._node = node
        self._send = send
        self._spawn = spawn
        self._clock = clock
        self._log = log
        self._timer: asyncio.TimerHandle | None = None
        self._given: dict[int, Given] = {}

    async def give(self, target: int, name: str, verb: Verb, timeout: float) -> Given:
        """Give an order; return it when the target has begun to carry it out.

        Args:
            target: Whom to give it; another node.
            name: Its name, for messages.
            verb: What it is to do.
            timeout: Seconds in which it must begin.

        Raises:
            UsageError: The target refuses: it cannot be meant there.
            NlbfarmError: The target is not heard, runs an older nlbfarm, failed, or did not answer.
        """
        node, now = self._node(), self._clock.monotonic()
        if all(peer.node != target for peer in node.hearing.heard(now)):
            raise NlbfarmError(
                f"{name} is not heard from here: is it running? Give the command on {name} itself"
            )
        if self._versions.of(target) < ORDERS:
            raise NlbfarmError(
                f"{name} runs an older nlbfarm, which takes no commands from other nodes: upgrade it, or "
                f"give the command on {name} itself"
            )
        patience = node.settings.drain_timeout + SLACK_S
        lives = self._lives(now)
        number = self._orders.give(target, verb.name, verb.argument(), lives, now, patience=patience)
        given = self._given[number] = Given(number, target)
        self._forget()
        self._fire()
        self._log.info("order.given", peer=target, name=name, verb=verb.name, argument=verb.argument())
        try:
            async with asyncio.timeout(timeout):
                await given.begun.wait()
        except TimeoutError:
            if not given.taken:
                raise NlbfarmError(
                    f"{name} has not answered within {timeout:g} s: look at its status"
                ) from None
        if given.ended is Result.REFUSED:
            raise UsageError(given.text)
        if given.ended in (Result.FAILED, Result.UNKNOWN):
            raise NlbfarmError(given.text)
        return given

    def given(self, number: int) -> Given:
        """Return an order that was given a while ago.

        Raises:
            UsageError: None with this number is remembered.
        """
        if number not in self._given:
            raise UsageError(f"no order {number} is remembered here")
        return self._given[number]

    def arrived(self, message: OrderMessage) -> None:
        """Take in an order or an answer to one."""
        now = self._clock.monotonic()
        self._follow(self._orders.arrived(message, self._lives(now), now))

    def close(self) -> None:
        """Stop waiting."""
        if self._timer is not None:
            self._timer.cancel()

    def _lives(self, now: float) -> dict[int, Life]:
        node = self._node()
        lives = {
            peer.node: Life(peer.incarnation, peer.heartbeat.sequence) for peer in node.hearing.heard(now)
        }
        lives[node.settings.node] = Life(node.incarnation, node.sequence)
        return lives

    def _fire(self) -> None:
        now = self._clock.monotonic()
        self._follow(self._orders.fired(self._lives(now), now))

    def _follow(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case SendOrder():
                    self._send(action.message, (action.node,))
                case Execute():
                    self._spawn(self._execute(action))
                case Accepted():
                    self._told(action.number, action.text, None)
                case Outcome():
                    self._told(action.number, action.text, action.result)
        self._arm()

    def _arm(self) -> None:
        due = self._orders.timer()
        if self._timer is not None:
            if self._timer.when() == due and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._fire)

    def _told(self, number: int, text: str, ended: Result | None) -> None:
        given = self._given.get(number)
        if given is not None:
            given.taken = True
            given.text, given.ended = text or given.text, ended
            if text or ended is not None:  # the first word only says that it is there
                given.begun.set()

    def _forget(self) -> None:
        ended = [number for number, given in self._given.items() if given.ended is not None]
        for number in ended[: max(0, len(self._given) - KEPT)]:
            del self._given[number]

    async def _execute(self, order: Execute) -> None:
        """Do what another node was told to pass on, and answer how it ended."""

        def progress(text: str) -> None:
            self._orders.progress(order.sender, order.incarnation, order.number, text)

        log = self._log.bind(peer=order.sender, verb=order.verb, argument=order.argument)
        try:
            verb = Verb.read(order.verb, order.argument)
            text = await self._administration.carry_out(verb)
            log.info("order.carried_out", detail=text)
            progress(text)
            ended = await self._administration.finished(verb, self._node, progress)
            ok, text = True, ended if ended != "done" else text
        except NlbfarmError as error:
            log.warning("order.failed", error=str(error))
            ok, text = False, str(error)
        now = self._clock.monotonic()
        self._follow(
            self._orders.done(order.sender, order.incarnation, order.number, ok=ok, text=text, now=now)
        )
