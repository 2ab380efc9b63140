"""The checker ``resources``: the figures of this host, and of processes that use much or nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tests.checkers.support import LONG, SHORT, look

from nlbfarm.checkers import HostView, Limits, ResourcesChecker, Selection, build
from nlbfarm.checkers.resources import _Sample
from nlbfarm.config.checkers import ResourcesChecker as Entry
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import CheckResult

GIB = 1 << 30
Times = namedtuple("Times", "user nice system idle iowait guest")


def checker(limits: Limits, **options: Any) -> ResourcesChecker:
    return ResourcesChecker(limits, **{"timeout": LONG, **options})


async def detail(limits: Limits, ok: bool, **options: Any) -> str:
    result = await look(checker(limits, **options))
    assert result.ok is ok, result.detail
    return result.detail


# --- of the host ------------------------------------------------------------------------------


async def test_memory_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total=16 * GIB, available=4 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    told = await detail(Limits(memory_percent=75, memory=13 * GIB), True)
    assert told == "memory 75 % (at most 75 %), memory 12.9 GB (at most 14 GB)"
    told = await detail(Limits(memory_percent=74.5, memory=13 * GIB), False)
    assert told == "memory 75 % (at most 74.5 %)"
    told = await detail(Limits(memory_percent=80, memory=12_000_000_000), False)
    assert told == "memory 12.9 GB (at most 12 GB)"


async def test_processors_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests are counted once, and waiting for a disk is no work; the first look takes two samples."""
    samples = [Times(100, 0, 50, 800, 50, 40), Times(102, 1, 51, 803, 53, 42), Times(102, 1, 51, 813, 53, 42)]
    monkeypatch.setattr(psutil, "cpu_times", lambda: samples.pop(0))
    monkeypatch.setattr("nlbfarm.checkers.resources._WINDOW_S", 0)
    one = checker(Limits(cpu_percent=40))
    assert await one.check() == CheckResult(True, "processor use 40 % (at most 40 %)")
    assert await one.check() == CheckResult(True, "processor use 0 % (at most 40 %)")
    await one.close()


