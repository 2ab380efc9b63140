"""What a checker, or a failover rule, means for the node."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from nlbfarm.core.messages import Fitness
from nlbfarm.core.supervision.model import LEAVES, Action, SetResource

__all__ = ["Concern"]


class Concern:
    """A checker or a rule: good, bad or unknown, and since when.

    Args:
        resource: Its name among the resources of the node: ``"checker page"``.
        action: What is done when it is bad.
        confirm: For how long a failure is announced before it counts, seconds.
        last_stays: Whether a node that nobody could replace serves on.
    """

    def __init__(self, resource: str, action: Action, confirm: float, *, last_stays: bool) -> None:
        self.resource = resource
        self.action = action
        self.ok: bool | None = None
        """What it says; ``None``: nothing (yet)."""
        self.detail = ""
        """Why, for a person."""
        self._confirm = confirm
        self._last_stays = last_stays
        self._bad = False
        """It was bad when it last said anything."""
        self._bad_since = 0.0
        self._was_ok = False
        self._told: SetResource | None = None

    @property
    def matters(self) -> bool:
        """Whether the node's fitness depends on it; what leads to a restart is the service's business."""
        return self.action is Action.WAIT or self.action in LEAVES

    def learn(self, ok: bool | None, detail: str, now: float) -> bool:
        """Take in what it says now; return whether that is another thing than before."""
        changed = ok is not self.ok
        if ok is False and not self._bad:
            self._bad_since = now
        if ok is not None:
            self._bad = not ok
        self._was_ok |= ok is True
        self.ok, self.detail = ok, detail
        return changed

    def begin(self) -> None:
        """Begin anew: what was before the application was started says nothing."""
        self.ok, self.detail = None, ""
        self._was_ok = self._bad = False

    def trust(self) -> None:
        """Take it for well until it says otherwise: the node has been serving without it."""
        self._was_ok = True

    def confirmed(self, now: float) -> bool:
        """Whether it is bad for so long that it counts."""
        return self.ok is False and now >= self._bad_since + self._confirm

    def deadline(self) -> float:
        """When that will be; infinity if it is not bad, or that has been told."""
        suspect = self._told is not None and self._told.fitness is Fitness.SUSPECT
        return self._bad_since + self._confirm if self.ok is False and suspect else inf

    def news(self, now: float, *, paused: bool) -> Iterator[SetResource]:
        """Yield what the node's state machine has to be told, if that is news. While ``paused`` no bad news.

        Bad from the start is a node that has never been able to serve: it does not begin to. But a cause
        that other nodes may find, too (there is a time to confirm it), keeps nobody from it.
        """
        if not self.matters or (paused and self.ok is False):
            return
        if self.ok is None and self._bad:
            return  # it is looked at anew: what was bad stays so until that is done
        if self.ok is not False:
            unknown = self.ok is None and not self._was_ok
            said = SetResource(self.resource, None if unknown else True)
        elif not self.confirmed(now):
            said = SetResource(self.resource, False, self.detail, Fitness.SUSPECT)
        elif self._last_stays and (self._was_ok or self._confirm):
            said = SetResource(self.resource, False, self.detail, Fitness.DEGRADED)
        else:
            said = SetResource(self.resource, False, self.detail)
        if said != self._told:
            self._told = said
            yield said
