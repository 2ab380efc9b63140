"""What is put together to a random schedule: actions in time, and what each kind of trouble consists of."""

from __future__ import annotations

import random

from nlbfarm.testing.actions import Action

__all__ = ["Agenda", "happen"]

FREEZES_S = (0.2, 0.3, 0.35, 0.45, 0.5, 0.6, 1.0, 2.0)
PAUSES_S = (0.3, 0.5, 0.6, 1.0, 2.0)
FITNESSES = ("SOUND", "SUSPECT", "DEGRADED", "DOWN")
GAPS_S = (0.0, 0.01, 0.05, 0.3, 0.7, 1.5)


class Agenda:
    """Collects actions, with a rough idea of which nodes run."""

    def __init__(self, rng: random.Random, nodes: int) -> None:
        self.rng = rng
        self.ids = list(range(1, nodes + 1))
        self.up: set[int] = set()
        self.replayed: set[int] = set()
        """Nodes of which somebody repeats the last heartbeat."""
        self.actions: list[Action] = []
        self.now = 0.0

    def add(self, kind: str, *nodes: int, value: float | str = 0.0) -> None:
        """Put an action down for the present."""
        self.actions.append(Action(round(self.now, 4), kind, nodes, value))

    def begin(self, late: float) -> None:
        """Start every node, but a share of ``late``."""
        for node in self.ids:
            if node == 1 or self.rng.random() >= late:
                self.now = self.rng.uniform(0.0, 0.6)
                self.add("start", node)
                self.up.add(node)
        self.now = self.rng.uniform(0.5, 2.3)

    def wait(self, longest: float = 1.5) -> None:
        """Let some time pass, often next to none."""
        self.now += min(self.rng.choice(GAPS_S), longest) * self.rng.random() * 2

    def one(self, nodes: set[int] | list[int]) -> int:
        """Return one of ``nodes``, or of all if there are none."""
        return self.rng.choice(sorted(nodes) or self.ids)

    def done(self) -> tuple[Action, ...]:
        """Return the actions in their order."""
        return tuple(sorted(self.actions, key=lambda action: action.at))


def happen(agenda: Agenda, kind: str) -> None:
    """Put one thing of ``kind`` down."""
    rng, ids, up = agenda.rng, agenda.ids, agenda.up
    match kind:
        case "crash" | "kill" | "stop":
            node = agenda.one(up)
            agenda.add(kind, node, value="now" if kind == "stop" and rng.random() < 0.3 else 0.0)
            up.discard(node)
        case "restart":
            node = agenda.one(up)
            agenda.add(rng.choice(["crash", "kill"]), node)
            agenda.wait()
            agenda.add("forget" if rng.random() < 0.4 else "start", node)
        case "deaf":
            node = agenda.one(set(ids))
            agenda.add("crash", node)
            for other in ids:
                if other != node and rng.random() < 0.8:
                    agenda.add("cut", other, node, value="one-way")
            agenda.add("start", node)
            # What the node does next may be done at the moment at which it has listened for long enough.
            agenda.now += rng.uniform(0.48, 0.53)
            agenda.add("power", node, value=2)
        case "mute":
            node = agenda.one(up)
            for other in ids:
                if other != node and rng.random() < 0.9:
                    agenda.add("cut", node, other, value="one-way")
            agenda.now += 0.7
        case "burst":
            for node in rng.choices(ids, k=rng.randint(2, 4)):
                agenda.add("power", node, value=rng.choice([1, 2, 5]))
                agenda.now += 0.01 * rng.random()
        case "replay":
            node = agenda.one(set(ids) - up)
            agenda.add("crash", node)
            agenda.add("replay", node)
            up.discard(node)
            agenda.replayed.add(node)
        case "start":
            node = agenda.one(set(ids) - up)
            agenda.add("start", node)
            up.add(node)
        case "upgrade":
            agenda.add("upgrade", agenda.one(up), value=round(rng.uniform(0.01, 0.8), 3))
        case "freeze":
            agenda.add("freeze", agenda.one(up), value=rng.choice(FREEZES_S))
        case "pause":
            agenda.add("pause", agenda.one(up), value=rng.choice(PAUSES_S))
        case "health":
            agenda.add(rng.choice(["healthy", "unhealthy"]), agenda.one(up))
        case "fit":
            for node in rng.sample(ids, rng.randint(1, len(ids))):
                agenda.add("fit", node, value=rng.choice(FITNESSES))
                agenda.now += rng.choice([0.0, 0.01, 0.3]) * rng.random()
        case "damage":
            agenda.add("damage", agenda.one(up))
        case "admin":
            what = rng.choice(["drain", "stop", "run", "run"])
            agenda.add("admin", agenda.one(up), value=what + (" now" if rng.random() < 0.2 else ""))
        case "power":
            agenda.add("power", agenda.one(up), value=rng.choice([0, 1, 2, 5]))
        case "cut" | "one-way":
            agenda.add("cut", *rng.sample(ids, 2), value="one-way" if kind == "one-way" else 0.0)
        case "partition":
            agenda.add("partition", *sorted(rng.sample(ids, rng.randint(1, len(ids) - 1))))
        case "network":
            agenda.add("network", value=rng.choice([0, 1]))
        case _:
            agenda.add(kind)
