"""A process that answers for queued packets; the node starts it (``nlbfarm.backends.nfqueue.team``).

``python -m nlbfarm.backends.nfqueue CONTROL BOARD PARENT``: file descriptors of the control connection
and of the shared memory, and the node's process id. It ends when the connection does, or with the node.

It never decides by what it has not read since the packet came: before each verdict it looks at the shared
memory for newer bucket states. A verdict is a system call in which the packet runs through what is left of
its hooks, which ask the lease; so when a worker says that it goes by new states, every packet that it had
judged by the old ones is through. What waits in the queue at that moment came before: of that it accepts
only what the old states accept, too, or a bucket's former and new owner could both accept one packet.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from nlbfarm.backends.bucketing import load_function
from nlbfarm.backends.nfqueue.board import Board
from nlbfarm.backends.nfqueue.marks import QueueMarks
from nlbfarm.backends.nfqueue.verdicts import answers, changed, overtaken
from nlbfarm.core.buckets import ALL, Bitmap, BucketStates
from nlbfarm.core.judging import Judge
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import NlbfarmError

if TYPE_CHECKING:
    from netfilterqueue import Packet

__all__ = ["BEAT_S", "NO_LIBRARY", "QUEUES", "Setup", "main"]

BEAT_S = 0.05
"""How often a worker says that it turns, at least, seconds."""

NO_LIBRARY = (
    "the Python package netfilterqueue cannot be imported ({error}): pip install 'nlbfarm[nfqueue]' "
    "(it is built from source; Debian, Ubuntu: apt install gcc python3-dev libnetfilter-queue-dev)"
)
"""What to tell an administrator who has not got it."""

QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
"""A line for each queue of this network namespace (``seq_show``, ``net/netfilter/nfnetlink_queue.c``): its
number, port id, packets waiting, copy mode, copy range, packets dropped as it was full and as the socket was,
number of the newest packet."""

_COPY_META, _COPY_PACKET = 1, 2  # NFQNL_COPY_*
_SNAP = 512  # of a packet a bucket is found in: IPv4 with all options, IPv6 with many extension headers
_QUEUE_LENGTH = 8192  # packets that wait; at 200,000 a second this is 40 ms
_SOCKET_BYTES = 8 << 20
_EXPIRE_S = 1.0
_PACKETS_A_LOOK = 64  # judged before the clock is asked whether it is time to look around
_PLACES = 65_536
_WITH_PORTS = (6, 17)  # TCP and UDP
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told at its start.

    Args:
        index: Which worker of the team it is.
        workers: How many there are.
        queue: The number of its queue.
        marks: The marks of the queued packets.
        policy: What the filter enforces.
        hashing: Whether the packets come with their bucket.
        function: ``"module:name"`` of a vendor's bucket function, or empty.
    """

    index: int
    workers: int
    queue: int
    marks: QueueMarks
    policy: FilterPolicy
    hashing: bool
    function: str


class _Turn(Exception):  # noqa: N818 - no error: it leaves the library's loop, which ends only in silence
    """Time to look around."""


