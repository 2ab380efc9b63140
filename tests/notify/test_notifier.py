"""From events to people: batches, targets that fail or hang, the end of a node; and nobody waits."""

from __future__ import annotations

import asyncio
import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.notify.sinks import HangingServer, WebServer

from nlbfarm.events import EventLog, EventStream, Severity
from nlbfarm.notify import DeliveryError, Message, Notifier, Target
from nlbfarm.notify import courier as courier_module
from nlbfarm.parts import SystemClock

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
needs_apprise = pytest.mark.skipif(
    importlib.util.find_spec("apprise") is None, reason="lack of the package apprise (the extra notify)"
)


class FakeTarget(Target):
    """Keeps what it is sent; fails or hangs when it is told to."""

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.got: queue.Queue[Message] = queue.Queue()
        self.attempts = 0
        self.failures: list[Exception] = []
        self.hanging = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def send(self, message: Message) -> None:
        self.attempts += 1
        if not self.go_on.is_set():
            self.hanging.set()
            assert self.go_on.wait(30)
        if self.failures:
            raise self.failures.pop(0)
        self.got.put(message)

    def texts(self) -> list[str]:
        return [event.text for event in self.got.get(timeout=10).events]


@pytest.fixture
def log() -> EventLog:
    return EventLog(EventStream(), clock=SystemClock())


@pytest.fixture
def target() -> Iterator[FakeTarget]:
    found = FakeTarget()
    yield found
    found.go_on.set()


Start = Callable[..., Notifier]


@pytest.fixture
def start(log: EventLog) -> Iterator[Start]:
    """Start notifiers, with short times; close them at the end."""
    begun: list[Notifier] = []

    def start(*others: Target, **options: Any) -> Notifier:
        given: dict[str, Any] = {"batch": 0.02, "settle": 0.01, "pauses": (0.01, 0.01)} | options
        begun.append(Notifier(log, "shop", "web1", others=others, **given))
        begun[-1].open()
        return begun[-1]

    yield start
    for notifier in begun:
        notifier.close()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def own(log: EventLog) -> list[tuple[str, dict[str, Any]]]:
    """Return what was told of the notifications themselves."""
    return [(one.name, dict(one.fields)) for one in log.stream.recent(999) if one.name.startswith("notify.")]


def test_events_arrive(log: EventLog, target: FakeTarget, start: Start) -> None:
    log.warning("peer.lost", name="web9")  # before it was opened
    start(target, patterns=["peer.*"])
    log.info("peer.heard", name="web2")
    log.warning("vip.vanished", addresses=["192.0.2.100"])
    log.warning("peer.lost", name="web2")
    assert target.texts() == ["Node web2 is lost: it is not heard on any network"]


def test_what_happens_together_is_told_together(log: EventLog, target: FakeTarget, start: Start) -> None:
    notifier = start(target, settle=60)
    for number in range(3):
        log.warning("peer.lost", name=f"web{number}")
    assert target.attempts == 0
    notifier.close()  # does not wait for the minute to be over
    assert len(target.texts()) == 3
    assert target.got.empty()


def test_one_message_a_batch(log: EventLog, target: FakeTarget, start: Start) -> None:
    notifier = start(target, batch=60)
    log.warning("peer.lost", name="web2")
    assert len(target.texts()) == 1
    for number in range(5):
        log.warning("peer.lost", name=f"web{number}")
    notifier.close()
    assert len(target.texts()) == 5


def test_a_target_that_fails_is_tried_again_and_told_once(
    log: EventLog, target: FakeTarget, start: Start
) -> None:
    target.failures = [DeliveryError("no route"), DeliveryError("no route")]
    start(target, severity=Severity.INFO)
    log.warning("peer.lost", name="web2")
    assert target.texts() == ["Node web2 is lost: it is not heard on any network"]
    until(lambda: len(own(log)) == 2)
    assert own(log) == [
        ("notify.failed", {"target": "fake", "error": "no route", "retry_s": 0.01}),
        ("notify.recovered", {"target": "fake", "missed": 0}),
    ]
    log.warning("peer.lost", name="web3")  # the events above are not notified, or they would come first
    assert target.texts() == ["Node web3 is lost: it is not heard on any network"]


def test_a_message_that_is_given_up_is_counted_in_the_next(
    log: EventLog, target: FakeTarget, start: Start
) -> None:
    target.failures = [DeliveryError(f"reason {number}") for number in (1, 2, 2)]
    start(target)
    log.warning("peer.lost", name="web2")
    until(lambda: ("notify.dropped", {"target": "fake", "events": 1}) in own(log))
    log.warning("peer.lost", name="web3")
    assert target.got.get(timeout=10).missed == 1
    until(lambda: own(log)[-1][0] == "notify.recovered")
    log.warning("peer.lost", name="web4")
    assert target.got.get(timeout=10).missed == 0
    assert [name for name, _ in own(log)] == [
        "notify.failed",
        "notify.failed",
        "notify.dropped",
        "notify.recovered",
    ]


