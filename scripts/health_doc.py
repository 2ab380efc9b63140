"""Writes the parts of docs/health.md that follow from the code: phases, table and diagrams, actions, times.

    python -m scripts.health_doc            # rewrites them
    python -m scripts.health_doc --check    # exit code 1 if they are not what the code says

As in docs/protocol.md, a part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import ast
import enum
import inspect
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from scripts.protocol_doc import invariants, seconds, table
from scripts.protocol_doc import main as write

from nlbfarm.core.messages import Fitness
from nlbfarm.core.placement import worst_accepted
from nlbfarm.core.supervision import Action, CheckSpec, Phase, ServiceSpec, Supervision, SupervisionSettings
from nlbfarm.core.supervision.budget import Budget
from nlbfarm.core.supervision.model import Checked, Event, Placed, Run, SetResource, TakeOut, TimerFired
from nlbfarm.core.supervision.table import TRANSITIONS, Occurrence
from nlbfarm.testing.applications.invariants import ApplicationInvariants

PAGE = Path(__file__).parent.parent / "docs" / "health.md"

ORDERS = frozenset({Occurrence.WANTED, Occurrence.UNWANTED, Occurrence.FORGIVEN})
"""What an administrator's orders, and the start and the end of a node, are to a service."""

LIFE = frozenset(Occurrence) - ORDERS - {Occurrence.STOPPED}
"""What happens to it while its node runs."""


