"""The checker ``script`` with a program that every platform has: Python."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import psutil
from tests.checkers.support import LONG, SHORT, look

from nlbfarm.checkers import ScriptChecker
from nlbfarm.interfaces import CheckResult

PYTHON = [sys.executable, "-I", "-S", "-c"]


async def children_end() -> None:
    async with asyncio.timeout(LONG):
        while psutil.Process().children(recursive=True):
            await asyncio.sleep(0.01)


async def test_healthy_and_not() -> None:
    good = await look(ScriptChecker([*PYTHON, "print('all is well')"], timeout=LONG))
    assert good == CheckResult(True, f"{sys.executable} ended with exit code 0: all is well")
    bad = await look(ScriptChecker([*PYTHON, "raise SystemExit('no database')"], timeout=LONG))
    assert bad == CheckResult(False, f"{sys.executable} ended with exit code 1: no database")


async def test_environment() -> None:
    program = "import os; print(os.environ['NLBFARM_CHECKER'], os.environ['MORE'])"
    checker = ScriptChecker([*PYTHON, program], name="shop", environment={"MORE": "7"}, timeout=LONG)
    assert (await look(checker)).detail.endswith(": shop 7")


async def test_one_that_hangs_is_killed_with_its_children() -> None:
    program = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(1000)'])"
    )
    result = await look(ScriptChecker([*PYTHON, program], timeout=5 * SHORT))
    assert result == CheckResult(False, f"{sys.executable} has not ended within 1 s and was killed")
    await children_end()


async def test_one_that_is_cancelled() -> None:
    checker = ScriptChecker(
        [*PYTHON, "import sys; sys.stdin = None; print(flush=True); import time; time.sleep(1000)"]
    )
    looking = asyncio.create_task(checker.check())
    async with asyncio.timeout(LONG):
        while not psutil.Process().children():
            await asyncio.sleep(0.01)
    looking.cancel()
    await asyncio.wait([looking])
    assert looking.cancelled()
    await checker.close()
    await children_end()
    async with asyncio.timeout(LONG):
        while [one for one in threading.enumerate() if one.name.startswith("nlbfarm-script")]:
            await asyncio.sleep(0.01)


async def test_one_that_prints_without_end() -> None:
    """Neither memory nor the event loop suffers."""
    before = psutil.Process().memory_info().rss
    result = await look(ScriptChecker([*PYTHON, "print('x' * 100_000_000)"], timeout=LONG))
    assert not result.ok
    assert result.detail.startswith(f"{sys.executable} printed more than 16.8 MB and was killed: xxx")
    assert psutil.Process().memory_info().rss - before < 8 << 20


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    path = str(tmp_path / "gone")
    assert await look(ScriptChecker([path])) == CheckResult(
        False, f"{path} cannot be started: there is no such file"
    )
