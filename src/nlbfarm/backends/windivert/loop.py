"""The process that judges: take packets from the handle, judge them, put back those that may pass.

It keeps its handle whatever becomes of the node: when the node is gone, or hangs until its lease is over, all
packets are still taken and none is put back.

Three threads: the main one judges; one answers the node (``Channel``); one shows the guard that the process
runs. A batch is judged and put back under a lock, so that a change of states holds for every packet when the
node hears that it was made.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from nlbfarm.backends.bucketing import load_function
from nlbfarm.backends.windivert import engine
from nlbfarm.backends.windivert.channel import Channel, serve
from nlbfarm.backends.windivert.filters import divert_filter, flow_filter
from nlbfarm.backends.windivert.shared import Shared, Word, clock
from nlbfarm.core.buckets import Bitmap, BucketStates
from nlbfarm.core.judging import Judge
from nlbfarm.core.policy import FilterPolicy, IPAddress, Protocol
from nlbfarm.errors import HostError, NlbfarmError
from nlbfarm.interfaces import FilterCounters

__all__ = ["BEAT_S", "Loop", "LoopSetup", "Opened", "flow_end"]

BEAT_S = 0.1
"""Seconds between two beats of a loop or guard that runs."""

_EXPIRE_S = 1.0
_LOOK_S = 0.01
_PROMPT_NS = 2e6


@dataclass(frozen=True, slots=True)
class LoopSetup:
    """What the loop is told to work with.

    Args:
        policy: What to enforce.
        bucket: A vendor's bucket function, ``"package.module:name"``; empty: none.
        udp_idle: Seconds of silence that end a UDP flow.
        follow_ends: Whether the host shall tell which connections have ended.
        shared: Path of the shared page.
        allowed: Ids of processes whose handles are no strangers'.
    """

    policy: FilterPolicy
    bucket: str
    udp_idle: float
    follow_ends: bool
    shared: str
    allowed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """What the loop says of its handle.

    Args:
        others: A line for each divert handle of another program.
        handle: On Windows the handle's number in this process, so that the guard can have a copy.
    """

    others: Sequence[str]
    handle: int | None


@dataclass(slots=True)
class _Change:
    """New bucket states, for packets that arrive at ``at`` (ns) or later."""

    states: Mapping[str, BucketStates]
    at: int
    made: threading.Event = field(default_factory=threading.Event)


class Loop:
    """The process.

    Args:
        channel: To the node.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._opened, self._following = threading.Event(), threading.Event()
        self._stopping = threading.Event()
        self._node_gone = False
        self._handle: Any = None
        # Whoever wants the gate waits at the turnstile: a loop that is never idle cannot keep others out.
        self._turnstile, self._gate = threading.Lock(), threading.Lock()
        self._waiting = True
        self._turns = 0
        self._unsent = 0
        self._stale = 0  # packets that came before the states or the lease they would be judged by
        self._since = 0  # ns; since when the states have held
        self._lag = 0.0  # ns that the newest packet waited
        self._change: _Change | None = None  # to be made as soon as the packets before it are judged
        self._complained = False

    def run(self) -> None:
        """Work until told to end, or until the handle fails."""
        if sys.platform != "win32":
            signal.signal(signal.SIGTERM, self._terminated)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._answer, name="answer", daemon=True).start()
        with suppress(HostError):
            engine.load()  # takes a while; what is wrong with it is said when it is asked for
        self._opened.wait()
        if self._handle is None:
            return
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        try:
            self._judge_packets()
        finally:
            self._handle.close()

    def _terminated(self, *_: object) -> None:
        # A service manager may tell all processes at once to end: this one must not before the VIPs are gone.
        if self._node_gone:
            self._stopping.set()

    # -- packets -----------------------------------------------------------------------------------

    def _judge_packets(self) -> None:
        handle, judge, shared, names = self._handle, self._judge, self._shared, self._names
        receive, send, verdict, keep = handle.recv_batch, handle.send, judge.judge, engine.keep_checksums
        expire_at = clock() + _EXPIRE_S
        arrived = 0
        tick = engine.TICK_NS
        while not self._stopping.is_set():
            self._waiting = True
            try:
                batch = receive(engine.BATCH, timeout=engine.IDLE_S)
            except TimeoutError:
                batch = None
            self._waiting = False
            with self._turnstile:
                self._gate.acquire()
            try:
                if batch is not None:
                    if not batch:
                        raise RuntimeError("the divert handle does not work any more")  # pydivert on Windows
                    judge.lease_end = 0.0 if self._node_gone else shared.lease_end
                    since = max(self._since, shared[Word.LEASE_BEGIN])
                    for packet in batch:
                        arrived = int(packet.timestamp * tick)
                        if self._change is not None and arrived >= self._change.at:
                            self._make(self._change)
                        if arrived < since:
                            self._stale += 1
                            continue
                        # The time is asked for each packet: the process may have been stopped since the last.
                        if verdict(packet.raw, names.get(packet.interface[0], ""), clock()):
                            keep(packet)
                            try:
                                send(packet, recalculate_checksum=False)
                            except OSError:
                                self._unsent += 1
                now = clock()
                self._lag = now * 1e9 - arrived if batch is not None else 0.0
                if now >= expire_at:
                    judge.expire(now)
                    expire_at = now + _EXPIRE_S
                    if judge.trouble and not self._complained:
                        self._complained = True
                        sys.stderr.write(f"nlbfarm: {judge.trouble}\n")
            finally:
                self._gate.release()
            self._turns += 1

    def _beat(self) -> None:
        seen = -1
        while not self._stopping.is_set():
            if self._waiting or self._turns != seen:
                self._shared.beat(Word.LOOP_BEAT)
            seen = self._turns
            time.sleep(BEAT_S)

    # -- the node ----------------------------------------------------------------------------------

    def _answer(self) -> None:
        calls: dict[str, Callable[..., object]] = {
            "open": self._open,
            "apply": self._apply,
            "flows": self._flows,
            "counters": self._counters,
            "stop": self._stop,
        }
        serve(self._channel, calls)
        self._node_gone = True
        self._opened.set()

    def _open(self, setup: LoopSetup) -> Opened:
        """Open the handle."""
        indexes = engine.interface_indexes(setup.policy)
        others = engine.require_no_rival(setup.allowed)
        self._shared = Shared(setup.shared)
        self._names = {index: name for name, index in indexes.items()}
        bucket = load_function(setup.bucket) if setup.bucket else None
        self._judge = Judge(setup.policy, bucket=bucket, udp_idle=setup.udp_idle)
        targets = engine.targets(setup.policy, indexes)
        if setup.follow_ends:
            ends = flow_filter(targets)
            threading.Thread(target=self._follow_ends, args=(ends,), name="ends", daemon=True).start()
        try:
            expression = divert_filter(targets)
        except ValueError as error:
            raise HostError(f"windivert: {error}") from error
        self._handle = engine.loop_handle(expression, list(indexes))
        if setup.follow_ends:
            self._following.wait()  # the Linux engine follows only connections that begin later
        self._opened.set()
        number = getattr(self._handle, "_handle", None) if engine.WINDOWS else None
        return Opened([str(other) for other in others], number)

    def _apply(self, states: Mapping[str, BucketStates]) -> None:
        """Change the states, for packets that arrive from now on.

        Packets that wait are judged by the states they came under: a bucket that is taken over was served by
        another node when they arrived. A loop that keeps up has none, or so few that they may be dropped.
        """
        change = _Change(states, int(clock() * 1e9))
        with self._turnstile, self._gate:
            if self._lag < _PROMPT_NS:
                self._make(change)
            else:
                self._change = change
        while not change.made.wait(_LOOK_S):
            with self._turnstile, self._gate:
                if self._change is change and self._waiting:  # there is no packet left
                    self._make(change)

    def _make(self, change: _Change) -> None:
        """Make a change; whoever calls it has the gate."""
        self._judge.apply(change.states)
        self._since = change.at
        self._change = None
        change.made.set()

    def _flows(self, buckets: Mapping[str, Bitmap]) -> dict[str, dict[int, int]]:
        with self._turnstile, self._gate:
            self._judge.expire(clock())
            return self._judge.flows(buckets)

    def _counters(self) -> tuple[FilterCounters, str]:
        """Return the counters, and what is wrong with the vendor's bucket function."""
        with self._turnstile, self._gate:
            counted = self._judge.counters()
            stats = {} if engine.WINDOWS else self._handle.stats()
        lost = Counter(
            {
                "queue-full": stats.get("queue_full", 0) + self._stale,
                "lost": self._unsent + stats.get("ringbuf_full", 0) + stats.get("too_big", 0),
            }
        )
        return replace(counted, other={**counted.other, **(+lost)}), self._judge.trouble

    def _stop(self) -> None:
        self._stopping.set()
        if self._handle is not None and engine.IDLE_S is None:
            # The main thread waits in a read that only a packet ends; its handles go with the process.
            os._exit(0)

    # -- ends of connections -----------------------------------------------------------------------

    def _follow_ends(self, expression: str) -> None:
        """Hear from the host which connections have ended: a server's FIN never passes this filter.

        Where the host cannot tell, flows end by what the client sends, or by their silence. On Linux it tells
        of all network namespaces: no harm, since a flow that turns out to live is taken back.
        """
        try:
            handle = engine.flow_handle(expression)
        except NlbfarmError:
            return
        finally:
            self._following.set()
        with suppress(OSError, RuntimeError), closing(handle):
            while True:
                end = flow_end(handle.recv().flow)
                if end is not None:
                    with self._turnstile, self._gate:
                        self._judge.ended(*end, clock())


def flow_end(flow: Any) -> tuple[IPAddress, int, IPAddress, int] | None:
    """Return client, client's port, VIP and port of a connection that an event of the flow layer is about.

    Args:
        flow: The event's ``WINDIVERT_DATA_FLOW``; addresses are four words, the lowest first, IPv4 mapped
            into IPv6 (WinDivert documentation, "WINDIVERT_ADDRESS").
    """
    if flow is None or flow.Protocol != Protocol.TCP:
        return None
    return _address(flow.RemoteAddr), flow.RemotePort, _address(flow.LocalAddr), flow.LocalPort


def _address(words: Any) -> IPAddress:
    number = sum(int(word) << 32 * place for place, word in enumerate(words))
    if number >> 32 == 0xFFFF:
        return IPv4Address(number & 0xFFFFFFFF)
    return IPv6Address(number)