def described(kind: type[enum.Enum]) -> dict[str, str]:
    """Return what stands under each member of an enumeration, by the member's name; empty if nothing does."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = dict.fromkeys(kind.__members__, "")
    for one, following in zip(body.body, body.body[1:], strict=False):
        match one, following:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.replace("``", "`").split())
    return found


# -- the table -----------------------------------------------------------------------------


def phases() -> str:
    said = described(Phase)
    return table(["phase", "meaning"], [[f"`{phase.value}`", said[phase.name]] for phase in Phase])


def transitions() -> str:
    rows = [
        [f"`{phase.value}`", what.value, f"`{to.to.value}`", ", ".join(step.value for step in to.steps)]
        for phase in Phase
        for what in Occurrence
        if (to := TRANSITIONS.get((phase, what))) is not None
    ]
    return table(["phase", "what happens", "then", "what is done"], rows)


def diagram(occurrences: Container[Occurrence], begins: Phase, *, stopping: bool) -> str:
    """Return the transitions for these occurrences; the end of a stop belongs to where the stop began."""
    labels: dict[tuple[Phase, Phase], list[str]] = defaultdict(list)
    for (phase, what), transition in TRANSITIONS.items():
        if what in occurrences or (what is Occurrence.STOPPED and (phase is Phase.STOPPING) is stopping):
            labels[phase, transition.to].append(what.value)
    there = {phase for edge in labels for phase in edge}
    lines = [f"    {phase.name.lower()}: {phase.value}" for phase in Phase if phase in there]
    lines.append(f"    [*] --> {begins.name.lower()}")
    for (phase, to), texts in labels.items():
        lines.append(f"    {phase.name.lower()} --> {to.name.lower()}: {' / '.join(texts)}")
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


# -- what is done --------------------------------------------------------------------------


def actions() -> str:
    said = described(Action)
    return table(["", "what is done"], [[f"`{action.value}`", said[action.name]] for action in Action])


def pauses() -> str:
    """Return how long a service is waited for before each restart in a row, with the usual settings."""
    spec = ServiceSpec("web")
    bounds = []
    budgets = [Budget([spec], {}, f"node{number}") for number in range(1000)]
    for _ in range(9):
        waits = [budget.spend("web", 0.0) for budget in budgets]
        bounds.append((min(waits), max(waits)))
    rows = [
        [str(index), "at once" if not longest else f"{_rounded(shortest)} to {_rounded(longest)}"]
        for index, (shortest, longest) in enumerate(bounds, 1)
    ]
    return table(["restart in a row", "after a pause of"], rows)


def _rounded(value: float) -> str:
    return seconds(float(f"{value:.2g}"))


# -- what it means for the node ------------------------------------------------------------


def fitness() -> str:
    said = described(Fitness)
    said["SOUND"] = said["SOUND"] or "Nothing is wrong."
    rows = []
    for best in Fitness:
        worst = worst_accepted([best])
        have = [f"`{one.name.lower()}`" for one in Fitness if best <= one <= worst]
        rows.append([f"`{best.name.lower()}`", said[best.name], ", ".join(have)])
    return table(["fitness", "meaning", "when no node is fitter, clients go to nodes that are"], rows)


class _Node:
    """The supervision of a node with one checker, and what it makes of it, step by step."""

    def __init__(self, action: Action, confirm: float, *, last_stays: bool) -> None:
        self.now = 0.0
        check = CheckSpec("page", action, confirm=confirm)
        self.machine = Supervision(SupervisionSettings(checks=(check,), last_stays=last_stays))
        self.told: list[str] = []

    def do(self, *events: Event) -> None:
        for event in events:
            for command in self.machine.handle(event, self.now):
                match command:
                    case SetResource(ok=False, fitness=None):
                        self.told.append("cannot serve")
                    case SetResource(ok=False, fitness=found) if found is not None:
                        self.told.append(f"is `{found.name.lower()}`")
                    case TakeOut():
                        self.told.append("drains" if command.action is Action.DRAIN else "leaves")


def _failing(action: Action, confirm: float, *, last_stays: bool, was_well: bool) -> str:
    """Return what a node makes of a checker that fails."""
    node = _Node(action, confirm, last_stays=last_stays)
    node.do(Run("the node starts"), Placed(serving=True, others=False))
    node.do(*([Checked("page", True, "")] if was_well else []), Checked("page", False, "HTTP 503"))
    before = len(node.told)
    node.now = confirm
    node.do(TimerFired())
    node.told[before:] = [f"{told} after `confirm`" for told in node.told[before:]]
    before = len(node.told)
    node.do(Placed(serving=False, others=True))
    node.told[before:] = [f"{told} when others have its clients" for told in node.told[before:]]
    return ", ".join(node.told)


def meaning() -> str:
    rows = []
    for action in (Action.WAIT, Action.STOP):
        for was_well, confirm in ((True, 0.0), (True, 10.0), (False, 0.0), (False, 10.0)):
            stays, goes = (
                _failing(action, confirm, last_stays=stays, was_well=was_well) for stays in (True, False)
            )
            since = "was well before" if was_well else "was never well"
            rows.append([f"`{action.value}`", since, "yes" if confirm else "no", stays, goes])
    stay, leave = '`last_node = "stay"`: the node', '`"leave"`: the node'
    return table(["action", "the checker", "with `confirm`", stay, leave], rows)


_ENFORCED: dict[str, tuple[Callable[..., object], str]] = {
    "A1": (ApplicationInvariants.up_before_serving, "supervision.machine.Supervision._resource"),
    "A2": (ApplicationInvariants.within_budget, "supervision.budget.Budget.left"),
    "A3": (ApplicationInvariants.reasons, "condition.Condition.state supervision.machine.Supervision._occur"),
    "A4": (
        ApplicationInvariants.started_in_order,
        "supervision.machine.Supervision._proceed supervision.machine.Supervision._follow",
    ),
    "A5": (
        ApplicationInvariants.takes_itself_out,
        "supervision.machine.Supervision._take_out supervision.placing.placed placement.worst_accepted",
    ),
    "A6": (ApplicationInvariants.maintenance, "supervision.machine.Supervision._step"),
    "A7": (ApplicationInvariants.no_busy_loop, "supervision.machine.Supervision.timer"),
    "A8": (ApplicationInvariants.untrue, "supervision.machine.Supervision._tell_node"),
}

BLOCKS: dict[str, Callable[[], str]] = {
    "phases": phases,
    "life": lambda: diagram(LIFE, Phase.QUEUED, stopping=False),
    "orders": lambda: diagram(ORDERS, Phase.STOPPED, stopping=True),
    "transitions": transitions,
    "actions": actions,
    "pauses": pauses,
    "fitness": fitness,
    "meaning": meaning,
    "invariants": lambda: invariants(_ENFORCED),
}


def main(arguments: Sequence[str] | None = None) -> int:
    return write(arguments, PAGE, BLOCKS, "python -m scripts.health_doc")


if __name__ == "__main__":
    sys.exit(main())
