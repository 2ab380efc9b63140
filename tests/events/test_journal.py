"""The journal on disk: rotation, torn lines, disks that refuse or hang, and reading it back."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nlbfarm.errors import HostError, NlbfarmError
from nlbfarm.events import EventLog, EventStream, Journal, NodeEvent, read
from nlbfarm.events import journal as module
from nlbfarm.testing.clock import FakeClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop" / "events.jsonl"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def log(clock: FakeClock) -> EventLog:
    return EventLog(EventStream(), clock=clock)


@pytest.fixture
def journal(path: Path, log: EventLog) -> Iterator[Journal]:
    found = Journal(path, log, max_bytes=1_000_000, files=5)
    yield found
    found.close(timeout=10)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def numbers(events: list[NodeEvent]) -> list[int]:
    return [event.fields["number"] for event in events if "number" in event.fields]


def names(log: EventLog) -> list[str]:
    return [event.name for event in log.stream.recent(100) if event.name.startswith("events.")]


# -- writing -------------------------------------------------------------------------------


def test_what_is_published_is_on_disk_and_is_read_back(path: Path, log: EventLog, journal: Journal) -> None:
    log.info("test.before", number=0)
    journal.open()
    log.warning("peer.lost", name="web2", number=1)
    journal.close(timeout=10)
    journal.close()
    assert [event.name for event in read(path)] == ["test.before", "peer.lost"]
    assert read(path) == log.stream.recent(9)
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[1])
    assert line["text"] == "Node web2 is lost: it is not heard on any network"


@pytest.mark.posix("file modes")
def test_others_may_not_read_it(path: Path, log: EventLog, journal: Journal) -> None:
    journal.open()
    log.info("test.event")
    journal.close(timeout=10)
    assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0


def test_a_life_goes_on_where_the_one_before_ended(path: Path, log: EventLog, clock: FakeClock) -> None:
    for life in range(3):
        one = Journal(path, EventLog(EventStream(), clock=clock), max_bytes=1_000_000, files=5)
        one.open()
        one._log.info("test.event", number=life)
        one.close(timeout=10)
    assert numbers(read(path)) == [0, 1, 2]
    assert [event.sequence for event in read(path)] == [1, 1, 1]


def test_rotation(path: Path, log: EventLog) -> None:
    (path.parent / "other").mkdir(parents=True)
    for number in (3, 4):  # there were to be more files once
        path.with_name(f"events.jsonl.{number}").write_text("old\n")
    journal = Journal(path, log, max_bytes=1000, files=3)
    journal.open()
    for number in range(100):
        log.info("test.event", number=number)
    journal.close(timeout=10)
    found = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    assert found == ["events.jsonl", "events.jsonl.1", "events.jsonl.2"]
    assert all(path.with_name(name).stat().st_size <= 1000 for name in found)
    kept = numbers(read(path))
    assert kept == list(range(kept[0], 100))
    assert len(kept) > 10


def test_an_event_larger_than_a_file_has_one_of_its_own(path: Path, log: EventLog) -> None:
    journal = Journal(path, log, max_bytes=1000, files=3)
    journal.open()
    for number, size in enumerate((1, 5000, 1)):
        log.info("test.event", number=number, filling="x" * size)
    journal.close(timeout=10)
    assert numbers(read(path)) == [0, 1, 2]


@pytest.mark.posix("removing a file that is open")
def test_a_file_that_somebody_removes_is_made_anew(path: Path, log: EventLog, journal: Journal) -> None:
    journal.open()
    log.info("test.event", number=1)
    until(lambda: path.exists() and numbers(read(path)) == [1])
    path.unlink()
    log.info("test.event", number=2)
    until(lambda: path.exists() and numbers(read(path)) == [2])


_KILLED = """
import sys
from pathlib import Path
from nlbfarm.events import EventLog, EventStream, Journal
from nlbfarm.parts import SystemClock

log = EventLog(EventStream(), clock=SystemClock())
Journal(Path(sys.argv[1]), log, max_bytes=20_000, files=3).open()
number = 0
while True:
    log.info("test.event", number=number, filling="x" * 500)
    number += 1
