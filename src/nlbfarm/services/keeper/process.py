"""The keeper: parent of one application, for as long as that runs.

What it owes: the application and everything that it has started end when the node says so, when its main
process ends, and when the node is gone. A node that is about to be replaced says ``keep``; then the keeper
waits for the next one. With ``outlive`` it waits without a bound, and whatever became of the node before.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from nlbfarm.services.keeper import cgroup as cgroups
from nlbfarm.services.keeper import launching, talk
from nlbfarm.services.keeper.family import Family, send
from nlbfarm.services.keeper.nodes import Nodes
from nlbfarm.services.keeper.output import Output
from nlbfarm.services.keeper.waiting import Waiting

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Keeper", "main"]

_RUNNING, _STOPPING, _KILLING = "running", "stopping", "killing"
_READ = 1 << 16
_PIPE = 1 << 20  # bytes of a pipe, at most (fs.pipe-max-size)
_LOOK_S = 0.1  # between two looks whether all of it has ended
_FIRST_PASS_S, _LAST_PASS_S = 0.005, 1.0  # between two kills
_STUCK_S = 5.0  # what is killed and still there has to be told of
_TIMER_SLACK_NS = 50_000  # the kernel's default; the node's own is shorter
_NEVER = float("inf")


class Keeper:
    """Keeps one application.

    Args:
        node: The connection to the node that starts it.
        setup: What that one said: ``argv``, ``environment``, ``directory``, ``user``, ``token``, ``outlive``,
            ``grace`` (seconds to wait for the next node), ``cgroup`` (its name; empty: none), ``socket``,
            ``record`` and ``log`` (files), ``log_limit`` (bytes), ``why``.
    """

    def __init__(self, node: socket.socket, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._outlive = bool(setup["outlive"])
        self._output = Output(Path(setup["log"]), int(setup["log_limit"]))
        self._notes: list[str] = []
        self._family = Family(None)
        self._reader = -1  # what it prints
        self._pid = 0  # the application's main process
        self._main = False  # whether that is there
        self._state = _RUNNING
        self._polite_until = _NEVER
        self._look_at = _NEVER
        self._pause = _FIRST_PASS_S
        self._stuck_at = _NEVER
        self._keep_until = _NEVER
        self._done = False
        self._waiting = Waiting()
        self._nodes = Nodes(
            self._waiting,
            hello=self._hello,
            open_to=lambda: self._state == _RUNNING,
            on_message=self._asked,
            on_keep=self._keep,
            on_lost=self._lost,
            on_adopted=self._adopted,
        )
        self._nodes.adopt(node)

    def run(self) -> None:
        """Keep the application until all of it has ended."""
        self._waiting.watch_children()
        try:
            self._begin()
        except (launching.LaunchError, OSError) as error:
            why = str(error) if isinstance(error, launching.LaunchError) else _of(error)
            self._output.note(f"not started: {why}")
            self._nodes.tell(talk.pack("failed", why=why))
        else:
            self._waiting.watch(self._reader, self._read)
            self._nodes.tell(self._hello())
            while not self._done:
                self._turn()
            self._drain()
            self._output.note("all of it has ended")
        self._put_back()
        self._nodes.tell(talk.pack("gone"))

    def _turn(self) -> None:
        self._waiting.wait(min(self._polite_until, self._look_at, self._keep_until) - time.monotonic())
        self._reap()
        now = time.monotonic()
        if now >= self._keep_until:
            self._keep_until = _NEVER
            self._lost(f"no process of the node came within {self._setup['grace']:g} s to take over")
        if now >= self._polite_until:
            self._output.note("it did not end in time and is killed")
            self._kill()
        if now >= self._look_at:
            self._look(now)

    # -- beginning and end -------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start the application."""
        self._nodes.listen(Path(self._setup["socket"]))
        if self._setup["cgroup"]:
            self._family.cgroup, why = cgroups.make(self._setup["cgroup"])
            if self._family.cgroup is None:
                self._notes.append(f"without a cgroup of its own ({why})")
        self._record()
        if self._nodes.gone():
            raise launching.LaunchError("", "the node is gone")
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        try:
            self._pid = self._launch(writer)
        finally:
            os.close(writer)
        self._main = True
        with contextlib.suppress(OSError):  # it only tells people more
            self._record()
        self._output.note(f"started as process {self._pid} ({self._setup['why']}): {self._setup['argv']}")

    def _launch(self, writer: int) -> int:
        program = launching.Program(
            self._setup["argv"],
            self._setup["environment"],
            self._setup["directory"],
            self._setup["user"],
            self._setup["token"],
            not self._outlive,
        )
        try:
            return launching.launch(program, writer, self._family.cgroup)
        except launching.LaunchError as error:
            if error.stage != launching.IN_CGROUP or self._family.cgroup is None:
                raise
            cgroups.remove(self._family.cgroup)
            self._family.cgroup = None
            self._notes.append(f"without a cgroup of its own ({error})")
            return launching.launch(program, writer, None)

    def _record(self) -> None:
        """Write down how the application's processes are found, should this one be killed."""
        path = Path(self._setup["record"])
        draft = path.with_name(path.name + ".new")
        record = {
            "keeper": os.getpid(),
            "pid": self._pid,
            "token": self._setup["token"],
            "cgroup": str(self._family.cgroup or ""),
        }
        draft.write_text(json.dumps(record))
        draft.replace(path)

    def _put_back(self) -> None:
        if self._family.cgroup is not None:
            cgroups.remove(self._family.cgroup)
        if self._nodes.unlisten():
            Path(self._setup["record"]).unlink(missing_ok=True)

    def broke(self, error: BaseException) -> None:
        """End everything after a fault of our own."""
        self._output.write("".join(traceback.format_exception(error)).encode(errors="replace"))
        self._output.note("the keeper failed, see above: everything is killed")
        for _ in range(100):
            if not self._family.kill():
                break
            time.sleep(_FIRST_PASS_S)
        self._put_back()

    # -- the application ---------------------------------------------------------------------------

    def _reap(self) -> None:
        """Take the exit status of every child that has ended: the application, or what it left as orphans."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self._pid and self._main:
                self._main = False
                self._ended(status)
            if self._state != _RUNNING:
                self._look_at = 0.0

    def _ended(self, status: int) -> None:
        """Go on from the end of the application's main process."""
        code = os.waitstatus_to_exitcode(status)
        how = f"exit code {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
        self._output.note(f"process {self._pid} has ended: {how}")
        if self._state == _KILLING:
            return
        left = self._family.members()
        if self._state == _STOPPING:
            # What it left need not be in its process group, nor know its signal: it is asked, too.
            send(left, signal.SIGTERM)
            send(left, signal.SIGCONT)
            return
        self._drain()  # its last words are in the pipe
        said = self._output.tail()
        self._nodes.tell(talk.pack("ended", how=how, code=code, left=len(left), said=said, pid=self._pid))
        if left:
            self._output.note(f"it left {len(left)} processes, which are killed")
        self._kill()

    def _stop(self, number: int, patience: float, why: str) -> None:
        """Ask the application to end, and remember when to insist."""
        if self._state != _RUNNING:
            return
        self._output.note(f"is stopped: {why}")
        self._state = _STOPPING
        self._polite_until = time.monotonic() + patience
        self._look_at = time.monotonic() + _LOOK_S
        with contextlib.suppress(OSError):
            os.killpg(self._pid, number)
            os.killpg(self._pid, signal.SIGCONT)  # one that is stopped would not hear it

    def _kill(self) -> None:
        """End everything now."""
        if self._state != _KILLING:
            self._state = _KILLING
            self._stuck_at = time.monotonic() + _STUCK_S
        self._polite_until = _NEVER
        self._look_at = 0.0

    def _look(self, now: float) -> None:
        """See what is left while the application is ended; kill it if that is due."""
        left = self._family.kill() if self._state == _KILLING else self._family.members()
        if not left and not self._main:
            self._done = True
        elif self._state == _STOPPING:
            self._look_at = now + _LOOK_S
        else:
            self._look_at = now + self._pause
            self._pause = min(2 * self._pause, _LAST_PASS_S)
            if left and now >= self._stuck_at:
                self._stuck_at = _NEVER
                self._output.note(f"processes {sorted(left)} do not end")
                self._nodes.tell(talk.pack("stuck", pids=sorted(left)))

    def _read(self) -> bool:
        """Keep a piece of what the application has printed; returns whether there may be more."""
        try:
            data = os.read(self._reader, _READ)
        except BlockingIOError:
            return False
        if data:
            self._output.write(data)
        else:
            self._waiting.ignore(self._reader)
        return bool(data)

    def _drain(self) -> None:
        """Keep what is in the pipe, but no more than fits into one: somebody may go on writing."""
        for _ in range(_PIPE // _READ):
            if not self._read():
                break

    # -- the node ----------------------------------------------------------------------------------

    def _hello(self) -> bytes:
        notes = list(self._notes)
        if self._output.trouble:
            notes.append(f"without its output being kept ({self._output.trouble})")
        return talk.pack(
            "hello",
            version=talk.VERSION,
            state=self._state,
            keeper=os.getpid(),
            pid=self._pid,
            token=self._setup["token"],
            cgroup=str(self._family.cgroup or ""),
            argv=self._setup["argv"],
            notes=notes,
        )

    def _asked(self, message: dict[str, Any]) -> None:
        if message["kind"] == "stop":
            self._stop(int(message["signal"]), float(message["timeout"]), str(message["why"]))

    def _keep(self) -> None:
        self._output.note("the node's process is replaced")
        if not self._outlive:
            self._keep_until = time.monotonic() + float(self._setup["grace"])

    def _adopted(self, message: dict[str, Any]) -> None:
        self._output.note("another process of the node has taken over")
        self._outlive = bool(message["outlive"])
        self._keep_until = _NEVER

    def _lost(self, why: str) -> None:
        if self._outlive and self._state == _RUNNING:
            self._output.note(f"{why}; the application goes on, as configured")
            return
        if self._state != _KILLING:
            self._output.note(f"{why}: everything is killed")
        self._kill()


def _of(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main() -> None:
    """Be a keeper until its application has ended; never returns."""
    os.chdir("/")
    os.setsid()  # what is sent to the node's terminal or process group is not meant for this one
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    launching.prctl(launching.PR_SET_CHILD_SUBREAPER, 1)
    launching.prctl(launching.PR_SET_NAME, b"nlbfarm-keeper")
    launching.prctl(launching.PR_SET_TIMERSLACK, _TIMER_SLACK_NS)
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:  # the node's own, that the application must not have
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) > 2:  # a library of the node's may have opened it without O_CLOEXEC
            with contextlib.suppress(OSError):
                os.close(int(entry.name))
    node = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    data = node.recv(talk.LARGEST)
    if not data:
        sys.exit(0)
    keeper = Keeper(node, talk.unpack(data))
    for descriptor in (1, 2):  # from here on the log has what goes wrong: nobody's terminal is held open
        os.dup2(0, descriptor)
    try:
        keeper.run()
    except BaseException as error:  # noqa: BLE001 - the application must not outlive it
        keeper.broke(error)
        sys.exit(1)
