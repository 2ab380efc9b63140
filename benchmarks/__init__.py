"""Measurements on real processes: ``python -m benchmarks NAME [--json FILE]``.

- ``idle``: what one node of an idle farm costs
- ``flows``: what the question costs in which buckets flows are left
- ``handoff``: planned changes under connections that keep talking
- ``outage``: how long buckets are unserved after a crash
- ``leaders``: leaders killed again and again
- ``healing``: partitions, and how long buckets are served twice after them
- ``false_alarms``: hosts that are busy, heartbeats that get lost, and nothing else
"""
