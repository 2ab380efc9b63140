"""Logging: what is written, where, and that it never waits."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
import structlog

from nlbfarm import logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = before


def lines(use: Callable[[], None], level: str = "info", form: str = "json") -> list[str]:
    stream = io.StringIO()
    output = logs.configure(level, form, stream)
    use()
    output.close()
    output.close()
    return stream.getvalue().splitlines()


def test_json() -> None:
    def use() -> None:
        log = structlog.get_logger()
        log.info("node.started", node="web1", address=ip_address("192.0.2.1"), extra="last")
        log.debug("not.shown")

    (line,) = lines(use)
    found = json.loads(line)
    assert list(found)[:3] == ["timestamp", "level", "event"]
    assert (found["event"], found["level"], found["node"]) == ("node.started", "info", "web1")
    assert found["address"] == "192.0.2.1"
    assert found["timestamp"].endswith("Z")


def test_a_stream_that_is_no_terminal_gets_json_by_itself() -> None:
    (line,) = lines(lambda: structlog.get_logger().warning("a.b"), form="auto")
    assert json.loads(line)["event"] == "a.b"


def test_console() -> None:
    (line,) = lines(lambda: structlog.get_logger().info("node.started", node="web1"), form="console")
    assert "node.started" in line
    assert "node=web1" in line
    assert "\x1b" not in line


def test_a_logger_made_before_follows_the_configuration() -> None:
    log = structlog.get_logger()
    assert len(lines(lambda: log.info("a.b"))) == 1


def test_levels() -> None:
    def use() -> None:
        log = structlog.get_logger()
        for level in ("debug", "info", "warning", "error"):
            getattr(log, level)(level)

    assert [json.loads(line)["event"] for line in lines(use, level="warning")] == ["warning", "error"]
    assert len(lines(use, level="debug")) == 4


def test_the_level_can_be_changed_while_it_runs() -> None:
    def use() -> None:
        log = structlog.get_logger("nlbfarm.node")
        log.info("first.info")
        logs.set_level("warning")
        log.info("second.info")
        log.warning("second.warning")
        logs.set_level("debug")
        log.debug("third.debug")

    assert [json.loads(line)["event"] for line in lines(use)] == [
        "first.info",
        "second.warning",
        "third.debug",
    ]


def test_messages_of_libraries_become_events() -> None:
    def use() -> None:
        logging.getLogger("asyncio").warning("slow %s", "callback")
        logging.getLogger("asyncio").info("not shown")
        try:
            raise ValueError("x")
        except ValueError:
            logging.getLogger("some").exception("failed")

    found = [json.loads(line) for line in lines(use)]
    assert [one["event"] for one in found] == ["library.message"] * 2
    assert (found[0]["library"], found[0]["message"]) == ("asyncio", "slow callback")
    assert "ValueError: x" in found[1]["exception"]


def test_exceptions_are_on_one_line() -> None:
    def use() -> None:
        try:
            raise ValueError("x")
        except ValueError:
            structlog.get_logger().exception("a.b")

    (line,) = lines(use)
    assert "ValueError: x" in json.loads(line)["exception"]


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    """A pipe that is full stops the writing thread, not the node; what is lost is counted."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        output = logs.configure("info", "json", stream)
        log = structlog.get_logger()
        for number in range(30_000):
            log.info("flood", number=number)
        output.close(timeout=0.05)
        assert threading.active_count() > 1  # the thread still waits for the reader
        with os.fdopen(reading) as reader:
            first = json.loads(reader.readline())
            assert first["number"] == 0
            seen = 1
            while "log.dropped" not in (line := reader.readline()):
                seen += 1
            assert json.loads(line)["lines"] + seen <= 30_000
            drain = threading.Thread(target=lambda: reader.read())
            output.write("last")
            drain.start()
            output.close(timeout=10)
            stream.close()
            drain.join(10)


def test_a_reader_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    output = logs.configure("info", "json", stream)
    structlog.get_logger().info("a.b")
    output.close()
    structlog.get_logger().info("a.b")
    with pytest.raises(BrokenPipeError):
        stream.close()
