"""A client of the lab: a process in the client's namespace that reports in JSON lines."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from nlbfarm.lab import topology
from nlbfarm.lab.farm import Lab
from nlbfarm.lab.supervisor import ROOT
from nlbfarm.lab.world import LabError

__all__ = ["Client"]


class Client(ABC):
    """A running client; a context manager. All methods may be called while it runs.

    Args:
        lab: The lab whose client asks.
        module: The module below ``nlbfarm.lab`` that is the process; also its name.
        options: Its command line, without the VIP and the seed.
        seed: Seed of the group; by default the farm's own.
    """

    def __init__(self, lab: Lab, module: str, options: Sequence[str], seed: int | None) -> None:
        self._lab = lab
        self._module = module
        self._options = [*options, "--vip", str(topology.VIP)]
        self._options += ["--config", str(ROOT / "farm.toml")] if seed is None else ["--seed", str(seed)]
        self._name = f"{topology.CLIENT}/{module}"
        self._lock = threading.Lock()
        self._seen = 0.0
        self._reader: threading.Thread | None = None

    @abstractmethod
    def _take(self, report: dict[str, Any]) -> None:
        """Take a report in; ``_lock`` is held. It sets ``_seen``."""

    def __enter__(self) -> Self:
        ours, theirs = os.pipe()
        try:
            self._lab.world.spawn(
                self._name,
                [sys.executable, "-m", f"nlbfarm.lab.{self._module}", *self._options],
                ns=topology.CLIENT,
                log=str(ROOT / f"{self._module}.log"),
                fds=[theirs],
            )
        finally:
            os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), name=self._module, daemon=True)
        self._reader.start()
        self._lab.wait_for(self._started, 20, f"the {self._module} to start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the client; what it saw stays."""
        try:
            self._lab.world.call("signal", name=self._name, number=signal.SIGKILL)
            self._lab.world.call("wait", name=self._name, timeout=5)
        finally:
            if self._reader:
                self._reader.join(5)

    def _started(self) -> bool:
        code = self._lab.world.call("wait", name=self._name, timeout=0)
        if code is not None:
            log = self._lab.world.call("read", path=f"{self._module}.log").strip()
            raise LabError(f"the {self._module} ended with {code}: {log}")
        return self._seen > 0

    def _read(self, descriptor: int) -> None:
        with open(descriptor, encoding="utf-8") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    return  # killed in the middle of it
                report = json.loads(line)
                with self._lock:
                    self._take(report)

    @property
    def seen(self) -> float:
        """Until when the results are known, seconds on the monotonic clock."""
        return self._seen

    def wait_until(self, moment: float) -> None:
        """Wait until the results up to ``moment`` are known; the class says which those are."""
        self._lab.wait_for(
            lambda: self._seen > moment,
            max(0.0, moment - self._seen) + 15,
            f"the results of the {self._module}",
        )
