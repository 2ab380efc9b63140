"""``[[nodes]]``: the servers of the farm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from nlbfarm.config.types import Name, NodeId, NonEmpty, Power, Section, UnicastAddress

__all__ = ["MAX_NODES", "Node"]

MAX_NODES = 32
"""A view has at most this many members (``nlbfarm.core.wire.View``)."""


class Node(Section):
    """One ``[[nodes]]`` entry.

    Attributes:
        id: Its number, 1..255; keep it when the node moves or is renamed.
        name: Its name in every message.
        addresses: Its own address on each heartbeat network, in the same order on every node.
        power: Its weight in every group that ``powers`` does not name.
        powers: Its weight by group.
    """

    id: NodeId
    name: Name
    addresses: Annotated[tuple[UnicastAddress, ...], NonEmpty]
    power: Power = 1
    powers: Mapping[str, Power] = Field(default_factory=dict)

    def power_in(self, group: str) -> int:
        """Return its weight in ``group``."""
        return self.powers.get(group, self.power)
