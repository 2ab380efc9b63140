"""``[[rules]]``: which traffic of a VIP the farm serves, and how it is shared."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from nlbfarm.config.types import Address, Name, NonEmpty, Port, Section, choice
from nlbfarm.core.policy import Affinity, Mode

__all__ = ["Failback", "Rule", "RuleProtocol"]


class RuleProtocol(StrEnum):
    """Protocols that a rule can name."""

    TCP = "tcp"


class Failback(StrEnum):
    """What happens in a failover group when a node of higher power is back."""

    AUTO = "auto"
    MANUAL = "manual"


class Rule(Section):
    """One ``[[rules]]`` entry.

    Attributes:
        name: Its name.
        vip: Address of the VIP that it belongs to.
        protocol: The protocol.
        ports: Destination ports.
        affinity: ``client-port``: each connection on its own; ``client``: all of a client's
            connections on one node; ``network``: all of a client network's (/24, /64).
        group: Rules of one group keep a client on one node; by default the rule is alone in a
            group of its own name.
        mode: How the group is shared between the nodes.
        failback: With ``failover``, whether a node of higher power takes the group back by itself, or only
            when an administrator says so (``nlbfarm-node failback``).
    """

    name: Name
    vip: Address
    protocol: Annotated[RuleProtocol, choice(RuleProtocol, later=("udp",))] = RuleProtocol.TCP
    ports: Annotated[tuple[Port, ...], NonEmpty]
    affinity: Annotated[Affinity, choice(Affinity)] = Affinity.CLIENT_PORT
    group: Name | None = None
    mode: Annotated[Mode, choice(Mode)] = Mode.BALANCED
    failback: Annotated[Failback, choice(Failback)] = Failback.AUTO

    @property
    def group_name(self) -> str:
        """Name of the group that places it."""
        return self.name if self.group is None else self.group
