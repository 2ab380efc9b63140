"""The whole configuration of a farm."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from nlbfarm.config.checkers import Checker
from nlbfarm.config.control import Control
from nlbfarm.config.crosscheck import crosscheck
from nlbfarm.config.draft import LISTS, SINGLE, Draft, Entry, singular
from nlbfarm.config.events import Events
from nlbfarm.config.failover_rules import FailoverRule
from nlbfarm.config.farm import Farm
from nlbfarm.config.filter import Filter
from nlbfarm.config.handoff import Handoff
from nlbfarm.config.heartbeat import Heartbeat
from nlbfarm.config.log import Log
from nlbfarm.config.nodes import Node
from nlbfarm.config.notify import Notify
from nlbfarm.config.rules import Rule
from nlbfarm.config.services import Service
from nlbfarm.config.types import NonEmpty, Section
from nlbfarm.config.vips import Vip

__all__ = ["FarmConfig", "as_draft"]


class FarmConfig(Section):
    """A farm's configuration, right in itself: whoever has one need not check it again.

    It can be loaded from a file (``nlbfarm.config.load``) or constructed by a program that embeds
    nlbfarm; the rules are the same. Immutable.

    Attributes:
        farm, heartbeat, handoff, filter, events, notify, log, control: The tables that are there once.
        nodes, vips, rules, services, checkers, failover_rules: The others, in the order of the file.
    """

    farm: Farm
    heartbeat: Heartbeat = Heartbeat()
    handoff: Handoff = Handoff()
    filter: Filter = Filter()
    nodes: Annotated[tuple[Node, ...], NonEmpty]
    vips: Annotated[tuple[Vip, ...], NonEmpty]
    rules: Annotated[tuple[Rule, ...], NonEmpty]
    services: tuple[Service, ...] = ()
    checkers: tuple[Checker, ...] = ()
    failover_rules: tuple[FailoverRule, ...] = ()
    events: Events = Events()
    notify: Notify = Notify()
    log: Log = Log()
    control: Control = Control()

    @model_validator(mode="after")
    def _fits_together(self) -> FarmConfig:
        problems = [str(problem) for problem in crosscheck(as_draft(self))]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def node(self, node_id: int) -> Node:
        """Return the node with this id; ``KeyError`` if there is none."""
        for node in self.nodes:
            if node.id == node_id:
                return node
        raise KeyError(node_id)

    def group_names(self) -> tuple[str, ...]:
        """Return the names of the groups, sorted: the order of bitmaps in heartbeats."""
        return tuple(sorted({rule.group_name for rule in self.rules}))


def as_draft(config: FarmConfig) -> Draft:
    """Return the configuration as the checks between tables see it."""

    def entry(section: Section, path: str, kind: str = "") -> Entry:
        values = {key: getattr(section, key) for key in type(section).model_fields}
        name = values.get("address" if kind == "vip" else "name")
        return Entry(path, f'{kind} "{name}"' if kind else "", values, section)

    return Draft(
        {key: entry(getattr(config, key), key) for key in SINGLE},
        {
            key: tuple(
                entry(one, f"{key}[{index}]", singular(key)) for index, one in enumerate(getattr(config, key))
            )
            for key in LISTS
        },
    )
