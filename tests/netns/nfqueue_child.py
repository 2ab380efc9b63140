"""A process with an NFQUEUE backend, for tests that stop, kill or replace it. Run it in a namespace.

Prints ``ready`` and the process ids of its workers, then a line for each change of what ``lease`` returns and
for each damage.
"""

from __future__ import annotations

import asyncio
import sys
from ipaddress import IPv4Address

from nlbfarm.backends.nfqueue import NfqueueBackend
from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.core.policy import FilterPolicy, Group, Protocol, Rule, Vip


def policy(farm: str) -> FilterPolicy:
    """One VIP on eth0 with one service, port 80."""
    address = IPv4Address("192.0.2.100")
    return FilterPolicy(
        farm,
        (Vip(address, "eth0"),),
        (Group("web", 0x5EED),),
        (Rule("web", "web", address, Protocol.TCP, (80,)),),
    )


async def main(farm: str) -> None:
    backend = NfqueueBackend(queues=2)
    await backend.open(policy(farm), lambda reason: print(f"damaged: {reason}", flush=True))
    await backend.apply({"web": BucketStates(own=ALL)})
    said = None
    while True:
        taken = backend.lease(0.3)
        if said is None:
            print("ready", *backend.workers, flush=True)
        if taken is not said:
            print(f"lease {taken}", flush=True)
        said = taken
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
