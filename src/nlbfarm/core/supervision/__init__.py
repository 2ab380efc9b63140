"""What becomes of a node whose application fails: a pure state machine beside that of the protocol.

- ``model``        what goes in and comes out: settings, events, commands
- ``table``        the phases of a service, and what moves it from one to another: one table
- ``expressions``  the conditions of failover rules: ``"2 of (gw1, gw2, gw3) down"``
- ``service``      what is known of one service
- ``budget``       how many restarts are left, and how long to wait before the next
- ``condition``    what a checker, or a rule, means for the node
- ``machine``      ``Supervision``: events in, commands out

``now`` is an argument. The shell (``nlbfarm.runtime.supervising``) looks at resources and starts and stops
services; a simulated farm drives the same machine (``nlbfarm.testing``).
"""

from __future__ import annotations

from nlbfarm.core.supervision.machine import Supervision
from nlbfarm.core.supervision.model import (
    Action,
    CheckSpec,
    RuleSpec,
    ServiceSpec,
    SupervisionSettings,
)
from nlbfarm.core.supervision.table import Phase

__all__ = [
    "Action",
    "CheckSpec",
    "Phase",
    "RuleSpec",
    "ServiceSpec",
    "Supervision",
    "SupervisionSettings",
]
