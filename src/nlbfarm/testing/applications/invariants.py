"""What must hold for the supervision of services in every simulated run: A1 to A8.

Each is one method of ``ApplicationInvariants`` with its full wording. Machines are fed through ``feed``, so
that each of their steps is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nlbfarm.core.buckets import ALL
from nlbfarm.core.messages import Fitness
from nlbfarm.core.settings import Admin
from nlbfarm.core.supervision import Action
from nlbfarm.core.supervision.model import (
    Command,
    Event,
    Forgiven,
    Halt,
    PauseChanged,
    Run,
    SaveRestarts,
    SetResource,
    Start,
    Stop,
    TakeOut,
    Tell,
)
from nlbfarm.core.supervision.table import Phase
from nlbfarm.core.wire import NodeState
from nlbfarm.testing.applications.ledger import Doing

if TYPE_CHECKING:
    from nlbfarm.testing.applications.shell import SupervisedProcess
    from nlbfarm.testing.hosts import SimulatedHost
    from nlbfarm.testing.world import World

__all__ = ["ApplicationInvariants"]

BUSY = 300
"""So many events of one machine in a second mean that it goes round in circles."""

MOMENT_S = 2.0
"""After a fault or an order, nodes may know too little of each other for so long."""

STILL_S = 0.5
"""A machine that has wanted nothing for so long has come to rest."""

_RUNS = frozenset({Phase.STARTING, Phase.CHECKING, Phase.UP})
_RESTS = frozenset({Phase.STOPPED, Phase.UP, Phase.GIVEN_UP})


class ApplicationInvariants:
    """Watches the supervision of all nodes of one farm.

    Args:
        farm: Whom to watch.
    """

    def __init__(self, farm: World) -> None:
        self._farm = farm
        self._disturbed_until = 0.0
        self.commanded_at = 0.0
        """When a machine last wanted something done."""
        self.restarts = self.given_up = self.taken_out = 0
        self._events: dict[int, tuple[int, int]] = {}

    def disturbed(self, lasts: float = 0.0) -> None:
        """Take note of a fault or an order, and how long it lasts, seconds."""
        self._disturbed_until = max(self._disturbed_until, self._farm.now + lasts)

    # -- a step of a machine ---------------------------------------------------------------

    def feed(self, process: SupervisedProcess, event: Event, now: float) -> list[Command]:
        """Let the machine of ``process`` handle an event, and judge what it does; return its commands."""
        ledger, machine = process.ledger, process.machine
        before = {name: one.phase for name, one in machine.services.items()}
        ledger.told(event)
        if isinstance(event, Run | Halt | Forgiven | PauseChanged):
            ledger.still.clear()
        if isinstance(event, Forgiven):
            for times in process.apps.counted.values():
                times.clear()
        commands = machine.handle(event, now)
        for command in commands:
            if not isinstance(command, Tell):
                self.commanded_at = self._farm.now
            self._reason_given(process, command)
            self.maintenance(process, command)
            if isinstance(event, PauseChanged) and event.paused:
                self._no_better(process, command)
            match command:
                case Start():
                    self.started_in_order(process, command.service)
                case Stop():
                    self.stopped_in_order(process, command.service)
                case SaveRestarts():
                    for name, saved in command.times.items():
                        self._budget(process, name, saved, now)
                case _:
                    pass
            ledger.asked(command)
        self._count(process, before, now)
        if machine.paused:
            ledger.still |= {name for name, one in machine.services.items() if one.phase in _RESTS}
        self.reasons(process)
        self.no_busy_loop(process, now)
        return commands

    def up_before_serving(self, host: SimulatedHost) -> None:
        """A1: a node accepts no new flows before each of its services has been up.

        That is, since the services were last started on purpose (the process started, or an administrator
        started the node): each was started, and all checkers that are there to restart it found it well. A
        kernel that serves for a process that is gone, until its lease ends, is not meant.
        """
        process = host.supervised
        if process is None or not any(host.fresh) or not host.leased(self._farm.now):
            return
        missing = [name for name, up in process.ledger.been_up.items() if not up]
        if missing:
            self._farm.fail("A1", f"node {host.node_id} serves, and {missing[0]} has never been up")

    def within_budget(self, process: SupervisedProcess, name: str, now: float) -> None:
        """A2: no service is restarted more than ``max_restarts`` times in ``within``, in all lives of a node.

        A restart is what stops a service while all that it needs is up, and starts it again; neither the end
        of the node nor an administrator wanted it. What is persisted says the same.
        """
        self._budget(process, name, process.apps.counted[name], now)

    def _budget(self, process: SupervisedProcess, name: str, times: Sequence[float], now: float) -> None:
        spec = process.ledger.specs[name]
        used = sum(now - at < spec.within for at in times)
        if used > spec.max_restarts:
            told = f"{name} is restarted {used} times in {spec.within:g} s, not {spec.max_restarts}"
            self._farm.fail("A2", f"node {process.host.node_id}: {told}")

    def _count(self, process: SupervisedProcess, before: dict[str, Phase], now: float) -> None:
        """Count restarts, as they look from outside."""
        services = process.machine.services
        for name, phase in before.items():
            now_in = services[name].phase
            if now_in is Phase.GIVEN_UP and phase is not now_in:
                self.given_up += 1
            needed = all(services[other].phase is Phase.UP for other in process.ledger.specs[name].after)
            if phase in _RUNS and now_in is Phase.RESTARTING and needed:
                self.restarts += 1
                process.apps.counted[name].append(now)
                self.within_budget(process, name, now)

    def reasons(self, process: SupervisedProcess) -> None:
        """A3: no phase of a service, and no state of a node but UP and sound, is without a reason.

        Nor is anything that the machine wants done, or that a node says of itself to others.
        """
        for name, service in process.machine.services.items():
            if not service.reason:
                self._farm.fail("A3", f"node {process.host.node_id}: {name} is {service.phase}, and why?")
        core = process.host.core
        if core is not None and core.state is not NodeState.UP and not core.reason:
            self._farm.fail("A3", f"node {process.host.node_id} is {core.state.name}, and why?")

    def _reason_given(self, process: SupervisedProcess, command: Command) -> None:
        reasoned = isinstance(command, Start | Stop | TakeOut)
        missing = isinstance(command, SetResource) and command.ok is False
        if (reasoned or missing) and not getattr(command, "reason", ""):
            self._farm.fail("A3", f"node {process.host.node_id}: {command}, and why?")

    def started_in_order(self, process: SupervisedProcess, name: str) -> None:
        """A4: a service is started when all that it needs is up, and stopped when nothing that needs it runs.

        And never before its last start or stop has come to its end. One that was given up is left running by
        its node, whatever becomes of what it needs.
        """
        ledger = process.ledger
        if ledger.doing[name] not in (Doing.STOPPED, Doing.FAILED):
            self._farm.fail("A4", f"node {process.host.node_id} starts {name}: {ledger.doing[name].value}")
        for other in ledger.specs[name].after:
            if not ledger.up[other]:
                self._farm.fail("A4", f"node {process.host.node_id} starts {name} before {other} is up")

    def stopped_in_order(self, process: SupervisedProcess, name: str) -> None:
        """A4, as in ``started_in_order``."""
        for other, spec in process.ledger.specs.items():
            runs = process.ledger.doing[other] not in (Doing.STOPPED, Doing.FAILED)
            given_up = process.machine.services[other].phase is Phase.GIVEN_UP
            if name in spec.after and runs and not given_up:
                self._farm.fail("A4", f"node {process.host.node_id} stops {name} before {other} is stopped")

    def maintenance(self, process: SupervisedProcess, command: Command) -> None:
        """A6: during maintenance nothing is started or stopped but what was under way, and no node leaves.

        But for what an administrator wants: to start the node, or to stop it. Nor does it make a node fit.
        """
        if not process.machine.paused:
            return
        node = process.host.node_id
        if isinstance(command, TakeOut):
            self._farm.fail("A6", f"node {node} takes itself out during maintenance")
        if isinstance(command, Start | Stop) and command.service in process.ledger.still:
            self._farm.fail("A6", f"node {node}: {command} during maintenance")

    def _no_better(self, process: SupervisedProcess, command: Command) -> None:
        if isinstance(command, SetResource) and command.ok:
            self._farm.fail("A6", f"node {process.host.node_id}: {command.name} is well for its maintenance")

    def no_busy_loop(self, process: SupervisedProcess, now: float) -> None:
        """A7: a machine wants no timer in the past, and handles no more events than there is reason for.

        When all is quiet (no trouble, no order, what is checked stays as it is) it comes to rest: it wants
        nothing done and no timer.
        """
        node, second = process.host.node_id, int(self._farm.now)
        timer = process.machine.timer()
        if timer <= now:
            self._farm.fail("A7", f"node {node} wants a timer {now - timer:.6f} s ago")
        since, count = self._events.get(node, (second, 0))
        self._events[node] = (second, count + 1) if since == second else (second, 1)
        if count > BUSY:
            self._farm.fail("A7", f"node {node}: more than {BUSY} events of its supervision in a second")

    # -- the last node ---------------------------------------------------------------------

    def takes_itself_out(self, process: SupervisedProcess) -> None:
        """A5: with ``last_node = "stay"`` checkers alone never leave a farm without a server.

        No node takes itself out unless another one is left that can serve, or could until a fault or an order
        a moment ago. And when all is quiet, every bucket has its one server as long as a node runs that could
        serve since it was last started, and that neither an administrator nor itself has taken out.
        """
        self.taken_out += 1
        if not process.apps.plan.last_stays or self._farm.now < self._disturbed_until + MOMENT_S:
            return
        if not any(self.could_serve(host) for host in self._farm.hosts.values() if host is not process.host):
            self._farm.fail("A5", f"node {process.host.node_id} takes itself out, and nobody else can serve")

    def could_serve(self, host: SimulatedHost) -> bool:
        """Whether a host has a node that could serve since it was last started, and is not taken out."""
        process = host.supervised
        return (
            process is not None
            and host.admin is Admin.RUN
            and not host.leaves
            and process.ledger.able()
            and any(self._farm.settings[host.node_id].powers)
        )

    # -- when all is quiet -----------------------------------------------------------------

    def quiet(self) -> None:
        """Judge what may be judged when all is quiet: A5, A7, A8."""
        ago = self._farm.now - self.commanded_at
        if ago < STILL_S:
            self._farm.fail("A7", f"the last thing was wanted {ago:.3f} s ago, and so on for ever")
        for rule, problem in (("A7", self.restless()), ("A5", self.unserved()), ("A8", self.untrue())):
            if problem:
                self._farm.fail(rule, problem)

    def unserved(self) -> str:
        """Return what A5 finds wrong; empty if nothing."""
        hosts = self._farm.hosts
        able = [node for node, host in hosts.items() if host.apps is not None and self.could_serve(host)]
        if not able or not any(one.apps is not None and one.apps.plan.last_stays for one in hosts.values()):
            return ""
        for group in range(len(self._farm.groups)):
            seen = 0
            for host in hosts.values():
                seen |= host.accepts(group, self._farm.now)
            if seen != ALL:
                return f"node {able[0]} could serve, and {(ALL & ~seen).bit_count()} buckets have no server"
        return ""

    def restless(self) -> str:
        """Return what A7 finds not to be at rest; empty if nothing."""
        for node, host in self._farm.hosts.items():
            if host.supervised is not None:
                why = host.supervised.restless()
                if why:
                    return f"node {node}: {why}"
        return ""

    def untrue(self) -> str:
        """A8: when all is quiet, a node says of itself what is so.

        It can serve, or not, and is as fit, as its services and checkers say; no service has ended, or is
        bad, without anything being done about it. During maintenance that may be otherwise.

        Returns:
            What is not so; empty if nothing.
        """
        for node, host in self._farm.hosts.items():
            process, core = host.supervised, host.core
            if process is None or core is None or host.leaves or process.apps.paused:
                continue
            told = next(self._unnoticed(process), "")
            if not told and host.admin is Admin.RUN and core.able is not self._able(process):
                told = f"it is {core.state.name} ({core.reason}), which is not so"
            if not told and core.able and core.fitness is not self._fitness(process):
                told = f"it says {core.fitness.name}, and is {self._fitness(process).name}"
            if told:
                return f"node {node}: {told}"
        return ""

    def _unnoticed(self, process: SupervisedProcess) -> Iterator[str]:
        for name, service in process.machine.services.items():
            idle = service.spec.on_exit in (Action.NONE, Action.WAIT)
            if service.phase is Phase.UP and not process.apps.services[name].running and not idle:
                yield f"{name} has ended, and counts as up"
        up = {name for name, service in process.machine.services.items() if service.phase is Phase.UP}
        for name, restarted in process.ledger.restart.items():
            if process.ledger.says(name) is False and restarted and restarted <= up:
                yield f"{name} is bad, and {', '.join(sorted(restarted))} not restarted"

    def _good(self, process: SupervisedProcess) -> bool:
        """Whether every service is up."""
        return all(
            service.phase is Phase.UP
            and (service.spec.on_exit is not Action.WAIT or process.apps.services[name].running)
            for name, service in process.machine.services.items()
        )

    def _well(self, process: SupervisedProcess) -> bool:
        """Whether all that there is runs and is found well, and nothing was given up."""
        apps, services = process.apps, process.machine.services.values()
        return (
            process.ledger.wanted
            and all(service.running for service in apps.services.values())
            and all(apps.sees(check) for check in apps.plan.checks)
            and not any(service.phase is Phase.GIVEN_UP for service in services)
        )

    def _able(self, process: SupervisedProcess) -> bool:
        ledger = process.ledger
        if self._well(process):
            return True
        if process.apps.plan.last_stays:
            return ledger.able()
        well = all(ledger.says(name) for name in ledger.matter)
        return ledger.wanted and self._good(process) and well

    def _fitness(self, process: SupervisedProcess) -> Fitness:
        if self._well(process) or not process.apps.plan.last_stays:
            return Fitness.SOUND
        if not self._good(process):
            return Fitness.DOWN
        bad = any(process.ledger.says(name) is False for name in process.ledger.matter)
        return Fitness.DEGRADED if bad else Fitness.SOUND
