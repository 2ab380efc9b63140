"""The acts of the demo's stories: each does something to a running farm and measures what it cost.

- ``stage``: ``Stage``, what an act works with; ``Measurement``, what it returns
- ``service``: nothing happens
- ``crash``: a machine loses its power
- ``planned``: join, rejoin, drain, stop, restart, power, reload
- ``freeze``, ``oneway``, ``partition``: hung processes, loss in one direction, a network that falls apart
- ``recovery``, ``gateway``, ``unhealthy``: applications that fail, a gateway that is lost; ``timeline``: when
  a node noticed, acted, lost its buckets and had them back
- ``failover``: one node at a time has all buckets
"""

from __future__ import annotations

from nlbfarm.lab.acts.crash import Crash, crash
from nlbfarm.lab.acts.failover import FAILOVER, Failback, Takeover, failback, takeover
from nlbfarm.lab.acts.freeze import Freeze, freeze
from nlbfarm.lab.acts.gateway import GATEWAY_TOML, GatewayLoss, gateway_loss
from nlbfarm.lab.acts.oneway import OneWay, Way, oneway
from nlbfarm.lab.acts.partition import Partition, partition
from nlbfarm.lab.acts.planned import Planned, drain, join, power, rejoin, reload, restart, stop
from nlbfarm.lab.acts.recovery import Broken, Recovery, app_broken, app_crash, app_hang
from nlbfarm.lab.acts.service import Service, Share, serve
from nlbfarm.lab.acts.stage import MOST_OUTAGE_MS, Measurement, Stage
from nlbfarm.lab.acts.timeline import Timeline
from nlbfarm.lab.acts.unhealthy import UNHEALTHY_TOML, AllUnhealthy, Fall, all_unhealthy

__all__ = [
    "FAILOVER",
    "GATEWAY_TOML",
    "MOST_OUTAGE_MS",
    "UNHEALTHY_TOML",
    "AllUnhealthy",
    "Broken",
    "Crash",
    "Failback",
    "Fall",
    "Freeze",
    "GatewayLoss",
    "Measurement",
    "OneWay",
    "Partition",
    "Planned",
    "Recovery",
    "Service",
    "Share",
    "Stage",
    "Takeover",
    "Timeline",
    "Way",
    "all_unhealthy",
    "app_broken",
    "app_crash",
    "app_hang",
    "crash",
    "drain",
    "failback",
    "freeze",
    "gateway_loss",
    "join",
    "oneway",
    "partition",
    "power",
    "rejoin",
    "reload",
    "restart",
    "serve",
    "stop",
    "takeover",
]
