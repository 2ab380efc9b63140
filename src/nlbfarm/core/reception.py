"""What a node does with a message: heartbeats, plans asked for and sent, words of earlier lives."""

from __future__ import annotations

from dataclasses import dataclass

from nlbfarm.core.commands import Command, Report, SaveIncarnation, Send
from nlbfarm.core.condition import Condition
from nlbfarm.core.events import MessageArrived
from nlbfarm.core.fetch import PlanFetch, answer
from nlbfarm.core.hearing import Arrival, Hearing
from nlbfarm.core.membership import Membership
from nlbfarm.core.messages import MAX_EPOCH, MAX_INCARNATION
from nlbfarm.core.settings import Settings
from nlbfarm.core.wire import Heartbeat, PlanChunk, PlanRequest
from nlbfarm.core.word import Word
from nlbfarm.errors import PeerError

__all__ = ["Reception", "Taken"]


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a message.

    Args:
        answer_to: The peer that wants an answer at once, if any.
        news: Whether anything may have changed.
    """

    answer_to: int | None = None
    news: bool = True


class Reception:
    """Takes in the messages of the peers.

    Args:
        settings: For the node's id and the interval.
        hearing: Takes the heartbeats.
        membership: Learns epochs, and plans that were fetched.
        condition: Learns of other nodes with the same id.
        word: This node's own word, of which it also keeps the incarnation.
    """

    def __init__(
        self,
        settings: Settings,
        hearing: Hearing,
        membership: Membership,
        condition: Condition,
        word: Word,
    ) -> None:
        self._settings = settings
        self._hearing = hearing
        self._membership = membership
        self._condition = condition
        self._word = word
        self._fetch = PlanFetch(settings.node, 2 * settings.interval)
        self._corrected: dict[int, tuple[int, float]] = {}

    def configure(self, settings: Settings) -> None:
        """Go by other settings from now on; the timing is the same."""
        self._settings = settings

    def take(self, event: MessageArrived, now: float, out: list[Command]) -> Taken:
        """Take in a message; what is to be done about it is appended to ``out``."""
        message = event.message
        if message.sender == self._settings.node or message.sender not in self._settings.nodes:
            return Taken()
        match message:
            case PlanRequest():
                plan = self._membership.plan
                if plan is not None and self._word.digest(plan) == message.digest:
                    chunks = answer(message, plan, self._settings.node, self._word.incarnation)
                    out.extend(Send(chunk, (message.sender,)) for chunk in chunks)
                return Taken()
            case PlanChunk():
                self._chunk(message, out)
                return Taken()
            case Heartbeat():
                return self._heartbeat(message, event, now, out)

    def wanted(self, now: float) -> Send | None:
        """Return the request for the plan that the membership wants; ``None`` if there is nothing to send."""
        if self._membership.wanted is None:
            return None
        digest, node = self._membership.wanted
        request = self._fetch.ask(digest, self._word.incarnation, now)
        return Send(request, (node,)) if request is not None else None

    def _chunk(self, message: PlanChunk, out: list[Command]) -> None:
        try:
            whole = self._fetch.take(message)
        except PeerError as error:
            out.append(Report("plan.unreadable", {"peer": message.sender, "error": str(error)}, warning=True))
            return
        if whole is not None:
            self._membership.plans = {message.digest: whole}

    def _heartbeat(self, message: Heartbeat, event: MessageArrived, now: float, out: list[Command]) -> Taken:
        if _unbelievable(message):
            fields = {"peer": message.sender, "incarnation": message.incarnation}
            out.append(Report("peer.unbelievable", fields, warning=True))
            return Taken()
        before = self._word.incarnation
        for echo in message.echoes:
            if echo.node == self._settings.node and echo.incarnation > self._word.incarnation:
                self._jump(echo.incarnation + 1, now, out)
        arrival = self._hearing.arrived(
            message, event.network, event.at, self._word.incarnation, event.version
        )
        news = arrival is Arrival.NEWS or self._word.incarnation != before
        if arrival is Arrival.OLD_LIFE:
            return Taken(self._correct(message, now, out), news)
        if arrival is Arrival.DUPLICATE:
            return Taken(None, news)
        self._membership.learn_epoch(message)
        return Taken(message.sender if message.answer_now else None, news)

    def _correct(self, word: Heartbeat, now: float, out: list[Command]) -> int | None:
        """Answer a node that speaks with an old incarnation: our echo of the higher one makes it jump.

        It may be a replay of an earlier life; then the answer goes to the node itself, which ignores it.
        """
        said = self._corrected.get(word.sender)
        if said is None or said[0] != word.incarnation:
            fields = {"peer": word.sender, "incarnation": word.incarnation}
            out.append(Report("peer.old_life", fields, warning=True))
        elif now - said[1] < self._settings.interval:
            return None
        self._corrected[word.sender] = (word.incarnation, now)
        return word.sender

    def _jump(self, incarnation: int, now: float, out: list[Command]) -> None:
        """Start a new life above one that a peer remembers: our clock went back, or our file was lost."""
        self._word.begin(incarnation)
        self._hearing.forget_sent()
        self._membership.leave(now, "new_incarnation", self._settings.node)
        out.append(SaveIncarnation(incarnation))
        out.append(Report("node.incarnation_raised", {"incarnation": incarnation}, warning=True))
        self._condition.jumped(now)


def _unbelievable(word: Heartbeat) -> bool:
    """Whether a word has numbers so high that there is nothing left to count on to."""
    epochs = [word.known_epoch.counter, word.view.epoch.counter if word.view is not None else 0]
    lives = [word.incarnation, *(echo.incarnation for echo in word.echoes)]
    return max(epochs) >= MAX_EPOCH or max(lives) >= MAX_INCARNATION
