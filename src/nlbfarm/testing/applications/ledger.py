"""What a supervision was told and has asked for, kept beside it: against this it is judged.

Nothing here is read from the machine. *Up*: it runs, and every checker that is there to restart it has found
it well since it was started.
"""

from __future__ import annotations

import enum

from nlbfarm.core.supervision import Action, CheckSpec, RuleSpec
from nlbfarm.core.supervision.model import (
    LEAVES,
    RESTARTS,
    Checked,
    Command,
    Ended,
    Event,
    Halt,
    Look,
    Run,
    Start,
    Started,
    StartFailed,
    Stop,
    Stopped,
    Tell,
)
from nlbfarm.testing.applications.model import Applications

__all__ = ["Doing", "Ledger"]


class Doing(enum.Enum):
    """What was last asked for, or heard, of a service."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed to start"
    STOPPING = "stopping"


class Ledger:
    """What is known of the services and checkers of one process.

    Args:
        plan: What is supervised.
    """

    def __init__(self, plan: Applications) -> None:
        self.specs = {one.spec.name: one.spec for one in plan.services}
        self._attached = {
            one.spec.name: [
                check.spec.name
                for check in plan.checks
                if check.spec.service == one.spec.name and check.spec.action in RESTARTS
            ]
            for one in plan.services
        }
        self._when = {rule.name: rule.spec.when for rule in plan.rules}
        concerns: list[CheckSpec | RuleSpec] = [check.spec for check in plan.checks]
        concerns += [rule.spec for rule in plan.rules]
        self.matter = {
            spec.name: spec.confirm
            for spec in concerns
            if spec.action is Action.WAIT or spec.action in LEAVES
        }
        """The checkers and rules that decide whether the node serves, and how long each is confirmed."""
        self.restart = {
            spec.name: {spec.service or ""} if spec.action is Action.RESTART else set(self.specs)
            for spec in concerns
            if spec.action in RESTARTS
        }
        """The checkers and rules that are there to restart services, and which."""
        self.wanted = False
        """Whether the services are to run."""
        self.doing = dict.fromkeys(self._attached, Doing.STOPPED)
        self.up = dict.fromkeys(self._attached, False)
        """Whether a service has been up since its last start, and is not asked to stop."""
        self.been_up = dict.fromkeys(self._attached, False)
        """Whether it has been up since the services were last to run."""
        self.counted: set[str] = set()
        """The services that the machine has said to be up since they were last to run."""
        self.results: dict[str, bool | None] = {check.spec.name: None for check in plan.checks}
        """What each checker has said since it last began to look."""
        self.well: set[str] = set()
        """The checkers and rules that have been well since the services were last to run."""
        self.spoken: set[str] = set()
        """Those that have said anything since then."""
        self.still: set[str] = set()
        """During maintenance: services with which nothing was under way when it began."""

    # -- what happens ----------------------------------------------------------------------

    def told(self, event: Event) -> None:
        """Take note of what the machine is about to be told."""
        match event:
            case Run():
                self.wanted = True
                self.been_up = dict.fromkeys(self.been_up, False)
                self.results = dict.fromkeys(self.results)
                self.counted.clear()
                self.well.clear()
                self.spoken.clear()
            case Halt():
                self.wanted = False
            case Checked():
                self.results[event.name] = event.ok
            case Started():
                self.doing[event.service] = Doing.RUNNING
            case StartFailed():
                self.doing[event.service] = Doing.FAILED
            case Stopped():
                self.doing[event.service] = Doing.STOPPED
            case Ended():
                pass  # it counts as up until the machine does something about it
            case _:
                return
        self._weigh()

    def asked(self, command: Command) -> None:
        """Take note of what the machine wants done."""
        match command:
            case Start():
                self.doing[command.service], self.up[command.service] = Doing.STARTING, False
            case Stop():
                self.doing[command.service], self.up[command.service] = Doing.STOPPING, False
            case Look():
                self.results |= dict.fromkeys(command.checkers)
            case Tell(event="service.started"):
                self.counted.add(str(command.fields["service"]))
            case _:
                pass

    def _weigh(self) -> None:
        for name, doing in self.doing.items():
            if doing is Doing.RUNNING and all(self.results[check] for check in self._attached[name]):
                self.up[name] = True
        for name, up in self.up.items():
            self.been_up[name] |= up and self.wanted
        self.well |= {name for name in self.matter if self.says(name) is True}
        self.spoken |= {name for name in self.matter if self.says(name) is not None}

    # -- what follows ----------------------------------------------------------------------

    def says(self, name: str) -> bool | None:
        """Return what a checker says, or a rule: whether all is well."""
        if name in self._when:
            holds = self._when[name].value(self.results)
            return None if holds is None else not holds
        return self.results[name]

    def able(self) -> bool:
        """Whether the node could serve by now, with ``last_node = "stay"``, whatever has failed since.

        Each service has been up, and whatever matters was well once, or takes its time to be confirmed.
        """
        return (
            self.wanted
            and self.counted == self.doing.keys()
            and all(
                name in self.well or (confirm > 0 and name in self.spoken)
                for name, confirm in self.matter.items()
            )
        )
