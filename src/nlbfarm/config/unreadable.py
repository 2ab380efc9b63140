"""Why a file cannot be read: which user lacks which right."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["why_unreadable"]


def why_unreadable(path: Path, error: OSError) -> str:
    """Return what an administrator has to know when ``path`` could not be opened.

    Args:
        path: The file.
        error: What opening it raised.
    """
    if os.name == "nt" and path.is_dir():  # Windows says that permission was denied
        return "cannot be read: Is a directory"
    if not isinstance(error, PermissionError) or os.name != "posix":
        return f"cannot be read: {error.strerror}"
    me = _user(os.geteuid())
    try:
        found = path.stat()
    except OSError:
        return f"cannot be read: user {me} may not pass through the directories above it (x for each of them)"
    owner, mode = _user(found.st_uid), stat.S_IMODE(found.st_mode)
    return (
        f"cannot be read: user {me} has no right to read it; it is {owner}'s, mode {mode:04o}: run as {owner}"
    )


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
