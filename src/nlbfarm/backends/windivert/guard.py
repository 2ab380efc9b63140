"""The process that closes the filter when the loop cannot: handles that drop everything for the VIPs.

A divert handle goes with the last process that has it, and everything passes from then on. On Windows the
guard has a copy of the loop's handle (``watching``): when the loop is gone nobody reads from it, and its
packets wait there until the driver drops them. Everywhere, and should that not work, the guard waits for the
end of the loop (and for it to hang, which it shows by its beat), and opens handles of its own in that moment,
which drop. They are *below* the loop's: a loop that wakes up late may put packets back, and they are dropped
as well. That is also why they cannot be open all the time.

When the node is gone, too, nobody will repair the filter: the guard takes the VIPs away.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from nlbfarm.backends.windivert import engine
from nlbfarm.backends.windivert.channel import Channel, serve
from nlbfarm.backends.windivert.filters import drop_filters
from nlbfarm.backends.windivert.removal import VipRemoval, remove_vips
from nlbfarm.backends.windivert.shared import Shared, Word, clock
from nlbfarm.backends.windivert.watching import ProcessWatch
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import HostError

__all__ = ["HUNG_AFTER", "Guard", "GuardSetup"]

_NICE = -15
_LOOK_S = 0.05
HUNG_AFTER = 20
"""Looks (of 50 ms) without a beat of the loop after which it is taken to hang."""

_AWAKE_S = 2.0
_REMOVE_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class GuardSetup:
    """What the guard is told to work with.

    Args:
        policy: Whose VIPs to guard.
        shared: Path of the shared page.
        removal: How the VIPs are taken away.
    """

    policy: FilterPolicy
    shared: str
    removal: VipRemoval | None


class Guard:
    """The process.

    Args:
        channel: To the node.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._told = threading.Event()
        self._stopping = threading.Event()
        self._node_gone = threading.Event()
        self._lock = threading.RLock()  # over the handles, and what is watched
        self._handles: list[Any] = []
        self._filters: tuple[str, ...] = ()
        self._interfaces: list[str] = []
        self._watch: ProcessWatch | None = None
        self._retired: list[ProcessWatch] = []
        self._ended = False  # the loop: gone, or its filter is
        self._hung = False  # our handles are open because it hangs
        self._beat_seen = -1
        self._still = 0  # looks without a beat
        self._removed = False  # the VIPs
        self._remove_at = 0.0

    def run(self) -> None:
        """Guard until told to end, or until there is nothing left to guard."""
        if sys.platform != "win32":
            signal.signal(signal.SIGTERM, self._terminated)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        _hurry()
        threading.Thread(target=self._answer, name="answer", daemon=True).start()
        with suppress(HostError):
            engine.load()  # takes a while; what is wrong with it is said when it is asked for
        self._told.wait()
        while not self._stopping.is_set() and not self._removed:
            self._look()
        self._release()

    def _look(self) -> None:
        """Wait a moment for the end of the loop; see that one works, or a handle drops."""
        while self._retired:
            self._retired.pop().close()
        watch = self._watch
        if watch is None or self._ended:
            self._stopping.wait(_LOOK_S)
        elif watch.ended(_LOOK_S):
            with self._lock:
                self._ended = self._watch is watch and not self._stopping.is_set()
        self._shared.beat(Word.GUARD_BEAT)
        if self._ended:
            self._drop()
            if self._node_gone.is_set() and clock() >= self._remove_at:
                self._removed = remove_vips(self._setup.policy, self._setup.removal)
                self._remove_at = clock() + _REMOVE_AGAIN_S
        elif watch is not None:
            self._judge_beat(self._shared[Word.LOOP_BEAT])

    def _judge_beat(self, beat: int) -> None:
        self._still = self._still + 1 if beat == self._beat_seen else 0
        self._beat_seen = beat
        with self._lock:
            if self._still >= HUNG_AFTER:
                self._hung = True
                self._drop()
            elif self._hung and not self._still and not self._ended:
                self._hung = False
                self._release()

    def _terminated(self, *_: object) -> None:
        if self._node_gone.is_set():
            self._stopping.set()

    # -- the handles -------------------------------------------------------------------------------

    def _drop(self) -> None:
        with self._lock:
            for expression in self._filters[len(self._handles) :]:
                try:
                    handle = engine.drop_handle(expression, self._interfaces)
                except HostError as error:
                    sys.stderr.write(f"nlbfarm: the guard of the filter: {error}\n")
                    sys.stderr.flush()
                    return  # it is tried again with the next look
                self._handles.append(handle)
                if not engine.WINDOWS:  # it sees fragments in user space, and drops only those that are taken
                    threading.Thread(target=_consume, args=(handle,), name="fragments", daemon=True).start()
            if not self._shared[Word.DROPPING_SINCE]:
                self._shared[Word.DROPPING_SINCE] = int(clock() * 1e9)
                self._shared.beat(Word.DROPS)
            if self._ended and self._watch is not None:
                self._watch.let_go()

    def _condemn(self) -> None:
        """Drop until another loop is to be watched, whatever becomes of this one."""
        with self._lock:
            self._ended = True
            self._drop()

    def _release(self) -> None:
        with self._lock:
            handles, self._handles = self._handles, []
            for handle in handles:
                with suppress(OSError, RuntimeError):
                    handle.close()
            if handles:
                self._shared[Word.DROPPING_SINCE] = 0

    # -- the node ----------------------------------------------------------------------------------

    def _answer(self) -> None:
        calls: dict[str, Callable[..., object]] = {
            "open": self._open,
            "watch": self._watch_loop,
            "drop": self._condemn,
            "stop": self._stop,
        }
        serve(self._channel, calls)
        self._node_gone.set()
        self._told.set()
        if self._watch is None and not self._ended:
            self._stopping.set()  # there is no filter to guard

    def _open(self, setup: GuardSetup) -> None:
        engine.load()
        indexes = engine.interface_indexes(setup.policy)
        self._setup = setup
        self._interfaces = list(indexes)
        self._filters = drop_filters(engine.targets(setup.policy, indexes))
        self._shared = Shared(setup.shared)
        self._told.set()

    def _watch_loop(self, pid: int, handle: int | None) -> None:
        """Watch this loop from now on, and leave the packets to it as soon as it shows that it works."""
        try:
            watch = ProcessWatch(pid, handle)
        except HostError:
            self._condemn()
            raise
        before = self._shared[Word.LOOP_BEAT]
        deadline = clock() + _AWAKE_S
        while self._shared[Word.LOOP_BEAT] == before and not watch.ended(0.01):
            if clock() > deadline:
                watch.close()
                self._condemn()
                raise HostError(f"windivert: the process 'loop' (pid {pid}) judges nothing")
        if watch.ended(0):
            watch.close()
            self._condemn()
            raise HostError(f"windivert: the process 'loop' (pid {pid}) has ended")
        with self._lock:
            if self._watch is not None:
                self._retired.append(self._watch)  # the main thread may be waiting on it
            self._watch = watch
            self._ended = self._hung = False
            self._release()

    def _stop(self) -> None:
        self._stopping.set()
        self._told.set()


def _consume(handle: Any) -> None:
    with suppress(OSError, RuntimeError):
        while True:
            with suppress(TimeoutError):
                handle.recv(timeout=0.2)


def _hurry() -> None:
    """Ask for a better priority: a flood keeps the processor busy just when the guard is needed."""
    with suppress(psutil.Error, OSError):
        if sys.platform == "win32":
            psutil.Process().nice(psutil.HIGH_PRIORITY_CLASS)
        else:
            psutil.Process().nice(_NICE)
