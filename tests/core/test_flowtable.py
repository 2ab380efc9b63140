"""The flow table: what begins, goes on, ends and is forgotten, and what counts meanwhile."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from nlbfarm.core.buckets import ALL
from nlbfarm.core.flowtable import LIFETIME, RESOLUTION, TCP_IDLE, FlowTable, Stage
from nlbfarm.core.packets import ACK, FIN, RST, SYN

KEY = b"a flow"
PLACE = 256 + 7
"""Group 1, bucket 7."""


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def begin(table: FlowTable, now: float, flow: bytes = KEY, place: int = PLACE) -> None:
    """Let a SYN be accepted."""
    found = table.known(flow, now)
    if found is None:
        table.add(flow, place, now)
    else:
        table.packet(found, SYN, place, now)


def send(table: FlowTable, flags: int, now: float, flow: bytes = KEY) -> None:
    """Let a packet of a known flow be accepted."""
    found = table.known(flow, now)
    assert found is not None
    table.packet(found, flags, PLACE, now)


def stage(table: FlowTable, now: float, flow: bytes = KEY) -> Stage | None:
    found = table.known(flow, now)
    return None if found is None else found.stage


def begun() -> FlowTable:
    table = FlowTable(2)
    begin(table, 0.0)
    return table


class TestTcp:
    def test_a_conversation(self) -> None:
        table = begun()
        assert stage(table, 0.0) is Stage.BEGUN
        send(table, ACK, 0.1)
        assert stage(table, 0.1) is Stage.OPEN
        send(table, ACK | FIN, 1000.0)
        assert stage(table, 1000.0) is Stage.CLOSING
        send(table, ACK, 1000.1)
        assert stage(table, 1000.1) is Stage.CLOSING, "a FIN is not taken back"
        assert table.counts(1, ALL) == {7: 1}
        table.expire(1000.1 + TCP_IDLE[Stage.CLOSING] + RESOLUTION)
        assert table.counts(1, ALL) == {}
        assert stage(table, 1010.0) is Stage.CLOSED

    @pytest.mark.parametrize(("flags", "ends"), [(None, Stage.BEGUN), (ACK, Stage.OPEN), (RST, Stage.CLOSED)])
    def test_silence(self, flags: int | None, ends: Stage) -> None:
        table = begun()
        if flags is not None:
            send(table, flags, 0.0)
        assert stage(table, TCP_IDLE[ends]) is ends
        assert stage(table, TCP_IDLE[ends] + RESOLUTION) is None
        assert len(table) == 0
        assert table.counts(1, ALL) == {}

    def test_silence_after_a_fin_counts_from_the_last_packet(self) -> None:
        table = begun()
        send(table, FIN, 0.0)
        over = TCP_IDLE[Stage.CLOSING] + TCP_IDLE[Stage.CLOSED]
        assert stage(table, over) is Stage.CLOSED
        table = begun()
        send(table, FIN, 0.0)
        assert stage(table, over + RESOLUTION) is None, "nobody looked in between"

    def test_a_half_closed_connection_goes_on(self) -> None:
        table = begun()
        send(table, FIN, 0.0)
        for now in range(3, 400, 3):
            table.expire(float(now))
            assert table.counts(1, ALL) == {7: 1}
            send(table, ACK, float(now))
        # Silent for long enough to be taken as closed, it counts again when it turns out that it is not.
        table.expire(450.0)
        assert table.counts(1, ALL) == {}
        send(table, ACK, 450.0)
        assert table.counts(1, ALL) == {7: 1}

    def test_a_made_up_rst_ends_nothing_that_goes_on(self) -> None:
        table = begun()
        send(table, ACK, 0.0)
        send(table, RST, 1.0)
        assert table.counts(1, ALL) == {}
        send(table, ACK, 2.0)
        assert stage(table, 2.0) is Stage.OPEN
        assert table.counts(1, ALL) == {7: 1}

    def test_a_syn_sent_again(self) -> None:
        table = begun()
        for now in (1.0, 3.0, 7.0, 15.0):
            begin(table, now)
            assert stage(table, now) is Stage.BEGUN
        send(table, ACK, 16.0)
        begin(table, 17.0)
        assert stage(table, 17.0) is Stage.OPEN
        assert len(table) == 1

    @pytest.mark.parametrize("end", [FIN, RST])
    def test_a_port_used_again(self, end: int) -> None:
        table = begun()
        send(table, ACK, 0.0)
        send(table, end, 1.0)
        begin(table, 2.0, KEY, PLACE + 1)
        assert stage(table, 2.0) is Stage.BEGUN
        assert table.counts(1, ALL) == {8: 1}
        send(table, ACK, 2.0)
        assert stage(table, 3.0) is not None

    def test_the_host_says_that_it_is_over(self) -> None:
        table = begun()
        assert table.close(KEY, 1.0)
        assert stage(table, 1.0) is Stage.CLOSED
        assert table.counts(1, ALL) == {}
        assert table.close(KEY, 1.0)
        assert not table.close(b"unknown", 1.0)
        assert not table.close(KEY, 500.0)

    def test_a_bucket_function_that_changes_its_mind(self) -> None:
        table = begun()
        found = table.known(KEY, 0.0)
        assert found is not None
        table.packet(found, ACK, 3, 0.0)
        assert table.counts(1, ALL) == {}
        assert table.counts(0, ALL) == {3: 1}

    def test_the_fast_look(self) -> None:
        table = begun()
        assert table.tcp[KEY].again < 0.0, "its next packet opens it"
        send(table, ACK, 5.0)
        assert table.tcp[KEY].again == 5.0 + RESOLUTION
        # Nothing is noted for a second, and nothing is lost by that.
        assert stage(table, 5.0 + RESOLUTION + TCP_IDLE[Stage.OPEN] - 0.001) is Stage.OPEN

    def test_a_lifetime_ends_the_busiest_flow(self) -> None:
        table = FlowTable(2, lifetime=100.0)
        begin(table, 0.0)
        for now in range(100):
            send(table, ACK, float(now))
        assert stage(table, 100.0) is None
        begin(table, 200.0)
        send(table, ACK, 200.0)
        send(table, FIN, 299.0)
        table.expire(310.0)
        assert len(table) == 0
        assert LIFETIME > 86_400 * 7


class TestUdp:
    def test_idle_time(self) -> None:
        table = FlowTable(2, udp_idle=30.0)
        table.packet_udp(KEY, PLACE, 0.0)
        assert table.udp[KEY].again == RESOLUTION
        table.packet_udp(KEY, PLACE, 20.0)
        assert table.known_udp(KEY, 50.0) is not None
        assert table.known_udp(KEY, 51.0) is None
        assert len(table) == 0
        table.packet_udp(KEY, PLACE, 100.0)
        table.packet_udp(KEY, PLACE, 200.0)
        table.expire(300.0)
        assert len(table) == 0

    def test_it_is_apart_from_tcp_and_counts_nowhere(self) -> None:
        table = FlowTable(2)
        table.packet_udp(KEY, PLACE, 0.0)
        assert table.known(KEY, 0.0) is None
        assert table.counts(1, ALL) == {}
        assert len(table.tcp) == 0
        assert len(table.udp) == 1


class TestBounds:
    def test_a_flood_of_syns_pushes_out_no_connection(self) -> None:
        table = FlowTable(2, max_flows=20)
        for number in range(10):
            begin(table, 0.0, key(number))
            send(table, ACK, 0.0, key(number))
        for number in range(100, 1100):
            begin(table, 1.0, key(number))
            assert len(table.tcp) <= 20
        assert all(table.known(key(number), 1.0) for number in range(10))
        assert [number for number in range(100, 1100) if table.known(key(number), 1.0)] == [
            *range(1090, 1100)
        ]

    def test_who_goes_first(self) -> None:
        table = FlowTable(2, max_flows=4)
        for number, flags in enumerate((ACK, None, FIN, RST)):
            begin(table, 0.0, key(number))
            if flags is not None:
                send(table, flags, 0.0, key(number))
        gone = []
        for number in range(10, 14):
            before = {old for old in range(4) if table.known(key(old), 0.0)}
            begin(table, 0.0, key(number))
            send(table, ACK, 0.0, key(number))
            gone.append(before - {old for old in range(4) if table.known(key(old), 0.0)})
        assert gone == [{3}, {2}, {1}, {0}]

    def test_of_connections_the_silent_one_goes_first(self) -> None:
        table = FlowTable(2, max_flows=3)
        for number in range(3):
            begin(table, 0.0, key(number))
            send(table, ACK, 0.0, key(number))
        send(table, ACK, 2.0, key(0))
        begin(table, 3.0, key(9))
        assert [bool(table.known(key(number), 3.0)) for number in range(3)] == [True, False, True]

    def test_udp_pushes_out_udp_alone(self) -> None:
        table = FlowTable(2, max_flows=3)
        begin(table, 0.0)
        for number in range(50):
            table.packet_udp(key(number), PLACE, 0.0)
        assert len(table.udp) == 3
        assert table.known(KEY, 0.0) is not None

    @pytest.mark.parametrize(
        "arguments", [{"max_flows": 0}, {"udp_idle": 0.0}, {"lifetime": -1.0}, {"udp_idle": float("nan")}]
    )
    def test_no_table_at_all(self, arguments: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="a table of"):
            FlowTable(1, **arguments)  # type: ignore[arg-type]


@dataclass
class Model:
    """A flow, as the table's docstring tells it."""

    place: int
    seen: float
    stage: Stage = Stage.BEGUN
    fin: bool = False

    def at(self, now: float) -> Stage | None:
        """Its stage after the silence until ``now``, which is no time between idle time and RESOLUTION."""
        silence = now - self.seen
        if self.stage is Stage.CLOSING and silence > TCP_IDLE[Stage.CLOSING]:
            self.stage, self.seen = Stage.CLOSED, self.seen + TCP_IDLE[Stage.CLOSING]
            return self.at(now)
        return self.stage if silence <= TCP_IDLE[self.stage] else None


