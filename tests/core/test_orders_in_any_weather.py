"""Orders over a network that loses, repeats, reorders and replays, between nodes that restart.

What must hold whatever happens: an order is carried out at most once, in no other life than the one it was
given for, and never after it was held back for long; "done" was done.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
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
nodes = st.sampled_from(NODES)
some = st.integers(0, 1 << 16)


@dataclass
class Host:
    """A node: its life, whom it hears, what it is carrying out."""

    node: int
    incarnation: int
    sequence: int = 1
    orders: Orders = field(init=False)
    heard: dict[int, Life] = field(default_factory=dict)
    under_way: list[Execute] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.orders = Orders(self.node, NAMES, INTERVAL)

    @property
    def lives(self) -> dict[int, Life]:
        return {**self.heard, self.node: Life(self.incarnation, self.sequence)}


Key = tuple[int, int, int]
"""Sender, its incarnation, number."""


class Weather(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.incarnations = {node: 100 * node for node in NODES}
        self.hosts = {node: Host(node, self.incarnations[node]) for node in NODES}
        self.network: list[tuple[int, bytes]] = []
        self.recorded: list[tuple[int, bytes]] = []
        """What an attacker keeps: every datagram ever sent."""
        self.sent_in: dict[Key, set[tuple[int, int]]] = {}
        """For each order the targets and lives that it was sent to."""
        self.executed: Counter[Key] = Counter()
        self.succeeded: set[Key] = set()
        self.failed: set[Key] = set()
        self.waiting: dict[Key, bool] = {}
        """The orders given, and whether the word on them got lost with the orderer's life."""
        self.outcomes: dict[Key, Result] = {}
        self.open: Counter[int] = Counter()
        """How many orders of each orderer's process have no outcome yet."""

    # -- what happens ----------------------------------------------------------------------

    @rule(giver=nodes, taker=nodes)
    def give(self, giver: int, taker: int) -> None:
        host = self.hosts[giver]
        try:
            number = host.orders.give(taker, "drain", f'{{"n": {giver}}}', host.lives, self.now)
        except UsageError:
            assert taker == giver or taker not in host.heard or self.open[giver] == MOST_GIVEN
            return
        self.open[giver] += 1
        self.follow(host, host.orders.fired(host.lives, self.now))
        assert number > 0

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.2, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for host in self.hosts.values():
            host.sequence += max(1, round(seconds / INTERVAL))
            self.fire(host)

    def fire(self, host: Host) -> None:
        due = host.orders.timer()
        if due is not None and due <= self.now:
            self.follow(host, host.orders.fired(host.lives, self.now))

    @rule(hearer=nodes, speaker=nodes)
    def hear(self, hearer: int, speaker: int) -> None:
        one, other = self.hosts[hearer], self.hosts[speaker]
        known = one.heard.get(speaker, Life(0, 0))
        if hearer != speaker and (other.incarnation, other.sequence) > known:
            one.heard[speaker] = Life(other.incarnation, other.sequence)

    @rule()
    def all_hear(self) -> None:
        for hearer in NODES:
            for speaker in NODES:
                self.hear(hearer, speaker)

    @rule(hearer=nodes, speaker=nodes)
    def believe_in_an_old_life(self, hearer: int, speaker: int) -> None:
        """A node that has just started hears, as the first word of a peer, the replay of an earlier life."""
        if hearer != speaker and speaker not in self.hosts[hearer].heard:
            self.hosts[hearer].heard[speaker] = Life(self.incarnations[speaker] - 1, 1)

    @rule(hearer=nodes, speaker=nodes)
    def lose(self, hearer: int, speaker: int) -> None:
        self.hosts[hearer].heard.pop(speaker, None)

    @precondition(lambda self: self.network)
    @rule(which=some, keep=st.booleans())
    def deliver(self, which: int, keep: bool) -> None:
        """Deliver any datagram that is under way; ``keep``: it will come again."""
        index = which % len(self.network)
        target, data = self.network[index] if keep else self.network.pop(index)
        self.receive(target, data)

    @rule()
    def deliver_all(self) -> None:
        queued, self.network = self.network, []
        for target, data in queued:
            self.receive(target, data)

    @precondition(lambda self: self.network)
    @rule(which=some)
    def drop(self, which: int) -> None:
        self.network.pop(which % len(self.network))

    @precondition(lambda self: self.recorded)
    @rule(which=some)
    def replay(self, which: int) -> None:
        self.receive(*self.recorded[which % len(self.recorded)])

    @rule(node=nodes)
    def restart(self, node: int) -> None:
        self.incarnations[node] += 2
        self.hosts[node] = Host(node, self.incarnations[node])
        self.open[node] = 0
        for key in self.waiting:
            if key[0] == node:
                self.waiting[key] = True

    @rule(node=nodes)
    def jump(self, node: int) -> None:
        """Begin a new life in the same process: a peer had echoed a higher incarnation."""
        self.incarnations[node] += 2
        self.hosts[node].incarnation = self.incarnations[node]
        self.hosts[node].sequence = 1

    @rule(node=nodes, which=some, ok=st.booleans())
    def finish(self, node: int, which: int, ok: bool) -> None:
        host = self.hosts[node]
        if host.under_way:
            self.finish_one(host, host.under_way.pop(which % len(host.under_way)), ok)

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
        if any(isinstance(action, Execute) for action in actions):
            assert isinstance(message, Order)
            assert host.incarnation == message.target_incarnation, "meant for another life"
            assert host.sequence - message.target_sequence <= FRESH, "held back"
        assert len(actions) <= 2, "an amplifier"
        self.follow(host, actions)

    def follow(self, host: Host, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case SendOrder(message, node):
                    if isinstance(message, Order):
                        assert message.sender == host.node
                        key = message.sender, message.incarnation, message.number
                        self.waiting.setdefault(key, False)
                        lives = self.sent_in.setdefault(key, set())
                        lives.add((message.target, message.target_incarnation))
                        assert len(lives) == 1, "one order for two lives"
                    data = CODEC.encode(message)
                    self.network.append((node, data))
                    self.recorded.append((node, data))
                case Execute(sender, incarnation, number):
                    self.executed[sender, incarnation, number] += 1
                    host.under_way.append(action)
                case Outcome(number, result):
                    (key,) = [
                        key
                        for key in self.waiting
                        if key[::2] == (host.node, number) and not self.waiting[key]
                    ]
                    assert key not in self.outcomes, "two outcomes"
                    self.outcomes[key] = result
                    self.waiting[key] = True
                    self.open[host.node] -= 1
                case Accepted():
                    pass

    @invariant()
    def at_most_once(self) -> None:
        assert not self.executed or max(self.executed.values()) == 1

    @invariant()
    def outcomes_are_true(self) -> None:
        for key, result in self.outcomes.items():
            if result is Result.DONE:
                assert self.executed[key] == 1
                assert key in self.succeeded
            elif result is Result.FAILED:
                assert key in self.failed
            elif result is Result.REFUSED:
                assert self.executed[key] == 0

    def teardown(self) -> None:
        """In good weather everything that was given comes to an end, and soon."""
        for _ in range(40):
            self.all_hear()
            self.deliver_all()
            for host in self.hosts.values():
                while host.under_way:
                    self.finish_one(host, host.under_way.pop(), True)
            self.deliver_all()
            self.wait(0.2)
        for host in self.hosts.values():
            if self.open[host.node] < 40:
                assert host.orders.timer() is None
            assert len(host.orders._orderers) <= len(NODES)
        self.at_most_once()
        self.outcomes_are_true()


Weather.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestOrdersInAnyWeather = Weather.TestCase
