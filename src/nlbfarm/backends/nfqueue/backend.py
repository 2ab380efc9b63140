"""The NFQUEUE backend: what the node talks to."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from nlbfarm.backends.bucketing import load_function, reference_of
from nlbfarm.backends.netlink import NFPROTO_INET
from nlbfarm.backends.nfqueue.queueing import has_statement
from nlbfarm.backends.nfqueue.render import Queueing
from nlbfarm.backends.nfqueue.table import FAMILIES, QueueTable, can_hash, missing, remove_tables
from nlbfarm.backends.nfqueue.team import Team
from nlbfarm.backends.nfqueue.worker import NO_LIBRARY, QUEUES
from nlbfarm.backends.nftables import NftablesBackend, check_right
from nlbfarm.backends.renewal import Renewal
from nlbfarm.backends.ruleset import table_name
from nlbfarm.backends.table import Table
from nlbfarm.core.buckets import BucketStates
from nlbfarm.core.judging import BucketFunction
from nlbfarm.core.policy import FilterPolicy
from nlbfarm.errors import HostError, UsageError
from nlbfarm.interfaces import FilterCounters, Usability
from nlbfarm.nft import Nft

__all__ = ["MAX_QUEUES", "BucketPath", "NfqueueBackend"]

MAX_QUEUES = 16
"""The most queues, and processes, that may be asked for."""

BucketPath = Literal["auto", "kernel", "python"]

_LOG = logging.getLogger(__name__)


class NfqueueBackend(NftablesBackend):
    """Lets processes of its own decide about new flows; the kernel goes by what they decided.

    Tables, lease, flows, damage and repair are those of the nftables backend. It needs what that needs, but
    not the kernel's hash, and beside it a kernel that can queue packets and the package ``netfilterqueue``.

    Args:
        queues: Queues, with a process each, 1..16: for more new flows a second than one core decides.
        bucket: A bucket function of a vendor's own, or ``"package.module:name"`` of one. The processes import
            it by name.
        path: Who computes the bucket: ``"kernel"``, ``"python"``, or what works here.

    Raises:
        UsageError: An argument is wrong, or the function cannot be imported.
    """

    name = "nfqueue"

    _families = (NFPROTO_INET, *FAMILIES.values())

    def __init__(
        self, *, queues: int = 1, bucket: BucketFunction | str | None = None, path: BucketPath = "auto"
    ) -> None:
        super().__init__()
        if not 1 <= queues <= MAX_QUEUES:
            raise UsageError(f"{queues} queues: give 1 to {MAX_QUEUES}")
        if path not in ("auto", "kernel", "python"):
            raise UsageError(f'path {path!r}: give "auto", "kernel" or "python"')
        if isinstance(bucket, str):
            bucket = load_function(bucket)
        self._function = reference_of(bucket) if bucket is not None else ""
        if self._function and path == "kernel":
            raise UsageError("the kernel knows no bucket function but its own: leave path or bucket out")
        self._queues = queues
        self._path: BucketPath = "python" if self._function else path
        self._team: Team | None = None
        self._applied: Mapping[str, BucketStates] = {}
        self._policy: FilterPolicy | None = None
        self._changing = asyncio.Lock()
        self._dropped = (0, 0)  # by queues that are gone: full, lost

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        return [] if self._team is None else self._team.processes

    @property
    def statement(self) -> bool:
        """Whether packets are queued by nft's own statement, and not by the target of iptables."""
        return isinstance(self._table, QueueTable) and self._table.statement

    @classmethod
    async def probe(cls) -> Usability:
        return await asyncio.to_thread(_probe)

    async def open(self, policy: FilterPolicy, on_damage: Callable[[str], None]) -> None:
        await super().open(policy, on_damage)
        assert self._team is not None
        assert self._loop is not None
        self._team.watch(self._loop)

    async def apply(self, states: Mapping[str, BucketStates]) -> None:
        table, flows = self._opened(), self._flows
        assert flows is not None
        table.require_groups(states)
        # Halfway through, the workers would go by states that the next call does not know of.
        await asyncio.shield(self._apply(dict(states)))

    async def _apply(self, states: Mapping[str, BucketStates]) -> None:
        async with self._changing:
            table, flows, team = self._opened(), self._flows, self._team
            assert flows is not None
            assert team is not None
            flows.opening(states)
            # First who decides, then the memory of what was decided: nothing old gets in there afterwards.
            await team.tell(self._in_order(states))
            try:
                await self._run(table.apply, states)
            except HostError:
                await team.tell(self._in_order(self._applied))
                raise
            self._applied = states
            flows.opened(states)

    def _in_order(self, states: Mapping[str, BucketStates]) -> list[BucketStates]:
        assert self._policy is not None
        return [states.get(group.name, BucketStates()) for group in self._policy.groups]

    def lease(self, seconds: float) -> bool:
        now = time.monotonic()
        taken = super().lease(seconds)
        team = self._team
        if team is None:
            return False
        if taken and (hung := team.hung(now)):
            assert self._loop is not None
            self._loop.call_soon(self._damage, hung)
            taken = False
        return taken

    async def repair(self) -> None:
        self._opened()
        async with self._changing:
            team, table = self._team, self._opened()
            assert team is not None
            assert self._loop is not None
            assert isinstance(table, QueueTable)
            if not team.complete:
                await self._run(self._note_drops)
                team.ignore(self._loop)
                await self._run(team.start)
                team.watch(self._loop)
                queueing = Queueing(team.first_queue, self._queues, table.statement, table.hashing)
                table.ask_by(team.marks, queueing)
            await super().repair()
            if not team.complete:  # while the table was built, nobody was told
                self._loop.call_soon(self._damage, "a worker of the packet queue has ended")

    async def counters(self) -> FilterCounters:
        found = await super().counters()
        full, lost = await self._run(self._drops)
        assert self._team is not None
        other = dict(found.other)
        other["malformed"] = other.get("malformed", 0) + self._team.malformed()
        return FilterCounters(found.groups, {**other, "queue-full": full, "lost": lost})

    async def close(self) -> None:
        team, self._team = self._team, None
        if team is not None and self._loop is not None:
            team.ignore(self._loop)
        try:
            await super().close()
        finally:
            if team is not None:
                await asyncio.to_thread(team.end)

    @classmethod
    async def cleanup(cls, farm: str) -> Sequence[str]:
        return await asyncio.to_thread(_cleanup, farm)

    def _make_table(self, policy: FilterPolicy) -> Table:
        nft = Nft()
        try:
            if problem := missing(nft):
                raise HostError(problem)
            hashing = self._path != "python" and can_hash(nft)
            statement = has_statement(nft)
        finally:
            nft.close()
        if self._path == "kernel" and not hashing:
            raise HostError("this kernel computes no hash for nftables (CONFIG_NFT_HASH)")
        self._policy = policy
        self._applied = {}
        self._team = Team(
            policy,
            self._queues,
            hashing=hashing,
            function=self._function,
            on_trouble=self._damage,
            on_note=_LOG.error,
        )
        self._team.start()
        queueing = Queueing(self._team.first_queue, self._queues, statement, hashing)
        return QueueTable(policy, self._team.marks, queueing)

    def _drops(self) -> tuple[int, int]:
        """Return how many packets the kernel dropped because a queue was full, and because a worker was."""
        full, lost = self._dropped
        team = self._team
        if team is None:
            return full, lost
        ours = range(team.first_queue, team.first_queue + self._queues)
        with contextlib.suppress(OSError):
            for line in QUEUES.read_text().splitlines():
                fields = [int(field) for field in line.split()]
                if fields[0] in ours:
                    full += fields[5]
                    lost += fields[6]
        return full, lost

    def _note_drops(self) -> None:
        self._dropped = self._drops()


def _probe() -> Usability:
    if not hasattr(os, "memfd_create"):
        return Usability(False, "NFQUEUE is a part of Linux, and this is another system")
    if importlib.util.find_spec("netfilterqueue") is None:
        return Usability(False, NO_LIBRARY.format(error="not installed"))
    try:
        check_right()
        Renewal({4}).close()
        nft = Nft()
    except HostError as error:
        return Usability(False, _plain(error))
    try:
        if problem := missing(nft):
            return Usability(False, _plain(problem))
        way = "nft's queue statement" if has_statement(nft) else "the target NFQUEUE"
        who = "the kernel" if can_hash(nft) else "Python"
    except HostError as error:
        return Usability(False, _plain(error))
    finally:
        nft.close()
    return Usability(True, f"new flows decided in Python, queued by {way}, their bucket computed by {who}")


def _plain(problem: HostError | str) -> str:
    return str(problem).removeprefix("nftables: ")


def _cleanup(farm: str) -> list[str]:
    name = table_name(farm)
    nft = Nft()
    try:
        found = remove_tables(nft, name)
    finally:
        nft.close()
    return [f"removed the nftables table {family} {name}" for family in found]