def test_against_a_plain_model(rng: random.Random) -> None:
    table = FlowTable(3, max_flows=10_000)
    model: dict[bytes, Model] = {}
    now = 0.0
    for _ in range(6000):
        # Whole seconds and an odd half: never between an idle time and the second that may be added to it.
        now += rng.choice((0.0, 0.0, 0.0, 2.0, 2.0, 8.0, 4000.0 if rng.random() < 0.02 else 0.0))
        name = key(rng.randrange(30))
        flow = model.get(name)
        alive = flow.at(now) if flow is not None else None
        assert stage(table, now, name) is alive
        place = rng.randrange(3 * 256) if alive is None else flow.place  # type: ignore[union-attr]
        chance = rng.random()
        if chance < 0.35:
            begin(table, now, name, place)
            if alive in (Stage.BEGUN, Stage.OPEN):
                assert flow is not None
                flow.seen = now
            else:
                model[name] = Model(place, now)
        elif alive is not None and flow is not None:
            flags = rng.choice((ACK, ACK, ACK, ACK | FIN, RST))
            found = table.known(name, now)
            assert found is not None
            table.packet(found, flags, place, now)
            flow.seen = now
            flow.fin |= flags != RST and bool(flags & FIN)
            flow.stage = Stage.CLOSED if flags & RST else Stage.CLOSING if flow.fin else Stage.OPEN
        if rng.random() < 0.3:
            table.expire(now)
            counted: dict[int, int] = {}
            for each in model.values():
                if each.at(now) in (Stage.BEGUN, Stage.OPEN, Stage.CLOSING):
                    counted[each.place] = counted.get(each.place, 0) + 1
            counts = {
                group << 8 | bucket: count
                for group in range(3)
                for bucket, count in table.counts(group, ALL).items()
            }
            assert counts == counted
