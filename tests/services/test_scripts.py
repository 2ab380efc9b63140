"""Scripts as a service: their order, what they are told, and what happens when one fails or hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.services.support import Mark, context, log_of, until

from nlbfarm.errors import HostError, UsageError
from nlbfarm.services import ScriptsService
from nlbfarm.services.programs import run

pytestmark = pytest.mark.posix("a shell")


@pytest.fixture
def mark() -> Iterator[Mark]:
    found = Mark()
    yield found
    found.kill()


class Application:
    """Scripts that write down when they are run, and an application that they start as a daemon.

    Args:
        directory: Where everything is.
        scripts: What one does instead, by action.
    """

    def __init__(self, directory: Path, mark: Mark, **scripts: str) -> None:
        self.directory = directory
        self.ran = directory / "ran"
        pid = directory / "pid"
        self.scripts = {
            "prestart": ":",
            "start": f"(setsid sh -c 'echo $$ >{pid}.new; mv {pid}.new {pid}; exec {mark.sleep}' &)",
            "stop": f"kill $(cat {pid}); rm -f {pid}",
            "poststop": ":",
            # Not by "kill -0": that finds a zombie, and who takes note of the end of orphans is not ours.
            "status": f"grep -q sleep /proc/$(cat {pid})/cmdline",
            **scripts,
        }

    def service(
        self, *actions: str, start_timeout: float = 10.0, stop_timeout: float = 10.0
    ) -> ScriptsService:
        """Return a new service; with these scripts beside ``start`` and ``stop``."""
        words = {
            action: ["sh", "-c", f"echo $NLBFARM_ACTION >>{self.ran}; {self.scripts[action]}"]
            for action in ("start", "stop", *actions)
        }
        return ScriptsService(
            context(self.directory), start_timeout=start_timeout, stop_timeout=stop_timeout, **words
        )

    def order(self) -> list[str]:
        """Return which scripts were run, in order, without ``status``."""
        lines = self.ran.read_text().split() if self.ran.exists() else []
        return [line for line in lines if line != "status"]


async def test_order(tmp_path: Path, mark: Mark) -> None:
    app = Application(tmp_path, mark)
    service = app.service("prestart", "poststop")
    await service.stop("nothing was started")
    assert app.order() == []
    await service.start("x")
    await service.start("twice")
    assert app.order() == ["prestart", "start"]
    await until(lambda: len(mark.pids()) == 1, "it runs")
    assert list(await service.pids()) == mark.pids()
    await service.stop("x")
    await service.stop("twice")
    assert app.order() == ["prestart", "start", "stop", "poststop"]
    assert not mark.alive()


async def test_what_they_are_told(tmp_path: Path, mark: Mark) -> None:
    service = Application(tmp_path, mark, prestart="env").service("prestart")
    await service.start("the node starts")
    said = log_of(tmp_path).read_text()
    for line in (
        "NLBFARM_NODE=web1",
        "NLBFARM_VIPS=192.0.2.100 192.0.2.101",
        "NLBFARM_REASON=the node starts",
        "NLBFARM_ACTION=prestart",
        "NLBFARM_SERVICE=app",
    ):
        assert f"\n{line}\n" in said
    assert "NLBFARM_ACTION=prestart" in said
    await service.stop("x")


async def test_a_prestart_that_fails(tmp_path: Path, mark: Mark) -> None:
    app = Application(tmp_path, mark, prestart=f"(setsid {mark.sleep} &); echo no licence; exit 3")
    service = app.service("prestart", "poststop")
    with pytest.raises(
        HostError, match=r'^service "app" cannot be started: prestart: sh -c .*: exit code 3; '
    ):
        await service.start("x")
    assert "no licence" in service.output_tail()
    assert app.order() == ["prestart", "poststop"]
    assert not (await service.running()).ok
    assert not mark.alive()
    await service.stop("x")
    assert app.order() == ["prestart", "poststop"]


async def test_a_start_that_fails(tmp_path: Path, mark: Mark) -> None:
    app = Application(tmp_path, mark, start=f"(setsid {mark.sleep} &) ; exit 1")
    service = app.service("prestart", "poststop")
    with pytest.raises(HostError, match=r"cannot be started: start: .*exit code 1"):
        await service.start("x")
    assert app.order() == ["prestart", "start", "stop", "poststop"]
    assert not mark.alive()
    assert not (await service.running()).ok


async def test_a_script_that_is_not_there(tmp_path: Path) -> None:
    service = ScriptsService(context(tmp_path), start=["/nonexistent/start"], stop=["true"])
    with pytest.raises(HostError, match="start: /nonexistent/start: No such file or directory"):
        await service.start("x")
    assert await service.notes() == ["start: /nonexistent/start is not there, or cannot be executed"]
    with pytest.raises(UsageError, match="scripts for start and stop are needed"):
        ScriptsService(context(tmp_path), start=["true"], stop=[])


async def test_a_start_that_hangs_is_killed_with_its_group(tmp_path: Path, mark: Mark) -> None:
    app = Application(tmp_path, mark, start=f"trap '' TERM; {mark.sleep} & {mark.sleep}")
    service = app.service("poststop", start_timeout=0.2)
    with pytest.raises(HostError, match=r"did not end within 0\.2 s and was killed"):
        await service.start("x")
    assert not mark.alive()
    assert app.order() == ["start", "stop", "poststop"]


async def test_a_start_that_is_cancelled_is_stopped_later(tmp_path: Path, mark: Mark) -> None:
    app = Application(tmp_path, mark, start=f"(setsid {mark.sleep} &) ; {mark.sleep}")
    service = app.service("poststop", stop_timeout=0.3)
    starting = asyncio.ensure_future(service.start("x"))
    await until(lambda: len(mark.pids()) == 2, "it is being started")
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await until(lambda: len(mark.pids()) == 1, "the script's group is gone, the daemon is not")
    assert not (await service.running()).ok
    await service.stop("it took too long")
    assert app.order() == ["start", "stop", "poststop"]
    assert not mark.alive()


async def test_a_start_that_a_killed_node_has_begun_is_taken_back(tmp_path: Path, mark: Mark) -> None:
    app = Application(tmp_path, mark)
    service = app.service("poststop")
    await service.start("x")
    record = tmp_path / "run" / "services" / "app.scripts"
    record.write_text(record.read_text().replace("started", "starting"))
    (before,) = mark.pids()
    service = app.service("poststop")
    await service.start("again")
    assert app.order() == ["start", "stop", "poststop", "start"]
    await until(lambda: bool(mark.pids()) and before not in mark.pids(), "a new one runs")
    await service.stop("x")


async def test_a_stop_waits_for_the_end(tmp_path: Path, mark: Mark) -> None:
    """The script returns at once; what it has told to end takes a while."""
    stop = f"(sleep 0.3; kill $(cat {tmp_path}/pid)) >/dev/null 2>&1 &"
    service = Application(tmp_path, mark, stop=stop).service()
    await service.start("x")
    await until((tmp_path / "pid").exists, "it runs")
    await service.stop("x")
    assert not mark.alive()


async def test_a_stop_insists(tmp_path: Path, mark: Mark) -> None:
    service = Application(tmp_path, mark, stop=":").service("status", stop_timeout=0.2)
    await service.start("x")
    await until(mark.alive, "it runs")
    await service.stop("x")
    assert not mark.alive()


async def test_a_stop_that_hangs(tmp_path: Path, mark: Mark) -> None:
    app = Application(tmp_path, mark, stop=mark.sleep)
    service = app.service("poststop", stop_timeout=0.2)
    await service.start("x")
    await until(mark.alive, "it runs")
    await service.stop("x")
    assert not mark.alive()
    assert app.order() == ["start", "stop", "poststop"]


async def test_a_stop_that_fails_for_what_nobody_can_see(tmp_path: Path, mark: Mark) -> None:
    service = Application(tmp_path, mark, start=":", stop="echo busy; exit 4").service()
    await service.start("x")
    with pytest.raises(HostError, match=r"cannot be stopped: sh -c .*: exit code 4; it said: busy"):
        await service.stop("x")
    assert (await service.running()).ok  # as far as anybody knows


async def test_what_still_runs_after_its_stop_is_an_error(tmp_path: Path, mark: Mark) -> None:
    service = Application(tmp_path, mark, start=":", stop=":", status=":").service("status", stop_timeout=0.2)
    await service.start("x")
    with pytest.raises(HostError, match="it still runs, as its status script says, after its stop script"):
        await service.stop("x")


async def test_its_end_is_noticed_by_the_status_script(
    tmp_path: Path, mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlbfarm.services.scripts._ASK_S", 0.02)
    app = Application(tmp_path, mark)
    service = app.service("status", "poststop")
    await service.start("x")
    await until((tmp_path / "pid").exists, "it runs")
    ended = asyncio.ensure_future(service.ended())
    await asyncio.sleep(0.1)
    assert not ended.done()
    mark.kill()
    assert "exit code 1" in await ended
    await service.start("again")  # what has ended without being stopped is stopped first
    assert app.order() == ["start", "stop", "poststop", "start"]
    await service.stop("x")


async def test_a_status_script_that_hangs_is_no_end(
    tmp_path: Path, mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlbfarm.services.scripts._STATUS_S", 0.05)
    monkeypatch.setattr("nlbfarm.services.scripts._ASK_S", 0.01)
    service = Application(tmp_path, mark, status=mark.sleep).service("status")
    ended = asyncio.ensure_future(service.ended())
    await asyncio.sleep(0.3)
    assert not ended.done()
    ended.cancel()
    await asyncio.gather(ended, return_exceptions=True)
    assert "did not end within 0.05 s" in (await service.running()).detail


async def test_output_without_end_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    outcome = await run(["sh", "-c", "yes nlbfarm | head -c 100000000"], {}, log=log, timeout=60)
    assert outcome.ok
    assert log.stat().st_size < 100_000_000 / 2
    outcome = await run(["echo", "done"], {}, log=log, timeout=60)
    assert outcome.detail == "echo done: exit code 0; it said: done"
    assert log.stat().st_size < 2 << 20


async def test_a_log_that_cannot_be_had_is_no_reason_not_to_run(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    outcome = await run(["sh", "-c", "echo x; kill -9 $$"], {}, log=tmp_path / "log" / "a", timeout=60)
    assert (outcome.code, outcome.detail) == (-9, "sh -c echo x; kill -9 $$: killed by SIGKILL")
