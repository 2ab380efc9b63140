"""When services were restarted: kept, so that a budget for a day is not one for each life of the node.

The file ``restarts.json`` beside the incarnation has the wall clock's times, seconds since 1970, by service::

    {"version": 1, "restarts": {"apache": [1764000000.0, 1764000300.5]}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from nlbfarm.errors import HostError
from nlbfarm.interfaces import Clock
from nlbfarm.lasting import write_lasting

__all__ = ["Restarts"]

_VERSION = 1
_LARGEST_FILE = 1024 * 1024

_log = structlog.get_logger("nlbfarm.node")


class Restarts:
    """Where they are kept.

    Args:
        path: The file; ``None`` keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self, clock: Clock) -> dict[str, list[float]]:
        """Return when each service was restarted, on the monotonic clock.

        A file that cannot be understood counts for nothing, with a warning: too many restarts are better
        than an application that is not helped up. A time that lies in the future is one of now.

        Raises:
            HostError: The file is there and cannot be read.
        """
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                content = file.read(_LARGEST_FILE)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise HostError(f"{self._path}: cannot be read ({error.strerror}); make it readable") from error
        now, wall = clock.monotonic(), clock.wall()
        try:
            data = json.loads(content)
            if data["version"] != _VERSION:
                raise ValueError(f"version {data['version']}")
            return {
                str(name): sorted(now - max(0.0, wall - float(at)) for at in times)
                for name, times in data["restarts"].items()
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            _log.warning("restarts.unreadable", file=str(self._path), detail="restarts are counted anew")
            return {}

    def save(self, times: Mapping[str, Sequence[float]], clock: Clock) -> None:
        """Save when each service was restarted, on the monotonic clock; survives a crash of the host.

        Raises:
            HostError: It cannot be written; what was saved before still is.
        """
        if self._path is None:
            return
        shift = clock.wall() - clock.monotonic()
        restarts = {name: [round(at + shift, 3) for at in found] for name, found in times.items()}
        write_lasting(self._path, json.dumps({"version": _VERSION, "restarts": restarts}) + "\n")