"""


@pytest.mark.posix("kill -9")
def test_kill_9_loses_nothing_that_was_written(path: Path, log: EventLog, journal: Journal) -> None:
    """A process writes as fast as it can and is killed; what is there is whole, and the next one goes on."""
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(path)], stdout=subprocess.DEVNULL)
    try:
        until(lambda: path.with_name("events.jsonl.2").exists(), 30)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    before = numbers(read(path))
    assert len(before) > 20
    assert before == sorted(before)
    journal.open()
    log.info("test.event", number=-1)
    journal.close(timeout=10)
    assert numbers(read(path))[-2:] == [before[-1], -1]


def test_a_torn_line_stays_alone(path: Path, log: EventLog, journal: Journal) -> None:
    path.parent.mkdir()
    whole = NodeEvent.line(log.stream.publish(read_example()))
    path.write_text(f"{whole}\n{whole[:40]}", encoding="utf-8")
    journal.open()
    log.info("test.event", number=1)
    journal.close(timeout=10)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == [whole, whole[:40]]
    assert numbers(read(path)) == [0, 0, 1]  # what the stream had before is saved, too


def read_example(number: int = 0, time: float = 1.0) -> NodeEvent:
    data = {"sequence": 1, "time": time, "name": "test.event", "severity": "info", "text": ""}
    return NodeEvent.from_json(data | {"fields": {"number": number}})


# -- disks that refuse ---------------------------------------------------------------------


class Disk:
    """A disk that does what a test says: how much of what is written arrives, or an error."""

    def __init__(self) -> None:
        self.behave: Callable[[bytes], int | None] = lambda data: None

    def opened(self, path: Path) -> io.FileIO:
        disk = self

        class File(io.FileIO):
            def write(self, data: Any, /) -> int:
                answered = disk.behave(bytes(data))
                return super().write(data if answered is None else data[:answered])

        return File(path, "a+")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    return Disk()


@pytest.fixture
def on_disk(path: Path, log: EventLog, disk: Disk) -> Iterator[Journal]:
    found = Journal(path, log, max_bytes=1_000_000, files=5, opened=disk.opened)
    yield found
    found.close(timeout=10)


def full(data: bytes) -> int | None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_once_and_nothing_is_lost(
    path: Path, log: EventLog, on_disk: Journal, disk: Disk
) -> None:
    tries: list[int] = []

    def refuse(data: bytes) -> int | None:
        tries.append(1)
        return full(data)

    disk.behave = refuse
    on_disk.open()
    for number in range(50):
        log.info("test.event", number=number)
    until(lambda: len(tries) >= 3)
    assert names(log) == ["events.not_saved"]
    told = next(event for event in log.stream.recent(100) if event.name == "events.not_saved")
    assert told.text == f"Events cannot be saved in {path}: No space left on device. They wait in memory"
    disk.behave = lambda data: None
    until(lambda: names(log) == ["events.not_saved", "events.saved_again"])
    on_disk.close(timeout=10)
    assert numbers(read(path)) == list(range(50))
    assert [event.name for event in read(path)].count("events.not_saved") == 1


def test_half_a_line_on_a_full_disk_is_written_again(
    path: Path, log: EventLog, on_disk: Journal, disk: Disk
) -> None:
    first = iter([10])
    disk.behave = lambda data: next(first, None)
    on_disk.open()
    log.info("test.event", number=1)
    until(lambda: "events.saved_again" in names(log))
    on_disk.close(timeout=10)
    assert numbers(read(path)) == [1]
    assert len(path.read_bytes().splitlines()[0]) == 10


def test_a_place_that_cannot_be_written_does_not_end_the_node(tmp_path: Path, log: EventLog) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "events.jsonl", log, max_bytes=1_000_000, files=5)
    journal.open()
    log.info("test.event", number=1)
    until(lambda: names(log) == ["events.not_saved"])
    log.info("test.event", number=2)
    journal.close(timeout=10)
    assert not journal._thread.is_alive()


def test_a_disk_that_hangs_holds_up_nobody_and_what_it_costs_is_counted(
    path: Path, log: EventLog, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 100)
    writing, go_on = threading.Event(), threading.Event()

    def hang(data: bytes) -> int | None:
        writing.set()
        assert go_on.wait(30)
        return None

    disk.behave = hang
    journal = Journal(path, log, max_bytes=1_000_000, files=5, opened=disk.opened)
    journal.open()
    log.info("test.event", number=0)
    assert writing.wait(10)
    for number in range(1, 501):
        log.info("test.event", number=number)
    journal.close(timeout=0.01)  # does not wait for it either
    assert journal._thread.is_alive()
    go_on.set()
    journal.close(timeout=10)
    found = read(path)
    assert numbers(found) == [0, *range(401, 501)]
    assert [event.fields for event in found if event.name == "events.dropped"] == [{"count": 400}]


# -- looking back --------------------------------------------------------------------------


async def test_look_back_sees_earlier_lives_and_this_one_to_the_last_event(
    path: Path, log: EventLog, journal: Journal, clock: FakeClock
) -> None:
    path.parent.mkdir()
    path.write_text(read_example(-1).line() + "\n", encoding="utf-8")
    journal.open()
    for number in range(200):
        log.info("test.event", number=number)
        clock.advance(1)
    async with asyncio.timeout(10):
        assert numbers(await journal.look_back(3, None)) == [197, 198, 199]
        assert numbers(await journal.look_back(9999, None)) == list(range(-1, 200))
        assert numbers(await journal.look_back(9999, clock.wall() - 2)) == [198, 199]
        assert await journal.look_back(0, None) == []
    journal.close(timeout=10)
    with pytest.raises(NlbfarmError, match="the journal of events is closed"):
        await journal.look_back(1, None)


async def test_look_back_while_the_disk_refuses(
    path: Path, log: EventLog, on_disk: Journal, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    path.write_text(read_example(-1).line() + "\n", encoding="utf-8")
    disk.behave = full
    monkeypatch.setattr(module, "RETRY_S", 60.0)
    on_disk.open()
    log.info("test.event", number=1)
    await asyncio.to_thread(until, lambda: names(log) == ["events.not_saved"])
    log.info("test.event", number=2)
    async with asyncio.timeout(10):
        assert numbers(await on_disk.look_back(9, None)) == [-1, 1, 2]


# -- reading -------------------------------------------------------------------------------


def write(path: Path, *numbers: int, tail: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    lines = "".join(read_example(number, float(number)).line() + "\n" for number in numbers)
    path.write_text(lines + tail, encoding="utf-8")


def test_reading_goes_across_files(path: Path) -> None:
    write(path, 7, 8, 9)
    write(path.with_name("events.jsonl.1"), 4, 5, 6)
    write(path.with_name("events.jsonl.3"), 1, 2, 3)  # .2 is missing: they are being renamed
    assert numbers(read(path)) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert numbers(read(path, last=4)) == [6, 7, 8, 9]
    assert numbers(read(path, since=5)) == [5, 6, 7, 8, 9]
    assert numbers(read(path, last=2, since=5)) == [8, 9]
    assert read(path, last=0) == []


def test_reading_what_is_not_there(path: Path) -> None:
    assert read(path) == []


def test_lines_that_are_no_events_are_left_out(path: Path) -> None:
    write(path, 1, 2, tail='\n{}\n[\n\x00\x01\n{"sequence": 1, "ti')
    assert numbers(read(path)) == [1, 2]
    path.write_bytes(b"[" * 3_000_000 + b"\n" + read_example(3).line().encode() + b"\n\xff\xfe\n")
    assert numbers(read(path)) == [3]


def test_lines_across_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, *range(30))
    for block in (1, 7, 64, 10_000):
        monkeypatch.setattr("nlbfarm.events.reading._BLOCK", block)
        assert numbers(read(path)) == list(range(30))


@pytest.mark.posix("hard links")
def test_a_file_that_is_renamed_meanwhile_is_read_once(path: Path) -> None:
    write(path, 1, 2)
    os.link(path, path.with_name("events.jsonl.1"))
    assert numbers(read(path)) == [1, 2]


def test_a_file_that_cannot_be_read(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(HostError, match="cannot read the journal"):
        read(path)
