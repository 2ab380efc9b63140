"""Rules of the protocol, disabled one at a time: a simulator that finds nothing then has shown nothing.

``broken(name)`` replaces functions and methods of the core for as long as its block lasts. Nothing in the
core knows of this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from nlbfarm.core import membership as membership_module
from nlbfarm.core import node as node_module
from nlbfarm.core.handoff import Handoff
from nlbfarm.core.hearing import Hearing, Peer
from nlbfarm.core.lateness import Lateness
from nlbfarm.core.membership import Membership
from nlbfarm.core.node import Node
from nlbfarm.core.reception import Reception
from nlbfarm.core.supervision import Supervision
from nlbfarm.core.supervision.budget import Budget
from nlbfarm.core.supervision.condition import Concern
from nlbfarm.core.wire import Member
from nlbfarm.testing.applications import breaks as of_applications

__all__ = ["BREAKS", "Break", "broken"]


@dataclass(frozen=True, slots=True)
class Break:
    """One rule that can be disabled.

    Args:
        rule: What the protocol demands.
        owner: The module or class whose attribute is replaced.
        attribute: Its name.
        without: Makes the replacement from the original.
    """

    rule: str
    owner: Any
    attribute: str
    without: Callable[[Callable[..., Any]], Callable[..., Any]]


@contextmanager
def broken(name: str | None) -> Iterator[None]:
    """Disable the rule called ``name`` inside the block; ``None`` disables nothing.

    Raises:
        KeyError: There is no such rule.
    """
    if name is None:
        yield
        return
    entries = BREAKS[name]
    originals = [getattr(entry.owner, entry.attribute) for entry in entries]
    for entry, original in zip(entries, originals, strict=True):
        setattr(entry.owner, entry.attribute, entry.without(original))
    try:
        yield
    finally:
        for entry, original in zip(entries, originals, strict=True):
            setattr(entry.owner, entry.attribute, original)


def _always(answer: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return something that makes a function which answers this and does nothing."""
    return lambda original: lambda *args, **kwargs: answer


def _saying(heard: Mapping[int, Peer], **fields: Any) -> dict[int, Peer]:
    """Return the peers as if each had said this."""
    said = {}
    for node, peer in heard.items():
        said[node] = copy.copy(peer)
        said[node].heartbeat = replace(peer.heartbeat, **fields)
    return said


