"""Real-time priority, tried in a process of its own: it cannot be given back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")

ASK = """
import os, re, resource, sys
from nlbfarm.heartbeat.realtime import go_realtime
{before}
notes = go_realtime()
locked = int(re.search(r"VmLck:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
policy = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
child = os.fork()
if not child:
    os._exit(0 if os.sched_getscheduler(0) == os.SCHED_OTHER else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a child inherited the priority"
blocks = [bytearray(1 << 20) for _ in range(64)]
print(locked > 0, policy == os.SCHED_RR, os.getpriority(os.PRIO_PROCESS, 0), len(notes))
print(*notes, sep="\\n")
"""


def ask(before: str = "") -> tuple[list[str], list[str]]:
    script = ASK.format(before=before)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    first, *notes = run.stdout.splitlines()
    return first.split(), [note for note in notes if note]


def test_what_is_not_noted_is_in_force() -> None:
    (locked, realtime, _, count), notes = ask()
    assert int(count) == len(notes)
    assert (locked == "True") is not any("memory not locked" in note for note in notes)
    assert (realtime == "True") is not any("real-time priority refused" in note for note in notes)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give rights away")
def test_without_rights_everything_is_noted_and_nothing_raised() -> None:
    before = """
for limit in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
    resource.setrlimit(limit, (0, 0))
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""
    (locked, realtime, nice, _), notes = ask(before)
    assert (locked, realtime, nice) == ("False", "False", "0")
    assert any("CAP_SYS_NICE" in note and "ordinary priority" in note for note in notes)
    assert any("CAP_IPC_LOCK" in note for note in notes)
