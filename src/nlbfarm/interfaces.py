"""The things to plug in: abstract classes whose docstrings are the contract.

A vendor's package adds its own through the entry-point groups ``nlbfarm.backends``,
``nlbfarm.heartbeats``, ``nlbfarm.checkers``, ``nlbfarm.vips`` and ``nlbfarm.services``
(``nlbfarm.plugins`` finds them). ``nlbfarm.testing`` has a conformance check for each of
``FilterBackend``, ``Heartbeat`` and ``VIPManager``; every implementation in this package runs it.

Rules that hold for all of them:

- One owner: whoever constructs an object closes it. ``close`` may be called in any state, and
  twice; it puts back what the object changed on the host and raises only after it has tried
  everything.
- ``async`` methods may take a while but never block the event loop; what must block runs in a
  thread of the implementation's own. Plain methods return within microseconds.
- A failure raises a child of ``NlbfarmError`` and leaves the object as it was before the call.
- Callbacks are called on the event loop that ``open`` was awaited on, never from another thread.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nlbfarm.core.buckets import Bitmap, BucketStates
from nlbfarm.core.counters import FilterCounters
from nlbfarm.core.policy import FilterPolicy, IPAddress

__all__ = [
    "CheckResult",
    "Checker",
    "Clock",
    "FilterBackend",
    "FilterCounters",
    "Heartbeat",
    "HeartbeatStats",
    "NetworkStats",
    "Received",
    "Service",
    "ServiceContext",
    "Usability",
    "VIPManager",
    "VipSpec",
]


@dataclass(frozen=True, slots=True)
class Usability:
    """Whether an implementation can work on this host.

    Args:
        usable: ``True`` if it can.
        detail: One sentence for an administrator: what it would use, or what is missing and what to do.
    """

    usable: bool
    detail: str


class Clock(ABC):
    """Time, so that tests can simulate it."""

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back (``CLOCK_MONOTONIC``)."""

    @abstractmethod
    def wall(self) -> float:
        """Return seconds since 1970-01-01 UTC; may jump."""


