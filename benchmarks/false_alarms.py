"""Does a farm lose a living node, or stop serving, because hosts are busy or heartbeats get lost?

Nothing happens but a hog on every core and, in turn, no loss, 5 % of the heartbeats of one network, and
20 % of each of two. Counted are the nodes' judgements (``peer.lost``, ``view.left``) and the time for which
a node answered no new connection: its lease had lapsed. A client asks 300 times a second, each node every
10 ms.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.host import about
from nlbfarm.config.heartbeat import Heartbeat
from nlbfarm.lab import Lab, Probing, topology

NODES = 3
RATE = 300

LOSSES: Mapping[str, tuple[int, ...]] = {"none": (0, 0), "5 % of one": (5, 0), "20 % of each": (20, 20)}
"""Percent of the heartbeats that are lost on each network."""


def measure(minutes: float, server: str, hogs: int) -> dict[str, Any]:
    """Return what happened under each kind of loss, beside what was to be expected.

    Args:
        minutes: How long each is watched.
        server: Web server of the nodes.
        hogs: Processes that do nothing but use CPU.
    """
    results: dict[str, Any] = {"benchmark": "false_alarms", "minutes": minutes, "hogs": hogs}
    for name, percents in LOSSES.items():
        with Lab(NODES, server) as lab:
            lab.start()
            lab.settle()
            results |= about(lab)
            for number in range(hogs):
                argv = [sys.executable, "-c", "while True: pass"]
                lab.world.spawn(f"client/hog{number}", argv, ns=topology.CLIENT, log=os.devnull)
            for network, percent in enumerate(percents):
                if percent:
                    lab.faults.lose(lab.names, lab.names, percent=percent, networks=[network])
            with Probing(lab, rate=RATE, held=0) as probing:
                results[name] = _watch(lab, probing, minutes * 60)
        results[name] |= expectation(percents, minutes * 60)
        print(name, results[name], file=sys.stderr)
    return results


def _watch(lab: Lab, probing: Probing, seconds: float) -> dict[str, Any]:
    owners = lab.settle()
    since = time.monotonic()
    until = since + seconds
    while (left := until - time.monotonic()) > 0:
        probing.wait_until(time.monotonic() + min(left, 30))
    events = [event for node in lab.names for event in lab.events(node, since)]
    unserved = dict.fromkeys(lab.names, 0.0)
    lapses = 0
    failing: dict[int, float] = {}
    for request in sorted(probing.requests(since, held=False), key=lambda request: request.start):
        owner = owners[request.bucket]
        if request.answered is not None and owner in failing:
            # Several nodes may have moved buckets by then; the time is the first owner's all the same.
            unserved[lab.names[owner - 1]] += max(0.0, request.answered - failing.pop(owner))
            lapses += 1
        elif request.error == "no SYN-ACK":
            failing.setdefault(owner, request.start)
    return {
        "wrong_losses": sum(event.name == "peer.lost" for event in events),
        "views_left": sum(event.name == "view.left" for event in events),
        "late_turns": sum(event.name == "node.late" for event in events),
        "lapses": lapses,
        "unserved_ms": {node: round(value * 1000, 1) for node, value in unserved.items()},
        "buckets_moved": sum(old != new for old, new in zip(owners, lab.settle(), strict=True)),
    }


def expectation(percents: tuple[int, ...], seconds: float) -> dict[str, float]:
    """Return how many wrong losses and lapses chance alone makes in so long, at default timing.

    A heartbeat goes out on every network at once and arrives unless it is lost on all: with probability
    ``p``, the product of the losses, which are independent. A peer is taken for lost after ``lost_after``
    intervals of silence, for which ``lost_after - 1`` heartbeats in a row must be lost (the next one arrives
    too late, if it is a little late): a heartbeat that arrived, ``1 - p``, and a run after it, ``p**4``.

    A lease lapses when no heartbeat of the last 450 ms is known to have arrived. Four count, each followed by
    one of the peer (from the third on by two, because it is asked to answer at once): none of the four
    arrived and was followed by one that did. By the first that arrived, from none to the first of all:
    ``p**4``, ``p**3 * p**2``, ``p**2 * p**4``, ``p * p**5``, ``p**6``; all but the first times ``1 - p``.
    """
    heartbeat = Heartbeat()
    p = 1.0
    for percent in percents:
        p *= percent / 100
    assert heartbeat.lost_after == 5
    directed = NODES * (NODES - 1)
    beats = seconds / heartbeat.interval.total_seconds() * directed
    silent = beats * (1 - p) * p**4
    unacknowledged = beats * (p**4 + (1 - p) * (p**5 + 3 * p**6))
    return {"expected_wrong_losses": round(silent, 4), "expected_lapses": round(unacknowledged, 4)}
