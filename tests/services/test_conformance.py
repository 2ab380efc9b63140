"""The conformance check: ours pass it, and services that are wrong in one way each do not.

Those of systemd and of Windows are beside their stand-ins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.services.support import Mark, cgroup_is_possible, context

from nlbfarm.errors import HostError
from nlbfarm.interfaces import CheckResult, Service
from nlbfarm.services import CommandService, ScriptsService
from nlbfarm.testing import service as checks
from nlbfarm.testing.service import check_service


@pytest.mark.posix("the keeper, a Linux process")
@pytest.mark.parametrize("cgroup", [True, False], ids=["cgroup", "no cgroup"])
async def test_command(tmp_path: Path, cgroup: bool) -> None:
    if cgroup and (why := cgroup_is_possible()):
        pytest.skip(f"lack of cgroups ({why})")
    mark = Mark()

    async def kill() -> None:
        mark.kill()

    await check_service(
        lambda: CommandService(context(tmp_path), command=mark.sleep.split(), cgroup=cgroup),
        alive=mark.alive,
        which=mark.pids,
        kill=kill,
        broken=lambda: CommandService(context(tmp_path), command=["/nonexistent/acme"], cgroup=cgroup),
    )


@pytest.mark.posix("a shell")
@pytest.mark.parametrize("status", [True, False], ids=["status", "no status"])
async def test_scripts(tmp_path: Path, status: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlbfarm.services.scripts._ASK_S", 0.02)
    mark, pid = Mark(), tmp_path / "pid"

    async def kill() -> None:
        mark.kill()

    def make(start: str = f"{mark.sleep} & echo $! >{pid}") -> ScriptsService:
        # Not by "kill -0": that finds a zombie, and who takes note of the end of orphans here is not ours.
        asks = ["sh", "-c", f"grep -q sleep /proc/$(cat {pid})/cmdline"] if status else []
        stop = ["sh", "-c", f"kill $(cat {pid}); rm {pid}"]
        return ScriptsService(context(tmp_path), start=["sh", "-c", start], stop=stop, status=asks)

    await check_service(
        make,
        alive=mark.alive,
        which=mark.pids,
        kill=kill if status else None,  # nobody would notice
        broken=lambda: make("exit 1"),
    )


@dataclass
class World:
    """An application in memory."""

    runs: bool = False
    times: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Good(Service):
    """A service that does everything right, and can be broken in one place."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def start(self, reason: str) -> None:
        if not self.world.runs:
            self.world.runs = True
            self.world.times += 1
            self.world.news.clear()

    async def stop(self, reason: str) -> None:
        self.world.runs = False

    async def running(self) -> CheckResult:
        return CheckResult(self.world.runs, "runs" if self.world.runs else "does not run")

    async def ended(self) -> str:
        await self.world.news.wait()
        return "it has crashed"


class Broken(Good):
    async def start(self, reason: str) -> None:
        raise HostError("there is no licence")


async def check(make: Callable[[World], Service], broken: Callable[[World], Service] = Broken) -> None:
    world = World()

    async def kill() -> None:
        world.runs = False
        world.news.set()

    await check_service(
        lambda: make(world),
        alive=lambda: world.runs,
        which=lambda: world.times,
        kill=kill,
        broken=lambda: broken(World()),
        timeout=0.3,
    )


async def test_a_good_one() -> None:
    await check(Good)


class StartsAtOnce(Good):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        world.runs = True


class DoesNotStart(Good):
    async def start(self, reason: str) -> None:
        return


class RestartsWhatRuns(Good):
    async def start(self, reason: str) -> None:
        self.world.runs = True
        self.world.times += 1


class DoesNotStop(Good):
    async def stop(self, reason: str) -> None:
        return


class HangsAsItStops(Good):
    async def stop(self, reason: str) -> None:
        if self.world.runs:
            await asyncio.sleep(1000)


class StopsOnClose(Good):
    async def close(self) -> None:
        self.world.runs = False


class ForgetsWhatRuns(Good):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.mine = False

    async def start(self, reason: str) -> None:
        self.mine = True
        await super().start(reason)

    async def running(self) -> CheckResult:
        return CheckResult(self.mine and self.world.runs, "as far as I know")


class StopsOnlyItsOwn(Good):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.mine = False

    async def start(self, reason: str) -> None:
        self.mine = True
        await super().start(reason)

    async def stop(self, reason: str) -> None:
        if self.mine:
            await super().stop(reason)


class SaysNothing(Good):
    async def running(self) -> CheckResult:
        return CheckResult(self.world.runs, "")


class SaysThatItEnded(Good):
    async def ended(self) -> str:
        return "it seems so"


class SeesNoEnd(Good):
    async def ended(self) -> str:
        await asyncio.sleep(1000)
        return ""


class SaysNotWhy(Good):
    async def ended(self) -> str:
        await super().ended()
        return " "


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (StartsAtOnce, "the constructor started it"),
        (DoesNotStart, "nothing of the application runs after it was started"),
        (RestartsWhatRuns, "was restarted by start"),
        (DoesNotStop, "something of the application still runs after stop has returned"),
        (HangsAsItStops, "stop does not return within"),
        (StopsOnClose, "close has stopped the application"),
        (ForgetsWhatRuns, "running() says False for a new object"),
        (StopsOnlyItsOwn, "a new object's stop leaves the application running"),
        (SaysNothing, "running() does not say what it saw"),
        (SaysThatItEnded, "ended() says 'it seems so' of an application that runs"),
        (SeesNoEnd, "ended() does not return when the application has ended"),
        (SaysNotWhy, "ended() does not say why"),
    ],
)
async def test_a_wrong_one(wrong: type[Good], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_PATIENCE", 0.1)
    with pytest.raises(AssertionError) as raised:
        await check(wrong)
    assert said in str(raised.value)


async def test_one_that_starts_what_cannot_be_started() -> None:
    with pytest.raises(AssertionError, match="start of what cannot be started returns without HostError"):
        await check(Good, broken=Good)


async def test_what_is_no_service_at_all() -> None:
    with pytest.raises(AssertionError, match=r"str is not a nlbfarm\.interfaces\.Service"):
        await check_service(lambda: "x", alive=lambda: False)  # type: ignore[arg-type, return-value]
