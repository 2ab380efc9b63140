"""``[farm]``: its name, its keys, and what a node does that is cut off, or the last one."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from nlbfarm.config.types import ConfigPath, Name, Section, choice
from nlbfarm.core.settings import Partition

__all__ = ["Farm", "LastNode"]


class LastNode(StrEnum):
    """What a node does whose checkers fail, while no other node could serve instead."""

    STAY = "stay"
    LEAVE = "leave"


class Farm(Section):
    """``[farm]``.

    Attributes:
        name: The farm's name; the same on every node, part of every heartbeat.
        key_file: Heartbeat keys and hash secret, made by ``nlbfarm-node keygen``; mode 0600.
        partition: ``serve``: a node that hears nobody serves alone; ``majority``: a node serves
            only while most of the configured nodes acknowledge it.
        last_node: ``stay``: a node serves on, and says that it is degraded, as long as no other node is
            better, whatever its checkers say; ``leave``: it serves no more.
    """

    name: Name
    key_file: ConfigPath
    partition: Annotated[Partition, choice(Partition)] = Partition.SERVE
    last_node: Annotated[LastNode, choice(LastNode)] = LastNode.STAY
