"""Orders over a network that loses, repeats, reorders and replays, between nodes that restart.

What must hold whatever happens: an order is carried out at most once, in the life that it was given for, in
the order of the numbers, and never after it was held back for long; what is said of its end is true.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.wire_words import CODEC

from nlbfarm.core.orders import (
    FRESH,
    MOST_GIVEN,
    Accepted,
    Action,
    Execute,
    Life,
    Orders,
    Outcome,
    Result,
    SendOrder,
)
from nlbfarm.core.wire import Order, OrderAnswer
from nlbfarm.errors import UsageError

INTERVAL = 0.1
NODES = (1, 2, 3)
NAMES = {node: f"web{node}" for node in NODES}

Key = tuple[int, int, int]
"""Sender, its incarnation, number."""


@dataclass
class Host:
    """A node: its life, whom it hears, what it is carrying out."""

    node: int
    incarnation: int
    sequence: int = 1
    orders: Orders = field(init=False)
    heard: dict[int, Life] = field(default_factory=dict)
    under_way: list[Execute] = field(default_factory=list)
    open: int = 0
    """Orders given that have no outcome yet."""
    newest: Counter[tuple[int, int]] = field(default_factory=Counter)
    """The highest number carried out, for each life of each orderer."""

    def __post_init__(self) -> None:
        self.orders = Orders(self.node, NAMES, INTERVAL)

    @property
    def lives(self) -> dict[int, Life]:
        return {**self.heard, self.node: Life(self.incarnation, self.sequence)}


class Weather:
    """Three nodes, and everything that happens to them and to what they say."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        weights = {
            self.give: self.random.choice([3, 6, 15]),
            self.wait: 8,
            self.hear: 8,
            self.lose: 1,
            self.believe_in_an_old_life: self.random.choice([0, 2, 10]),
            self.deliver: 15,
            self.drop: self.random.choice([0, 4, 10]),
            self.replay: self.random.choice([0, 10, 20]),
            self.restart: self.random.choice([0, 0, 1, 2]),
            self.jump: self.random.choice([0, 0, 1]),
            self.finish: self.random.choice([0, 4]),
        }
        self.happens, self.weights = list(weights), list(weights.values())
        self.one_way = self.random.random() < 0.5
        """Whether one node gives all orders to one other."""
        self.now = 0.0
        self.lives = {node: [100 * node] for node in NODES}
        self.hosts = {node: Host(node, 100 * node) for node in NODES}
        self.network: list[tuple[int, bytes]] = []
        self.recorded: list[tuple[int, bytes]] = []
        """What an attacker keeps: every datagram ever sent."""
        self.meant_for: dict[Key, tuple[int, int]] = {}
        self.executed: Counter[Key] = Counter()
        self.succeeded: set[Key] = set()
        self.failed: set[Key] = set()
        self.waiting: set[Key] = set()
        """Orders sent whose orderer's process waits for the outcome."""
        self.outcomes: dict[Key, Result] = {}

    # -- what happens ----------------------------------------------------------------------

    def step(self) -> None:
        (what,) = self.random.choices(self.happens, self.weights)
        what()

    def two(self) -> tuple[Host, Host]:
        one, other = self.random.sample(NODES, 2)
        return self.hosts[one], self.hosts[other]

    def give(self) -> None:
        giver, taker = (self.hosts[1], self.hosts[2]) if self.one_way else self.two()
        try:
            giver.orders.give(taker.node, "drain", "{}", giver.lives, self.now)
        except UsageError:
            assert taker.node not in giver.heard or giver.open == MOST_GIVEN
            return
        giver.open += 1
        self.follow(giver, giver.orders.fired(giver.lives, self.now))

    def wait(self, seconds: float | None = None) -> None:
        if seconds is None:
            seconds = self.random.choice([0.01, 0.1, 0.1, 0.2, 0.2, 1.0, 3.0, 1.1 * FRESH * INTERVAL])
        self.now += seconds
        for host in self.hosts.values():
            host.sequence += max(1, round(seconds / INTERVAL))
            due = host.orders.timer()
            if due is not None and due <= self.now:
                self.follow(host, host.orders.fired(host.lives, self.now))

    def hear(self) -> None:
        for hearer in self.hosts.values():
            for other in self.hosts.values():
                life = Life(other.incarnation, other.sequence)
                if hearer is not other and life > hearer.heard.get(other.node, Life(0, 0)):
                    hearer.heard[other.node] = life

    def lose(self) -> None:
        one, other = self.two()
        one.heard.pop(other.node, None)

    def believe_in_an_old_life(self) -> None:
        """Who knows nothing of a peer hears, as its first word, the replay of an earlier life."""
        one, other = self.two()
        if self.random.random() < 0.5:
            one.heard.pop(other.node, None)
        if other.node not in one.heard:
            one.heard[other.node] = Life(self.random.choice(self.lives[other.node][-3:]), 1)

    def deliver(self) -> None:
        if self.network:
            index = self.random.randrange(len(self.network))
            again = self.random.random() < 0.2
            self.receive(*(self.network[index] if again else self.network.pop(index)))

    def drop(self) -> None:
        if self.network:
            self.network.pop(self.random.randrange(len(self.network)))

    def replay(self) -> None:
        if self.recorded:
            recent = self.recorded[-30:] if self.random.random() < 0.7 else self.recorded
            self.receive(*self.random.choice(recent))

    def restart(self) -> None:
        host, _ = self.two()
        self.waiting = {key for key in self.waiting if key[0] != host.node}
        self.hosts[host.node] = Host(host.node, self.next_life(host.node))

    def jump(self) -> None:
        """Begin a new life in the same process: a peer had echoed a higher incarnation."""
        host, _ = self.two()
        host.incarnation, host.sequence = self.next_life(host.node), 1

    def next_life(self, node: int) -> int:
        self.lives[node].append(self.lives[node][-1] + 1)
        return self.lives[node][-1]

    def finish(self) -> None:
        host, _ = self.two()
        if host.under_way:
            index = self.random.randrange(len(host.under_way))
            self.finish_one(host, host.under_way.pop(index), self.random.random() < 0.5)

    def finish_one(self, host: Host, order: Execute, ok: bool) -> None:
        key = order.sender, order.incarnation, order.number
        (self.succeeded if ok else self.failed).add(key)
        self.follow(host, host.orders.done(*key, ok, "so", self.now))

    # -- what must hold --------------------------------------------------------------------

    def receive(self, target: int, data: bytes) -> None:
        message = CODEC.decode(data)
        assert isinstance(message, Order | OrderAnswer)
        host = self.hosts[target]
        actions = host.orders.arrived(message, host.lives, self.now)
        for action in actions:
            if isinstance(action, Execute):
                assert isinstance(message, Order)
                life = host.heard[message.sender].incarnation
                assert message.incarnation == life == action.incarnation, "of another life"
                assert message.target_incarnation == host.incarnation, "for another life"
                assert host.sequence - message.target_sequence <= FRESH, "held back"
                assert action.number > host.newest[action.sender, life], "overtaken"
                host.newest[action.sender, life] = action.number
        assert sum(isinstance(action, SendOrder) for action in actions) <= 1, "an amplifier"
        self.follow(host, actions)

    def follow(self, host: Host, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case SendOrder(message, node):
                    if isinstance(message, Order):
                        key = message.sender, message.incarnation, message.number
                        target = message.target, message.target_incarnation
                        assert self.meant_for.setdefault(key, target) == target, "for two lives"
                        self.waiting.add(key)
                    data = CODEC.encode(message)
                    self.network.append((node, data))
                    self.recorded.append((node, data))
                case Execute(sender, incarnation, number):
                    self.executed[sender, incarnation, number] += 1
                    assert self.executed[sender, incarnation, number] == 1, "carried out twice"
                    host.under_way.append(action)
                case Outcome(number, result):
                    (key,) = [key for key in self.waiting if key[::2] == (host.node, number)]
                    self.waiting.remove(key)
                    self.outcomes[key] = result
                    host.open -= 1
                    assert result is not Result.DONE or key in self.succeeded
                    assert result is not Result.FAILED or key in self.failed
                case Accepted(number, _):
                    (key,) = [key for key in self.waiting if key[::2] == (host.node, number)]
                    assert self.executed[key] == 1

    def settle(self) -> None:
        """In good weather everything that was given comes to an end, and soon."""
        for _ in range(2 * MOST_GIVEN):
            self.hear()
            while self.network:
                self.receive(*self.network.pop(0))
            for host in self.hosts.values():
                while host.under_way:
                    self.finish_one(host, host.under_way.pop(), True)
            self.wait(0.2)
        for host in self.hosts.values():
            assert (host.open, host.orders.timer()) == (0, None)
        for key, result in self.outcomes.items():
            assert result is not Result.REFUSED or self.executed[key] == 0


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_orders_in_any_weather(seed: int) -> None:
    weather = Weather(seed)
    for _ in range(300):
        weather.step()
    weather.settle()


def test_the_weather_is_bad_enough() -> None:
    """The test above sees every kind of outcome, and most orders carried out: else it would prove nothing."""
    outcomes: Counter[Result] = Counter()
    executed = 0
    for seed in range(60):
        weather = Weather(seed)
        for _ in range(300):
            weather.step()
        weather.settle()
        outcomes.update(weather.outcomes.values())
        executed += weather.executed.total()
    assert set(outcomes) == set(Result)
    assert executed > 300
