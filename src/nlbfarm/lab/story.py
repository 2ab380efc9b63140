"""The demo's stories and their measurements: a farm comes up, something happens to it, and it goes on.

``Story`` does it and tells a listener; ``nlbfarm.cli.demo`` is the listener that draws. The clock of
every measurement is the monotonic one, which all processes of the lab share.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nlbfarm.core.buckets import BUCKETS
from nlbfarm.errors import UsageError
from nlbfarm.lab import acts, topology
from nlbfarm.lab.acts import Measurement, Stage
from nlbfarm.lab.farm import Lab
from nlbfarm.lab.supervisor import ROOT

__all__ = ["SCENARIOS", "Results", "Scenario", "Story", "lab_for"]

# Seconds for a node to end in good order. The clients have gone, but what was connected to a node that was
# cut off may have ended elsewhere: for its own kernel it is still established.
_PATIENCE = 5.0

Act = Callable[[Stage], Measurement]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A story's acts, in order.

    Args:
        summary: What happens, in a few words.
        probed: Acts that are watched by the prober, which asks every bucket all the time.
        talked: Acts after these, watched by the talker, whose connections stay and talk.
        lab: What ``Lab`` is told for it.
    """

    summary: str
    probed: Sequence[Act] = ()
    talked: Sequence[Act] = ()
    lab: Mapping[str, Any] = field(default_factory=dict)


_SUPERVISED = 'stop_timeout = "2s"'


SCENARIOS: Mapping[str, Scenario] = {
    "tour": Scenario(
        "it serves, loses a machine, takes it back, drains it, and gives it more power",
        (acts.serve, acts.crash),
        (acts.rejoin, acts.drain, acts.power),
    ),
    "crash": Scenario("a machine loses its power", (acts.serve, acts.crash)),
    "rejoin": Scenario("a machine that was lost comes back", (acts.crash,), (acts.rejoin,)),
    "drain": Scenario("a node is drained and serves again", (), (acts.drain,)),
    "power": Scenario("a node gets three times its power, and its own again", (), (acts.power,)),
    "freeze": Scenario("the process of a node hangs for 5 s", (acts.freeze,)),
    "partition": Scenario("the network falls apart and heals", (acts.partition,)),
    "oneway": Scenario("heartbeats get lost in one direction, then in the other", (acts.oneway,)),
    "app-crash": Scenario(
        "a web server is killed, and its node restarts it", (acts.app_crash,), lab={"service": _SUPERVISED}
    ),
    "app-hang": Scenario(
        "the workers of a web server hang, and its node restarts it",
        (acts.app_hang,),
        lab={"service": f'{_SUPERVISED}\nhold = "1s"\nenvironment = {{ DELAY = "1.5" }}'},
    ),
    "app-broken": Scenario(
        "a web server cannot be started any more, and its node leaves",
        (acts.app_broken,),
        lab={"service": f'{_SUPERVISED}\nhold = "1s"\nmax_restarts = 2\nbackoff = "500ms"'},
    ),
    "gateway-loss": Scenario(
        "one node loses the gateway, and then all of them do",
        (acts.gateway_loss,),
        lab={"gateway": True, "extra": acts.GATEWAY_TOML},
    ),
    "all-unhealthy": Scenario(
        "the web servers of all nodes answer errors, one after the other",
        (acts.all_unhealthy,),
        lab={"checker": False, "extra": acts.UNHEALTHY_TOML},
    ),
    "failover": Scenario(
        "one node at a time serves; the first one is lost, comes back, and gets its clients when asked",
        (acts.takeover,),
        (acts.failback,),
        lab=acts.FAILOVER,
    ),
}
"""The stories by name."""


