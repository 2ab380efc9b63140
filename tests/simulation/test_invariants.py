"""Each invariant can fail: a farm is harmed behind its back, and the simulator says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.simulation.farms import started

from nlbfarm.core.buckets import ALL, BucketStates
from nlbfarm.testing.farm import SimulatedFarm, ViolationError


def test_one_server_can_fail() -> None:
    farm = started()
    farm.hosts[2].apply(farm.hosts[1].applied, farm.now)
    farm.invariants.due = True
    with pytest.raises(
        ViolationError, match=r"seed 1, .*I1: group 0: 86 buckets are accepted by nodes 1 and 2"
    ):
        farm.run(3.0)


def test_no_hole_can_fail() -> None:
    farm = started()
    farm.hosts[2].close()
    with pytest.raises(ViolationError, match="I2: group 0: 85 buckets are accepted by nobody"):
        farm.check_whole()
    farm = started()
    farm.hosts[2].apply((BucketStates(own=ALL),), farm.now)
    with pytest.raises(ViolationError, match="I2: group 0: a bucket of node 2 is accepted by another too"):
        farm.check_whole()


def dropped(farm: SimulatedFarm) -> None:
    farm.hosts[1].apply((BucketStates(),), farm.now)


def answered(farm: SimulatedFarm) -> None:
    mine = farm.hosts[1].fresh[0]
    farm.hosts[1].apply((BucketStates(drain=mine),), farm.now)
    farm.hosts[2].apply((BucketStates(own=mine),), farm.now)


def lapsed(farm: SimulatedFarm) -> None:
    farm.freeze(1, 1.0)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (dropped, "node 1 drops the connections of"),
        (answered, r"node 2 answers \d+ buckets of which node 1 holds"),
        (lapsed, "node 1 (ends its lease|had no lease from|drops)"),
    ],
)
def test_no_broken_connection_can_fail(harm: Callable[[SimulatedFarm], None], told: str) -> None:
    farm = started(connections_per_s=200.0)
    farm.invariants.planned, farm.invariants.strict = True, False
    harm(farm)
    farm.invariants.due = True
    with pytest.raises(ViolationError, match=f"I3: .*{told}"):
        farm.run(4.0)


def test_fencing_can_fail() -> None:
    farm = started(2)
    farm.invariants.strict = False
    farm.freeze(1, 2.0)
    farm.run(2.2)
    farm.hosts[1].lease_until = 9.0  # a kernel that does not end the lease
    with pytest.raises(ViolationError, match="I4: group 0: node 1 stands still and accepts what node 2 does"):
        farm.run(4.0)
    farm = started(2)
    farm.invariants.strict = False
    farm.hosts[2].lease_until = farm.now + 0.4
    with pytest.raises(ViolationError, match=r"I4: node 2 takes a lease of 0\.\d+ s"):
        farm.invariants.leased(farm.hosts[2], farm.now)
