"""Conformance check for ``Heartbeat``: what every transport has to do, stated as a test.

A vendor's own transport can be checked with it the same way as ours are::

    async def test_my_transport() -> None:
        await check_heartbeat(make_pair, networks=2, clock=clock)
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from nlbfarm.core.policy import IPAddress
from nlbfarm.errors import UsageError
from nlbfarm.interfaces import Clock, Heartbeat, Received

__all__ = ["check_heartbeat"]

_PATIENCE = 5.0  # seconds; on a network that loses nothing everything arrives far sooner
_LARGEST = 1200
_MANY = 100


class _End:
    """One end of a pair, and what it was told."""

    def __init__(self, node: int, heartbeat: Heartbeat) -> None:
        self.node = node
        self.heartbeat = heartbeat
        self.received: list[Received] = []
        self.refused: list[int] = []
        self.threads: set[int] = set()

    async def open(self) -> None:
        await self.heartbeat.open(self._deliver, self._on_refused)

    def _deliver(self, received: Received) -> None:
        self.threads.add(threading.get_ident())
        self.received.append(received)

    def _on_refused(self, node: int) -> None:
        self.threads.add(threading.get_ident())
        self.refused.append(node)

    def has(self, count: int) -> bool:
        """Say whether ``count`` datagrams have arrived."""
        return len(self.received) >= count

    def on(self, network: int) -> list[bytes]:
        """Return what arrived on ``network``, in order."""
        return [received.data for received in self.received if received.network == network]


async def check_heartbeat(
    make_pair: Callable[[], tuple[Heartbeat, Heartbeat]],
    *,
    clock: Clock,
    networks: int = 1,
    addresses: Mapping[int, Sequence[IPAddress]] | None = None,
) -> None:
    """Check a transport against the contract of ``nlbfarm.interfaces.Heartbeat``.

    Args:
        make_pair: Makes two new transports, of node 1 and of node 2, that are each other's only
            peer, over a network that loses, doubles and reorders nothing. Called several times, each
            time after the pair before was closed.
        clock: The clock that they were given.
        networks: How many heartbeat networks they have.
        addresses: Of nodes 1 and 2; with them it is also checked that a peer that was taken away comes back.

    Raises:
        AssertionError: The transport breaks the contract; the message says how.
    """
    for check in (
        _carries_both_ways,
        _poll_needs_no_event_loop,
        _refuses_wrong_calls,
        _a_silent_peer_is_no_error,
        _a_callback_may_send_and_close,
        partial(_peers_come_and_go, addresses=addresses or {}),
        _close_is_the_end,
    ):
        one, two = (_End(node, heartbeat) for node, heartbeat in enumerate(make_pair(), 1))
        try:
            await check(one, two, networks, clock)
        finally:
            for end in (one, two):
                await end.heartbeat.close()
                await end.heartbeat.close()
        threads = one.threads | two.threads
        assert threads <= {threading.get_ident()}, "a callback was called on another thread than the loop's"


async def _carries_both_ways(one: _End, two: _End, networks: int, clock: Clock) -> None:
    await one.open()
    await two.open()
    before = clock.monotonic()
    sent = [b"", *(b"heartbeat %d" % number for number in range(_MANY)), bytes(_LARGEST), bytes(range(256))]
    for sender, receiver in ((one, two), (two, one)):
        for data in sent:
            sender.heartbeat.send(data, [receiver.node])
        sender.heartbeat.send(b"to nobody", [])
        await _until(partial(receiver.has, len(sent) * networks), "not all datagrams arrived")
        for network in range(networks):
            assert receiver.on(network) == sent, f"network {network} did not carry what was sent, in order"
        times = [received.at for received in receiver.received if received.network == 0]
        assert all(received.source for received in receiver.received), "a datagram names no source"
        assert all(before - 1.0 <= at <= clock.monotonic() for at in times), (
            "a datagram arrived at no time of now"
        )
        assert all(a <= b + 0.05 for a, b in itertools.pairwise(times)), "arrival times run backwards"
    for end in (one, two):
        stats = end.heartbeat.stats()
        counts = [(network.sent, network.received, network.send_errors) for network in stats.networks]
        assert counts == [(len(sent), len(sent), 0)] * networks, (
            f"stats say {counts} for {len(sent)} a network"
        )


async def _poll_needs_no_event_loop(one: _End, two: _End, networks: int, clock: Clock) -> None:
    await one.open()
    await two.open()
    assert two.heartbeat.poll() == 0, "poll counts datagrams that nobody sent"
    one.heartbeat.send(b"late", [2])
    polled, end = 0, time.monotonic() + _PATIENCE
    while len(two.received) < networks and time.monotonic() < end:
        polled += two.heartbeat.poll()  # without giving the event loop a turn
        time.sleep(0.001)  # noqa: ASYNC251 - the event loop is kept from running on purpose
    assert len(two.received) == polled == networks, f"poll delivered {len(two.received)} and counted {polled}"
    two.heartbeat.send(b"back", [1])
    await _until(lambda: len(one.received) == networks, "an answer did not arrive")
    assert len(two.received) == networks, "a datagram was delivered by poll and again by the event loop"


async def _refuses_wrong_calls(one: _End, two: _End, networks: int, clock: Clock) -> None:
    await one.open()
    await two.open()
    for data, nodes, what in (
        (bytes(_LARGEST + 1), [2], "1,201 bytes"),
        (b"x", [3], "an unknown node"),
        (b"x", [2, 3], "an unknown node among others"),
        (b"x", [1], "itself"),
    ):
        try:
            one.heartbeat.send(data, nodes)
        except UsageError:
            continue
        raise AssertionError(f"sent {what} without UsageError")
    one.heartbeat.send(b"good", [2])
    await _until(lambda: len(two.received) >= networks, "after wrong calls nothing can be sent any more")
    assert {received.data for received in two.received} == {b"good"}, (
        "a refused call sent something all the same"
    )


async def _a_silent_peer_is_no_error(one: _End, two: _End, networks: int, clock: Clock) -> None:
    await one.open()
    for _ in range(20):
        one.heartbeat.send(b"is anybody there", [2])
        await asyncio.sleep(0)
    one.heartbeat.poll()
    assert set(one.refused) <= {2}, f"nodes {sorted(set(one.refused))} refused, of which only 2 was sent to"
    await two.open()
    one.heartbeat.send(b"welcome", [2])
    await _until(lambda: two.on(0)[-1:] == [b"welcome"], "a peer that came later is not reached")


async def _a_callback_may_send_and_close(one: _End, two: _End, networks: int, clock: Clock) -> None:
    closing: list[asyncio.Task[None]] = []

    def answer(received: Received) -> None:
        if received.data == b"ping":
            two.heartbeat.send(b"pong", [1])
            two.heartbeat.poll()
        elif not closing:
            closing.append(asyncio.ensure_future(two.heartbeat.close()))

    await one.open()
    await two.heartbeat.open(answer, lambda _: None)
    one.heartbeat.send(b"ping", [2])
    await _until(lambda: len(one.received) == networks * networks, "a callback that sends is not heard")
    one.heartbeat.send(b"go", [2])
    await _until(lambda: bool(closing) and closing[0].done(), "a callback could not close the transport")
    closing[0].result()


async def _peers_come_and_go(
    one: _End, two: _End, networks: int, clock: Clock, addresses: Mapping[int, Sequence[IPAddress]]
) -> None:
    await one.open()
    await two.open()
    one.heartbeat.set_peers({})
    try:
        one.heartbeat.send(b"x", [2])
    except UsageError:
        pass
    else:
        raise AssertionError("sent to a peer that was taken away, without UsageError")
    two.heartbeat.send(b"from a stranger", [1])
    one.heartbeat.poll()
    if 2 not in addresses:
        return
    one.heartbeat.set_peers({2: addresses[2]})
    one.heartbeat.send(b"back", [2])
    two.heartbeat.send(b"again", [1])
    await _until(lambda: two.on(0) == [b"back"], "a peer that came back is not reached")
    await _until(lambda: one.on(0)[-1:] == [b"again"], "a peer that came back is not heard")
    assert len(one.received) <= 2 * networks, "a datagram was delivered twice"


async def _close_is_the_end(one: _End, two: _End, networks: int, clock: Clock) -> None:
    await two.heartbeat.close()  # before it was ever open
    one, two = _End(1, one.heartbeat), _End(2, two.heartbeat)
    await one.open()
    await two.open()
    one.heartbeat.send(b"unread", [2])
    await two.heartbeat.close()
    assert two.heartbeat.poll() == 0, "poll delivers after close"
    one.heartbeat.send(b"too late", [2])
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert not [received for received in two.received if received.data == b"too late"], (
        "delivered after close"
    )


async def _until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for ``condition``; ``AssertionError`` with ``otherwise`` after a few seconds."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, otherwise
        await asyncio.sleep(0.001)
