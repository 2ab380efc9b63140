"""The nftables backend: the rule runs in the kernel, the process only says which buckets are its own.

One worker thread runs every transaction (``table.py``, through libnftables); the event loop renews the
lease (``renewal.py``) and hears of changes that somebody else makes (``watch.py``). A second thread counts
flows (``flows.py``): no change waits for that. ``render.py`` is the packet path.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nlbfarm.backends.conntrack import obstacle
from nlbfarm.backends.flows import FlowWatch
from nlbfarm.backends.marks import MAX_LEASE_S, Marks
from nlbfarm.backends.netlink import NETLINK_NETFILTER, NFPROTO_INET, SUBSYSTEM
from nlbfarm.backends.renewal import Outcome, Renewal
from nlbfarm.backends.ruleset import close_script, table_name
from nlbfarm.backends.table import Table, diagnose
from nlbfarm.backends.watch import Change, TableWatch
from nlbfarm.core.buckets import Bitmap, BucketStates
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import FilterBackend, FilterCounters, Usability
from nlbfarm.nft import LIBRARY, Nft

__all__ = ["NftablesBackend", "check_right"]

_T = TypeVar("_T")

_GETGEN = 16  # NFT_MSG_GETGEN, linux/netfilter/nf_tables.h
_REQUEST, _ERROR = 1, 2  # NLM_F_REQUEST, NLMSG_ERROR
_ANSWER_S = 1.0


class NftablesBackend(FilterBackend):
    """Enforces the rule in nftables, in a table of its own: ``inet nlbfarm_<farm>``.

    It needs CAP_NET_ADMIN in the network namespace it works in, and ``libnftables.so.1`` on the host.
    """

    name = "nftables"

    _families: Collection[int] = (NFPROTO_INET,)
    """Of the tables that are watched."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._table: Table | None = None
        self._watch: TableWatch | None = None
        self._renewal: Renewal | None = None
        self._flows: FlowWatch | None = None
        self._marks: Marks | None = None  # None: no table of ours may be leased now
        self._port_id: int | None = None
        self._building = False
        self._held: list[Change] = []  # what was heard while the table was being built
        self._held_loss = False
        self._damaged = False
        self._on_damage: Callable[[str], None] = lambda _: None
        self._looking: asyncio.Task[None] | None = None

    @classmethod
    async def probe(cls) -> Usability:
        return await asyncio.to_thread(_probe)

    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        if self._worker is not None:
            raise UsageError(f"the {self.name} backend is open already")
        self._loop = asyncio.get_running_loop()
        self._on_damage = on_damage
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nlbfarm-nftables")
        try:
            self._renewal = Renewal({vip.address.version for vip in policy.vips})
            self._watch = TableWatch(table_name(policy.farm), self._families)
            self._table = await self._run(self._make_table, policy)
            self._loop.add_reader(self._watch.fileno(), self._changed)
            await self._build()
            self._flows = FlowWatch(policy)
        except BaseException:
            await self.close()
            raise

    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        table, flows = self._opened(), self._flows
        assert flows is not None
        flows.opening(states)
        await self._run(table.apply, dict(states))
        flows.opened(states)

    def lease(self, seconds: float) -> bool:
        self._opened()
        if not seconds <= MAX_LEASE_S:  # nor NaN
            raise UsageError(f"a lease of {seconds} s: give at most {MAX_LEASE_S} s")
        if self._marks is None or self._renewal is None:
            return False
        outcome, _ = self._renewal.send(self._marks, seconds)
        if outcome is Outcome.PASSED and self._loop is not None:
            self._loop.call_soon(self._damage, Outcome.PASSED.value)
        return outcome is Outcome.TAKEN

    async def repair(self) -> None:
        self._opened()
        await self._build()

    async def flows(self, buckets: Mapping[str, Bitmap]) -> Mapping[str, Mapping[int, int]]:
        self._opened().require_groups(buckets)
        assert self._flows is not None
        return await self._flows.count(buckets)

    async def counters(self) -> FilterCounters:
        return await self._run(self._opened().counters)

    async def close(self) -> None:
        self._marks = None
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._watch is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None
        if self._renewal is not None:
            self._renewal.close()
            self._renewal = None
        if self._flows is not None:
            self._flows.close()
            self._flows = None
        table, self._table = self._table, None
        try:
            if table is not None:
                await self._run(table.remove)
        finally:
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.shutdown(wait=False)

    @classmethod
    async def cleanup(cls, farm: str) -> Sequence[str]:
        return await asyncio.to_thread(_cleanup, farm)

    def _make_table(self, policy: FilterPolicy) -> Table:
        return Table(policy)

    def _opened(self) -> Table:
        if self._table is None:
            raise UsageError(f"the {self.name} backend is not open")
        return self._table

    async def _run(self, job: Callable[..., _T], *arguments: object) -> _T:
        assert self._loop is not None
        return await self._loop.run_in_executor(self._worker, job, *arguments)

    async def _build(self) -> None:
        """Make the table and find out under which port id the kernel knows us."""
        table, watch, renewal = self._opened(), self._watch, self._renewal
        assert watch is not None
        assert renewal is not None
        self._marks = None
        self._building, self._held, self._held_loss = True, [], False
        try:
            marks = await self._run(table.build)
            outcome, reason = renewal.send(marks, 0)
            if outcome is not Outcome.TAKEN:
                raise HostError(
                    "the lease of the packet filter cannot be renewed through the loopback interface"
                    f"{f' ({reason})' if reason else ''}: is it up (ip link set lo up), with its address?"
                )
            self._changed(everything=True)
        finally:
            self._building = False
        heard, lost = self._held, self._held_loss
        self._held = []
        made = [index for index, change in enumerate(heard) if change.created]
        ours = [index for index in made if heard[index].port_id == self._port_id] or made
        self._port_id = heard[ours[-1]].port_id if ours else None
        self._marks = marks
        self._damaged = False
        since = heard[ours[-1] + 1 :] if ours else []
        foreign = self._by_others(since)
        if foreign:  # what table.build recorded may have been their work already, so do not compare
            assert self._loop is not None
            self._loop.call_soon(self._damage, _sentence(foreign[0]))
        elif lost or not ours:
            self._look()

    def _changed(self, *, everything: bool = False) -> None:
        """Read the notifications; the event loop calls it."""
        if self._watch is None:
            return
        changes, lost = self._watch.read(everything=everything)
        if self._building:
            self._held.extend(changes)
            self._held_loss |= lost
            return
        self._judge(changes)
        if lost:
            self._look()

    def _judge(self, changes: Sequence[Change]) -> None:
        foreign = self._by_others(changes)
        for change in foreign:
            if change.removed:
                self._damage(_sentence(change))
        if foreign:
            # libnftables might have opened another socket: have a look before an alarm.
            self._look()

    def _by_others(self, changes: Sequence[Change]) -> list[Change]:
        ours = {self._port_id, self._opened().port_id}
        return [change for change in changes if change.port_id not in ours]

    def _look(self) -> None:
        if self._loop is None or self._damaged:
            return
        if self._looking is None or self._looking.done():
            self._looking = self._loop.create_task(self._compare(), name="nlbfarm-nftables-compare")

    async def _compare(self) -> None:
        difference = await self._run(self._opened().difference)
        if difference:
            self._damage(difference)

    def _damage(self, reason: str) -> None:
        if self._damaged or self._marks is None or self._renewal is None:
            return
        self._damaged = True
        self._renewal.send(self._marks, 0)  # what is left of the table shall accept nothing
        self._marks = None
        self._on_damage(reason)


