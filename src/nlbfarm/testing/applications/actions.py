"""What can happen to applications, and to what is checked, on hosts of a simulated farm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlbfarm.testing.applications.host import SimulatedService
    from nlbfarm.testing.farm import SimulatedFarm

__all__ = ["APPLICATION_ACTIONS", "FATES"]


def _cause(farm: SimulatedFarm, nodes: tuple[int, ...], value: str) -> None:
    """Something that a checker looks at is ``down`` or ``up`` on these hosts: ``gateway down``."""
    check, _, state = value.partition(" ")
    for node in nodes:
        apps = farm.hosts[node].apps
        if apps is not None and any(plan.spec.name == check for plan in apps.plan.checks):
            farm.tell(node, "cause", checker=check, state=state)
            (apps.down.add if state == "down" else apps.down.discard)(check)


def _application(farm: SimulatedFarm, nodes: tuple[int, ...], value: str) -> None:
    """A service on these hosts meets its fate: ``web dies``."""
    name, _, fate = value.partition(" ")
    for node in nodes:
        apps = farm.hosts[node].apps
        if apps is not None and name in apps.services and farm.hosts[node].powered:
            farm.tell(node, "application", service=name, fate=fate)
            FATES[fate](apps.services[name])


def _broken(service: SimulatedService) -> None:
    service.ill = "broken"
    service.end("exit code 1")


def _silent(service: SimulatedService) -> None:
    service.ill = "silent"


FATES: dict[str, Callable[[SimulatedService], None]] = {
    "dies": lambda service: service.end("killed by signal 9"),
    "hangs": lambda service: service.hang(),
    "broken": _broken,
    "silent": _silent,
    "mended": lambda service: service.mend(),
    "started": lambda service: service.by_hand(),
}
"""What can become of a service: it ends; it answers no more until it is started anew; it ends and cannot be
started, or does not answer, until it is mended; it is started by hand."""


def _maintenance(farm: SimulatedFarm, nodes: tuple[int, ...], value: str) -> None:
    """Maintenance of these nodes goes ``on`` or ``off``."""
    for node in nodes:
        farm.maintenance(node, on=value == "on")


APPLICATION_ACTIONS: dict[str, Callable[[SimulatedFarm, tuple[int, ...], str], None]] = {
    "cause": _cause,
    "application": _application,
    "maintenance": _maintenance,
}
"""What can happen to applications, by the name that an action bears; with the nodes and the value."""
