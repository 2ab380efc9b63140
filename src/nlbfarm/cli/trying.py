"""``check --host``: what is configured to be looked at and started is made, and looked at once."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nlbfarm.assembly import vip_manager
from nlbfarm.assembly.supervised import CheckMaker, supervised
from nlbfarm.cli.common import journal_path
from nlbfarm.config import FarmConfig, derive
from nlbfarm.config.checkers import Checker as CheckerEntry
from nlbfarm.config.checkers import IpChecker, ProcessChecker, ResourcesChecker, ScriptChecker
from nlbfarm.config.services import Service as ServiceEntry
from nlbfarm.errors import NlbfarmError, Problem
from nlbfarm.interfaces import VIPManager
from nlbfarm.parts import Supervised
from nlbfarm.runtime.checking import CHECK_SLACK_S
from nlbfarm.vip.memory import MemoryVIPManager

__all__ = ["Trial", "Trials", "try_out"]

_SERVICE_S = 15.0
"""A service manager, or a status script, that takes longer to say how a service is hangs."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A service or a checker that was looked at once.

    Args:
        path: Where it is in the configuration.
        name, type: As ``status`` shows them.
        ok: Whether it runs, or is well; ``None``: that was not tried.
        detail: What was seen.
        problems: Why it cannot be used on this host; empty if it can.
        notes: What is allowed but probably not meant.
    """

    path: str
    name: str
    type: str
    ok: bool | None = None
    detail: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it for a program."""
        return {"name": self.name, "type": self.type, "ok": self.ok, "detail": self.detail}

    def fails(self, *problems: str) -> Trial:
        """Return it with what keeps it from being used."""
        return replace(self, ok=False, detail="; ".join(problems), problems=problems)


@dataclass(frozen=True, slots=True)
class Trials:
    """What was tried.

    Args:
        services, checkers: In the order of the configuration.
        others: What else was found missing on the way.
    """

    services: tuple[Trial, ...] = ()
    checkers: tuple[Trial, ...] = ()
    others: tuple[Problem, ...] = ()

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be used on this host."""
        yield from self.others
        for trial in (*self.services, *self.checkers):
            yield from (Problem(trial.path, problem) for problem in trial.problems)

    def notes(self) -> Iterator[Problem]:
        """Yield what is allowed but probably not meant."""
        for trial in (*self.services, *self.checkers):
            yield from (Problem(trial.path, note) for note in trial.notes)

    def down(self) -> Iterator[Problem]:
        """Yield what checkers found: an application need not run yet."""
        for trial in self.checkers:
            if trial.ok is False and not trial.problems:
                yield Problem(trial.path, f"is down: {trial.detail}")


async def try_out(config: FarmConfig, node_id: int, runtime_dir: Path) -> Trials:
    """Make every service and checker of a node, and look at each once; starts and changes nothing.

    Args:
        config: The configuration.
        node_id: Which node this host is.
        runtime_dir: Where the farms of this host have their directories.
    """
    others: list[Problem] = []
    manager: VIPManager
    try:
        manager = vip_manager(config, journal_path(runtime_dir, config.farm.name))
    except NlbfarmError as error:
        others.append(Problem("filter.vip_manager", str(error)))
        manager = MemoryVIPManager(derive.vip_specs(config))  # for the checkers to be made with
    # What a status script prints would be kept in the state directory, which need not be there yet.
    with tempfile.TemporaryDirectory(prefix="nlbfarm-check-") as scratch:
        services = [
            _made(
                Trial(f"services[{index}]", entry.name, entry.kind), one, node_id, runtime_dir, Path(scratch)
            )
            for index, (entry, one) in enumerate(_one_by_one(config))
        ]
        made = [one for _, one in services if one is not None]
        try:
            looked = await asyncio.gather(*(_look(trial, one) for trial, one in services))
            unusable = {trial.name for trial in looked if trial.problems}
            usable = {one.spec.name: one for one in made if one.spec.name not in unusable}
            maker = CheckMaker(node_id, manager, made, runtime_dir)
            tried = await asyncio.gather(
                *(
                    _try(Trial(f"checkers[{index}]", entry.name, entry.type), config, entry, maker, usable)
                    for index, entry in enumerate(config.checkers)
                )
            )
        finally:
            await asyncio.gather(*(one.service.close() for one in made), return_exceptions=True)
    return Trials(tuple(looked), tuple(tried), tuple(others))


# -- services ------------------------------------------------------------------------------


def _one_by_one(config: FarmConfig) -> Iterator[tuple[ServiceEntry, FarmConfig]]:
    """Yield each service, and a configuration with that one alone: each has its own problems."""
    for entry in config.services:
        yield entry, config.model_copy(update={"services": (entry,)})


def _made(
    trial: Trial, config: FarmConfig, node_id: int, runtime_dir: Path, state_dir: Path
) -> tuple[Trial, Supervised | None]:
    try:
        (one,) = supervised(config, node_id, runtime_dir=runtime_dir, state_dir=state_dir)
    except NlbfarmError as error:
        return trial.fails(str(error)), None
    return trial, one


async def _look(trial: Trial, one: Supervised | None) -> Trial:
    """Ask the host how a service is, and what it lacks for it."""
    if one is None:
        return trial
    try:
        async with asyncio.timeout(_SERVICE_S):
            lacks, notes = [await _say(one, what) for what in ("lacks", "notes")]
            if lacks:
                return trial.fails(*lacks)
            found = await one.service.running()
    except TimeoutError:
        return trial.fails(f"nothing on this host says within {_SERVICE_S:g} s how it is")
    except NlbfarmError as error:
        return trial.fails(str(error))
    except Exception as error:  # noqa: BLE001 - a plug-in's fault, to be told like any other
        return trial.fails(f"what starts and stops it fails: {type(error).__name__}: {error}")
    return replace(trial, ok=found.ok, detail=found.detail, notes=tuple(notes))


async def _say(one: Supervised, what: str) -> Sequence[str]:
    """Return what a service of ours says of itself; of a vendor's, that need not be there."""
    ask = getattr(one.service, what, None)
    found: Sequence[str] = await ask() if ask is not None else ()
    return found


