"""Real-time priority and locked memory for the node process, where the host allows.

A node that gets no processor for a lease is fenced by its own filter, and one that is silent for the
detection time is lost to its peers: on a busy host both would be false alarms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

__all__ = ["go_realtime"]

_PRIORITY = 10  # above every ordinary thread; below the kernel's own interrupt threads (50)
_NICE = -10
_REMEDY = f"grant CAP_SYS_NICE or LimitRTPRIO={_PRIORITY}"
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # include/uapi/asm-generic/mman.h
_PR_SET_TIMERSLACK = 29  # include/uapi/linux/prctl.h
_TIMER_SLACK_NS = 1000  # the default is 50 µs; of a real-time thread it is 0 anyway
_CAP_IPC_LOCK = 1 << 14
_WHOLE_HOST = ["0", "0", "4294967295"]  # uid_map of the initial user namespace


def go_realtime() -> list[str]:
    """Raise the calling thread's priority and lock the process's memory; never raises.

    Call it early, on the thread of the event loop. Threads and programs started later have ordinary
    priority again: the kernel resets it on fork.

    Returns:
        A line for an administrator for each thing that the host refused.
    """
    if not sys.platform.startswith("linux"):
        return ["real-time priority and locked memory are not used on this system"]
    libc = ctypes.CDLL(None, use_errno=True)
    notes = [_schedule(), _lock_memory(libc)]
    if libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(_TIMER_SLACK_NS), 0, 0, 0) != 0:
        notes.append(f"timer slack not reduced: {os.strerror(ctypes.get_errno())}")
    return [note for note in notes if note]


def _schedule() -> str:
    """Take SCHED_RR, or else a better nice value."""
    try:
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(_PRIORITY))
    except OSError as error:
        refused = f"real-time priority refused ({error.strerror}; {_REMEDY})"
    else:
        return ""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if nice > _NICE:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)
            return f"{refused}: nice {_NICE} instead"
    return f"{refused}: ordinary priority"


def _lock_memory(libc: ctypes.CDLL) -> str:
    """Keep the process's pages in memory: one that waits for the disk is late by a detection time.

    What is mapped now is read in and locked; what is mapped later (stacks of threads, 8 MiB each)
    only as it is touched. Under a limit nothing is locked: with ``MCL_FUTURE`` an allocation
    beyond the limit would fail, and with it the node.
    """
    import resource  # not on Windows

    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    if not unlimited and not _may_lock():
        return "memory not locked (grant CAP_IPC_LOCK or LimitMEMLOCK=infinity)"
    for flags in (_MCL_CURRENT, _MCL_FUTURE | _MCL_ONFAULT):
        if libc.mlockall(flags) != 0:
            return f"memory not locked: {os.strerror(ctypes.get_errno())}"
    return ""


def _may_lock() -> bool:
    """Say whether this process has CAP_IPC_LOCK on the host: one of a user namespace's own does not count."""
    try:
        if Path("/proc/self/uid_map").read_text().split() != _WHOLE_HOST:
            return False
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & _CAP_IPC_LOCK)
    except OSError:
        pass
    return False
