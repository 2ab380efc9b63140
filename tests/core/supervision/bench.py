"""A bench for the supervision of a node: a service that obeys, and what the machine says in words."""

from __future__ import annotations

from collections import deque

from nlbfarm.core.supervision import (
    Action,
    CheckSpec,
    RuleSpec,
    ServiceSpec,
    Supervision,
    SupervisionSettings,
)
from nlbfarm.core.supervision.expressions import parse
from nlbfarm.core.supervision.model import (
    Checked,
    Command,
    Event,
    Look,
    Placed,
    SaveRestarts,
    SetResource,
    Start,
    Started,
    Stop,
    Stopped,
    TakeOut,
    Tell,
    TimerFired,
)

__all__ = ["Bench", "rule"]


def rule(
    name: str, when: str, action: Action = Action.WAIT, confirm: float = 0.0, service: str = ""
) -> RuleSpec:
    return RuleSpec(name, parse(when), action, service or None, confirm)


class Bench:
    """Time, and a shell that does at once what it is told, unless ``obeys`` is false."""

    def __init__(
        self, *specs: ServiceSpec | CheckSpec | RuleSpec, last_stays: bool = True, **options: object
    ) -> None:
        self.now = 1000.0
        self.machine = Supervision(
            SupervisionSettings(
                services=tuple(one for one in specs if isinstance(one, ServiceSpec)),
                checks=tuple(one for one in specs if isinstance(one, CheckSpec)),
                rules=tuple(one for one in specs if isinstance(one, RuleSpec)),
                last_stays=last_stays,
            ),
            **options,  # type: ignore[arg-type]
        )
        self.obeys = True
        self._waiting: deque[Event] = deque()
        self.log: list[str] = []
        """Starts and stops, in order."""
        self.resources: dict[str, SetResource] = {}
        self.looking: set[str] = set()
        self.told: list[Tell] = []
        self.taken_out: list[TakeOut] = []
        self.saved: SaveRestarts | None = None

    def do(self, event: Event) -> list[str]:
        """Hand an event in, and what follows from it; return the starts and stops."""
        before = len(self.log)
        self._waiting.append(event)
        while self._waiting:
            for command in self.machine.handle(self._waiting.popleft(), self.now):
                self._carry_out(command)
        return self.log[before:]

    def _carry_out(self, command: Command) -> None:
        match command:
            case Start():
                self.log.append(f"start {command.service}")
                if self.obeys:
                    self._waiting.append(Started(command.service))
            case Stop():
                self.log.append(f"stop {command.service}")
                if self.obeys:
                    self._waiting.append(Stopped(command.service))
            case Look():
                (self.looking.update if command.wanted else self.looking.difference_update)(command.checkers)
            case SetResource():
                self.resources[command.name] = command
            case SaveRestarts():
                self.saved = command
            case TakeOut():
                self.taken_out.append(command)
            case Tell():
                self.told.append(command)

    def ok(self, *names: str) -> list[str]:
        return [line for name in names for line in self.do(Checked(name, True, "well"))]

    def bad(self, *names: str, detail: str = "HTTP 503") -> list[str]:
        return [line for name in names for line in self.do(Checked(name, False, detail))]

    def placed(self, *, serving: bool, others: bool) -> None:
        self.do(Placed(serving, others))

    def wait(self, seconds: float) -> list[str]:
        """Let time pass, firing every timer on the way; return the starts and stops."""
        until, before = self.now + seconds, len(self.log)
        for _ in range(1000):
            due = self.machine.timer()
            if due > until:
                break
            assert due >= self.now - 1e-9, "a timer in the past"
            self.now = due
            self.do(TimerFired())
        else:
            raise AssertionError("the timer goes round in circles")
        self.now = until
        return self.log[before:]

    def phase(self, service: str = "web") -> str:
        return self.machine.services[service].phase.value

    def events(self) -> list[str]:
        return [one.event for one in self.told]
