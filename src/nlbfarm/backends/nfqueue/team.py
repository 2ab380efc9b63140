"""The workers, as the node's process sees them: started, told of new bucket states, watched, ended."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from nlbfarm.backends.nfqueue.board import Board
from nlbfarm.backends.nfqueue.marks import QueueMarks
from nlbfarm.backends.nfqueue.worker import Setup
from nlbfarm.core.buckets import BucketStates
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import HostError

__all__ = ["HUNG_S", "Team"]

HUNG_S = 2.0
"""How long a worker may be silent, seconds; then it is hung, and with it a part of the clients."""

_START_S = 20.0
_ACKNOWLEDGE_S = 1.0
_HUNG_TURNS = 10
_ATTEMPTS = 5
_LOWEST_QUEUE = 4096  # below are those that people write into rules by hand


@dataclass(slots=True)
class _Member:
    process: subprocess.Popen[bytes]
    control: Connection
    generation: int = 0
    gone: bool = False
    beat: float = 0.0
    since: float = 0.0
    turns: int = 0
    acknowledged: asyncio.Event = field(default_factory=asyncio.Event)


class Team:
    """The workers of one backend, one for each queue.

    ``start`` and ``end`` block and are for a worker thread, which has to live as long as the team: the kernel
    ends a worker with the thread that started it. The others are for the event loop.

    Args:
        policy: What the filter enforces.
        queues: How many workers.
        hashing: Whether the packets come with their bucket.
        function: ``"module:name"`` of a vendor's bucket function, or empty.
        on_trouble: Called with a sentence when a worker ended or hangs.
        on_note: Called with a sentence for the log.
    """

    def __init__(
        self,
        policy: FilterPolicy,
        queues: int,
        *,
        hashing: bool,
        function: str,
        on_trouble: Callable[[str], None],
        on_note: Callable[[str], None],
    ) -> None:
        self._policy = policy
        self._queues = queues
        self._hashing = hashing
        self._function = function
        self._on_trouble = on_trouble
        self._on_note = on_note
        self._members: list[_Member] = []
        self._memory = Board.make(len(policy.groups), queues)
        self.board = Board(self._memory, len(policy.groups), queues)
        """The memory shared with the workers."""
        self.marks = QueueMarks(1)
        """The marks that they go by."""
        self.first_queue = 0
        """The number of the first worker's queue."""

    @property
    def complete(self) -> bool:
        """Whether every worker is there."""
        return len(self._members) == self._queues and not any(member.gone for member in self._members)

    @property
    def processes(self) -> list[int]:
        """The process ids of the workers."""
        return [member.process.pid for member in self._members]

    def start(self) -> None:
        """Start every worker; those that are there are ended first.

        Raises:
            HostError: One cannot work, and why.
        """
        self._end()
        for _ in range(_ATTEMPTS):
            self.marks = QueueMarks(secrets.randbelow((1 << 12) - 1) + 1)
            self.first_queue = _LOWEST_QUEUE + secrets.randbelow((1 << 16) - _LOWEST_QUEUE - self._queues)
            for index in range(self._queues):
                self._members.append(self._spawn(index))
            busy = [reason for member in self._members if (reason := _ready(member))]
            if not busy:
                return
            self._end()
        raise HostError(f"no packet queue can be had, last tried number {self.first_queue}: {busy[0]}")

    def _spawn(self, index: int) -> _Member:
        ours, theirs = Pipe()
        path = os.pathsep.join(place for place in sys.path if place)
        arguments = [str(theirs.fileno()), str(self._memory), str(os.getpid())]
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "nlbfarm.backends.nfqueue", *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._memory),
                env={**os.environ, "PYTHONPATH": path},
            )
        except OSError as error:
            ours.close()
            raise HostError(f"no worker for the packet queue can be started: {error}") from error
        finally:
            theirs.close()
        member = _Member(process, ours)
        setup = Setup(
            index=index,
            workers=self._queues,
            queue=self.first_queue + index,
            marks=self.marks,
            policy=self._policy,
            hashing=self._hashing,
            function=self._function,
        )
        ours.send(setup)
        return member

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear from the workers, once they are started."""
        for index, member in enumerate(self._members):
            loop.add_reader(member.control.fileno(), self._hear, loop, index, member)

    def ignore(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear no more from them, before they are ended."""
        for member in self._members:
            if not member.control.closed:
                loop.remove_reader(member.control.fileno())

    async def tell(self, states: Sequence[BucketStates]) -> None:
        """Make every worker go by these states, in the order of the policy's groups.

        One that does not answer is killed: its queue goes with it, and the kernel drops what is sent there.
        """
        generation = self.board.publish(states)
        for member in self._members:
            member.acknowledged.clear()
            if not member.gone:
                try:
                    member.control.send_bytes(b"states")
                except OSError:
                    member.gone = True
        waits = [
            self._acknowledgement(index, member, generation) for index, member in enumerate(self._members)
        ]
        await asyncio.gather(*waits)

    async def _acknowledgement(self, index: int, member: _Member, generation: int) -> None:
        try:
            async with asyncio.timeout(_ACKNOWLEDGE_S):
                while not member.gone and member.generation != generation:
                    await member.acknowledged.wait()
                    member.acknowledged.clear()
        except TimeoutError:
            self._lose(index, member, f"did not take new bucket states within {_ACKNOWLEDGE_S:g} s")
            member.process.kill()
            await asyncio.to_thread(member.process.wait)

    def hung(self, now: float) -> str:
        """Say which worker has been silent for too long; empty if none has. Call it at every turn.

        When this whole host stood still, nobody could turn: it takes some turns of the node, too.

        Args:
            now: Seconds on the monotonic clock.
        """
        for index, member in enumerate(self._members):
            beat = self.board.slot(index).beat
            if beat != member.beat:
                member.beat, member.since, member.turns = beat, now, 0
            member.turns += 1
            if member.turns > _HUNG_TURNS and now - member.since > HUNG_S:
                member.gone = True
                return f"worker {index} of the packet queue has not turned for {HUNG_S:g} s"
        return ""

    def malformed(self) -> int:
        """Return how many packets the workers could not place."""
        return sum(self.board.slot(index).malformed for index in range(self._queues))

    def end(self) -> None:
        """End every worker, and give the memory back."""
        self._end()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _end(self) -> None:
        members, self._members = self._members, []
        for member in members:
            member.control.close()
            member.process.kill()  # also if it is stopped; what waits in its queue is dropped
        for member in members:
            member.process.wait()

    def _hear(self, loop: asyncio.AbstractEventLoop, index: int, member: _Member) -> None:
        try:
            kind, what = member.control.recv()
        except (EOFError, OSError):
            loop.remove_reader(member.control.fileno())
            self._lose(index, member, "has ended")
            return
        if kind == "states":
            member.generation = what
            member.acknowledged.set()
        else:
            self._on_note(what)

    def _lose(self, index: int, member: _Member, what: str) -> None:
        if not member.gone:
            member.gone = True
            member.acknowledged.set()
            self._on_trouble(f"worker {index} of the packet queue (process {member.process.pid}) {what}")


def _ready(member: _Member) -> str:
    """Wait until a worker is ready; returns why its queue cannot be had, or nothing.

    Raises:
        HostError: It cannot work at all.
    """
    try:
        if not member.control.poll(_START_S):
            raise HostError(f"a worker of the packet queue did not start within {_START_S:g} s")
        kind, what = member.control.recv()
    except (EOFError, OSError) as error:
        raise HostError("a worker of the packet queue ended as it started; see its output") from error
    if kind == "failed":
        raise HostError(what)
    return str(what) if kind == "busy" else ""
