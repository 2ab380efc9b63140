"""The pure core: what a farm decides, with no IO, no clock and no randomness.

- ``buckets``     bitmaps of the 256 buckets, bucket states, placements
- ``policy``      what a filter has to enforce: VIPs, rules, groups
- ``hashing``     the Linux kernel's jhash, flow keys, buckets, seeds of groups
- ``decision``    the oracle: policy + packet facts -> accept or drop, and why
- ``packets``     raw packets -> packet facts; ``fragments``: later fragments follow their first
- ``judging``     the oracle for raw packets, fast; ``places``, ``fasthash``: policy and hash, prepared
- ``flowtable``   flows accepted here; ``counters``: what a filter counts
- ``placement``   who owns which bucket: fewest moves, shares by power
- ``messages``    what nodes tell one another; ``plans`` and ``wire``: as authenticated bytes
- ``settings``    what a node is told at its start
- ``hearing``     who is heard, who acknowledges (rule 1)
- ``group_mac``    the multicast MAC of a VIP
- ``views``       comparing views, largest sets that all hear one another
- ``membership``  who is in, who leads, which view wins (rules 2 and 5)
- ``solitude``    alone or deaf? (rule 5)
- ``handoff``     release before acquire (rule 3)
- ``lease``       until when the filter may accept (rule 4)
- ``fetch``       plans too large for one datagram
- ``health``      rise and fall of a checker
- ``condition``   what the node needs, and the state that follows
- ``reporting``   what the log is told
- ``events``      what goes in; ``commands``: what comes out
- ``node``        the state machine that composes them

``now`` is always an argument: seconds on a monotonic clock. Nothing here imports asyncio,
socket, time, random, os or logging; ``tests/core/test_purity.py`` holds that.
"""
