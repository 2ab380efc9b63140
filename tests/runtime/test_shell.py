"""The asyncio shell: what it does when the host does something."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.bench import VIP, Bench, make, until

from nlbfarm.core.events import TimerFired
from nlbfarm.core.wire import Codec, Keyring
from nlbfarm.errors import HostError
from nlbfarm.heartbeat.memory import SimulatedNetwork
from nlbfarm.incarnation import next_incarnation
from nlbfarm.interfaces import CheckResult
from nlbfarm.parts import SystemClock
from nlbfarm.status import status
from nlbfarm.vip.memory import MemoryHost


async def test_a_node_that_stops_hands_over_and_leaves_nothing(pair: tuple[Bench, Bench]) -> None:
    one, two = pair
    one.runtime.stop()
    await one.runtime.wait()
    await until(lambda: two.own == 256)
    await one.runtime.close()
    await one.runtime.close()


async def test_a_damaged_filter_takes_the_vip_away_first_and_serves_again(pair: tuple[Bench, Bench]) -> None:
    one, _ = pair
    assert VIP in one.host.addresses
    one.backend.hold.clear()
    one.backend.damage("somebody flushed it")
    await until(lambda: not one.leased)  # at once, but after a late turn of the loop
    await until(lambda: VIP not in one.host.addresses)
    one.backend.hold.set()
    await until(lambda: VIP in one.host.addresses and one.leased and one.own == 128)


async def test_a_filter_that_cannot_be_repaired_lets_its_buckets_go(pair: tuple[Bench, Bench]) -> None:
    one, two = pair
    one.backend.refuses = "no memory left in the kernel"
    one.backend.damage("somebody flushed it")
    await until(lambda: two.own == 256)
    assert one.state == "WAIT"
    assert "no memory left in the kernel" in one.reason
    assert VIP not in one.host.addresses
    one.backend.refuses = ""
    await until(lambda: one.own == 128 and one.leased and VIP in one.host.addresses)


async def test_a_change_that_the_filter_refuses_counts_as_damage(pair: tuple[Bench, Bench]) -> None:
    one, two = pair
    one.backend.refuses = "busy"
    two.runtime.stop()
    await until(lambda: one.state == "WAIT")
    one.backend.refuses = ""
    await until(lambda: one.own == 256 and one.leased)


async def test_a_change_that_takes_long_does_not_hold_up_the_heartbeats(pair: tuple[Bench, Bench]) -> None:
    one, two = pair
    one.backend.hold.clear()
    two.runtime.stop()
    await two.runtime.wait()
    assert one.runtime.node is not None
    sequence = one.runtime.node.sequence
    await until(lambda: one.runtime.node is not None and one.runtime.node.sequence > sequence + 10)
    assert one.own == 128
    one.backend.hold.set()
    await until(lambda: one.own == 256)


async def test_a_failing_page_makes_the_node_wait_and_its_return_brings_it_back(
    pair: tuple[Bench, Bench],
) -> None:
    one, two = pair
    one.page.does = lambda: CheckResult(False, "HTTP 503")
    await until(lambda: two.own == 256)
    assert (one.state, one.reason) == ("WAIT", "page: HTTP 503")
    one.page.does = lambda: CheckResult(True, "HTTP 200")
    await until(lambda: one.own == 128)


async def test_a_checker_that_raises_or_hangs_is_a_failed_check(pair: tuple[Bench, Bench]) -> None:
    one, _ = pair

    def broken() -> CheckResult:
        raise RuntimeError("a bug of the plug-in")

    one.page.does = broken
    await until(lambda: one.state == "WAIT")
    assert "a bug of the plug-in" in one.reason
    one.page.hangs = True
    await until(lambda: "no answer within 0.05 s" in one.runtime.supervising.checking.states["page"].detail)
    one.page.does, one.page.hangs = (lambda: CheckResult(True, "HTTP 200")), False
    await until(lambda: one.state == "UP")


async def test_a_vip_that_vanishes_is_put_back(pair: tuple[Bench, Bench]) -> None:
    one, _ = pair
    one.host.addresses.clear()
    await until(lambda: VIP in one.host.addresses)


async def test_a_vip_of_a_stranger_is_not_taken(tmp_path: Path) -> None:
    host = MemoryHost(strangers={VIP: "02:00:00:00:00:99"})
    bench = make(1, SimulatedNetwork(SystemClock()), tmp_path, host)
    bench.network.heartbeat(2)
    try:
        await bench.runtime.open()
        await until(lambda: bench.state == "WAIT")
        assert "192.0.2.100 is in use by 02:00:00:00:00:99" in bench.reason
        assert host.addresses == {}
        host.strangers.clear()
        await until(lambda: bench.own == 256 and VIP in host.addresses)
    finally:
        await bench.runtime.close()


async def test_forged_datagrams_are_counted_and_named_and_change_nothing(pair: tuple[Bench, Bench]) -> None:
    one, two = pair
    stranger = Codec("t", Keyring({1: b"another key, 16+"}, 1))
    assert two.runtime.node is not None
    message = next(
        command.message
        for command in two.runtime.node.handle(TimerFired(), two.runtime.node.timer())
        if hasattr(command, "message")
    )
    two.runtime.parts.heartbeat.send(stranger.encode(message), [1])
    await until(lambda: one.runtime.rejections.counts.get("forged"))
    told = await status(one.runtime)
    assert told["heartbeat"]["rejected"] == {"forged": 1}
    assert any("another key" in warning for warning in told["warnings"])
    assert one.own == 128


async def test_a_fault_in_the_core_ends_the_node_rather_than_leave_it_half_alive(
    pair: tuple[Bench, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair

    def fail(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    assert one.runtime.node is not None
    monkeypatch.setattr(one.runtime.node, "handle", fail)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        await one.runtime.wait()
    await until(lambda: two.own == 256)


async def test_status_says_who_is_where(pair: tuple[Bench, Bench]) -> None:
    told = await status(pair[0].runtime)
    assert told["state"] == "UP"
    assert told["leader"] == 1
    assert told["groups"][0]["buckets"] == {"1": 128, "2": 128}
    states = told["groups"][0]["states"]
    assert (states.count("O") + states.count("A"), states.count(".")) == (128, 128)
    assert [(n["name"], n["heard"], n["in_view"]) for n in told["nodes"]] == [
        ("one", True, True),
        ("two", True, True),
    ]
    assert told["checkers"][0] | {"since_s": 0} == {
        "name": "page",
        "type": "http",
        "service": None,
        "on_failure": "wait",
        "ok": True,
        "detail": "HTTP 200",
        "since_s": 0,
    }
    assert told["vips"] == [{"address": "192.0.2.100", "interface": "eth0", "present": True}]


async def test_each_life_has_a_higher_incarnation(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        bench = make(1, SimulatedNetwork(SystemClock()), tmp_path)
        bench.network.heartbeat(2)
        await bench.runtime.open()
        assert bench.runtime.node is not None
        seen.append(bench.runtime.node.incarnation)
        await bench.runtime.close()
    assert seen[0] < seen[1]


@pytest.mark.parametrize("content", ["yesterday", "", "-5", "18446744073709551615", "\xff"])
async def test_a_spoilt_incarnation_file_leaves_it_to_the_clock(tmp_path: Path, content: str) -> None:
    file = tmp_path / "incarnation"
    file.write_bytes(content.encode("latin-1"))
    assert next_incarnation(file, wall=1000.0) == 1_000_000
    assert file.read_text() == "1000000\n"


@pytest.mark.posix("POSIX' error for a file in place of a directory")
async def test_a_state_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match=r"incarnation: cannot be (read|written) \(Not a directory\)"):
        next_incarnation(tmp_path / "file" / "incarnation", wall=1.0)


async def test_a_second_flush_while_the_first_is_repaired_is_repaired_too(
    pair: tuple[Bench, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
    vips = one.runtime.parts.vips
    up, repair = vips.up, one.backend.repair
    repairs = 0

    async def counted() -> None:
        nonlocal repairs
        repairs += 1
        await repair()

    async def flushed_again() -> None:
        monkeypatch.setattr(vips, "up", up)
        one.backend.damage("and once more")
        await up()

    monkeypatch.setattr(one.backend, "repair", counted)
    monkeypatch.setattr(vips, "up", flushed_again)
    one.backend.damage("somebody flushed it")
    await until(lambda: repairs == 2 and one.leased and one.own == 128 and VIP in one.host.addresses)


async def test_a_vip_that_cannot_be_taken_away_keeps_its_closed_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(1, SimulatedNetwork(SystemClock()), tmp_path)
    bench.network.heartbeat(2)
    await bench.runtime.open()
    await until(lambda: bench.own == 256)

    async def refuse() -> None:
        raise HostError("netlink says no")

    closed = []
    monkeypatch.setattr(bench.runtime.parts.vips, "close", refuse)
    monkeypatch.setattr(bench.backend, "close", lambda: closed.append(True))
    with pytest.raises(HostError, match="netlink says no"):
        await bench.runtime.close()
    assert closed == []


async def test_a_vip_that_came_back_by_itself_ends_the_wait(pair: tuple[Bench, Bench]) -> None:
    one, _ = pair
    one.host.refuses = "interface eth0 is down"
    one.host.addresses.clear()
    await until(lambda: one.state == "WAIT")
    assert "eth0 is down" in one.reason
    one.host.addresses[VIP] = "eth0"
    one.host.refuses = ""
    await until(lambda: one.state == "UP" and one.own == 128)


async def test_a_heartbeat_that_fails_ends_the_node(
    pair: tuple[Bench, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair

    def fail() -> int:
        raise RuntimeError("the socket is gone")

    monkeypatch.setattr(one.runtime.parts.heartbeat, "poll", fail)
    with pytest.raises(RuntimeError, match="the socket is gone"):
        await one.runtime.wait()
    await until(lambda: two.own == 256)


async def test_a_vip_that_cannot_return_after_a_repair_is_not_blamed_on_the_filter(
    pair: tuple[Bench, Bench],
) -> None:
    one, two = pair
    one.host.refuses = "eth0 has no link"
    one.backend.damage("somebody flushed it")
    await until(lambda: two.own == 256)
    assert (one.state, one.reason) == ("WAIT", "eth0 has no link")
    one.host.refuses = ""
    await until(lambda: one.own == 128 and VIP in one.host.addresses)
