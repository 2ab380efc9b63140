"""What processes of this backend leave when they are killed: each other, and on Linux their programs at tc.

Nothing is written down for that: our processes are found by an argument of theirs (``channel.marker``) and by
their user, our programs by their name and the priorities that only we use. ``Divert.unregister`` is left
alone: it would also take what other programs, and other network namespaces, have left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from nlbfarm.backends.windivert.channel import PREFIX, marker, network
from nlbfarm.backends.windivert.engine import GUARD_PRIORITY, LOOP_PRIORITY

__all__ = [
    "Program",
    "alone",
    "drop_empty_qdiscs",
    "end",
    "find",
    "interfaces_with_qdisc",
    "programs",
    "remove",
]

_TC_BASE = 30_001  # ebpfdivert: tc priority = 30001 - divert priority
_LOOP_PREF, _GUARD_PREF = _TC_BASE - LOOP_PRIORITY, _TC_BASE - GUARD_PRIORITY
_PROGRAM = "tc_divert_"
_POLITE_S = 1.0
_LOOK_S = 0.02
_TC_S = 10.0


def find(farm: str, *, except_for: Iterable[int] = ()) -> dict[str, list[psutil.Process]]:
    """Return the processes of this backend for ``farm``, in this network namespace, by role.

    Args:
        farm: The farm's name.
        except_for: Process ids that are not meant.
    """
    roles = {marker(role, farm): role for role in ("guard", "loop")}
    not_meant = {os.getpid(), *except_for}
    found: dict[str, list[psutil.Process]] = {"guard": [], "loop": []}
    me = psutil.Process().username()
    for process, arguments in _command_lines():
        role = next((roles[argument] for argument in arguments if argument in roles), None)
        if role is None or process.pid in not_meant:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.username() == me:
                found[role].append(process)
    return found


def alone() -> bool:
    """Say that no process of this backend runs in this network namespace, for any farm."""
    start = f"{PREFIX}/{network()}/"
    for _, arguments in _command_lines():
        if any(argument.startswith(start) for argument in arguments):
            return False
    return True


def _command_lines() -> Iterator[tuple[psutil.Process, Sequence[str]]]:
    """Yield the processes of this host whose command line may be read, with it."""
    for process in psutil.process_iter():
        try:
            arguments = process.cmdline()
        except (psutil.Error, OSError):  # psutil passes some errors of Windows on as they are
            continue
        yield process, arguments


def end(processes: dict[str, list[psutil.Process]]) -> list[str]:
    """End processes that ``find`` returned: first the guards, that none takes the other's end for a failure.

    Returns:
        A line for an administrator for each.
    """
    lines: list[str] = []
    for role in ("guard", "loop"):
        deadline = time.monotonic() + _POLITE_S
        alive = list(processes[role])
        while (alive := [process for process in alive if _runs(process)]) and time.monotonic() < deadline:
            for process in alive:  # again and again: as long as they believe in their node they do not listen
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            time.sleep(_LOOK_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        while any(map(_runs, alive)):
            time.sleep(_LOOK_S)
        lines += [f"ended the windivert {role} process (pid {process.pid})" for process in processes[role]]
    return lines


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True, slots=True)
class Program:
    """A program of ours at tc.

    Args:
        interface: Name of the interface.
        hook: ``"ingress"`` or ``"egress"``.
        pref, handle: What tc knows it by.
        identity: Its id in the kernel, never used again.
    """

    interface: str
    hook: str
    pref: int
    handle: str
    identity: int

    @property
    def of_loop(self) -> bool:
        """Whether it judges; otherwise it drops."""
        return self.pref == _LOOP_PREF


def programs(interfaces: Iterable[str]) -> set[Program]:
    """Return the programs with our priorities on ``interfaces`` and the loopback; none on Windows."""
    found: set[Program] = set()
    for interface in interfaces_with_qdisc(interfaces):
        for hook in ("ingress", "egress"):
            for item in _tc_json("filter", "show", "dev", interface, hook):
                options = item.get("options", {})
                identity = options.get("prog", {}).get("id", 0)
                if item.get("pref") in (_LOOP_PREF, _GUARD_PREF) and options.get("bpf_name", "").startswith(
                    _PROGRAM
                ):
                    found.add(Program(interface, hook, item["pref"], options["handle"], identity))
    return found


def remove(leftover: Iterable[Program]) -> list[str]:
    """Remove those of ``leftover`` that are still there; returns a line for each."""
    wanted = set(leftover)
    if not wanted:
        return []
    lines: list[str] = []
    for program in sorted(
        wanted & programs({program.interface for program in wanted}),
        key=lambda p: (p.interface, p.hook, p.pref),
    ):
        place = ["dev", program.interface, program.hook, "protocol", "all"]
        if (
            _tc("filter", "del", *place, "pref", str(program.pref), "handle", program.handle, "bpf")
            is not None
        ):
            lines.append(f"removed an eBPF program from {program.interface} ({program.hook})")
    return lines


def interfaces_with_qdisc(interfaces: Iterable[str]) -> set[str]:
    """Return those of ``interfaces`` and the loopback that have tc's ``clsact``, on which programs hang."""
    with_clsact = {item.get("dev") for item in _tc_json("qdisc", "show") if item.get("kind") == "clsact"}
    return {interface for interface in _with_loopback(interfaces) if interface in with_clsact}


def drop_empty_qdiscs(interfaces: Iterable[str]) -> None:
    """Take ``clsact`` away from interfaces on which nothing hangs any more."""
    for interface in interfaces:
        if not any(_tc_json("filter", "show", "dev", interface, hook) for hook in ("ingress", "egress")):
            _tc("qdisc", "del", "dev", interface, "clsact")


def _with_loopback(interfaces: Iterable[str]) -> list[str]:
    """Return the interfaces that a handle attaches to: it puts packets back through the loopback."""
    return [] if sys.platform == "win32" else sorted({*interfaces, "lo"})


def _tc_json(*arguments: str) -> list[dict[str, Any]]:
    output = _tc("-json", *arguments)
    items: list[dict[str, Any]] = json.loads(output) if output and output.strip() else []
    return items


def _tc(*arguments: str) -> str | None:
    """Run tc; ``None`` if it is missing or says no (the interface or what hangs on it is gone)."""
    program = shutil.which("tc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=_TC_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
