"""The acts of the demo's stories: each does something to a running farm and measures what it cost.

- ``stage``: ``Stage``, what an act works with; ``Measurement``, what it returns
- ``service``: nothing happens
- ``crash``: a machine loses its power
- ``planned``: join, rejoin, drain, stop, restart, power, reload
- ``freeze``, ``oneway``, ``partition``: hung processes, loss in one direction, a network that falls apart
"""

from __future__ import annotations

from nlbfarm.lab.acts.crash import Crash, crash
from nlbfarm.lab.acts.freeze import Freeze, freeze
from nlbfarm.lab.acts.oneway import OneWay, Way, oneway
from nlbfarm.lab.acts.partition import Partition, partition
from nlbfarm.lab.acts.planned import Planned, drain, join, power, rejoin, reload, restart, stop
from nlbfarm.lab.acts.service import Service, Share, serve
from nlbfarm.lab.acts.stage import MOST_OUTAGE_MS, Measurement, Stage

__all__ = [
    "MOST_OUTAGE_MS",
    "Crash",
    "Freeze",
    "Measurement",
    "OneWay",
    "Partition",
    "Planned",
    "Service",
    "Share",
    "Stage",
    "Way",
    "crash",
    "drain",
    "freeze",
    "join",
    "oneway",
    "partition",
    "power",
    "rejoin",
    "reload",
    "restart",
    "serve",
    "stop",
]
