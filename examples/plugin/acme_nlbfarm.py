"""A checker of a vendor's own: a server whose disk is full gives its clients away.

In the configuration of the farm::

    [[checkers]]
    name = "uploads"
    type = "disk-space"

    [checkers.options]
    path = "/srv/uploads"
    free_percent = 10
"""

from __future__ import annotations

import asyncio
import shutil

from nlbfarm.errors import UsageError
from nlbfarm.interfaces import Checker, CheckResult

__all__ = ["DiskSpaceChecker"]


class DiskSpaceChecker(Checker):
    """Looks at the free space of a file system.

    Args:
        path: A directory on it.
        free_percent: Less than this is not healthy, 0..100.
    """

    def __init__(self, *, path: object, free_percent: object = 5) -> None:
        # What TOML gives has any type: say what is wrong before the node starts.
        if not isinstance(path, str) or not path.startswith("/"):
            raise UsageError(f"disk-space: path must be an absolute path, not {path!r}")
        if isinstance(free_percent, bool) or not isinstance(free_percent, int | float):
            raise UsageError(f"disk-space: free_percent must be a number, not {free_percent!r}")
        if not 0 <= free_percent <= 100:
            raise UsageError(f"disk-space: free_percent must be from 0 to 100, not {free_percent}")
        self._path = path
        self._free_percent = free_percent

    async def check(self) -> CheckResult:
        """Look once; a file system that does not answer must not hold up the heartbeats: in a thread."""
        try:
            usage = await asyncio.to_thread(shutil.disk_usage, self._path)
        except OSError as error:
            return CheckResult(False, f"{self._path}: {error.strerror}")
        free = 100 * usage.free / usage.total if usage.total else 0.0
        return CheckResult(free >= self._free_percent, f"{free:.1f} % of {self._path} is free")