def test_a_target_that_raises_something_else_does_not_end_it(
    log: EventLog, target: FakeTarget, start: Start
) -> None:
    target.failures = [ValueError("with a secret")]
    start(target)
    log.warning("peer.lost", name="web2")
    assert len(target.texts()) == 1
    assert own(log)[0][1]["error"] == "the target itself failed: ValueError"


def test_a_target_that_hangs_is_told_and_holds_up_nobody(
    log: EventLog, target: FakeTarget, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier_module, "WAITING", 2)
    other = FakeTarget("other")
    target.go_on.clear()
    start(target, other, hangs=0.05)
    for number in range(6):
        log.warning("peer.lost", name=f"web{number}")
        assert len(other.texts()) == 1
    until(lambda: any(name == "notify.failed" for name, _ in own(log)))
    failed = dict(own(log))["notify.failed"]
    assert failed == {
        "target": "fake",
        "error": "no answer for 0.05 s, and it is still waited for",
        "retry_s": None,
    }
    assert sum(name == "notify.failed" for name, _ in own(log)) == 1
    assert dict(own(log))["notify.dropped"] == {"target": "fake", "events": 1}
    target.go_on.set()
    messages = [target.got.get(timeout=10) for _ in range(3)]
    assert sum(len(message.events) for message in messages) == 3
    assert [message.missed for message in messages] == [0, 3, 0]  # the oldest that waited were lost


def test_the_end_does_not_wait_for_a_target_that_hangs(
    log: EventLog, target: FakeTarget, start: Start
) -> None:
    target.go_on.clear()
    notifier = start(target)
    log.warning("peer.lost", name="web2")
    assert target.hanging.wait(10)
    notifier.close(timeout=0.05)
    notifier.close()
    assert own(log) == [("notify.dropped", {"target": "fake", "events": 1})]


def test_the_end_cuts_pauses_short(log: EventLog, target: FakeTarget, start: Start) -> None:
    target.failures = [DeliveryError("no route")]
    notifier = start(target, pauses=(600,))
    log.warning("peer.lost", name="web2")
    until(lambda: own(log) != [])
    log.warning("peer.lost", name="web3")
    notifier.close(timeout=10)
    assert [target.texts() for _ in range(2)] == [
        ["Node web2 is lost: it is not heard on any network"],
        ["Node web3 is lost: it is not heard on any network"],
    ]


def test_targets_that_look_alike_are_told_apart(log: EventLog, start: Start) -> None:
    targets = [FakeTarget("tgram://..."), FakeTarget("tgram://..."), FakeTarget("other")]
    for one in targets[1:]:
        one.failures = [DeliveryError("no")]
    start(*targets)
    log.warning("peer.lost", name="web2")
    for one in targets:
        one.texts()
    until(lambda: sum(name == "notify.recovered" for name, _ in own(log)) == 2)
    assert {fields["target"] for _, fields in own(log)} == {"tgram://... (2)", "other"}


def test_nobody_to_tell(log: EventLog, start: Start) -> None:
    before = threading.active_count()
    notifier = start()
    assert threading.active_count() == before
    log.warning("peer.lost", name="web2")
    notifier.close()


def test_many_threads_publish(log: EventLog, target: FakeTarget, start: Start) -> None:
    notifier = start(target)

    def publish() -> None:
        for number in range(100):
            log.warning("peer.lost", name=f"web{number}")

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    notifier.close(timeout=10)
    told = 0
    while not target.got.empty():
        message = target.got.get()
        told += len(message.events) + message.left_out
    assert told == 400


@needs_apprise
async def test_the_loop_turns_while_a_server_hangs(log: EventLog) -> None:
    """Whatever a target does, the node's loop goes on: a beat every few milliseconds gets its turn."""
    with HangingServer() as hanging, WebServer() as web:
        notifier = Notifier(
            log,
            "shop",
            "web1",
            targets=[f"json://127.0.0.1:{hanging.port}/?rto=0.3&cto=0.3", f"json://127.0.0.1:{web.port}"],
            batch=0.02,
            settle=0.01,
            pauses=(),
        )
        notifier.open()
        log.warning("peer.lost", name="web2")
        beats = 0
        async with asyncio.timeout(20):
            while not any(name == "notify.dropped" for name, _ in own(log)):
                await asyncio.sleep(0.005)
                beats += 1
        assert beats > 10
        assert web.next()["title"] == "[shop/web1] Node web2 is lost: it is not heard on any network"
        await asyncio.to_thread(notifier.close)
    failed = dict(own(log))["notify.failed"]
    assert failed["target"] == "json://127.0.0.1 (1)"
    assert "onnection" in failed["error"]
