"""Applications that fail, gateways that are lost: what nodes make of it, with real servers and processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.plugin_support import install, site_directory

from nlbfarm.config.heartbeat import Heartbeat
from nlbfarm.core.buckets import BUCKETS
from nlbfarm.lab import Application, Lab, LabError, topology
from nlbfarm.lab.pulse import Pulse
from nlbfarm.lab.story import Story, lab_for
from nlbfarm.lab.supervisor import ROOT

pytestmark = pytest.mark.netns

BOUND_S = 30.0


def restarted(found: dict[str, Any]) -> None:
    """What every failure of an application has: it is noticed, and over in the end."""
    assert found["node"] == "web2"
    assert 0 <= found["detected_ms"] <= found["acted_ms"] < found["back_ms"]
    assert found["requests_failed"] == sum(found["errors"].values()) > 0
    assert found["restarts"] == 1


def app_crash(results: dict[str, Any]) -> None:
    found = results["app_crash"]
    restarted(found)
    assert "SIGKILL" in found["reason"]
    assert (found["buckets_moved"], found["moved_ms"]) == (0, None)


def app_hang(results: dict[str, Any]) -> None:
    found = results["app_hang"]
    restarted(found)
    assert "no answer" in found["reason"]
    assert found["port_open"]
    assert found["buckets_moved"] == BUCKETS // 2
    assert found["acted_ms"] < found["moved_ms"] < found["back_ms"]


def app_broken(results: dict[str, Any]) -> None:
    found = results["app_broken"]
    assert found["restarts"] == found["max_restarts"] == 2
    assert found["state"] == "STOP"
    assert "restarted 2 times in 24 h" in found["left_reason"]
    assert found["acted_ms"] < found["gave_up_ms"] <= found["left_ms"]
    assert found["buckets_moved"] == BUCKETS // 2
    assert found["back_ms"] > 0


def gateway_loss(results: dict[str, Any]) -> None:
    one, everybody = results["gateway_loss"]["one"], results["gateway_loss"]["all"]
    assert one["buckets_moved"] >= BUCKETS // 3
    assert "192.0.2.1" in one["reason"]
    assert one["back_ms"] is not None
    assert set(everybody["states"].values()) == {"UP"}
    assert all("degraded: gateway" in reason for reason in everybody["reasons"].values())
    assert everybody["buckets_moved"] == 0


def all_unhealthy(results: dict[str, Any]) -> None:
    found = results["all_unhealthy"]
    first, last = found["falls"]
    assert (first["node"], last["node"]) == ("web1", "web2")
    assert (first["unserved"], last["unserved"]) == (0, 0)
    assert first["served_by"] == {"web1": 0, "web2": BUCKETS}
    assert first["states"]["web1"] == "WAIT"
    serving = [node for node, count in last["served_by"].items() if count]
    assert serving
    for node in serving:
        assert last["states"][node] == "UP"
        assert "degraded: page: HTTP 503" in last["reasons"][node]
    assert set(found["states"].values()) == {"UP"}


def failover(results: dict[str, Any]) -> None:
    assert results["takeover"]["node"] == "web2"
    assert results["takeover"]["taken_by"] == {"web1": BUCKETS}
    found = results["failback"]
    assert found["node"] == "web2"
    assert (found["moved_before"], found["moved_buckets"]) == (0, BUCKETS)
    assert found["established"] == 512
    assert (found["broken_connections"], found["failed_connections"]) == (0, 0)


@pytest.mark.parametrize(
    ("scenario", "nodes", "check"),
    [
        ("app-crash", 2, app_crash),
        ("app-hang", 2, app_hang),
        ("app-broken", 2, app_broken),
        ("gateway-loss", 3, gateway_loss),
        ("all-unhealthy", 2, all_unhealthy),
        ("failover", 3, failover),
    ],
)
def test_a_scenario_of_the_demo(scenario: str, nodes: int, check: Callable[[dict[str, Any]], None]) -> None:
    said: list[str] = []
    with lab_for(scenario, nodes) as lab:
        story = Story(lab, said.append, scenario)
        story.run()
        story.finish()
    results = story.results.as_json()
    print(json.dumps(results))
    check(results)
    assert results["leftovers"] == []


@pytest.fixture
def supervised() -> Iterator[Lab]:
    """Yield a farm of two whose nodes run their own servers, and may restart them twice."""
    with Lab(nodes=2, service='stop_timeout = "2s"\nmax_restarts = 2') as lab:
        lab.start()
        lab.settle()
        yield lab


def test_restarts_are_counted_across_kill_9_and_children_end_with_it(supervised: Lab) -> None:
    lab, application = supervised, Application(supervised)

    def up_again(restarts: int) -> bool:
        (found,) = lab.status("web2")["services"]
        return (found["restarts"], found["phase"]) == (restarts, "up")

    application.crash("web2")
    lab.wait_for(lambda: up_again(1), BOUND_S, "the first restart")
    assert application.processes("web2")

    lab.kill("web2")
    lab.wait_for(lambda: not lab.world.call("processes", ns="web2"), BOUND_S, "the children to end")
    lab.start("web2")
    lab.settle(timeout=BOUND_S)
    assert up_again(1)

    application.crash("web2")
    lab.wait_for(lambda: up_again(2), BOUND_S, "the second restart")
    application.crash("web2")
    lab.wait_for(lambda: lab.status("web2")["state"] == "STOP", BOUND_S, "web2 to leave")
    reason = lab.status("web2")["reason"]
    assert "SIGKILL" in reason
    assert "restarted 2 times in 24 h" in reason

    lab.kill("web2")
    lab.start("web2")

    def remembers() -> bool:
        try:
            found = lab.status("web2")
        except LabError:
            return False  # it is still starting
        return (found["state"], found["reason"]) == ("STOP", reason)

    lab.wait_for(remembers, BOUND_S, "web2 to stay stopped, for the same reason")
    assert application.processes("web2") == []
    lab.settle("web1")


RAISES = """
from nlbfarm.interfaces import Checker, CheckResult

