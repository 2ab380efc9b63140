"""A whole farm in one process, on simulated time: seeded, and checked against the invariants.

Every node is the real ``nlbfarm.core.node.Node``; the network, the filter, the clients, the host and
its clock are simulated. The same seed gives the same run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from math import inf

from nlbfarm.core.events import (
    AdminChanged,
    FilterDamaged,
    PowersChanged,
    ResourceChanged,
    SettingsChanged,
    StopRequested,
)
from nlbfarm.core.node import Node
from nlbfarm.core.settings import Admin
from nlbfarm.core.versions import Versions
from nlbfarm.core.wire import Fitness
from nlbfarm.testing.applications.shell import SupervisedProcess
from nlbfarm.testing.hosts import SimulatedHost
from nlbfarm.testing.invariants import ViolationError
from nlbfarm.testing.world import World

__all__ = ["SimulatedFarm", "SimulatedHost", "ViolationError"]

REPAIR_S = (0.02, 0.3)
"""How long a damaged filter takes to be repaired."""


class SimulatedFarm(World):
    """A farm to which things can be done; made as ``World`` is, with every node off."""

    def start(self, node: int, incarnation: int = 0) -> None:
        """Start the node's process: a new life, its filter closed first.

        Args:
            node: Its id.
            incarnation: Of this life; by default one more than the last (a lost file: anything lower).
        """
        host = self.hosts[node]
        if not host.powered:
            host.powered = True
            host.boot += 1
            host.forget_flows()
        host.close()
        host.incarnation = incarnation or host.incarnation + 1
        host.life += 1
        host.frozen_until = -1.0
        host.deaf = host.damaged = False
        host.armed = inf
        host.queue = []
        self.invariants.begins(host)
        settings = self.settings[node]
        host.versions = Versions(set(settings.nodes) - {node}, host.version)
        resources = ["application"]
        if host.apps is not None:
            host.supervised = SupervisedProcess(self, host, host.apps)
            resources += host.supervised.machine.resources
        host.core = Node(
            settings,
            host.incarnation,
            host.clock.local(self.now),
            resources,
            admin=host.admin,
            admin_reason=host.admin_reason,
            flows=host.flows_in(self.groups),
        )
        self.tell(node, "start", incarnation=host.incarnation)
        self._feed(host, ResourceChanged("application", True), host.life)
        self._arm(host)
        if host.supervised is not None:
            host.supervised.begin()

    def crash(self, node: int) -> None:
        """The machine is gone at once, with its flow table."""
        host = self.hosts[node]
        self.tell(node, "crash")
        self.clients.lost(host)
        host.powered = False
        self._end(host)
        if host.apps is not None:
            host.apps.crash()

    def kill(self, node: int) -> None:
        """The process is gone; the kernel keeps its filter until the lease runs out."""
        self.tell(node, "kill")
        host = self.hosts[node]
        self._end(host)
        if host.apps is not None:
            host.apps.left(killed=True)

    def freeze(self, node: int, seconds: float) -> None:
        """The process does not run for so long; datagrams wait in its socket."""
        host = self.hosts[node]
        self.tell(node, "freeze", seconds=seconds)
        self._hold_up(host, seconds)

    def pause(self, node: int, seconds: float) -> None:
        """The machine stands still for so long (a suspended VM): what is sent to it meanwhile is lost."""
        host = self.hosts[node]
        self.tell(node, "pause", seconds=seconds)
        host.deaf = True
        self._hold_up(host, seconds)

    def stop(self, node: int, *, at_once: bool = False, returning: bool = False) -> None:
        """The process is asked to leave in good order; ``returning``: another takes over soon."""
        self.tell(node, "stop", at_once=at_once, returning=returning)
        host = self.hosts[node]
        if returning:
            host.returning, host.returning_from = True, host.life
        self._feed(host, StopRequested(at_once, returning), host.life)

    def upgrade(self, node: int, gap: float) -> None:
        """The process ends, and another one in the newest wire version takes over ``gap`` seconds later."""
        self.hosts[node].back_after = gap
        self.stop(node, returning=True)

    def admin(self, node: int, admin: Admin, *, at_once: bool = False) -> None:
        """The administrator says what the node is to do; it stays so across a restart."""
        self.tell(node, "admin", admin=admin.value, at_once=at_once)
        host = self.hosts[node]
        if host.supervised is not None:
            order = partial(host.supervised.order, admin, at_once=at_once)
            self.turn(host, order, host.life)
            return
        host.admin, host.admin_reason = admin, ""
        self._feed(host, AdminChanged(admin, at_once), host.life)

    def maintenance(self, node: int, *, on: bool) -> None:
        """Maintenance of a node begins or ends; it stays so across a restart."""
        self.tell(node, "maintenance", on=on)
        host = self.hosts[node]
        if host.supervised is not None:
            self.turn(host, partial(host.supervised.maintenance, on=on), host.life)

    def mend(self, node: int) -> None:
        """Everything that is checked on a host is put right, and its maintenance is over."""
        apps = self.hosts[node].apps
        if apps is not None:
            self.tell(node, "mend")
            apps.down.clear()
            for service in apps.services.values():
                service.mend()
            if self.hosts[node].core is None:
                apps.paused = False

    def power(self, node: int, powers: tuple[int, ...]) -> None:
        """The node's powers are these from now on, also after a restart."""
        self.tell(node, "power", powers=powers)
        host = self.hosts[node]
        self.settings[node] = replace(self.settings[node], powers=powers)
        self._feed(host, PowersChanged(powers), host.life)

    def reload(self, node: int, nodes: Iterable[int]) -> None:
        """The node's configuration names these nodes from now on."""
        named = {other: f"node{other}" for other in sorted({node, *nodes})}
        self.tell(node, "reload", nodes=list(named))
        host = self.hosts[node]
        self.settings[node] = replace(self.settings[node], nodes=named)
        # What a node that is no longer named speaks is not forgotten: it is still counted with for a while.
        host.versions.configure({*named, *host.versions.peers} - {node})
        self._feed(host, SettingsChanged(self.settings[node]), host.life)

    def healthy(self, node: int, ok: bool) -> None:
        """The application of a node answers, or no longer."""
        self.tell(node, "healthy", ok=ok)
        host = self.hosts[node]
        self._feed(host, ResourceChanged("application", ok, "" if ok else "no answer"), host.life)

    def fit(self, node: int, fitness: Fitness) -> None:
        """From now on the node is so fit; a new process is sound until it is told otherwise."""
        self.tell(node, "fit", fitness=fitness.name)
        host = self.hosts[node]
        event = ResourceChanged("checks", fitness is Fitness.SOUND, fitness.name.lower(), fitness)
        self._feed(host, event, host.life)

    def damage(self, node: int) -> None:
        """Somebody empties the filter: the VIPs go at once, then it is repaired."""
        host = self.hosts[node]
        if host.core is None or host.damaged or self.now < host.frozen_until:
            return
        self.tell(node, "damage")
        host.damaged = True
        host.lease_until = -1.0
        self._feed(host, FilterDamaged("emptied"), host.life)
        self.at(self.now + self.random.uniform(*REPAIR_S), self._repaired, host, host.life)

    def replay(self, node: int) -> None:
        """From now on somebody repeats the last heartbeat of a node whose process is gone."""
        if self.hosts[node].core is None and node in self._recorded:
            self.tell(node, "replay")
            self._replay(node, self.hosts[node].life)

    def cut(self, source: int, target: int) -> None:
        """From now on nothing gets from ``source`` to ``target``."""
        self.tell(source, "cut", target=target)
        self.network.cuts.add((source, target))

    def heal(self) -> None:
        """Every link and network carries again."""
        self.tell(0, "heal")
        self.network.cuts.clear()
        self.network.down.clear()

    def check_whole(self, nodes: set[int] | None = None) -> None:
        """I2: every bucket of every group is accepted by exactly one of ``nodes`` (default: all that run)."""
        self.invariants.no_hole(nodes)
