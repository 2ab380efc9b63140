"""What can happen to a simulated farm: each kind of action, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nlbfarm.core.settings import Admin
from nlbfarm.core.wire import Fitness, NodeState
from nlbfarm.testing.applications.actions import APPLICATION_ACTIONS
from nlbfarm.testing.farm import SimulatedFarm

__all__ = ["ACTIONS", "Action", "act"]


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that happens.

    Args:
        at: When, seconds.
        kind: What: a name in ``ACTIONS``.
        nodes: To which nodes.
        value: How long, how much, or a word; see ``ACTIONS``.
    """

    at: float
    kind: str
    nodes: tuple[int, ...] = ()
    value: float | str = 0.0

    def __str__(self) -> str:
        value = f" {self.value}" if self.value else ""
        return f"{self.at:8.4f}  {self.kind}{value} {' '.join(map(str, self.nodes))}".rstrip()


def act(farm: SimulatedFarm, action: Action) -> None:
    """Do it."""
    if action.kind not in APPLICATION_ACTIONS:
        lasts = float(action.value) if action.kind in ("freeze", "pause") else 0.0
        farm.applications.disturbed(lasts)
    ACTIONS[action.kind](farm, action)


def _start(farm: SimulatedFarm, action: Action) -> None:
    for node in action.nodes:
        if farm.hosts[node].core is None:
            farm.start(node)


def _forget(farm: SimulatedFarm, action: Action) -> None:
    """Start a node that lost its file of incarnations, on a machine whose clock is behind."""
    for node in action.nodes:
        if farm.hosts[node].core is None:
            farm.start(node, incarnation=farm.hosts[node].incarnation - 100)


def _replay(farm: SimulatedFarm, action: Action) -> None:
    for node in action.nodes:
        farm.replay(node)


def _running(do: Callable[[SimulatedFarm, int, Action], None]) -> Callable[[SimulatedFarm, Action], None]:
    """Return an action that happens to those of its nodes whose process is there."""

    def act(farm: SimulatedFarm, action: Action) -> None:
        for node in action.nodes:
            if farm.hosts[node].core is not None:
                do(farm, node, action)

    return act


def _spared(do: Callable[[SimulatedFarm, int, Action], None]) -> Callable[[SimulatedFarm, Action], None]:
    """Return an action that takes a node out of service: in a planned run only while another one serves."""

    def act(farm: SimulatedFarm, node: int, action: Action) -> None:
        if farm.invariants.planned and not _another_serves(farm, node):
            farm.tell(node, "not spared", kind=action.kind)
        else:
            do(farm, node, action)

    return _running(act)


def _another_serves(farm: SimulatedFarm, node: int) -> bool:
    for other, host in farm.hosts.items():
        if (
            other != node
            and other in farm.settings[node].nodes
            and host.core is not None
            and host.core.state is NodeState.UP
            and all(farm.settings[other].powers)
            and all(host.accepts(group, farm.now) for group in range(len(farm.groups)))
        ):
            return True
    return False


def _cut(farm: SimulatedFarm, action: Action) -> None:
    """Cut one link: both ways, or only from the first to the second."""
    one, other = action.nodes
    farm.cut(one, other)
    if action.value != "one-way":
        farm.cut(other, one)


def _partition(farm: SimulatedFarm, action: Action) -> None:
    """Cut these nodes off from all others."""
    for one in action.nodes:
        for other in farm.hosts:
            if other not in action.nodes:
                farm.cut(one, other)
                farm.cut(other, one)


def _network(farm: SimulatedFarm, action: Action) -> None:
    """Lose a whole heartbeat network."""
    farm.tell(0, "network down", network=int(action.value))
    farm.network.down = {int(action.value)}


def _reload(farm: SimulatedFarm, action: Action) -> None:
    """Give the first node a configuration that names these.

    In a planned run also those that were to be stopped before, and could not be spared then: nobody takes a
    node that serves out of the configuration of the others.
    """
    node = action.nodes[0]
    kept = {
        other
        for other in set(farm.settings[node].nodes) - set(action.nodes)
        if farm.invariants.planned
        and farm.hosts[other].core is not None
        and farm.hosts[other].admin is Admin.RUN
    }
    if kept:
        farm.tell(node, "not removed", nodes=sorted(kept))
    farm.reload(node, {*action.nodes, *kept})


def _power(farm: SimulatedFarm, node: int, action: Action) -> None:
    farm.power(node, (int(action.value),) * len(farm.groups))


def _admin(farm: SimulatedFarm, node: int, action: Action) -> None:
    what, _, now = str(action.value).partition(" ")
    farm.admin(node, Admin(what), at_once=now == "now")


def _admin_or_run(farm: SimulatedFarm, action: Action) -> None:
    if action.value == "run":
        for node in action.nodes:
            farm.admin(node, Admin.RUN)
    else:
        _spared(_admin)(farm, action)


def _of_applications(name: str) -> Callable[[SimulatedFarm, Action], None]:
    do = APPLICATION_ACTIONS[name]
    return lambda farm, action: do(farm, action.nodes, str(action.value))


ACTIONS: dict[str, Callable[[SimulatedFarm, Action], None]] = {
    "start": _start,
    "forget": _forget,
    "crash": _running(lambda farm, node, action: farm.crash(node)),
    "kill": _running(lambda farm, node, action: farm.kill(node)),
    "freeze": _running(lambda farm, node, action: farm.freeze(node, float(action.value))),
    "pause": _running(lambda farm, node, action: farm.pause(node, float(action.value))),
    "stop": _spared(lambda farm, node, action: farm.stop(node, at_once=action.value == "now")),
    "upgrade": _spared(lambda farm, node, action: farm.upgrade(node, float(action.value))),
    "unhealthy": _spared(lambda farm, node, action: farm.healthy(node, False)),
    "healthy": _running(lambda farm, node, action: farm.healthy(node, True)),
    "fit": _running(lambda farm, node, action: farm.fit(node, Fitness[str(action.value)])),
    "damage": _running(lambda farm, node, action: farm.damage(node)),
    "admin": _admin_or_run,
    "power": _spared(_power),
    "reload": _reload,
    "cut": _cut,
    "partition": _partition,
    "network": _network,
    "replay": _replay,
    "heal": lambda farm, action: farm.heal(),
    **{name: _of_applications(name) for name in APPLICATION_ACTIONS},
}
"""What can happen, by the name that an action bears."""