class Raises(Checker):
    async def check(self):
        raise RuntimeError("a bug of the vendor's")

    async def close(self):
        pass
"""
NASTY = {
    "hangs": ('type = "script"\ncommand = ["sleep", "600"]', "has not ended within 0.5 s and was killed"),
    "raises": ('type = "raises"', "a bug of the vendor's"),
    "prints": (
        'type = "script"\ncommand = ["head", "-c", "100000000", "/dev/zero"]',
        "printed more than 16.8 MB and was killed",
    ),
    "dns": ('type = "http"\nurl = "http://nobody.example/"', "cannot resolve nobody.example: "),
}
"""Checkers, and what their results have to say."""

RESOLVER = f"""
target=$(readlink -m /etc/resolv.conf)
[ -e "$target" ] || {{ mkdir -p "${{target%/*}}" && : >"$target"; }}
echo nameserver {topology.GATEWAY_ADDRESS} >{ROOT}/resolv.conf
mount --bind {ROOT}/resolv.conf "$target"
"""
BLACK_HOLE = "table inet hole { chain input { type filter hook input priority 0; udp dport 53 drop; }; }"


@pytest.fixture
def vendor(tmp_path: Path) -> Iterator[None]:
    """Install a package whose checker raises."""
    with site_directory(tmp_path / "site") as directory:
        install(directory, "acme-raises", "[nlbfarm.checkers]\nraises = acme_raises:Raises\n", RAISES)
        yield


@pytest.mark.usefixtures("vendor")
def test_checkers_that_misbehave_delay_no_heartbeat(record_property: Callable[[str, object], None]) -> None:
    interval = Heartbeat().interval.total_seconds()
    nasty = "\n".join(
        f'[[checkers]]\nname = "{name}"\n{lines}\ninterval = "500ms"\ntimeout = "500ms"\non_failure = "none"'
        for name, (lines, _) in NASTY.items()
    )
    # With this lease a node says that it was late when that was one interval.
    with Lab(nodes=2, server="builtin", gateway=True, heartbeat='lease = "200ms"') as lab:
        lab.world.run(["sh", "-ec", RESOLVER])
        lab.exec(topology.GATEWAY, ["nft", BLACK_HOLE])
        lab.start()
        lab.settle()
        placement = lab.settle()
        with Pulse(lab, at="web1") as pulse:
            begun = pulse.begun
            lab.configure("web2", f"{lab.configuration()}\n{nasty}\n")
            lab.control("web2", "reload", {"dry_run": False})

            def failed() -> dict[str, str]:
                rows = {row["name"]: row for row in lab.status("web2")["checkers"]}
                down = all(rows[name]["ok"] is False for name in NASTY)
                return {name: rows[name]["detail"] for name in NASTY} if down else {}

            lab.wait_for(failed, BOUND_S, "all checkers to be down")
            pulse.wait(3.0)
            details = failed()
        late = [event.fields["late_ms"] for event in lab.events("web2", begun) if event.name == "node.late"]
        assert lab.settle() == placement
    gaps = pulse.gaps("web2")
    measured = {"longest_gap_ms": round(max(gaps) * 1000, 1), "late_ms": late, "details": details}
    print(json.dumps(measured))
    record_property("heartbeats", measured)
    for name, (_, words) in NASTY.items():
        assert words in details[name], name
    assert len(gaps) >= 25  # of the 30 heartbeats of three seconds, on a host that is busy
    assert not [gap for gap in gaps if gap >= 2 * interval]
    assert late == []
