"""The WinDivert backend: packets for the VIPs are taken out of the stack, judged here, and put back or not.

It runs on Windows (WinDivert) and, by the same code, for tests on Linux (pydivert's eBPF engine). Two
processes stand beside the node's:

- ``backend``: the node's side (``WinDivertBackend``)
- ``loop``: the process that judges; a flood of packets keeps that one busy, not the heartbeat
- ``guard``: the process that drops everything when the loop is gone or hangs (``removal``: and the VIPs)
- ``watching``: the end of a process, seen from another
- ``channel``, ``child``, ``shared``: how they are started, how they talk, the page of memory with the lease
- ``filters``: the filter strings (pure)
- ``engine``: pydivert, and what differs between its two engines; ``tcwatch``: who touches Linux's
- ``leftovers``: what killed processes leave
"""

from __future__ import annotations

from nlbfarm.backends.windivert.backend import WinDivertBackend
from nlbfarm.backends.windivert.removal import VipRemoval

__all__ = ["VipRemoval", "WinDivertBackend"]