class FilterBackend(ABC):
    """A packet filter that accepts only the buckets it was told to accept.

    It enforces ``nlbfarm.core.decision.decide`` for every packet that arrives on a VIP's
    interface, and looks at nothing else. **It fails closed**: it accepts nothing between ``open``
    and the first ``lease``, nothing after the lease has run out, and nothing when its process
    is stopped, killed or hung for longer than the lease. Constructed with those of the keywords of
    ``nlbfarm.backends.Options`` that its constructor has; most have none.
    """

    name: str
    """The name in the configuration (``filter.backend``) and in every message."""

    @classmethod
    @abstractmethod
    async def probe(cls) -> Usability:
        """Say whether this backend can work here: rights, kernel, tools. Changes nothing, never raises."""

    @abstractmethod
    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        """Put a closed filter in place: every bucket ``FOREIGN``, no lease.

        What an earlier process of the same farm left behind on this host is replaced in the
        same atomic step, without a moment in which the filter is open.

        Args:
            policy: What to enforce.
            on_damage: Called with one sentence when somebody else has changed or removed the
                filter. From then on nothing may be taken as filtered until ``repair`` returns.

        Raises:
            HostError: A right, tool or kernel feature is missing; nothing was changed.
        """

    @abstractmethod
    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        """Replace the bucket states of all groups, in one atomic step; on return they hold for every packet.

        Args:
            states: For each group of the policy its states; a group left out is all ``FOREIGN``.

        Raises:
            HostError: The change was refused; the earlier states still hold.
        """

    @abstractmethod
    def lease(self, seconds: float) -> bool:
        """Let the filter accept for the next ``seconds``, replacing what was left of the lease before.

        Called ten times a second or more, from the heartbeat loop. The filter may round the time
        down, never up. ``seconds <= 0`` ends the lease: the call returns at once and the lease is
        over at the latest when the one before would have been.

        Args:
            seconds: At most one second.

        Returns:
            ``False`` if the filter is known not to have taken the lease (it is damaged).
        """

    @abstractmethod
    async def repair(self) -> None:
        """Put the filter back after damage: closed, with the last applied states, and no lease.

        Raises:
            HostError: It cannot be put back now.
        """

    @abstractmethod
    async def flows(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        """Count the established flows of these buckets: their first packet was accepted here, for a VIP.

        TCP only. A connection that has just begun and is not yet established counts, for some seconds; one
        that is closed and merely remembered (``TIME_WAIT``, ``CLOSE``) does not. Those that an earlier
        process of the farm accepted count where the host remembers them: connection tracking does, a table
        inside the process cannot.

        The node asks once at its start for all buckets, and about twice a second for buckets in ``DRAIN``,
        which get no new flows: the work of those calls must follow the number of these buckets and of the
        flows that ended since, not the size of the host's table. A bucket that takes new flows (``OWN``,
        ``ADOPT``) may be asked about, too, and may cost a scan. A flow that was accepted right before its
        bucket went to ``DRAIN`` is not missed: the call waits if it must. No ``apply`` or ``lease`` waits for
        the call.

        Args:
            buckets: For each group the buckets that are asked about; a group left out is not.

        Returns:
            For each group, by bucket, how many there are; buckets without one are left out. A count may be
            higher than the truth by flows that ended since it was taken, but is above 0 only if there is one.

        Raises:
            HostError: It cannot be found out now.
            UsageError: A group that the policy does not have.
        """

    @abstractmethod
    async def counters(self) -> FilterCounters:
        """Read the counters; a few milliseconds."""

    @abstractmethod
    async def close(self) -> None:
        """Remove all that ``open`` put in place. The VIPs must be gone from the host by then."""

    @classmethod
    @abstractmethod
    async def cleanup(cls, farm: str) -> Sequence[str]:
        """Remove what a killed process of ``farm`` left on this host.

        Returns:
            A line for an administrator for each thing removed; empty if there was nothing.
        """


@dataclass(frozen=True, slots=True)
class Received:
    """One datagram that arrived.

    Args:
        data: Its bytes, not verified.
        network: Index of the heartbeat network (position in a node's ``addresses``).
        source: Address and port it claims to come from, for messages.
        at: When it arrived, seconds on the monotonic clock (the kernel's receive time where known).
    """

    data: bytes
    network: int
    source: str
    at: float


@dataclass(frozen=True, slots=True)
class NetworkStats:
    """Counts of one heartbeat network since ``open``.

    Args:
        sent: Datagrams handed to the network.
        received: Datagrams delivered.
        send_errors: Datagrams that could not be handed to the network.
        last_error: What the newest error said, for a person; empty if there was none.
        foreign: Datagrams dropped unread: they did not come from the address of a configured peer.
    """

    sent: int = 0
    received: int = 0
    send_errors: int = 0
    last_error: str = ""
    foreign: int = 0


@dataclass(frozen=True, slots=True)
class HeartbeatStats:
    """Counts of a heartbeat transport.

    Args:
        networks: By index of the network.
        notes: What the host did not allow (real-time priority, DSCP, kernel timestamps), a line each.
    """

    networks: Sequence[NetworkStats] = ()
    notes: Sequence[str] = ()


class Heartbeat(ABC):
    """Carries datagrams between the nodes of a farm; knows nothing of what is in them.

    Nothing is promised: datagrams get lost, doubled, reordered and forged. The core copes.
    Constructed as ``(local, peers, *, port, dscp, clock)``: this node's address on each network, those
    of each peer by node id, a port, a code point (0..63), and the ``Clock`` of arrival times.
    """

    @abstractmethod
    async def open(
        self,
        deliver: Callable[[Received], None],
        on_refused: Callable[[int], None],
    ) -> None:
        """Bind the sockets and start to deliver.

        Args:
            deliver: Called for each datagram, in order of arrival on its network.
            on_refused: Called with a node's id when that host answered that nothing listens
                there (ICMP port unreachable). A hint, not a proof: anyone can send it.

        Raises:
            HostError: An address is not on this host, a port is taken; names both.
        """

    @abstractmethod
    def send(self, data: bytes, nodes: Collection[int]) -> None:
        """Send ``data`` (at most 1,200 bytes) to each of ``nodes`` on every heartbeat network; never blocks.

        A network that cannot send counts an error and is tried again the next time.

        Raises:
            UsageError: An unknown node id, or data longer than 1,200 bytes.
        """

    @abstractmethod
    def set_peers(self, peers: Mapping[int, Sequence[IPAddress]]) -> None:
        """Replace the peers: to nodes that are new can be sent at once, those that are gone are unknown.

        May be called before ``open``, and while it is open; sockets, counts and what was said about peers
        that stay are not touched. What a peer that is gone sent before need not be delivered any more.

        Args:
            peers: For each other node its address on each heartbeat network, as in the constructor.

        Raises:
            UsageError: The networks of this node and of a peer do not match; nothing was changed.
        """

    @abstractmethod
    def poll(self) -> int:
        """Deliver at once every datagram that is already queued; returns how many. Never blocks.

        The node calls it after a late turn, before it judges who is silent.
        """

    @abstractmethod
    def stats(self) -> HeartbeatStats:
        """Return the counts."""

    @abstractmethod
    async def close(self) -> None:
        """Close the sockets; nothing is delivered afterwards."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one look at a resource found.

    Args:
        ok: ``True`` if it is healthy.
        detail: What was seen, for a person: ``"HTTP 503 from http://127.0.0.1/health"``.
    """

    ok: bool
    detail: str


class Checker(ABC):
    """Looks at one resource of this node. Interval, timeout, rise and fall are the runtime's business.

    A plug-in is constructed with the entry's ``options`` as keyword arguments; that opens nothing yet.
    """

    @abstractmethod
    async def check(self) -> CheckResult:
        """Look once. The runtime cancels it at the configured timeout and counts that as a failure.

        A resource that is down is a result, not an exception; an exception counts as a failure
        and is reported as a fault of the checker.
        """

    async def close(self) -> None:
        """Release what the checker holds open."""
        return None


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """What a service is told of the node that it runs on.

    Args:
        farm: Name of the farm.
        node: Name of this node.
        vips: The farm's virtual IPs.
        service: The service's name in the configuration.
        runtime_dir: A directory of the farm's own that a reboot empties (``/run/nlbfarm/<farm>``); what a
            later process of the node must find again after ``kill -9`` goes there.
        state_dir: A directory of the farm's own that stays (``/var/lib/nlbfarm/<farm>``): output goes there.
    """

    farm: str
    node: str
    vips: Sequence[IPAddress]
    service: str
    runtime_dir: Path
    state_dir: Path


class Service(ABC):
    """An application that the node can start and stop.

    When it is started, stopped and restarted is the node's business (``nlbfarm.core.supervision``), and so
    is how long a start may take: ``start`` is cancelled then. Calls never overlap, but for ``running`` and
    ``ended``. A plug-in is constructed as ``(context, **options)``, with a ``ServiceContext`` and the entry's
    ``options``; that does nothing yet.
    """

    @abstractmethod
    async def start(self, reason: str) -> None:
        """Start it; returns when it has been started, not when it answers (checkers see that).

        What runs already is left running and counts as started: so the next process of a node takes over
        what the one before left.

        Args:
            reason: Why, for a script or a log: ``"the node starts"``.

        Raises:
            HostError: It cannot be started, with the reason that the host gave; nothing of it runs then.
        """

    @abstractmethod
    async def stop(self, reason: str) -> None:
        """Stop it, from polite to forced; returns when it is gone, with all of its processes. Idempotent.

        Args:
            reason: Why: ``"checker page: HTTP 503 from http://127.0.0.1/health"``.

        Raises:
            HostError: Something of it cannot be stopped.
        """

    @abstractmethod
    async def running(self) -> CheckResult:
        """Say whether it runs, as the host knows (its manager, its processes); takes milliseconds."""

    async def ended(self) -> str:
        """Return, with why, when an application that runs has come to its end without ``stop``.

        Called once after each ``start`` and cancelled by the next ``stop``. This one asks ``running`` every
        second; an implementation that is told at once overrides it.
        """
        while True:
            result = await self.running()
            if not result.ok:
                return result.detail
            await asyncio.sleep(1.0)

    async def close(self) -> None:
        """Release what the object holds open; the application stays as it is, running or not.

        The node calls it without ``stop`` when a new process takes over (an upgrade): that one's ``start``
        finds the application running.
        """
        return None


@dataclass(frozen=True, slots=True)
class VipSpec:
    """A virtual IP to bring up.

    Args:
        address: The address.
        interface: Name of the interface.
        delivery: ``"multicast"``; others follow.
        group_mac: The multicast MAC that clients send to, ``"01:00:5e:7f:02:64"``.
    """

    address: IPAddress
    interface: str
    delivery: str
    group_mac: str


class VIPManager(ABC):
    """Brings virtual IPs up and down on this host and leaves the host as it was.

    Everything is written to a journal before it is changed, so that ``close``, the next
    ``open`` after a ``kill -9`` and ``cleanup`` put back exactly what is still as we left it.
    Constructed as ``(specs, journal)``: the ``VipSpec`` of each VIP, and the path of the journal.
    """

    @abstractmethod
    async def open(self) -> Sequence[str]:
        """Check rights and interfaces, and put back what a killed process left (the journal).

        Returns:
            A line for each thing put back.

        Raises:
            HostError: A right or an interface is missing; nothing was changed.
        """

    @abstractmethod
    async def claimed(self) -> Mapping[IPAddress, str]:
        """Ask the network who already answers for the VIPs (RFC 5227 probe).

        Returns:
            The MAC of a stranger for each VIP that one answers for. The farm's own group MAC is
            no stranger.
        """

    @abstractmethod
    async def up(self) -> None:
        """Bring every VIP up: address, then MAC and ARP, then an announcement. Idempotent.

        Call it only with the filter in place.

        Raises:
            HostError: One cannot be brought up; what was done so far is taken back.
        """

    @abstractmethod
    async def down(self) -> None:
        """Take every VIP away, in the reverse order. Idempotent."""

    @abstractmethod
    async def announce(self) -> None:
        """Send gratuitous ARP for every VIP that is up, with the group MAC (RFC 5227 section 3)."""

    @abstractmethod
    async def reachable(self, addresses: Collection[IPAddress]) -> frozenset[IPAddress]:
        """Return those of ``addresses`` that answer ARP on a VIP's interface within 100 ms or so.

        Addresses that are not on the network of any VIP's interface do not answer.
        """

    @abstractmethod
    def present(self) -> Mapping[IPAddress, bool]:
        """Say for each VIP whether its address is on its interface now."""

    @abstractmethod
    async def close(self) -> None:
        """Take every VIP away and put the host back; the journal is empty afterwards."""

    @abstractmethod
    async def cleanup(self) -> Sequence[str]:
        """Put back what a killed process left; a line for each thing. Needs no ``open``."""