def _sentence(change: Change) -> str:
    return f"somebody else touched the packet filter of this farm: {change.kind}"


def _probe() -> Usability:
    if sys.platform != "linux":
        return Usability(False, "nftables is a part of the Linux kernel; this is not Linux")
    try:
        # First: without the right, libnftables writes to standard error by itself, past its buffers.
        check_right()
        Renewal({4}).close()
        nft = Nft()
    except HostError as error:
        return Usability(False, _plain(error))
    try:
        problem = diagnose(nft)
    except HostError as error:
        problem = str(error)
    finally:
        nft.close()
    if problem:
        return Usability(False, _plain(problem))
    detail = f"nftables in the kernel, through {LIBRARY}"
    if unseen := obstacle():
        detail += f"; a drain always lasts for drain_timeout here, because {unseen}"
    return Usability(True, detail)


def _plain(problem: HostError | str) -> str:
    return str(problem).removeprefix("nftables: ")  # whoever asks says the backend's name


def check_right() -> None:
    """Make sure that nf_tables may be asked: it checks CAP_NET_ADMIN before it looks at any message.

    Raises:
        HostError: It may not.
    """
    request = struct.pack("=IHHIIBBH", 20, SUBSYSTEM << 8 | _GETGEN, _REQUEST, 0, 0, 0, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asking:
            asking.settimeout(_ANSWER_S)
            asking.bind((0, 0))
            asking.send(request)
            answer = asking.recv(4096)
    except OSError:
        return  # Nft says what is missing
    _, kind, _, _, _, number = struct.unpack_from("=IHHIIi", answer)
    if kind == _ERROR and number == -errno.EPERM:
        raise HostError(
            "no right to change packet filters: it needs root or the capability CAP_NET_ADMIN "
            "(systemd: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW)"
        )


def _cleanup(farm: str) -> list[str]:
    name = table_name(farm)
    nft = Nft()
    try:
        tables = [item["table"] for item in nft.read("list tables inet") if "table" in item]
        if not any(table["name"] == name for table in tables):
            return []
        nft.run(close_script(farm))
    finally:
        nft.close()
    return [f"removed the nftables table inet {name}"]
