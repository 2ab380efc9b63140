"""The state machine of a node: events in, commands out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.core.words import plan, settings, word

from nlbfarm.core.buckets import ALL
from nlbfarm.core.commands import (
    ApplyFilter,
    AskFlows,
    Command,
    Forgotten,
    Halted,
    ProbeReachability,
    Report,
    SaveIncarnation,
    Send,
    SetLease,
    Stopped,
)
from nlbfarm.core.events import (
    AdminChanged,
    Event,
    FilterApplied,
    FilterDamaged,
    FilterRepaired,
    FlowsLeft,
    MessageArrived,
    PeerRefused,
    PowersChanged,
    Reachability,
    ResourceChanged,
    SettingsChanged,
    StopRequested,
    TimerFired,
)
from nlbfarm.core.node import Node
from nlbfarm.core.settings import Admin, Settings
from nlbfarm.core.wire import Epoch, Heartbeat, NodeState

PAIR = {1: "web1", 2: "web2"}


class Play:
    """Drives one node by hand."""

    def __init__(
        self, configured: Settings, incarnation: int = 100, at: float = 1000.0, **options: object
    ) -> None:
        self.now = at
        self.flows: dict[str, dict[int, int]] = {}
        self.node = Node(configured, incarnation, at, **options)  # type: ignore[arg-type]
        self.commands: list[Command] = []

    def feed(self, event: Event) -> list[Command]:
        done = self.node.handle(event, self.now)
        self.commands += done
        return done

    def run(self, seconds: float, *, apply: bool = True) -> list[Command]:
        """Let time pass; the filter does at once what it is asked, and ``flows`` are what is left."""
        end = self.now + seconds
        first = len(self.commands)
        while self.node.timer() <= end:
            self.now = max(self.now, self.node.timer())
            self._settle(self.feed(TimerFired()), apply)
        self.now = end
        return self.commands[first:]

    def hear(self, heartbeat: Heartbeat) -> list[Command]:
        done = self.feed(MessageArrived(heartbeat, 0, self.now))
        self._settle(done, True)
        return done

    def _settle(self, commands: list[Command], apply: bool) -> None:
        for command in commands:
            if isinstance(command, ApplyFilter) and apply:
                self._settle(self.feed(FilterApplied(command.serial)), apply)
            if isinstance(command, AskFlows):
                self._settle(self.feed(FlowsLeft(command.serial, self.flows)), apply)


def of(kind: type, commands: list[Command]) -> list[Command]:
    return [command for command in commands if isinstance(command, kind)]


def beats(commands: list[Command]) -> list[Heartbeat]:
    return [c.message for c in commands if isinstance(c, Send) and isinstance(c.message, Heartbeat)]


def alone() -> Play:
    """Return a node of a pair that serves everything by itself."""
    play = Play(settings(nodes=PAIR))
    play.run(2.0)
    assert play.node.holding == (ALL,)
    return play


def test_a_node_first_listens_then_forms_a_view_then_waits_then_serves() -> None:
    play = Play(settings(nodes=PAIR))
    done = play.run(0.49)
    assert [beat.sequence for beat in beats(done)] == [1, 2, 3, 4, 5]
    assert not of(SetLease, done)
    assert not any(beat.inside for beat in beats(done))
    done = play.run(0.49)
    assert play.node.membership.plan is not None
    assert not of(ApplyFilter, done)
    done = play.run(0.1)
    assert [c.states["web"].adopt for c in of(ApplyFilter, done)] == [ALL]  # type: ignore[attr-defined]
    assert play.node.lease_until > play.now
    play.run(13.0)
    assert play.node.applied[0].adopt == ALL  # somebody may come back for his connections
    play.run(1.0)
    assert play.node.applied[0].own == ALL


def test_a_bucket_is_announced_before_the_filter_is_asked_to_accept_it() -> None:
    play = Play(settings(nodes=PAIR))
    done = play.run(1.1, apply=False)
    asked = next(i for i, c in enumerate(done) if isinstance(c, ApplyFilter))
    told = next(
        i
        for i, c in enumerate(done)
        if isinstance(c, Send) and isinstance(c.message, Heartbeat) and c.message.holding == (ALL,)
    )
    assert told < asked


def test_a_bucket_stays_announced_until_the_filter_has_let_go_of_it() -> None:
    play = alone()
    theirs = plan(9, {1: 100, 2: 1}, owner=2)
    done = play.feed(MessageArrived(word(2, follows=theirs), 0, play.now))
    change = of(ApplyFilter, done)[0]
    assert isinstance(change, ApplyFilter)
    assert change.states["web"].own == 0
    assert beats(done)[-1].holding == (ALL,)
    assert beats(play.feed(FilterApplied(change.serial)))[-1].holding == (0,)


def test_an_answer_of_the_filter_that_nobody_asked_for_changes_nothing() -> None:
    play = alone()
    before = play.node.applied
    with pytest.raises(ValueError, match="no filter change 99"):
        play.feed(FilterApplied(99))
    assert play.node.applied == before


def test_the_lease_is_renewed_every_interval_for_the_configured_time() -> None:
    play = alone()
    renewals = [c.until - 0.3 for c in of(SetLease, play.run(1.0))]  # type: ignore[attr-defined]
    assert len(renewals) == 10


def test_after_a_late_turn_the_lease_is_over_and_buckets_are_taken_anew() -> None:
    play = alone()
    play.now += 2.0
    first = play.feed(TimerFired())
    assert [c for c in of(Report, first) if c.event == "node.late"]  # type: ignore[attr-defined]
    assert not of(SetLease, first)
    assert [c.states["web"].own for c in of(ApplyFilter, first)] == [0]  # type: ignore[attr-defined]
    play._settle(first, True)
    assert play.node.lease_until <= play.now
    play.run(0.4)
    assert play.node.lease_until <= play.now
    play.run(0.3)
    assert play.node.lease_until > play.now
    assert play.node.holding == (ALL,)


def test_a_node_that_woke_listens_though_it_hears_an_outsider() -> None:
    """Somebody may serve since whom it has not heard yet; the outsider says nothing about that."""
    play = alone()
    play.now += 2.0
    play.run(0.001)
    assert play.node.lease_until <= play.now
    since = play.now
    for sequence in range(1, 5):
        play.hear(word(2, sequence, hears={1: (play.node.incarnation, play.node.sequence)}))
        play.run(0.1)
        assert play.node.lease_until <= play.now or play.now - since >= 0.45
    play.run(0.1)
    assert play.now - since >= 0.45
    assert play.node.lease_until > play.now


def test_what_was_queued_during_a_freeze_is_read_before_anything_is_decided() -> None:
    play = alone()
    play.now += 2.0
    theirs = plan(9, {2: 1, 3: 1}, owner=2)
    assert play.feed(MessageArrived(word(2, 1, follows=theirs, holding=ALL), 0, play.now - 1.0)) == []
    assert play.node.membership.plan is not None
    play.run(0.001)
    assert play.node.membership.plan is None
    assert play.node.holding == (0,)


def test_a_node_does_not_serve_against_a_peer_that_it_hears_but_that_does_not_hear_it() -> None:
    play = alone()
    theirs = plan(9, {2: 1}, owner=2)
    for sequence in range(1, 10):
        play.hear(word(2, sequence, follows=theirs, holding=ALL))
        play.run(0.1)
    assert play.node.lease_until <= play.now


def test_an_overdue_acknowledgement_asks_for_an_answer_and_is_answered_to_the_asker_only() -> None:
    play = alone()
    play.hear(word(2, 1))
    done = play.run(0.1)
    assert not any(beat.answer_now for beat in beats(done))
    play.hear(word(2, 2))
    done = play.run(0.2)
    assert beats(done)[-1].answer_now
    done = play.hear(word(2, 3, answer_now=True))
    answers = [c for c in of(Send, done) if c.nodes == (2,)]  # type: ignore[attr-defined]
    assert len(answers) == 1
    assert not answers[0].message.answer_now  # type: ignore[attr-defined]


def test_words_of_strangers_and_of_its_own_id_are_ignored() -> None:
    play = alone()
    before = (play.node.membership.known_epoch, dict(play.node.hearing.peers))
    play.hear(word(77, known=Epoch(1000, 77)))
    play.hear(word(1, known=Epoch(1000, 1)))
    assert (play.node.membership.known_epoch, dict(play.node.hearing.peers)) == before


def test_a_replay_from_an_earlier_life_changes_nothing_and_is_reported() -> None:
    play = alone()
    play.hear(word(2, 1, incarnation=50))
    before = play.node.membership.known_epoch
    done = play.hear(word(2, 900, incarnation=49, known=Epoch(999, 2)))
    assert [c.event for c in of(Report, done)] == ["peer.old_life"]  # type: ignore[attr-defined]
    assert play.node.membership.known_epoch == before


def test_a_node_that_is_remembered_with_a_higher_incarnation_jumps_above_it() -> None:
    play = alone()
    done = play.hear(word(2, hears={1: (555, 3)}))
    assert [c.incarnation for c in of(SaveIncarnation, done)] == [556]  # type: ignore[attr-defined]
    assert play.node.incarnation == 556
    assert play.node.membership.plan is None
    assert play.node.holding == (0,)


def test_a_jump_is_acted_on_at_once_even_if_the_word_is_overtaken() -> None:
    play = alone()
    for sequence in (1, 2, 3):
        play.hear(word(2, sequence, hears={1: (100, play.node.sequence)}))
        play.run(0.1)
    quiet = word(2, 4, hears={1: (100, play.node.sequence)})
    assert play.hear(quiet) == []
    # Overtaken on the way: it says nothing new of its sender, but something of us.
    done = play.hear(word(2, 3, hears={1: (101, 1)}))
    assert of(SaveIncarnation, done)
    assert play.node.holding == (0,)


def test_two_nodes_with_one_id_stop_chasing_each_other_and_say_so() -> None:
    play = alone()
    for jump in range(3):
        play.hear(word(2, jump + 1, hears={1: (play.node.incarnation + 1, 3)}))
    assert play.node.state is NodeState.WAIT
    assert "id 1" in play.node.reason


def test_a_resource_that_is_missing_makes_the_node_wait_with_the_reason() -> None:
    play = Play(settings(nodes=PAIR))
    play.node.condition.learn("page", None, "")
    assert (play.node.state, play.node.reason) == (NodeState.STARTING, "waiting for page")
    play.feed(ResourceChanged("page", ok=False, reason="page: HTTP 503"))
    assert (play.node.state, play.node.reason) == (NodeState.WAIT, "page: HTTP 503")
    play.run(2.0)
    assert play.node.holding == (0,)
    play.feed(ResourceChanged("page", ok=True))
    assert play.node.state is NodeState.UP
    play.run(0.6)
    assert play.node.holding == (ALL,)


def test_a_damaged_filter_ends_the_lease_at_once_and_a_repaired_one_serves_again() -> None:
    play = alone()
    done = play.feed(FilterDamaged("somebody flushed it"))
    assert [c.until for c in of(SetLease, done)] == [play.now]  # type: ignore[attr-defined]
    assert not of(SetLease, play.run(0.5))
    play._settle(play.feed(FilterRepaired()), True)
    play.run(0.2)
    assert play.node.holding == (ALL,)
    assert play.node.lease_until > play.now


def test_a_node_that_leaves_lets_go_says_so_three_times_and_is_done() -> None:
    play = alone()
    play._settle(play.feed(StopRequested()), True)
    done = play.run(1.0)
    farewells = [beat for beat in beats(play.commands) if beat.state is NodeState.STOP]
    assert len(farewells) >= 3
    assert not any(beat.inside or any(beat.holding) for beat in farewells)
    assert isinstance(done[-1], Stopped)
    assert play.feed(TimerFired()) == []


def test_a_stopping_node_waits_for_the_plan_that_takes_its_buckets() -> None:
    play = alone()
    both = plan(9, {1: 100, 2: 1}, owner=1, leader=2)
    play.hear(word(2, 1, follows=both, hears={1: (100, play.node.sequence)}))
    play.run(0.1)
    play.hear(word(2, 2, follows=both, hears={1: (100, play.node.sequence)}))
    play._settle(play.feed(StopRequested()), True)
    assert play.node.holding == (ALL,)
    after = plan(10, {1: 100, 2: 1}, owner=2, leader=2)
    play.hear(word(2, 3, follows=after, hears={1: (100, play.node.sequence)}))
    assert play.node.holding == (0,)


def test_of_three_a_node_that_hears_nobody_while_all_answer_arp_waits_and_says_so() -> None:
    play = Play(settings())
    assert of(ProbeReachability, play.feed(TimerFired()))
    play.feed(Reachability(frozenset({2, 3})))
    play.run(3.0)
    assert play.node.holding == (0,)
    assert play.node.state is NodeState.WAIT
    assert "firewall" in play.node.reason
    play.hear(word(2, 1))
    assert play.node.state is NodeState.UP


def test_a_deaf_node_serves_when_its_peers_are_gone() -> None:
    play = Play(settings())
    play.feed(TimerFired())
    play.feed(Reachability(frozenset({2, 3})))
    play.run(1.0)
    assert play.node.state is NodeState.WAIT
    play.feed(PeerRefused(2))
    play.feed(PeerRefused(3))
    assert of(ProbeReachability, play.run(1.5))
    play.feed(Reachability(frozenset({2, 3})))
    play.run(1.5)
    assert play.node.holding == (ALL,)


def test_a_deaf_node_that_is_left_with_one_peer_serves() -> None:
    play = Play(settings())
    play.feed(TimerFired())
    play.feed(Reachability(frozenset({2, 3})))
    play.run(1.0)
    assert play.node.state is NodeState.WAIT
    play.feed(SettingsChanged(replace(play.node.settings, nodes=PAIR)))
    play.run(1.5)
    assert play.node.holding == (ALL,)


@pytest.mark.parametrize("answering", [frozenset(), frozenset({2}), frozenset({2, 9})])
def test_of_three_a_node_whose_peers_do_not_all_answer_arp_serves(answering: frozenset[int]) -> None:
    play = Play(settings())
    play.feed(TimerFired())
    play.feed(Reachability(answering))
    play.run(2.0)
    assert play.node.holding == (ALL,)


def test_the_good_bye_of_the_last_peer_makes_nobody_deaf() -> None:
    play = alone()
    both = plan(9, {1: 100, 2: 1}, owner=1, leader=2)
    play.hear(word(2, 1, follows=both, draining=0b1, hears={1: (100, play.node.sequence)}))
    play.feed(SettingsChanged(replace(play.node.settings, nodes={1: "web1", 3: "web3", 4: "web4"})))
    play.hear(word(2, 2, state=NodeState.STOP, known=both.view.epoch))
    play.feed(Reachability(frozenset({3, 4})))
    play.run(1.0)
    assert play.node.state is NodeState.UP
    assert play.node.holding == (ALL,)


def test_hosts_that_refuse_our_heartbeats_run_no_node() -> None:
    play = Play(settings())
    play.feed(TimerFired())
    play.feed(Reachability(frozenset({2, 3})))
    play.feed(PeerRefused(3))
    play.run(2.0)
    assert play.node.holding == (ALL,)


def test_a_peer_configured_otherwise_is_not_taken_in() -> None:
    play = alone()
    for sequence in range(1, 20):
        heard = {1: (play.node.incarnation, play.node.sequence)}
        defers = play.node.membership.plan.view if play.node.membership.plan else None
        play.hear(
            word(
                2,
                sequence,
                defers=defers,
                hears=heard,
                known=play.node.membership.known_epoch,
                config_digest=b"other.." + b"!",
            )
        )
        play.run(0.1)
    assert play.node.membership.plan is not None
    assert [member.node for member in play.node.membership.plan.view.members] == [1]
    assert play.node.holding == (ALL,)
    assert play.node.lease_until > play.now


def test_a_lost_network_is_a_warning_and_nothing_else() -> None:
    play = alone()
    told: list[Command] = []
    for sequence in range(1, 15):
        heard = word(2, sequence, hears={1: (play.node.incarnation, play.node.sequence)})
        told += play.hear(heard)
        if sequence < 5 or sequence > 12:
            told += play.feed(MessageArrived(heard, 1, play.now))
        told += play.run(0.1)
    events = [(c.event, c.fields["network"]) for c in of(Report, told) if "network" in c.event]  # type: ignore[attr-defined]
    assert events == [("peer.network_lost", 1), ("peer.network_back", 1)]
    assert not [c for c in of(Report, told) if c.event == "peer.lost"]  # type: ignore[attr-defined]


# -- the administrator ---------------------------------------------------------------------


def test_a_drained_node_owns_nothing_and_serves_its_connections_to_their_end() -> None:
    play = alone()
    play.flows = {"web": {7: 1}}
    play._settle(play.feed(AdminChanged(Admin.DRAIN)), True)
    play.run(2.0)
    assert (play.node.state, play.node.reason) == (NodeState.DRAINING, "asked to drain by the administrator")
    assert (play.node.holding, play.node.draining) == ((0,), (1 << 7,))
    assert play.node.flows_left == {"web": {7: 1}}
    assert play.node.membership.plan is not None
    assert play.node.lease_until > play.now
    play.flows = {}
    play.run(2.0)
    assert play.node.draining == (0,)
    play._settle(play.feed(AdminChanged(Admin.RUN)), True)
    play.run(2.0)
    assert (play.node.state, play.node.holding) == (NodeState.UP, (ALL,))


def test_drained_at_once_it_does_not_wait() -> None:
    play = alone()
    play.flows = {"web": {7: 1}}
    play._settle(play.feed(AdminChanged(Admin.DRAIN, at_once=True)), True)
    play.run(0.5)
    assert (play.node.holding, play.node.draining) == ((0,), (0,))


def test_a_stopped_node_drains_leaves_and_can_be_started_again() -> None:
    play = alone()
    play.flows = {"web": {7: 1}}
    done = play.feed(AdminChanged(Admin.STOP))
    play._settle(done, True)
    done += play.run(3.0)
    assert not of(Halted, done)
    assert play.node.lease_until > play.now
    play.flows = {}
    done = play.run(3.0)
    assert len(of(Halted, done)) == 1
    assert (play.node.state, play.node.reason) == (NodeState.STOP, "stopped by the administrator")
    assert beats(done)[-1].state is NodeState.STOP
    assert play.node.lease_until <= play.now
    play._settle(play.feed(AdminChanged(Admin.RUN)), True)
    play.run(3.0)
    assert (play.node.state, play.node.holding) == (NodeState.UP, (ALL,))


def test_a_node_that_was_stopped_starts_stopped_and_its_process_can_end() -> None:
    play = Play(settings(nodes=PAIR), admin=Admin.STOP)
    done = play.run(3.0)
    assert len(of(Halted, done)) == 1
    assert not of(ApplyFilter, done)
    assert play.node.state is NodeState.STOP
    play.feed(StopRequested())
    assert of(Stopped, play.run(1.0))


def test_a_process_that_ends_drains_no_longer_than_its_timeout() -> None:
    play = Play(settings(nodes=PAIR, drain_timeout=5.0))
    play.run(2.0)
    play.flows = {"web": {7: 1}}
    play._settle(play.feed(StopRequested()), True)
    assert not of(Stopped, play.run(4.5))
    assert of(Stopped, play.run(1.5))


def test_a_process_that_will_be_back_announces_its_connections_to_the_last() -> None:
    play = alone()
    play.flows = {"web": {7: 1, 9: 4}}
    done = play.feed(StopRequested(returning=True))
    play._settle(done, True)
    done += play.run(1.0)
    assert of(Stopped, done)
    last = beats(done)[-1]
    assert (last.state, last.holding) == (NodeState.STOP, (0,))
    assert last.draining[0] & (1 << 7 | 1 << 9) == 1 << 7 | 1 << 9


def test_connections_of_the_process_before_are_drained_as_soon_as_there_is_a_lease() -> None:
    play = Play(settings(nodes=PAIR), flows={"web": {7: 1}})
    play.flows = {"web": {7: 1}}
    done = play.run(0.4)
    assert [c.states["web"].drain for c in of(ApplyFilter, done)] == [1 << 7]  # type: ignore[attr-defined]
    assert all(beat.draining == (1 << 7,) for beat in beats(done))
    play.run(1.0)
    assert play.node.holding == (ALL,)


def test_powers_are_told_at_once() -> None:
    play = alone()
    assert [beat.powers for beat in beats(play.feed(PowersChanged((7,))))] == [(7,)]
    with pytest.raises(ValueError, match="powers"):
        play.feed(PowersChanged((7, 8)))
    assert play.node.powers == (7,)


def test_other_settings_add_nodes_and_retire_others() -> None:
    play = alone()
    before = play.node.settings
    done = play.feed(SettingsChanged(replace(before, nodes={1: "web1", 3: "web3"}, drain_timeout=9.0)))
    assert of(Forgotten, done) == [Forgotten(2)]
    assert play.node.settings.nodes == {1: "web1", 3: "web3"}
    play.hear(word(3))
    assert [peer.node for peer in play.node.hearing.heard(play.now)] == [3]
    with pytest.raises(ValueError, match="more has changed"):
        play.feed(SettingsChanged(replace(play.node.settings, lease=0.2)))


def test_a_node_that_is_no_longer_configured_counts_until_it_has_stopped() -> None:
    play = alone()
    play.hear(word(2, holding=0b1))
    done = play.feed(SettingsChanged(replace(play.node.settings, nodes={1: "web1"})))
    assert play.node.retired == {2}
    assert not of(Forgotten, done)
    assert not of(Forgotten, play.hear(word(2, sequence=2)))
    assert not of(Forgotten, play.hear(word(2, sequence=3, state=NodeState.STOP)))
    assert not of(Forgotten, play.run(0.4))
    assert of(Forgotten, play.run(0.2)) == [Forgotten(2)]
    assert play.node.retired == frozenset()
    assert play.node.settings.nodes == {1: "web1"}


def test_a_retired_node_that_falls_silent_is_forgotten_much_later() -> None:
    play = alone()
    play.hear(word(2))
    play.feed(SettingsChanged(replace(play.node.settings, nodes={1: "web1"})))
    assert not of(Forgotten, play.run(599.0))
    assert of(Forgotten, play.run(2.0)) == [Forgotten(2)]


def test_started_at_once_is_started() -> None:
    play = alone()
    play._settle(play.feed(AdminChanged(Admin.RUN, at_once=True)), True)
    play.flows = {"web": {7: 1}}
    play._settle(play.feed(AdminChanged(Admin.DRAIN)), True)
    play.run(2.0)
    assert play.node.draining == (1 << 7,)


def test_numbers_that_nobody_can_count_on_from_are_not_believed() -> None:
    play = alone()
    for odd in (
        word(2, known=Epoch(2**64 - 1, 2)),
        word(2, incarnation=2**64 - 1),
        word(2, hears={1: (2**64 - 1, 1)}),
    ):
        done = play.hear(odd)
        assert [c.event for c in of(Report, done)] == ["peer.unbelievable"]  # type: ignore[attr-defined]
    assert list(play.node.hearing.heard(play.now)) == []


def test_a_node_that_was_stopped_with_connections_left_waits_to_be_taken_in_and_drains_them() -> None:
    play = Play(settings(nodes=PAIR), admin=Admin.STOP, flows={"web": {7: 1}})
    play.flows = {"web": {7: 1}}
    done = play.run(0.9)
    assert not of(Halted, done)
    assert play.node.draining == (1 << 7,)
    assert of(Halted, play.run(0.3))


def test_a_leader_whose_only_peer_died_does_not_leave_its_view() -> None:
    """It once left as unacknowledged just before the peer was lost, and served nothing for a second."""
    play = alone()
    plan_ = play.node.membership.plan
    assert plan_ is not None
    for sequence in range(1, 12):
        sent = beats(play.run(0.1))[-1]
        inside = play.node.membership.plan
        assert inside is not None
        play.hear(
            word(
                2,
                sequence,
                follows=inside if 2 in [m.node for m in inside.view.members] else None,
                hears={1: (sent.incarnation, sent.sequence)},
            )
        )
    assert play.node.leader(play.now) == 1
    done = play.run(2.0)
    assert "view.left" not in [c.event for c in of(Report, done)]  # type: ignore[attr-defined]
    assert play.node.holding == (ALL,)