# -- checkers ------------------------------------------------------------------------------


async def _try(
    trial: Trial,
    config: FarmConfig,
    entry: CheckerEntry,
    maker: CheckMaker,
    services: Mapping[str, Supervised],
) -> Trial:
    """Look once with a checker; ``services`` are those that can be used."""
    if isinstance(entry, ScriptChecker) and (lacking := _not_startable(entry)):
        return trial.fails(lacking)
    try:
        check = maker.make(config, entry)
        try:
            if reason := await _why_not_now(entry, services):
                return replace(trial, detail=f"not tried: {reason}")
            async with asyncio.timeout(check.timeout + CHECK_SLACK_S):
                result = await check.checker.check()
        finally:
            await check.checker.close()
    except TimeoutError:
        return replace(trial, ok=False, detail=f"no answer within {entry.timeout.total_seconds():g} s")
    except NlbfarmError as error:
        return trial.fails(str(error))
    except Exception as error:  # noqa: BLE001 - a plug-in's fault, to be told like any other
        return trial.fails(f"the checker itself fails: {type(error).__name__}: {error}")
    return replace(trial, ok=result.ok, detail=result.detail)


async def _why_not_now(entry: CheckerEntry, services: Mapping[str, Supervised]) -> str:
    """Return why a look would say nothing before the node runs; empty if it would."""
    if isinstance(entry, IpChecker):
        return "the node brings the virtual IP up"
    if not isinstance(entry, ProcessChecker | ResourcesChecker) or entry.selects or entry.service is None:
        return ""
    if entry.service not in services:
        return f"its service {entry.service} cannot be used here"
    pids = getattr(services[entry.service].service, "pids", None)
    if pids is not None and not await pids():
        return f"no process of its service {entry.service} is known here: that does not run, or under a node"
    return ""


def _not_startable(entry: ScriptChecker) -> str:
    """Return why this host cannot run a script; empty if it can."""
    program = entry.command[0]
    if shutil.which(program) is None:
        there = Path(program).exists()
        return f"{program} " + ("may not be executed; run: chmod +x it" if there else "is not on this host")
    if entry.user is not None and sys.platform != "win32":
        import pwd  # not on every platform

        try:
            pwd.getpwnam(entry.user)
        except KeyError:
            return f'this host has no user "{entry.user}"'
    return ""
