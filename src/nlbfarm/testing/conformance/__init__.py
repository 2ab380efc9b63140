"""Conformance of packet filters: does a backend decide every packet as ``nlbfarm.core.decision`` does?

``check_filter_backend(make)`` sends a seeded corpus of packets through a backend and compares verdict by
verdict. A vendor runs it on a backend of its own; ``docs/conformance.md`` says how. It complements
``nlbfarm.testing.filter_backend``, which checks the rest of the contract (lease, damage, counters, flows).

- ``check``          the check; ``run`` sends the corpus, ``report`` tells what came of it
- ``corpus``         the mixture of all packets, in phases: ``singles`` (with ``oddities``, from ``parts``),
                     ``fragmenting``, ``conversations``
- ``scene``          the farm that the packets are for; ``packet`` what a corpus is made of; ``wire`` bytes
- ``engine``         what pydivert's engine for Linux keeps from a filter
- ``bench``          a node and its wires in ``namespaces``; ``observer`` and ``sightings``: what got through

    python -m nlbfarm.testing.conformance nftables --packets 20000
"""

from __future__ import annotations

from nlbfarm.testing.conformance.check import PacketProbe, check_filter_backend
from nlbfarm.testing.conformance.corpus import make_corpus
from nlbfarm.testing.conformance.packet import Corpus, Datagram, Packet, Phase
from nlbfarm.testing.conformance.report import Difference, DifferenceError, Outcome, Report

__all__ = [
    "Corpus",
    "Datagram",
    "Difference",
    "DifferenceError",
    "Outcome",
    "Packet",
    "PacketProbe",
    "Phase",
    "Report",
    "check_filter_backend",
    "make_corpus",
]
