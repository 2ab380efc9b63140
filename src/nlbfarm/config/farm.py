"""``[farm]``: its name, its keys, and what a node does that is cut off."""

from __future__ import annotations

from typing import Annotated

from nlbfarm.config.types import ConfigPath, Name, Section, choice
from nlbfarm.core.settings import Partition

__all__ = ["Farm"]


class Farm(Section):
    """``[farm]``.

    Attributes:
        name: The farm's name; the same on every node, part of every heartbeat.
        key_file: Heartbeat keys and hash secret, made by ``nlbfarm-node keygen``; mode 0600.
        partition: ``serve``: a node that hears nobody serves alone; ``majority``: a node serves
            only while most of the configured nodes acknowledge it.
    """

    name: Name
    key_file: ConfigPath
    partition: Annotated[Partition, choice(Partition)] = Partition.SERVE
