"""A process with a windivert backend, for tests that stop, kill or replace it. Run it in a namespace.

Prints ``loop PID`` and ``guard PID`` whenever they change, then a line for each change of what ``lease``
returns and for each damage. ``repair`` on its standard input repairs the filter.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress

from tests.netns.filter_child import policy

from nlbfarm.backends.windivert import WinDivertBackend, leftovers
from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.errors import HostError

LEASE_S = 0.3


async def main(farm: str) -> None:
    backend = WinDivertBackend()
    await backend.open(policy(farm), lambda reason: print(f"damaged: {reason}", flush=True))
    await backend.apply({"web": BucketStates(own=ALL)})
    os.set_blocking(0, False)
    said = None
    pids = ""
    while True:
        taken = backend.lease(LEASE_S)
        if taken is not said:
            print(f"lease {taken}", flush=True)
        said = taken
        with suppress(BlockingIOError):
            command = os.read(0, 100)
            if b"repair" in command:
                with suppress(HostError):
                    await backend.repair()
        now = " ".join(f"{role}={p.pid}" for role, found in leftovers.find(farm).items() for p in found)
        if now != pids and "guard" in now and "loop" in now:
            print(f"processes {now}", flush=True)
            pids = now
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