def _ignoring_holders(acquirable: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(plan: Any, mine: Any, known: Any, since: float, heard: Any, settings: Any, now: float) -> Any:
        peers = _saying(heard, holding=(0,) * len(mine))
        return acquirable(plan, mine, known, since, peers, settings, now)

    return wrong


def _without_acknowledgement(acquirable: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(plan: Any, mine: Any, known: Any, since: float, heard: Any, settings: Any, now: float) -> Any:
        peers = _saying(heard, known_epoch=plan.view.epoch)
        return acquirable(plan, mine, plan.view.epoch, since, peers, settings, now)

    return wrong


def _without_waiting(acquirable: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(plan: Any, mine: Any, known: Any, since: float, *rest: Any) -> Any:
        return acquirable(plan, mine, known, float("-inf"), *rest)

    return wrong


def _with_members_of_long_standing(powers: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Any, own: Any, heard: Any, members: Any, now: float) -> Any:
        since = self._member_since
        self._member_since = dict.fromkeys(since, float("-inf"))
        for node in members:
            peer = heard.get(node)
            incarnation = own.incarnation if peer is None else peer.incarnation
            self._member_since[Member(node, incarnation)] = float("-inf")
        try:
            return powers(self, own, heard, members, now)
        finally:
            self._member_since = since

    return wrong


def _lease_whatever_happens(lease_end: Callable[..., Any]) -> Callable[..., Any]:
    return lambda heard, now, settings: now + settings.lease


def _as_if_leased(method: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Any, heard: Any, now: float, *rest: Any) -> Any:
        lapsed = self.lease_until
        if lapsed > now:
            return method(self, heard, now, *rest)
        self.lease_until = pretended = now + 1e-6
        try:
            return method(self, heard, now, *rest)
        finally:
            if self.lease_until == pretended:
                self.lease_until = lapsed

    return wrong


def _listening_to_nobody(form: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Any, *args: Any) -> None:
        since, deferral = self.outside_since, self.deferral
        self.outside_since, self.deferral = float("-inf"), None
        form(self, *args)
        if self.plan is None:
            self.outside_since, self.deferral = since, deferral

    return wrong


def _without_draining(change: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        return change(self, *args, **{**kwargs, "drain": False})

    return wrong


def _adopting_nothing(contested: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, now: (0,) * len(contested(self, now))


def _taking_every_word(arrived: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Any, heartbeat: Any, *rest: Any) -> Any:
        peer = self.peers.get(heartbeat.sender)
        if peer is not None and (heartbeat.incarnation, heartbeat.sequence) <= (
            peer.incarnation,
            peer.heartbeat.sequence,
        ):
            peer.heartbeat = replace(peer.heartbeat, incarnation=heartbeat.incarnation, sequence=0)
        return arrived(self, heartbeat, *rest)

    return wrong


def _whatever_the_answer(flows_answered: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, serial, flows, now: flows_answered(self, serial, {}, now)


def _forgetting_earlier_flows(init: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, settings, flows, now: init(self, settings, {}, now)


def _announcing_what_is_done(tell: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Any) -> None:
        pending, self.pending = self.pending, None
        tell(self)
        self.pending = pending

    return wrong


BREAKS: dict[str, tuple[Break, ...]] = {
    "acquire-without-waiting": (
        Break(
            "A bucket is acquired only when nobody who is heard holds it.",
            node_module,
            "acquirable",
            _ignoring_holders,
        ),
    ),
    "no-epoch-acknowledgement": (
        Break(
            "A bucket is acquired only when everybody who is heard knows the epoch.",
            node_module,
            "acquirable",
            _without_acknowledgement,
        ),
    ),
    "no-fencing": (
        Break(
            "The lease ends when a peer no longer acknowledges us.",
            node_module,
            "lease_end",
            _lease_whatever_happens,
        ),
    ),
    "lease-kept-after-lapse": (
        Break("After a lapse of its lease a node acquires anew.", Node, "_handoff", _as_if_leased),
        Break(
            "After a lapse of its lease a node closes its filter first.", Node, "_set_lease", _as_if_leased
        ),
    ),
    "late-turn-not-judged": (
        Break(
            "After a late turn a node makes sure of its peers before it accepts anything.",
            Lateness,
            "judge",
            _always(None),
        ),
    ),
    "lead-without-listening": (
        Break(
            "Who is outside listens for a detection time, and forms no view if it hears one.",
            Membership,
            "_form",
            _listening_to_nobody,
        ),
    ),
    "views-not-compared": (
        Break(
            "Of two views that meet, the lesser is given up.", membership_module, "greater", _always(False)
        ),
    ),
    "stay-when-left-out": (
        Break("Who is left out of a later view gives its own up.", Membership, "_give_up", _always(None)),
    ),
    "no-wait-after-joining": (
        Break("Who joins accepts nothing for a detection time.", node_module, "acquirable", _without_waiting),
        Break(
            "Who joins is given nothing for that time.", Membership, "_powers", _with_members_of_long_standing
        ),
    ),
    "no-incarnation-echo": (
        Break("Who is echoed with a higher incarnation jumps above it.", Reception, "_jump", _always(None)),
    ),
    "old-words-accepted": (
        Break("Only the newest word of the newest life counts.", Hearing, "arrived", _taking_every_word),
    ),
    "announce-after-accepting": (
        Break(
            "What is announced covers what the filter was asked to do.",
            Handoff,
            "_tell",
            _announcing_what_is_done,
        ),
    ),
    "drop-before-drain": (Break("What is given away is drained.", Handoff, "change", _without_draining),),
    "own-instead-of-adopt": (
        Break("What another still drains is adopted.", Hearing, "contested", _adopting_nothing),
    ),
    "drain-without-asking": (
        Break(
            "A drain goes on while the flow table has a flow.",
            Handoff,
            "flows_answered",
            _whatever_the_answer,
        ),
    ),
    "earlier-flows-forgotten": (
        Break(
            "A new process drains what an earlier one accepted.",
            Handoff,
            "__init__",
            _forgetting_earlier_flows,
        ),
    ),
    "no-restart-grace": (
        Break("Who said that it will be back is waited for.", Hearing, "grace", _always(0.0)),
    ),
    "restarts-not-counted": (
        Break("A service is restarted at most `max_restarts` times in `within`.", Budget, "left", _always(1)),
    ),
    "restarts-of-one-life": (
        Break(
            "Restarts of earlier lives of the node count.",
            Supervision,
            "__init__",
            of_applications.forgetting_earlier_lives,
        ),
    ),
    "up-before-it-answers": (
        Break(
            "A service is up when its checkers have found it well.", Supervision, "_content", _always(True)
        ),
    ),
    "given-up-comes-back": (
        Break(
            "One that was given up is up again only when nothing asks for its restart any more.",
            Supervision,
            "_recovers",
            of_applications.whatever_asks_for_restart,
        ),
    ),
    "order-ignored": (
        Break(
            "A service is started when those that it needs are up, and stopped before them.",
            Supervision,
            "__init__",
            of_applications.needing_nothing,
        ),
    ),
    "maintenance-ignored": (
        Break(
            "During maintenance nothing is done about what checkers find.",
            Supervision,
            "_step",
            of_applications.as_if_not_paused,
        ),
    ),
    "leave-without-heirs": (
        Break(
            "A node takes itself out only when others have its clients.",
            Supervision,
            "_take_out",
            of_applications.as_if_others_served,
        ),
    ),
    "last-node-leaves": (
        Break(
            "What fails on a node that has served makes it less fit, not unable.",
            Concern,
            "__init__",
            of_applications.never_staying,
        ),
    ),
    "hold-never-ends": (
        Break(
            "A node whose service is down for longer than its hold is not fit.",
            Supervision,
            "_resource",
            of_applications.held_for_ever,
        ),
    ),
    "cause-forgotten": (
        Break("What is missing says why.", Concern, "learn", of_applications.without_detail),
    ),
}
"""Every rule that can be disabled, by the name for ``--break``."""