async def test_a_real_host() -> None:
    """Whatever it is doing, it uses no more than all it has, and more than nothing."""
    many = {"cpu_percent": 100.0, "memory_percent": 100.0}
    if sys.platform.startswith("linux"):
        many["open_files"] = 1 << 40
    told = await detail(Limits(**many), True)  # type: ignore[arg-type]
    assert re.match(r"processor use [0-9.e+-]+ % \(at most 100 %\), memory [0-9.]+ % \(at most 100 %\)", told)
    assert (await detail(Limits(memory=1), False)).startswith("memory ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="lack of Linux")
async def test_open_files_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file-nr"
    file.write_text("4096\t0\t9223372036854775807\n")
    monkeypatch.setattr("nlbfarm.checkers.resources._FILES", file)
    assert await detail(Limits(open_files=4096), True) == "open files 4096 (at most 4096)"
    assert await detail(Limits(open_files=4095), False) == "open files 4096 (at most 4095)"
    monkeypatch.setattr("nlbfarm.checkers.resources._FILES", tmp_path / "gone")
    assert "known on Linux only" in await detail(Limits(open_files=4096), False)


async def test_a_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = SimpleNamespace(total=100 * GIB, used=85 * GIB, free=10 * GIB, percent=0)
    monkeypatch.setattr(psutil, "disk_usage", lambda path: {str(tmp_path): usage}[path])
    share = Limits(disk_path=tmp_path, disk_free_percent=10)
    assert await detail(share, True) == f"10.5 % free on {tmp_path} (at least 10 %)"
    both = Limits(disk_path=tmp_path, disk_free_percent=11, disk_free=11_000_000_000)
    told = f"10.5 % free on {tmp_path} (at least 11 %), 10.7 GB free on {tmp_path} (at least 11 GB)"
    assert await detail(both, False) == told


async def test_a_disk_that_is_not_there(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    told = await detail(Limits(disk_path=gone, disk_free=1, memory_percent=100), False)
    assert told.startswith(f"{gone}: ")
    assert "memory" not in told
    assert await detail(Limits(disk_path=tmp_path, disk_free_percent=0), True)


# --- of processes -----------------------------------------------------------------------------


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that computes, with 64 MiB of memory and five open files, under its number in a pid file."""
    program = (
        "import sys; full = b'x' * (64 << 20); files = [open(sys.executable, 'rb') for _ in range(5)]\n"
        "print(flush=True)\nwhile True: pass"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (tmp_path / "busy.pid").write_text(f"{process.pid}\n")
        yield process
        process.kill()


async def test_of_a_process(
    busy: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlbfarm.checkers.resources._WINDOW_S", 0.1)
    selection = Selection(pid_file=tmp_path / "busy.pid")
    lots = Limits(cpu_percent=100, memory_percent=100, memory=1 << 40, open_files=1000)
    told = await detail(lots, True, selection=selection)
    assert re.fullmatch(
        rf"1 process of {re.escape(str(tmp_path / 'busy.pid'))}: "
        r"processor use [0-9.e+-]+ % \(at most 100 %\), "
        r"memory [0-9.]+ % \(at most 100 %\), memory [0-9.]+ MB \(at most 1.1 TB\), "
        r"open files of one process [0-9]+ \(at most 1000\)",
        told,
    )
    little = Limits(cpu_percent=0, memory=64 << 20, open_files=5)
    told = await detail(little, False, selection=selection)
    if sys.platform != "win32":  # Wine knows no times and no handles of other processes
        assert "processor use" in told
        assert " (at most 0 %)" in told
        assert "open files of one process" in told
    assert "memory " in told


async def test_processes_that_do_not_run(tmp_path: Path) -> None:
    selection = Selection(pid_file=tmp_path / "gone.pid")
    told = await detail(Limits(memory=1), False, selection=selection)
    assert told.startswith(
        f"no process of {tmp_path / 'gone.pid'} to measure (there is no process number in "
    )


async def test_of_a_service(busy: subprocess.Popen[str]) -> None:
    async def of(service: str) -> Sequence[int]:
        return {"shop": [busy.pid]}[service]

    entry = Entry.model_validate({"name": "m", "type": "resources", "service": "shop", "memory": "64MiB"})
    result = await look(build(entry, HostView(pids_of_service=of)))
    assert not result.ok
    assert result.detail.startswith("1 process of the service: memory ")
    assert result.detail.endswith(" MB (at most 67.1 MB)")


async def test_a_user_who_may_not_look(
    busy: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: psutil.Process) -> Any:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_info", denied)
    told = await detail(Limits(memory=1), False, selection=Selection(pid_file=tmp_path / "busy.pid"))
    assert told == f"this user may not look into process {busy.pid}; run nlbfarm as root"


def test_use_since_the_sample_before() -> None:
    """What has begun since counts from nothing; what is older but was not measured, not at all."""
    before = _Sample(at=10, wall=1000, used={(1, 500.0): 5.0, (2, 600.0): 7.0}, capacity=20)
    now = _Sample(at=20, wall=1010, used={(1, 500.0): 9.0, (3, 1005.0): 2.0, (4, 700.0): 99.0}, capacity=40)
    assert now.percent_since(before) == 100 * (4 + 2) / 20


# --- all of them ------------------------------------------------------------------------------


async def test_a_disk_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = threading.Event()
    monkeypatch.setattr(psutil, "disk_usage", lambda path: go.wait(LONG))
    one = checker(Limits(disk_path=tmp_path, disk_free=1), timeout=SHORT)
    first, second = await one.check(), await one.check()
    assert first == CheckResult(False, f"the resources of this host and {tmp_path}: no answer within 0.2 s")
    assert "the look before has not come back for " in second.detail
    usage = SimpleNamespace(used=1, free=1)
    monkeypatch.setattr(psutil, "disk_usage", lambda path: usage)
    go.set()
    await one.close()


def test_limits_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no limit"):
        Limits()
    with pytest.raises(UsageError, match="names no limit"):
        Limits(disk_path=tmp_path)
    with pytest.raises(UsageError, match=r'needs disk_path = "/srv"'):
        Limits(disk_free=1)
