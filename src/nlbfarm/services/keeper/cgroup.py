"""A cgroup (version 2) of one application's own: whatever it starts is in it, and one write ends all of it.

Only membership is used, no controller: so it may lie beside processes (the rule against those is for cgroups
that hand controllers down; Documentation/admin-guide/cgroup-v2.rst: "No Internal Process Constraint").
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["kill", "make", "members", "places", "remove"]


def places() -> list[Path]:
    """Return the directories that a cgroup could be made in: this process's own, then the root."""
    found: list[Path] = []
    try:
        own = [
            line[3:].strip()
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line[:3] == "0::"
        ]
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            # proc(5): id parent major:minor root mount-point options [tags] - type source options
            fields, _, kind = line.partition(" - ")
            if kind.split(" ", 1)[0] != "cgroup2":
                continue
            mount = Path(_unescaped(fields.split(" ")[4]))
            found += [mount / path.lstrip("/") for path in own if ".." not in path.split("/")]
            found.append(mount)
    except OSError:
        return []
    return list(dict.fromkeys(path for path in found if path.is_dir()))


def make(name: str) -> tuple[Path | None, str]:
    """Make a cgroup called ``name``.

    Returns:
        Where it is, and an empty text; or ``None`` and why none can be made.
    """
    why = "this host has no cgroups of version 2"
    for place in places():
        path = place / name
        try:
            path.mkdir(mode=0o755)
        except OSError as error:
            why = f"{place}: {error.strerror}"
            continue
        return path, ""
    return None, why


def members(path: Path) -> set[int]:
    """Return the ids of all processes in the cgroup and in those below it; none if it is gone."""
    found: set[int] = set()
    for directory in _tree(path):
        try:
            found.update(int(line) for line in (directory / "cgroup.procs").read_text().split())
        except OSError:
            continue  # gone meanwhile, or of threads only: its processes are counted in the one above
    found.discard(0)  # a process of another PID namespace
    return found


def kill(path: Path) -> bool:
    """End every process in it at once, those that are just being started, too.

    Returns:
        ``False`` if the kernel cannot (before 5.14): then each has to be killed.
    """
    try:
        (path / "cgroup.kill").write_text("1")
    except OSError:
        return False
    return True


def remove(path: Path) -> bool:
    """Remove it, with those below; returns whether it is gone. One with processes in it stays."""
    for directory in reversed(_tree(path)):
        try:
            directory.rmdir()
        except OSError:
            continue
    return not path.exists()


def _tree(path: Path) -> list[Path]:
    """Return the cgroup and all below it, each before those below itself."""
    found = [path]
    for directory in found:
        try:
            with os.scandir(directory) as entries:
                found += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
    return found if path.is_dir() else []


def _unescaped(text: str) -> str:
    r"""Undo what the kernel writes for blanks in a path (``\040``)."""
    for code in ("\\040", "\\011", "\\012", "\\134"):
        text = text.replace(code, chr(int(code[1:], 8)))
    return text
