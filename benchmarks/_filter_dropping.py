"""A process that drops every packet it gets: what a decision in user space costs before anything is decided.

``python -m benchmarks._filter_dropping KIND PAGE``, in the namespace of the packets. ``queue`` asks NFQUEUE
for packets without their bytes, ``queue-headers`` with their headers, ``divert`` receives from pydivert one
by one, ``divert-batch`` as many as there are. PAGE is a file descriptor of a page that is told how many
were dropped.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import signal
import struct
import sys
from typing import Any

from benchmarks._filter_load import INTERFACE, VIP
from benchmarks._filter_subjects import QUEUE

_PR_SET_PDEATHSIG = 1
_LENGTH, _SOCKET_BYTES = 8192, 8 << 20  # of the queue: as nlbfarm's
_MODES = {"queue": (1, 0), "queue-headers": (2, 96)}  # NFQNL_COPY_META; NFQNL_COPY_PACKET and how many bytes
_BATCH = 64


def _queue(kind: str) -> None:
    from netfilterqueue import NetfilterQueue

    queue = NetfilterQueue()
    mode, size = _MODES[kind]
    queue.bind(QUEUE, lambda packet: packet.drop(), _LENGTH, mode, size, _SOCKET_BYTES)
    print("ready", flush=True)
    queue.run()


def _divert(kind: str, page: mmap.mmap) -> None:
    pydivert: Any = importlib.import_module("pydivert")  # it has no types
    dropped = 0
    with pydivert.Divert(f"inbound and ip.DstAddr == {VIP}", interfaces=[INTERFACE]) as divert:
        print("ready", flush=True)
        while True:
            if kind == "divert-batch":
                dropped += len(divert.recv_batch(_BATCH))
            else:
                divert.recv()
                dropped += 1
            struct.pack_into("=Q", page, 0, dropped)


def main() -> None:
    kind, page = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if kind in _MODES:
        _queue(kind)
    else:
        _divert(kind, mmap.mmap(int(page), mmap.PAGESIZE))


if __name__ == "__main__":
    main()
