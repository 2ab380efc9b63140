"""What the administrator wants of this node, kept across a restart of the process and of the host.

A node that was drained or stopped stays so until it is started, whatever happens to it meanwhile. The file::

    {"version": 1, "admin": "drain", "reason": "", "paused": false, "powers": {"web": 3}}

``reason`` says why a node was taken out that no administrator took out; ``paused`` is maintenance.
``powers`` are those that were set while the node ran (``nlbfarm-node power``); a group that is left out has
the power of the configuration. A file that cannot be understood makes the node *stopped*: it may have
said so, and a node that does not serve is seen and started, while one that serves in the middle of its
maintenance is not expected by anybody. ``nlbfarm-node start`` then writes the file anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from nlbfarm.core.settings import Admin
from nlbfarm.errors import HostError
from nlbfarm.lasting import write_lasting

__all__ = ["AdminFile", "AdminState"]

_VERSION = 1
_LARGEST_FILE = 64 * 1024
_LARGEST_POWER = 65535
_LONGEST_REASON = 500

_log = structlog.get_logger("nlbfarm.node")


@dataclass(frozen=True, slots=True)
class AdminState:
    """What the administrator wants.

    Args:
        admin: Whether the node shall run.
        powers: Powers set while it ran, 0..65535 by group; the others are the configuration's.
        reason: Why it shall not run, where a checker or a service is the reason; 500 characters are kept.
        paused: Whether maintenance goes on: checkers look, and nothing is done about it.
    """

    admin: Admin = Admin.RUN
    powers: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    paused: bool = False


class AdminFile:
    """Where it is kept.

    Args:
        path: The file; ``None`` keeps nothing: every start begins as ``AdminState()``.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.problem = ""
        """Why the file could not be understood, and what to do, in a sentence; empty if it could."""

    def read(self) -> AdminState:
        """Return what was saved last; nothing was saved yet: run, with the configuration's powers.

        Raises:
            HostError: The file is there and cannot be read.
        """
        if self._path is None:
            return AdminState()
        try:
            with self._path.open("rb") as file:
                content = file.read(_LARGEST_FILE + 1)
        except FileNotFoundError:
            return AdminState()
        except OSError as error:
            raise HostError(f"{self._path}: cannot be read ({error.strerror}); make it readable") from error
        try:
            return _parse(content)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.problem = (
                f"{self._path} is damaged ({_why(error)}): whether this node was stopped is not known, so "
                "it stays stopped, with the powers of the configuration; "
                'run "nlbfarm-node start" if it shall serve'
            )
            _log.warning("admin.unreadable", file=str(self._path), detail=self.problem)
            return AdminState(Admin.STOP)

    def save(self, state: AdminState) -> None:
        """Save ``state`` so that it survives a crash of the host.

        Raises:
            HostError: It cannot be written; what was saved before still is.
        """
        if self._path is not None:
            data = {
                "version": _VERSION,
                "admin": state.admin.value,
                "reason": state.reason[:_LONGEST_REASON],
                "paused": state.paused,
                "powers": dict(sorted(state.powers.items())),
            }
            write_lasting(self._path, json.dumps(data) + "\n")
        self.problem = ""


def _parse(content: bytes) -> AdminState:
    if len(content) > _LARGEST_FILE:
        raise ValueError("too long")
    data = json.loads(content)
    if data["version"] != _VERSION:
        raise ValueError(f"of version {data['version']}, written by another version of nlbfarm")
    powers = dict(data["powers"])
    for group, power in powers.items():
        if not isinstance(group, str) or isinstance(power, bool) or not isinstance(power, int):
            raise ValueError("a power is no number")
        if not 0 <= power <= _LARGEST_POWER:
            raise ValueError(f"power {power} is not in 0..{_LARGEST_POWER}")
    # An earlier version wrote neither of these.
    reason, paused = data.get("reason", ""), data.get("paused", False)
    if not isinstance(reason, str) or not isinstance(paused, bool):
        raise ValueError("the reason is no text, or the pause neither true nor false")
    return AdminState(Admin(data["admin"]), powers, reason[:_LONGEST_REASON], paused)


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "not JSON"
    if isinstance(error, KeyError):
        return f"without {error}"
    return str(error) or type(error).__name__
