"""Notices to systemd, on real sockets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nlbfarm.sdnotify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "notify"))
        found.settimeout(5)
        yield found


def test_notices(systemd: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "3000000"})
    assert notifier.watchdog_interval == 1.5
    notifier.ready("UP\nin view 7")
    notifier.alive()
    notifier.status("WAIT: page")
    notifier.stopping()
    notifier.close()
    notifier.close()
    assert [systemd.recv(1000) for _ in range(4)] == [
        b"READY=1\nSTATUS=UP in view 7",
        b"WATCHDOG=1",
        b"STATUS=WAIT: page",
        b"STOPPING=1",
    ]


def test_a_reload_and_a_long_end(systemd: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname()})
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.ready()
    notifier.extend(10.0)
    notifier.close()
    reloading, micros = systemd.recv(1000).split(b"\nMONOTONIC_USEC=")
    assert reloading == b"RELOADING=1"
    assert before <= int(micros) <= time.monotonic_ns() // 1000
    assert [systemd.recv(1000) for _ in range(2)] == [b"READY=1", b"EXTEND_TIMEOUT_USEC=10000000"]


def test_abstract_name() -> None:
    name = f"nlbfarm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}")
        systemd.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        notifier.ready()
        notifier.close()
        assert systemd.recv(1000) == b"READY=1"


def test_nobody_reads(systemd: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname()})
    for _ in range(10_000):  # far more than the queue of the socket takes; must not wait
        notifier.alive()
    systemd.close()
    notifier.alive()
    notifier.close()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "relative", "WATCHDOG_USEC": "1000000"},
        {"WATCHDOG_USEC": "1000000"},
    ],
)
def test_without_a_socket_nothing_happens(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.ready()
    assert notifier.watchdog_interval is None
    notifier.close()


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [("2000000", str(os.getpid()), 1.0), ("2000000", "1", None), ("0", None, None), ("soon", None, None)],
)
def test_watchdog(tmp_path: Path, usec: str, pid: str | None, expected: float | None) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": usec}
    if pid is not None:
        environ["WATCHDOG_PID"] = pid
    notifier = Notifier(environ)
    assert notifier.watchdog_interval == expected
    notifier.close()