@dataclass(slots=True)
class Results:
    """What a story measured; ``as_json`` has the stable keys. ``logs`` are the nodes', for a missed goal."""

    scenario: str
    nodes: int
    server: str
    backend: str = ""
    delivery: str = ""
    measurements: list[Measurement] = field(default_factory=list)
    ended: bool = False
    leftovers: list[str] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the results under the keys that scripts may rely on."""
        result: dict[str, Any] = {
            "scenario": self.scenario,
            "nodes": self.nodes,
            "backend": self.backend,
            "delivery": self.delivery,
            "server": self.server,
        }
        for measurement in self.measurements:
            result |= measurement.as_json()
        return {**result, "leftovers": self.leftovers}

    def failures(self) -> list[str]:
        """Return a sentence for each goal that was missed; empty if all hold."""
        missed = [sentence for measurement in self.measurements for sentence in measurement.failures()]
        if not self.ended:
            missed.append("the demo did not come to its end")
        if self.leftovers:
            missed.append(f"{len(self.leftovers)} things were left behind: {'; '.join(self.leftovers)}")
        return missed


def lab_for(scenario: str, nodes: int = 3, server: str = "auto", backend: str = "auto") -> Lab:
    """Return the lab in which a story takes place, not entered yet. Arguments as for ``Lab``.

    Raises:
        HostError, UsageError: As ``Lab``; and there is no such story.
    """
    return Lab(nodes, server, backend, **_scenario(scenario).lab)


def _scenario(name: str) -> Scenario:
    if name not in SCENARIOS:
        raise UsageError(f"no scenario {name!r}; choose one of {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


class Story:
    """Runs the demo.

    Args:
        lab: An entered lab (``lab_for``) of two nodes or more; nothing has been started in it.
        tell: Called with a sentence at each turn of the story.
        scenario: Name of the story.

    Raises:
        UsageError: There is no such story.
    """

    def __init__(self, lab: Lab, tell: Callable[[str], None], scenario: str = "tour") -> None:
        self._scenario = _scenario(scenario)
        self.lab = lab
        self.results = Results(scenario, nodes=len(lab.names), server=lab.server.name)
        self._stage = Stage(lab, tell)
        self._tell = tell

    def latest(self) -> tuple[list[str | None], Counter[str], float]:
        """Return who answered each bucket last; see ``Probing.latest``."""
        return self._stage.latest()

    def run(self) -> Results:
        """Tell the story to its end; the farm then runs on and the client has stopped.

        Raises:
            LabError: The farm did not do in time what the story needs.
        """
        began = time.monotonic()
        self._tell(f"starting nlbfarm-node on {', '.join(self.lab.names)}")
        self.lab.start()
        placement = self.lab.settle(timeout=30)
        status = self.lab.status(self.lab.names[0])
        self.results.backend = status["backend"]["name"]
        self.results.delivery = status["delivery"]
        took = time.monotonic() - began
        self._tell(f"all {BUCKETS} buckets are served after {took:.1f} s, by {self._stage.shares(placement)}")
        if self._scenario.probed:
            with self._stage.probed():
                self._play(self._scenario.probed)
        if self._scenario.talked:
            with self._stage.talked():
                self._play(self._scenario.talked)
        self.results.ended = True
        return self.results

    def finish(self) -> None:
        """Stop the farm's processes politely, end the lab and note what is left."""
        self.results.logs = {node: self.lab.log(node) for node in self.lab.names}
        for node in self.lab.running:
            self._tell(f"stopping {node}")
            code = self.lab.stop(node, patience=_PATIENCE)
            if code:
                self.results.leftovers.append(f"{node} ended with exit code {code}")
        self.results.leftovers += self.lab.leftovers()
        self.results.leftovers += self.lab.close()

    def look_around(self) -> list[str]:
        """Return commands for a person on this host that look into the running lab."""
        user = "" if os.geteuid() == 0 else "--user --preserve-credentials "
        enter = f"nsenter --target {self.lab.world.pid} {user}--net --mount --pid"
        node = self.lab.names[0]
        status = f"{sys.executable} -m nlbfarm.cli status --config {ROOT}/{node}/farm.toml"
        return [
            f"{enter} ip netns exec {node} nft list ruleset",
            f"{enter} ip netns exec {node} {status} --runtime-dir {ROOT}/{node}/run",
            f"{enter} ip netns exec {topology.CLIENT} curl http://{topology.VIP}/",
            f"{enter} bridge fdb show br br0",
            f"{enter} tail -f {ROOT}/{node}/node.log",
        ]

    def _play(self, play: Sequence[Act]) -> None:
        for act in play:
            self.results.measurements.append(act(self._stage))
