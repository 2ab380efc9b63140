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

import shutil

from nlbfarm.checkers.threads import BlockingChecker
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import CheckResult

__all__ = ["DiskSpaceChecker"]


class DiskSpaceChecker(BlockingChecker):
    """Looks at the free space of a file system; one that hangs holds up this checker alone.

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
        super().__init__(path)
        self._path = path
        self._free_percent = free_percent

    async def check(self) -> CheckResult:
        return await self.within(self._look)

    def _look(self) -> CheckResult:
        """Look once, in the checker's own thread."""
        try:
            usage = shutil.disk_usage(self._path)
        except OSError as error:
            return CheckResult(False, f"{self._path}: {error.strerror}")
        free = 100 * usage.free / usage.total if usage.total else 0.0
        return CheckResult(free >= self._free_percent, f"{free:.1f} % of {self._path} is free")