class _Worker:
    """Judges the packets of one queue."""

    def __init__(self, setup: Setup, board: Board, control: Connection) -> None:
        self._setup = setup
        self._board = board
        self._control = control
        self._generation = board.generation
        self._states = [BucketStates() for _ in setup.policy.groups]
        self._answers: dict[int, int] = {}
        # What differs for packets up to that number: they were in the queue when the states changed.
        self._overtaken: dict[int, int] = {}
        self._overtaken_to = 0
        for group, states in enumerate(board.states(self._generation)):
            self._go_by(group, states, ALL)
        self._turn_at = self._expire_at = 0.0
        self._names: dict[int, str] = {}
        self._places: dict[tuple[int, int, bytes], int] = {}
        self._judge: Judge | None = None
        self._ruled = not setup.function
        if not setup.hashing:
            function = load_function(setup.function) if setup.function else None
            self._judge = Judge(setup.policy, bucket=function, snap=_SNAP)
        self._told = False

    def serve(self) -> None:
        """Judge packets until the node hangs up.

        Raises:
            OSError: The queue cannot be had; the kernel's words are in it.
        """
        from netfilterqueue import NetfilterQueue

        queue = NetfilterQueue()
        mode, snap = (_COPY_META, 0) if self._judge is None else (_COPY_PACKET, _SNAP)
        queue.bind(self._setup.queue, self._callback(), _QUEUE_LENGTH, mode, snap, _SOCKET_BYTES)
        poll = select.poll()
        poll.register(queue.get_fd(), select.POLLIN)
        poll.register(self._control.fileno(), select.POLLIN)
        self._look_around()
        self._control.send(("ready", ""))
        gc.freeze()
        while True:
            for descriptor, _ in poll.poll(BEAT_S * 1000):
                if descriptor == self._control.fileno() and not self._heard():
                    queue.unbind()
                    return
            self._look_around()
            try:
                queue.run(block=False)
            except _Turn:
                pass

    def _heard(self) -> bool:
        """Take one message off the connection: it only says that the board has changed."""
        try:
            self._control.recv_bytes()
        except (EOFError, OSError):
            return False
        return True

    def _look_around(self) -> None:
        now = time.monotonic()
        self._board.beat(self._setup.index, now)
        self._turn_at = now + BEAT_S
        if self._board.generation != self._generation:
            self._adopt()
        if self._judge is not None and now >= self._expire_at:
            self._expire_at = now + _EXPIRE_S
            self._judge.expire(now)
            if self._judge.trouble:
                self._note(self._judge.trouble)

    def _adopt(self) -> None:
        """Go by the newest bucket states, and say so."""
        generation = self._board.generation
        marks = self._setup.marks
        for group, states in enumerate(self._board.states(generation)):
            if buckets := changed(self._states[group], states):
                self._overtaken.update(overtaken(marks, group, self._states[group], states))
                self._go_by(group, states, buckets)
        if self._overtaken:
            self._overtaken_to = _newest_id(self._setup.queue)
        self._generation = generation
        self._control.send(("states", generation))

    def _go_by(self, group: int, states: BucketStates, buckets: Bitmap) -> None:
        self._answers.update(answers(self._setup.marks, group, states, buckets))
        self._states[group] = states

    def _callback(self) -> Callable[[Packet], None]:
        monotonic, numbers = time.monotonic, self._board.numbers
        answers, overtaken = self._answers, self._overtaken
        bucket_of = None if self._judge is None else self._bucket
        left = _PACKETS_A_LOOK

        def judge(packet: Packet) -> None:
            nonlocal left
            asked = packet.mark
            if bucket_of is not None:
                bucket = bucket_of(packet)
                asked = -1 if bucket < 0 else asked | bucket
            if numbers[0] != self._generation:
                self._adopt()
            answer = answers.get(asked)
            if overtaken:
                if _follows(packet.id, self._overtaken_to):
                    overtaken.clear()
                else:
                    answer = overtaken.get(asked, answer)
            if answer is not None:
                packet.set_mark(answer)
                packet.accept()
            else:
                self._board.count_malformed(self._setup.index)
                packet.drop()
            left -= 1
            if not left:
                left = _PACKETS_A_LOOK
                if monotonic() >= self._turn_at:
                    raise _Turn

        return judge

    def _bucket(self, packet: Packet) -> int:
        """Find the bucket of a packet by its bytes; -1 if there is none, or if it cannot be found."""
        assert self._judge is not None
        try:
            return self._find(self._judge, packet)
        except Exception as error:  # noqa: BLE001 - no packet may end the worker
            self._note(f"a packet could not be judged and was dropped: {type(error).__name__}: {error}")
            return -1

    def _find(self, judge: Judge, packet: Packet) -> int:
        data = packet.get_payload()
        # The kernel has checked the headers before it queued the packet. An ordinary one is known by what the
        # hash goes by; a vendor's own function is asked every time.
        where = None
        if self._ruled:
            if data[0] == 0x45 and data[9] in _WITH_PORTS and not data[6] & 0x3F and not data[7]:
                where = packet.indev, data[9], data[12:24]
            elif data[0] >> 4 == 6 and data[6] in _WITH_PORTS:
                where = packet.indev, data[6], data[8:44]
            if where is not None and (bucket := self._places.get(where)) is not None:
                return bucket
        name = self._names.get(packet.indev)
        if name is None:
            name = self._names[packet.indev] = socket.if_indextoname(packet.indev)
        found = judge.decide(data, name, time.monotonic()).bucket
        if found is None:
            return -1
        if where is not None:
            if len(self._places) >= _PLACES:
                self._places.clear()
            self._places[where] = found
        return found

    def _note(self, what: str) -> None:
        """Tell the node, once: what happens with one packet happens with a million."""
        if not self._told:
            self._told = True
            self._control.send(("note", what))


def _newest_id(queue: int) -> int:
    """Return the number of the packet that was queued last."""
    for line in QUEUES.read_text().splitlines():
        fields = line.split()
        if int(fields[0]) == queue:
            return int(fields[7])
    raise OSError(f"the kernel no longer has queue {queue}")


def _follows(number: int, other: int) -> bool:
    """Whether the packet with that number was queued after the other; numbers wrap at 2**32."""
    return 0 < (number - other) & 0xFFFFFFFF < 1 << 31


def _die_with(parent: int) -> None:
    """End with the node: at once by the kernel's signal, and later by the connection's end."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def main(arguments: list[str]) -> int:
    """Run a worker; returns the exit code."""
    control, memory, parent = (int(argument) for argument in arguments)
    _die_with(parent)
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # the node may have raised its own: a flood must not share that
    # What stops the node is sent to its whole group; a node that drains still needs its workers.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    connection = Connection(control)
    setup: Setup = connection.recv()
    board = Board(memory, len(setup.policy.groups), setup.workers)
    os.close(memory)
    try:
        _Worker(setup, board, connection).serve()
    except BrokenPipeError:
        return 0  # the node is gone
    except ImportError as error:
        connection.send(("failed", NO_LIBRARY.format(error=error)))
        return 1
    except OSError as error:
        connection.send(("busy", str(error)))
        return 1
    except NlbfarmError as error:
        connection.send(("failed", str(error)))
        return 1
    return 0
