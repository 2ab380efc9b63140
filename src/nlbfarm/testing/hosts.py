"""One simulated server: its clock, its kernel, and the node process on it.

The kernel (filter, lease, flow table) goes on while the process is frozen or gone; the process sees
nothing but its own clock. All times here are seconds of simulated time unless they are called *local*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from nlbfarm.core.buckets import Bitmap, BucketStates, bits
from nlbfarm.core.events import Event
from nlbfarm.core.node import Node
from nlbfarm.core.settings import Admin
from nlbfarm.core.versions import Versions
from nlbfarm.core.wire import VERSION

if TYPE_CHECKING:
    from nlbfarm.testing.applications.host import HostApplications
    from nlbfarm.testing.applications.shell import SupervisedProcess

__all__ = ["SimulatedClock", "SimulatedHost", "Turn"]

FIRST_INCARNATION = 1000
"""Incarnations begin above this, so that a lost file can make one lower."""


@dataclass(slots=True)
class SimulatedClock:
    """A monotonic clock that starts somewhere and does not run at quite the right rate.

    Args:
        rate: Local seconds for each second; 1.0005 is 500 ppm fast.
        offset: What it shows at the beginning.
    """

    rate: float = 1.0
    offset: float = 0.0
    _newest: float = -inf

    def local(self, now: float) -> float:
        """Return what the clock shows at ``now``; never less than it has shown before."""
        self._newest = max(self._newest, self.offset + self.rate * now)
        return self._newest

    def visit(self, due: float, now: float) -> bool:
        """Whether the clock has reached ``due`` (local) at ``now``; rounding does not count."""
        if self.local(now) < due - 1e-9:
            return False
        self._newest = max(self._newest, due)
        return True

    def when(self, local: float) -> float:
        """Return the simulated time at which the clock shows ``local``."""
        return (local - self.offset) / self.rate


@dataclass(frozen=True, slots=True)
class Turn:
    """Something that a process does in a turn of its loop, beside the protocol."""

    act: Callable[[], None]


@dataclass(slots=True)
class SimulatedHost:
    """One server.

    ``lapses`` counts the leases that ran out while buckets were held. ``admin``, ``admin_reason`` and
    ``powers`` are what is persisted; ``incarnation`` is the newest one used.
    """

    node_id: int
    groups: int
    clock: SimulatedClock = field(default_factory=SimulatedClock)
    version: int = VERSION
    """Newest wire version that its process speaks."""
    versions: Versions = field(default_factory=lambda: Versions(()))
    admin: Admin = Admin.RUN
    admin_reason: str = ""
    powers: tuple[int, ...] | None = None
    incarnation: int = FIRST_INCARNATION

    powered: bool = True
    core: Node | None = None
    life: int = 0
    """Rises when the process ends or starts: what was scheduled for an earlier one is void."""
    boot: int = 0
    """Rises when the machine starts: the flow table is empty then."""
    frozen_until: float = -1.0
    deaf: bool = False
    """Paused rather than frozen: what is sent to it meanwhile is lost."""
    damaged: bool = False
    """Somebody emptied the filter; the VIPs are down until it is repaired."""
    returning: bool = False
    """The process ended, or is about to, and another one takes over soon."""
    returning_from: int = -1
    """Which life that is."""
    back_after: float | None = None
    """How long after its end the process is started again."""
    armed: float = inf
    queue: list[Event | Turn] = field(default_factory=list)
    supervised: SupervisedProcess | None = None
    """What looks after its applications; ends with the process."""
    apps: HostApplications | None = None
    trusted: frozenset[int] = frozenset()
    """When its process stopped running: the peers with which it had been hearing each other."""

    applied: tuple[BucketStates, ...] = ()
    """What the filter does with each group."""
    own: tuple[Bitmap, ...] = ()
    fresh: tuple[Bitmap, ...] = ()
    """Buckets of which the filter accepts new flows (``OWN`` or ``ADOPT``)."""
    known: tuple[Bitmap, ...] = ()
    """Buckets of which the filter accepts established flows (all but ``FOREIGN``)."""
    lease_until: float = -1.0
    lapses: int = 0
    flows: list[dict[int, int]] = field(default_factory=list)
    """For each group: how many established flows are in the flow table, by bucket."""
    talking: list[dict[int, int]] = field(default_factory=list)
    """The same, of those flows whose clients still talk."""
    established: list[Bitmap] = field(default_factory=list)
    """For each group the buckets of the latter."""
    drained_since: dict[tuple[int, int], float] = field(default_factory=dict)
    """For each (group, bucket) in ``DRAIN`` that has flows: since when."""
    drain_took: dict[tuple[int, int], float] = field(default_factory=dict)
    """For each (group, bucket) that went from there to ``FOREIGN`` with flows: how long it was drained."""

    def __post_init__(self) -> None:
        self.close()
        self.forget_flows()

    # -- the process -----------------------------------------------------------------------

    def runs(self, now: float) -> bool:
        """Whether its process is there and not frozen."""
        return self.core is not None and now >= self.frozen_until

    @property
    def leaves(self) -> bool:
        """Whether its process is gone or about to end."""
        return self.core is None or self.core.condition.leaving

    # -- the filter ------------------------------------------------------------------------

    def close(self) -> None:
        """Accept nothing, without a lease."""
        self.apply((BucketStates(),) * self.groups, 0.0)
        self.lease_until = -1.0

    def apply(self, states: Sequence[BucketStates], now: float) -> None:
        """Make the filter do this from ``now`` on."""
        self.applied = tuple(states)
        self.own = tuple([one.own for one in states])
        self.fresh = tuple([one.own | one.adopt for one in states])
        self.known = tuple([one.own | one.adopt | one.drain for one in states])
        drained = {
            (group, bucket)
            for group, one in enumerate(states)
            if self.flows and one.drain & self.established[group]
            for bucket in bits(one.drain & self.established[group])
        }
        before = self.drained_since
        for group, bucket in before.keys() - drained:
            if not self.known[group] >> bucket & 1:
                self.drain_took[group, bucket] = now - before[group, bucket]
        self.drained_since = {key: before.get(key, now) for key in drained}

    def leased(self, now: float) -> bool:
        """Whether the filter may accept anything at all now."""
        return self.powered and self.lease_until > now and not self.damaged

    def accepts(self, group: int, now: float) -> Bitmap:
        """Return the buckets of which it accepts new flows now."""
        return self.fresh[group] if self.leased(now) else 0

    def owns(self, group: int, now: float) -> Bitmap:
        """Return the buckets of which it accepts every packet now."""
        return self.own[group] if self.leased(now) else 0

    def serves(self, group: int, now: float) -> Bitmap:
        """Return the buckets of which it accepts established flows now."""
        return self.known[group] if self.leased(now) else 0

    # -- the flow table --------------------------------------------------------------------

    def forget_flows(self) -> None:
        """Lose the flow table: the machine starts anew."""
        self.flows = [{} for _ in range(self.groups)]
        self.talking = [{} for _ in range(self.groups)]
        self.established = [0] * self.groups
        self.drained_since = {}

    def flow_begins(self, group: int, bucket: int) -> None:
        """Mark a new flow as established here."""
        for table in (self.flows[group], self.talking[group]):
            table[bucket] = table.get(bucket, 0) + 1
        self.established[group] |= 1 << bucket

    def flow_ends(self, group: int, bucket: int) -> None:
        """Take note that a client talks no longer; the flow stays in the table."""
        if _one_less(self.talking[group], bucket):
            self.established[group] &= ~(1 << bucket)
            self.drained_since.pop((group, bucket), None)

    def flow_forgotten(self, group: int, bucket: int) -> None:
        """Take a flow out of the table."""
        _one_less(self.flows[group], bucket)

    def flows_in(
        self, names: Sequence[str], buckets: Mapping[str, Bitmap] | None = None
    ) -> dict[str, dict[int, int]]:
        """Return the established flows by group and bucket, of all buckets or of these."""
        return {
            name: {
                bucket: count
                for bucket, count in table.items()
                if buckets is None or buckets.get(name, 0) >> bucket & 1
            }
            for name, table in zip(names, self.flows, strict=True)
            if table and (buckets is None or name in buckets)
        }


def _one_less(table: dict[int, int], bucket: int) -> bool:
    """Count one less in ``bucket``; return whether none is left."""
    table[bucket] -= 1
    if table[bucket]:
        return False
    del table[bucket]
    return True
